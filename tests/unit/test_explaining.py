"""The story of a task says what it waits for: every reason, in the words of the state it is in."""

from __future__ import annotations

from typing import Any

import pytest

from jobflowd import explaining, views
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.model import (
    SOLO_SLOT,
    SOLO_WORKER,
    Attempting,
    Facts,
    LaunchRecord,
    LaunchState,
    Snapshot,
    Task,
    TaskState,
    Worker,
)


def a_worker(**values: Any) -> Worker:
    found = Worker(1, "w-1", "zmq", "n1", 7, 1, registered=True)
    for name, value in values.items():
        setattr(found, name, value)
    return found


def a_run(*workers: Worker, launcher: str = "multiprocess") -> Coordinator:
    snapshot = Snapshot({"wanted": 3}, {}, [], 0, list(workers), [], 1, 9, 1, 1)
    coordinator = Coordinator(Settings("s", "p", launcher=launcher), snapshot, 1)
    coordinator.book.begin(100.0, 1000.0, Facts())
    coordinator.book.generated = True
    for worker in workers:
        worker.registered = True
    return coordinator


def a_task(state: TaskState = TaskState.QUEUED, **values: Any) -> Task:
    return Task(1, "t1", state, 0, 1, **values)


def why(coordinator: Coordinator, task: Task, before: int = 0) -> str:
    return "\n".join(explaining.reasons(coordinator, task, before))


def test_nothing_holds_it() -> None:
    assert "next worker that asks" in why(a_run(a_worker(credit=1)), a_task())


def test_behind_others_and_all_workers_busy() -> None:
    text = why(a_run(a_worker(credit=0)), a_task(), before=1234)
    assert "1,234 ready tasks are before it" in text
    assert "the only worker is busy, with 0 tasks" in text


@pytest.mark.parametrize(
    ("solo", "words"), [(SOLO_WORKER, "alone to one"), (SOLO_SLOT, "never behind another")]
)
def test_solo(solo: int, words: str) -> None:
    assert words in why(a_run(a_worker(credit=1)), a_task(solo=solo))


def test_paused_ending_and_a_failed_generation() -> None:
    coordinator = a_run(a_worker(credit=1))
    coordinator.book.paused = True
    assert "jobflowctl resume" in why(coordinator, a_task())
    coordinator.book.finishing = "shutdown"
    assert "for the next start" in why(coordinator, a_task())
    coordinator.book.generation_error = "no input"
    assert "no input" in why(coordinator, a_task())


def test_back_off_and_held_for_a_survivor() -> None:
    coordinator = a_run(a_worker(credit=1))
    text = why(coordinator, a_task(due=102.5, error="ValueError: no"))
    assert "waits 2.5 s more" in text
    assert "ValueError: no" in text
    coordinator.book.deadlines.set("hold", 130.0)
    text = why(coordinator, a_task(held=True, worker=1, current=4))
    assert "held for up to 30 s for w-1 on n1, which had attempt 4" in text


def test_no_worker_says_what_becomes_of_the_launches() -> None:
    assert "jobflow-worker --session" in why(a_run(launcher="none"), a_task())
    coordinator = a_run()
    assert "3 are wanted" in why(coordinator, a_task())
    coordinator.book.launches["l1"] = LaunchRecord(
        1, "l1", "slurm", LaunchState.PENDING, reason="Priority"
    )
    assert "1 pending (Priority)" in why(coordinator, a_task())


def test_workers_that_take_nothing() -> None:
    assert "w-1 is leaving" in why(a_run(a_worker(credit=1, shutdown="drain")), a_task())
    task = a_task(time_request_s=7200.0)
    assert "7200 s left" in why(a_run(a_worker(credit=1, time_left_s=600.0)), task)


def test_with_its_worker() -> None:
    worker = a_worker(heard_at=96.0, lease_until=150.0)
    coordinator = a_run(worker)
    worker.heard_at, worker.lease_until = 96.0, 150.0
    task = a_task(TaskState.RUNNING, worker=1, current=2, timeout_s=60.0)
    worker.attempts["t1"] = Attempting(task, 2, 1, 0.0, running=True, started_at=988.0)
    text = why(coordinator, task)
    assert "attempt 2 has run for 12 s on worker w-1 on n1" in text
    assert "its time limit is 60 s" in text
    assert "heard 4 s ago, its lease ends in 50 s" in text
    held = explaining.holder(coordinator.book, task)
    assert held is not None
    assert (held["worker_id"], held["attempt"]) == ("w-1", 2)
    task.state = TaskState.ASSIGNED
    worker.attempts["t1"].running = False
    worker.attempts["t2"] = Attempting(a_task(), 1, 1, 0.0, running=True)
    assert "runs 1 other task first" in why(coordinator, task)


def test_the_end_and_the_budgets() -> None:
    coordinator = a_run()
    task = a_task(TaskState.FAILED, failures=3, losses=1, error="ValueError: no")
    assert "its 3 tries failed: ValueError: no" in why(coordinator, task)
    assert explaining.budgets(task, coordinator.book) == {
        "retries_left": 0,
        "losses_left": 1,
        "deliveries_left": 50,
    }
    assert why(coordinator, a_task(TaskState.SUCCEEDED)) == "it has its result"
    assert "retry" in why(coordinator, a_task(TaskState.CANCELED))


def ended(outcome: str, cause: str = "", charged: str = "") -> dict[str, str]:
    return {"outcome": outcome, "cause": cause, "charged": charged}


@pytest.mark.parametrize(
    ("attempts", "words"),
    [
        ([], "no attempt has ended: because."),
        ([ended("succeeded")], "1 attempt: because."),
        (
            [
                *[ended("failed", "exception", "retries")] * 3,
                *[ended("returned", "walltime")] * 2,
                ended("unknown", "restart"),
            ],
            "6 attempts (3 charged to retries; 3 not charged: walltime x 2, restart): because.",
        ),
        (
            [
                *[ended("failed", "exception", "retries")] * 4,
                ended("lost", "lease expired", "losses"),
            ],
            "5 attempts (3 charged to retries; 1 charged to losses; 1 before an operator's retry):"
            " because.",
        ),
        (
            [
                *[ended("failed", "timeout", "retries")] * 3,
                ended("failed", "exception"),
                ended("lost", "preempted"),
            ],
            "5 attempts (3 charged to retries; 2 not charged: exception on a suspected worker or "
            "after the end, preempted): because.",
        ),
    ],
)
def test_the_counts_of_a_story_add_up(attempts: list[dict[str, str]], words: str) -> None:
    charged = [one["charged"] for one in attempts]
    failures = min(3, charged.count("retries"))
    task = a_task(TaskState.FAILED, failures=failures, losses=charged.count("losses"))
    account = explaining.accounts(task, attempts)
    detail = {"task_id": "t1", "state": "failed", "attempts": attempts}
    assert explaining.tale(detail, account, ["because"]) == f"t1 is failed, {words}"
    without = sum(account["uncharged"].values()) + account["before_retry"]
    succeeded = sum(one["outcome"] == "succeeded" for one in attempts)
    assert account["retries"] + account["losses"] + without + succeeded == len(attempts)


def test_a_run_that_has_done_all_is_done_when_its_last_worker_has_left() -> None:
    """Whoever follows a telemetry file waits for this word."""
    worker = a_worker()
    coordinator = a_run(worker)
    coordinator.book.finishing = "done"
    seen = views.take_census(coordinator, started_at=0.0)
    assert (seen.state, seen.state_reason) == ("draining", "done: 1 worker is leaving")
    worker.registered = False
    assert views.take_census(coordinator, started_at=0.0).state == "done"
    coordinator.book.generated = False
    assert views.take_census(coordinator, started_at=0.0).state == "draining"


def test_a_census_counts_workers_without_a_view_of_each_and_makes_only_those_looked_at() -> None:
    busy, idle, away = (a_worker(worker_id=name, row=row) for row, name in enumerate("abc", 1))
    coordinator = a_run(busy, idle, away)
    busy.attempts = {"t1": Attempting(a_task(), 1, 1, 0.0)}
    away.registered = False
    seen = views.take_census(coordinator, started_at=0.0)
    assert (seen.worker_counts, seen.workers_offline) == ({"busy": 1, "idle": 1}, 1)
    assert [one.state for one in seen.workers] == ["busy", "idle"]
    assert [one.worker_id for one in seen.workers[1:]] == ["b"]
    assert len(seen.workers) == 2
