"""A worker on a broken node is told from a program that fails everywhere."""

from __future__ import annotations

import pytest

from jobflow_worker.messages import Failed, Usage
from jobflowd import quarantine
from jobflowd.book import Book, Settings
from jobflowd.model import Snapshot, Worker, WorkerState


def failed(cause: str = "exception", seconds: float = 0.1) -> Failed:
    usage = Usage(seconds, 0.0, 0)
    return Failed("t", 1, cause, "OSError: no space", "", None, None, usage, "")


@pytest.fixture
def book() -> Book:
    book = Book(Settings("s", "p.py"), Snapshot({}, {}, [], 0, [], [], 1, 1, 1, 1), 1)
    for row, host in enumerate(("good", "bad"), start=1):
        worker = Worker(row, f"{host}-0000000000000000", "zmq", host, 1, 1, registered=True)
        book.workers[worker.worker_id] = book.by_row[row] = worker
    book.now = 100.0
    return book


def fail_tasks(book: Book, worker: Worker, tasks: range, **how: float) -> list[bool]:
    return [quarantine.on_failure(book, worker, failed(**how), task) for task in tasks]


def test_a_black_hole_is_taken_out_and_its_failures_are_not_charged(book: Book) -> None:
    good, bad = book.by_row[1], book.by_row[2]
    assert quarantine.on_failure(book, bad, failed(), 0)
    quarantine.on_success(book, good)
    charged = fail_tasks(book, bad, range(1, 10))
    assert charged == [True] + [False] * 8
    assert bad.state is WorkerState.QUARANTINED
    assert "10 different tasks" in bad.reason
    assert book.deadlines.get(("quarantine", bad.worker_id)) == 100.0 + quarantine.QUARANTINE_S
    quarantine.end(book, bad, "its time is over")
    assert bad.state is WorkerState.ONLINE
    assert bad.streak == {}


def test_a_program_that_fails_everywhere_is_charged_everywhere(book: Book) -> None:
    bad = book.by_row[2]
    assert all(fail_tasks(book, bad, range(50)))
    assert bad.state is WorkerState.ONLINE


def test_the_last_host_is_never_taken_out(book: Book) -> None:
    good, bad = book.by_row[1], book.by_row[2]
    fail_tasks(book, bad, range(1))
    quarantine.on_success(book, good)
    good.registered = False
    assert all(fail_tasks(book, bad, range(1, 50)))
    assert bad.state is WorkerState.ONLINE


@pytest.mark.parametrize("how", [{"seconds": 5.0}, {"cause": "canceled"}])
def test_slow_failures_and_successes_end_a_streak(book: Book, how: dict[str, float]) -> None:
    good, bad = book.by_row[1], book.by_row[2]
    fail_tasks(book, bad, range(9))
    quarantine.on_success(book, good)
    assert quarantine.on_failure(book, bad, failed(**how), 99)  # type: ignore[arg-type]
    assert bad.streak == {}
    fail_tasks(book, bad, range(9))
    quarantine.on_success(book, bad)
    assert bad.streak == {}


def test_one_task_that_fails_again_and_again_is_no_streak(book: Book) -> None:
    good, bad = book.by_row[1], book.by_row[2]
    fail_tasks(book, bad, range(1))
    quarantine.on_success(book, good)
    assert all(quarantine.on_failure(book, bad, failed(), 0) for _ in range(20))
    assert bad.state is WorkerState.ONLINE
