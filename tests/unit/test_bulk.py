"""Changes of many tasks: every task once, one answer, one page in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from jobflowd import queries
from jobflowd.bulk import PAGE, Bulk
from jobflowd.events import Asked
from jobflowd.model import AttemptRow, Changes, Definition, NewTask, Task, TaskState, Worker
from jobflowd.store import Store

N = 2 * PAGE + 7


class Answers:
    """What operators are told."""

    def __init__(self) -> None:
        self.good: list[tuple[int, dict[str, Any]]] = []
        self.bad: list[tuple[int, str, str]] = []

    def answer(self, ticket: int, body: Mapping[str, Any]) -> None:
        self.good.append((ticket, dict(body)))

    def refuse(self, ticket: int, code: str, message: str, hint: str = "") -> None:
        self.bad.append((ticket, code, message))


@pytest.fixture
def store() -> Iterator[Store]:
    """N tasks: every third failed (half of them by one cause, half by another), others queued."""
    store = Store(":memory:")
    store.open()
    changes = Changes()
    changes.workers[1] = Worker(1, "w", "zmq", "n1", 1, 1)
    for row in range(1, N + 1):
        definition = Definition(f"t{row}", b"s", b"h" * 16, 2, 0, None, None, None)
        changes.new_tasks.append(NewTask(row, row, definition))
        if row % 3 == 0:
            cause = "a" if row % 2 else "b"
            task = Task(row, f"t{row}", TaskState.FAILED, 0, row, finished_at=float(row // 100))
            changes.tasks[row] = task
            changes.attempts.append(
                AttemptRow(row, 1, 1, 1.0, 2.0, "failed", cause, "retries", error=f"no {row}")
            )
    store.commit(changes)
    yield store
    store.close()


def run(bulk: Bulk, *, reply: str) -> list[str]:
    """All pages, each answered; the ids in their order."""
    seen: list[str] = []
    while bulk.jobs:
        for event in bulk.events():
            assert isinstance(event, Asked)
            ids = event.args["task_ids"]
            assert 0 < len(ids) <= PAGE
            assert not bulk.busy
            seen += ids
            bulk.answer(event.ticket, {reply: ids[1:], "unchanged": ids[:1]})
    return seen


def test_cancel_all_reaches_every_open_task_once(store: Store) -> None:
    answers = Answers()
    bulk = Bulk(store, answers)
    assert bulk.takes(5, "cancel", {"all": True}, 1e9)
    seen = run(bulk, reply="canceled")
    assert seen == [f"t{row}" for row in range(1, N + 1) if row % 3]
    [(ticket, body)] = answers.good
    assert (ticket, body["canceled"] + body["unchanged"]) == (5, len(seen))
    assert f"{body['canceled']:,} tasks canceled" in body["message"]


def test_retry_failed_and_by_group(store: Store) -> None:
    answers = Answers()
    bulk = Bulk(store, answers)
    assert bulk.takes(1, "retry", {"failed": True}, 1e9)
    failed = [f"t{row}" for row in range(3, N + 1, 3)]
    assert run(bulk, reply="queued") == failed
    found = queries.failure_groups(store)
    assert [one["signature"] for one in found] == ["a: no N", "b: no N"]
    assert sum(one["count"] for one in found) == len(failed)
    both = []
    for one in found:
        assert bulk.takes(2, "retry", {"group": one["group"]}, 1e9)
        ids = run(bulk, reply="queued")
        assert len(ids) == len(set(ids)) == one["count"]
        assert ids[0] == one["example_task_id"]
        assert one["hosts"] == ["n1"]
        both += ids
    assert sorted(both) == sorted(failed)


def test_what_fails_meanwhile_is_not_retried_again(store: Store) -> None:
    bulk = Bulk(store, Answers())
    [group, _] = queries.failure_groups(store)
    bulk.takes(1, "retry", {"group": group["group"]}, wall=2.5)
    times = dict(store.read("SELECT task_id, finished_at FROM tasks"))
    assert all(times[name] <= 2.5 for name in run(bulk, reply="queued"))


def test_other_requests_and_answers_pass_through(store: Store) -> None:
    answers = Answers()
    bulk = Bulk(store, answers)
    assert not bulk.takes(1, "retry", {"task_ids": ["t3"]}, 1.0)
    assert not bulk.takes(1, "pause", {}, 1.0)
    bulk.answer(7, {"message": "x"})
    bulk.refuse(8, "usage", "no")
    assert (answers.good, answers.bad) == ([(7, {"message": "x"})], [(8, "usage", "no")])


def test_an_unknown_group_is_refused_and_an_empty_one_is_not(store: Store) -> None:
    answers = Answers()
    bulk = Bulk(store, answers)
    assert bulk.takes(1, "retry", {"group": 99}, 1.0)
    assert answers.bad[0][:2] == (1, "not_found")
    assert bulk.takes(2, "retry", {"group": queries.NAMELESS}, 1e9)
    assert run(bulk, reply="queued") == []
    assert answers.good[0][1]["queued"] == 0


def test_a_refused_page_ends_the_request_with_what_was_done(store: Store) -> None:
    answers = Answers()
    bulk = Bulk(store, answers)
    bulk.takes(9, "cancel", {"all": True}, 1e9)
    [first] = bulk.events()
    bulk.answer(first.ticket, {"canceled": first.args["task_ids"]})
    [second] = bulk.events()
    bulk.refuse(second.ticket, "degraded", "The disk is full.")
    [(ticket, code, message)] = answers.bad
    assert (ticket, code, bulk.jobs) == (9, "degraded", 0)
    assert f"{len(first.args['task_ids']):,} tasks were done before" in message
