"""The reading verbs' SQL: published names, stable bounded pages, nothing invented."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from jobflow_worker.messages import ResultFile
from jobflowd import queries
from jobflowd.model import (
    AttemptRow,
    Changes,
    Definition,
    LaunchRecord,
    LaunchState,
    NewTask,
    ResultRow,
    Story,
    Task,
    TaskState,
    Worker,
)
from jobflowd.queries import Page
from jobflowd.store import Store


@pytest.fixture
def memory() -> Iterator[Store]:
    """Twelve tasks, two of each state, t1 and t2 (queued) of which t2 is held; three workers."""
    store = Store(":memory:")
    store.open()
    changes = Changes()
    for row in range(1, 13):
        state = TaskState((row - 1) // 2)
        definition = Definition(f"t{row}", b"spec %d" % row, b"h" * 16, 2, 5, None, None, None)
        changes.new_tasks.append(NewTask(row, row, definition))
        changes.tasks[row] = Task(row, f"t{row}", state, 5, row)
    changes.tasks[2].held = True
    for row in (1, 2, 3):
        changes.workers[row] = Worker(
            row, f"w-{row}", "zmq", f"n{row}", 100 + row, 4, launch_id="l1", batch_job_id="77"
        )
    running, done = changes.tasks[5], changes.tasks[7]
    running.worker, running.issued, running.current, running.started_at = 2, 1, 1, 10.0
    done.failures, done.losses, done.issued, done.current, done.finished_at = 1, 3, 4, 4, 20.0
    changes.attempts = [
        AttemptRow(7, 1, 1, 1.0, 2.0, "failed", "exception", "retries", traceback="boom"),
        AttemptRow(7, 4, 3, 3.0, 4.0, "succeeded", "", "", "SIGX", 1, 1.0, 0.5, 99, "e", "", "out"),
    ]
    changes.results = [ResultRow(7, 4, b"result", None, None, None)]
    changes.launches = {
        row: LaunchRecord(row, f"l{row}", "slurm", LaunchState(row), worker=1 if row == 4 else None)
        for row in range(1, 6)
    }
    changes.stories = [
        Story(float(at), "kind", f"t{at % 3}", None, None, f"text {at}") for at in range(1, 10)
    ]
    store.commit(changes)
    yield store
    store.close()


def walk(ask: Callable[[str | None], Page], name: str) -> list[object]:
    """All pages after one another."""
    found: list[object] = []
    mark: str | None = None
    while True:
        page, mark = ask(mark)
        found += [row[name] for row in page]
        if mark is None:
            return found


def test_a_task_row_has_the_published_names(memory: Store) -> None:
    page, mark = queries.task_page(memory, None, 100)
    assert mark is None
    assert page[4] == {
        "task_id": "t5",
        "state": "running",
        "attempts": 1,
        "worker_id": "w-2",
        "progress": None,
        "started_at": 10.0,
        "finished_at": None,
        "error": None,
    }
    # Done: the worker of the attempt that counted, and only deliveries that left a row.
    assert (page[6]["worker_id"], page[6]["attempts"]) == ("w-3", 2)
    assert (page[0]["worker_id"], page[0]["attempts"]) == (None, 0)


@pytest.mark.parametrize("limit", [1, 3, 11, 12, 13])
def test_pages_join_without_gap_or_repeat(memory: Store, limit: int) -> None:
    everyone = [f"t{row}" for row in range(1, 13)]
    assert walk(lambda mark: queries.task_page(memory, mark, limit), "task_id") == everyone


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("queued", ["t1", "t2"]),
        ("held", ["t2"]),
        ("running", ["t5", "t6"]),
        ("canceled", ["t11", "t12"]),
    ],
)
def test_tasks_of_a_state(memory: Store, state: str, expected: list[str]) -> None:
    assert walk(lambda mark: queries.task_page(memory, mark, 1, state), "task_id") == expected


@pytest.mark.parametrize("state", ["queued", "held"])
def test_a_state_is_listed_from_an_index(memory: Store, state: str) -> None:
    sql = queries._TASKS_HELD if state == "held" else queries._TASKS_IN_STATE
    values = (0,) * sql.count("?")
    steps = [str(step[-1]) for step in memory.read(f"EXPLAIN QUERY PLAN {sql}", values)]
    assert any(step.startswith("SEARCH t USING INDEX tasks_") for step in steps)
    assert not any("SCAN" in step or "TEMP" in step for step in steps)


def test_a_task_in_detail(memory: Store) -> None:
    detail = queries.task_detail(memory, "t7", max_losses=2)
    assert detail is not None
    attempts = detail.pop("attempts")
    assert detail == {
        "task_id": "t7",
        "state": "succeeded",
        "spec": b"spec 7",
        "result": b"result",
        "error": None,
        "priority": 5,
        "retries_left": 1,
        "losses_left": 0,
    }
    assert [attempt["attempt"] for attempt in attempts] == [1, 4]
    assert attempts[1] == {
        "attempt": 4,
        "worker_id": "w-3",
        "host": "n3",
        "batch_job_id": "77",
        "started_at": 3.0,
        "ended_at": 4.0,
        "outcome": "succeeded",
        "cause": "",
        "charged": "",
        "exit_signal": "SIGX",
        "max_rss_bytes": 99,
        "cpu_s": 0.5,
        "error": "e",
        "output_tail": "out",
    }
    assert queries.tracebacks(memory, "t7") == {1: "boom"}


def test_a_result_in_a_file_and_no_result(memory: Store) -> None:
    memory.commit(Changes(results=[ResultRow(8, 1, None, "r8", 10**6, "ab")]))
    with_file = queries.task_detail(memory, "t8", max_losses=2)
    without = queries.task_detail(memory, "t1", max_losses=2)
    assert with_file is not None
    assert without is not None
    assert with_file["result"] == ResultFile("r8", 10**6, "ab")
    assert (without["result"], without["attempts"]) == (None, [])


def test_an_unknown_task_is_none(memory: Store) -> None:
    assert queries.task_detail(memory, "no", max_losses=2) is None
    assert queries.tracebacks(memory, "no") == {}


def test_workers(memory: Store) -> None:
    page, mark = queries.worker_page(memory, None, 2)
    assert mark is not None
    assert page[0] == {
        "worker_id": "w-1",
        "state": "online",
        "host": "n1",
        "pid": 101,
        "slots": 4,
        "transport": "zmq",
        "heartbeat_age_s": None,
        "running": [],
        "done": 0,
        "failed": 0,
        "launch_id": "l1",
        "batch_job_id": "77",
        "time_left_s": None,
    }
    assert [row["worker_id"] for row in queries.worker_page(memory, mark, 2)[0]] == ["w-3"]
    assert queries.worker_page(memory, None, 10, "offline") == ([], None)


def test_launches(memory: Store) -> None:
    page, mark = queries.launch_page(memory, None, 10)
    assert mark is None
    assert page[3] == {
        "launch_id": "l4",
        "system": "slurm",
        "state": "online",
        "batch_job_id": None,
        "submitted_at": None,
        "worker_id": "w-1",
        "reason": "",
        "script": None,
        "output": None,
    }
    (pending,) = queries.launch_page(memory, None, 10, "pending")[0]
    assert pending["launch_id"] == "l2"


def test_events_can_be_followed(memory: Store) -> None:
    first, mark = queries.event_page(memory, None, 4)
    rest, mark = queries.event_page(memory, mark, 100)
    assert [row["at"] for row in first + rest] == [float(at) for at in range(1, 10)]
    assert sorted(first[0]) == ["at", "kind", "launch_id", "task_id", "text", "worker_id"]
    assert queries.event_page(memory, mark, 100) == ([], mark)
    memory.commit(Changes(stories=[Story(99.0, "new", None, "w-1", None, "more")]))
    more, _ = queries.event_page(memory, mark, 100)
    assert [row["kind"] for row in more] == ["new"]


def test_the_events_of_one_task(memory: Store) -> None:
    page, _ = queries.event_page(memory, None, 100, "t1")
    assert [row["at"] for row in page] == [1.0, 4.0, 7.0]


def test_counts(memory: Store) -> None:
    words = [state.word for state in TaskState]
    assert queries.counts(memory) == {"total": 12, "held": 1, **dict.fromkeys(words, 2)}


@pytest.mark.parametrize("mark", ["", "x", "-1", "1.5", "1 OR 1", "9" * 30, "\u00b2"])
def test_a_mark_that_is_none_is_refused(memory: Store, mark: str) -> None:
    with pytest.raises(ValueError, match="page mark"):
        queries.task_page(memory, mark, 10)


def test_a_state_that_is_none_is_refused_with_those_that_are(memory: Store) -> None:
    with pytest.raises(ValueError, match=r"'done' .* use one of queued, assigned, running"):
        queries.task_page(memory, None, 10, "done")


@pytest.mark.parametrize(("limit", "size"), [(-5, 1), (0, 1), (10**9, 12)])
def test_every_limit_is_bounded(
    memory: Store, monkeypatch: pytest.MonkeyPatch, limit: int, size: int
) -> None:
    assert len(queries.task_page(memory, None, limit)[0]) == size
    monkeypatch.setattr(queries, "PAGE_MAX", 3)
    assert len(queries.task_page(memory, None, limit)[0]) <= 3
