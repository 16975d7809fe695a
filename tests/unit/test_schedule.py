"""One turn hands out so much and no more, and very many workers get their tasks in rotation."""

from __future__ import annotations

from collections.abc import Iterable

from jobflowd.book import Book, Settings
from jobflowd.model import Facts, Snapshot, Task, TaskState, Worker, WorkerState
from jobflowd.schedule import PIECE, POST_WORK, WORK_PER_TURN, assign_ready
from jobflowd.walltime import FRESH_S

NOW = 1000.0


class Hall:
    """A book with so many tasks and workers that ask; turns of nothing but handing out."""

    def __init__(self, tasks: int, workers: int, credit: int, seconds: float | None = None) -> None:
        self.book = Book(Settings("s", "p"), Snapshot({}, {}, [], 0, [], [], 1, 1, 1, 1), 1)
        page = [
            Task(n + 1, f"t{n}", TaskState.QUEUED, 0, n, time_request_s=seconds)
            for n in range(tasks)
        ]
        self.book.counts[TaskState.QUEUED] = tasks
        self.book.ready.absorb(page, tasks + 1)
        for n in range(workers):
            self.worker(f"w{n:03}", credit)

    def worker(self, name: str, credit: int, left_s: float | None = None) -> Worker:
        one = Worker(len(self.book.workers) + 1, name, "zmq", "h", 1, 1)
        one.state, one.registered, one.credit = WorkerState.ONLINE, True, credit
        one.time_left_s = left_s
        self.book.know(one)
        self.book.asking[name] = one
        return one

    def turn(self) -> bool:
        """Returns whether the next turn is due at once."""
        self.book.begin(NOW, NOW, Facts())
        self.book.deadlines.drop("ready")
        assign_ready(self.book)
        self.book.check()
        return self.book.deadlines.next() == NOW

    def have(self) -> list[int]:
        return [len(one.attempts) for one in self.book.workers.values()]


def finished(turns: Iterable[bool]) -> int:
    """How many turns it took until none was due at once."""
    for number, due in enumerate(turns, 1):
        if not due:
            return number
    raise AssertionError


def test_a_turn_of_many_workers_is_bounded_and_goes_on_at_once() -> None:
    hall = Hall(10_000, 200, 500)
    assert hall.turn()
    served = [one for one in hall.have() if one]
    assert served == [PIECE] * len(served)
    assert WORK_PER_TURN <= len(served) * (PIECE + POST_WORK) < WORK_PER_TURN + PIECE + POST_WORK
    assert len(hall.book.dirty) == len(served)


def test_each_gets_a_piece_before_anybody_gets_two() -> None:
    hall = Hall(20_000, 100, 500)
    while 0 in hall.have():
        assert hall.turn()
        assert max(hall.have()) == PIECE or 0 not in hall.have()


def test_near_the_end_every_worker_gets_its_part() -> None:
    hall = Hall(200, 200, 500)
    assert finished(hall.turn() for _ in range(100)) > 1
    assert hall.have() == [1] * 200


def test_few_workers_share_one_turn() -> None:
    hall = Hall(10_000, 2, 1000)
    assert hall.turn()
    assert hall.have() == [WORK_PER_TURN // 2] * 2
    hall = Hall(101, 2, 1000)
    assert not hall.turn()
    assert sorted(hall.have()) == [50, 51]


def test_who_has_nothing_is_served_first_and_then_who_gets_a_post_anyway() -> None:
    hall = Hall(10_000, 100, 500)
    hall.turn()
    last = hall.book.workers["w099"]
    hall.turn()
    assert not last.attempts
    for one in hall.book.workers.values():
        one.credit = 0 if one is last or not one.attempts else 500
    hall.book.asking[last.worker_id] = last
    last.credit = 500
    hall.turn()
    assert len(last.attempts) == PIECE
    busy = [one for one in hall.book.workers.values() if one.attempts]
    newest = busy[-1]
    hall.book.begin(NOW, NOW, Facts())
    hall.book.dirty[newest.worker_id] = newest
    before = len(newest.attempts)
    assign_ready(hall.book)
    assert len(newest.attempts) == before + PIECE


def test_no_turn_is_due_when_nobody_has_room() -> None:
    hall = Hall(10_000, 100, 3)
    assert finished(hall.turn() for _ in range(100)) > 1
    assert hall.have() == [3] * 100


def test_no_turn_is_due_when_nothing_fits_anybody() -> None:
    hall = Hall(10, 0, 0, seconds=5000.0)
    for n in range(100):
        hall.worker(f"short{n}", 5, left_s=60.0)
    assert not hall.turn()
    assert sum(hall.have()) == 0


def test_a_worker_without_time_stays_while_another_may_take_the_task() -> None:
    hall = Hall(1, 0, 0, seconds=5000.0)
    short = [hall.worker(f"short{n:03}", 1, left_s=60.0) for n in range(100)]
    long = hall.worker("long", 1, left_s=9000.0)
    for one in short:
        one.registered_at = NOW - FRESH_S - 1
    hall.turn()
    assert len(long.attempts) == 1
    assert not [one for one in short if one.shutdown]


def test_the_next_page_is_asked_for_at_once() -> None:
    hall = Hall(0, 100, 500)
    page = [Task(n + 1, f"t{n}", TaskState.QUEUED, 0, n) for n in range(10)]
    hall.book.counts[TaskState.QUEUED] = 5000
    hall.book.ready.absorb(page, len(page))
    assert hall.turn()
    assert sum(hall.have()) == len(page)
    assert not hall.turn(), "it would go round without end"
