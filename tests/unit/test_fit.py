"""No task is started that cannot end before its worker does: the whole path of the scheduler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_batch_pool import Inside

from jobflow_worker.messages import Finished, Heartbeat, Held, Report, TaskFinished, Usage
from jobflowd import events as ev
from jobflowd import explaining
from jobflowd.effects import Submit
from jobflowd.model import Definition, TaskState, Worker
from jobflowd.store import Store
from jobflowd.walltime import FRESH_S, SAMPLES_MIN

WARNING_S = 100.0


class Fitting(Inside):
    """A pool whose workers have limited time, and say so in each report."""

    def __init__(self, store: Store, workers: int = 1) -> None:
        super().__init__(store, tasks=0, workers=workers, warning_s=WARNING_S, stay=True)
        self.made = 0
        self.reports = 0

    def define(self, *requests: float | None) -> None:
        """Tasks t0, t1, ... that ask for so many seconds; None says nothing."""
        first, self.made = self.made, self.made + len(requests)
        made = (
            Definition(f"t{first + n}", b"x", b"h" * 16, 2, 0, None, seconds, None)
            for n, seconds in enumerate(requests)
        )
        self.turn(ev.Generated(tuple(made)))

    def launched(self) -> Worker:
        """The worker of a launch of ours; there must be work for it."""
        self.after(1.0)
        return self.register(self.submitted()[-1])

    def by_hand(self) -> Worker:
        return self.register("a launch of nobody's")

    def says(self, worker: Worker, left_s: float | None, credit: int = 1) -> list[str]:
        """A report with so much time left; what the worker then has."""
        self.reports += 1
        running = tuple(Held(one.task.task_id, one.attempt) for one in worker.attempts.values())
        number, epoch = self.reports, self.core.book.epoch
        report = Report(epoch, number, worker.seq, 1, credit, running, time_left_s=left_s)
        self.turn(ev.Heard(worker.worker_id, 100 + number, "zmq", Heartbeat(report)))
        return list(worker.attempts)

    def ages(self, worker: Worker, left_s: float) -> None:
        """It has been there for a while, and is idle."""
        for _ in range(int(FRESH_S // 10) + 1):
            self.after(10.0)
            self.says(worker, left_s, 0)

    def ends(self, worker: Worker, duration_s: float) -> None:
        """Its task succeeds."""
        self.reports += 1
        (one,) = worker.attempts.values()
        usage = Usage(duration_s, 0.5, 1000)
        item = Finished(one.task.task_id, one.attempt, b"\x01", None, usage, "")
        message = TaskFinished(0, (item,))
        self.turn(ev.Heard(worker.worker_id, 100 + self.reports, "zmq", message))

    def state(self, task_id: str) -> TaskState:  # type: ignore[override]
        self.store.settle()
        ((found,),) = self.store.read("SELECT state FROM tasks WHERE task_id = ?", (task_id,))
        return TaskState(found)

    def why(self, task_id: str) -> str:
        task = self.core.book.ready.get(task_id)
        assert task is not None
        return "\n".join(explaining.reasons(self.core, task, 0))


@pytest.fixture
def fitting() -> Iterator[Fitting]:
    store = Store(":memory:")
    store.open()
    yield Fitting(store)
    store.close()


def test_up_to_the_warning_and_not_beyond(fitting: Fitting) -> None:
    fitting.define(500.0)
    worker = fitting.launched()
    assert fitting.says(worker, 500.0 + WARNING_S) == ["t0"]


def test_a_smaller_task_behind_a_large_one_is_taken(fitting: Fitting) -> None:
    """By a worker that is busy with another slot: it can use its rest, and stays."""
    fitting.define(None)
    worker = fitting.launched()
    assert fitting.says(worker, 1000.0) == ["t0"]
    fitting.define(901.0, 900.0)
    assert fitting.says(worker, 1000.0) == ["t0", "t2"]
    assert worker.shutdown is None
    assert "901 s left" in fitting.why("t1")


def test_the_time_left_counts_as_of_the_last_report(fitting: Fitting) -> None:
    fitting.define(None, 500.0, 500.0)
    worker = fitting.launched()
    assert fitting.says(worker, 700.0) == ["t0"]
    assert fitting.says(worker, 640.0) == ["t0", "t1"]
    assert fitting.says(worker, 590.0) == ["t0", "t1"]


def test_who_has_most_time_chooses_first(fitting: Fitting) -> None:
    """So a large task is not failed by a short fresh worker while a long one waits for work."""
    fitting.define(2000.0, None)
    short, long = fitting.launched(), fitting.by_hand()
    fitting.turn(ev.Asked(1, "pause", {}))
    fitting.says(short, 300.0)
    fitting.says(long, 3000.0)
    fitting.turn(ev.Asked(2, "resume", {}))
    assert (list(short.attempts), list(long.attempts)) == (["t1"], ["t0"])


def test_what_tasks_usually_take_decides_where_the_program_says_nothing(fitting: Fitting) -> None:
    fitting.define(*[None] * (SAMPLES_MIN + 1))
    worker = fitting.launched()
    for n in range(SAMPLES_MIN):
        assert fitting.says(worker, 5000.0) == [f"t{n}"]
        fitting.ends(worker, 400.0)
    assert fitting.says(worker, 400.0 + WARNING_S - 1) == []
    assert worker.shutdown == "walltime"
    assert fitting.state(f"t{SAMPLES_MIN}") is TaskState.QUEUED


def test_an_estimate_never_stops_a_run(fitting: Fitting) -> None:
    """A fresh worker takes what will probably not fit: another would have no more time."""
    fitting.core.book.durations.extend([4000.0] * SAMPLES_MIN)
    fitting.define(None)
    worker = fitting.launched()
    assert fitting.says(worker, 1000.0) == ["t0"]


def test_few_durations_are_no_basis_for_a_guess(fitting: Fitting) -> None:
    fitting.core.book.durations.extend([4000.0] * (SAMPLES_MIN - 1))
    fitting.define(None)
    worker = fitting.launched()
    fitting.turn(ev.Asked(1, "pause", {}))
    fitting.ages(worker, 1000.0)
    fitting.turn(ev.Asked(2, "resume", {}))
    assert fitting.says(worker, 1000.0) == ["t0"]


def test_an_idle_worker_that_nothing_fits_leaves_early_and_is_replaced(fitting: Fitting) -> None:
    fitting.define(None)
    worker = fitting.launched()
    assert fitting.says(worker, 3000.0) == ["t0"]
    fitting.ends(worker, 10.0)
    fitting.define(2000.0)
    assert fitting.says(worker, 1500.0) == []
    assert worker.shutdown == "walltime"
    effects = fitting.after(5.0)
    assert sum(isinstance(one, Submit) for one in effects) == 1
    assert "leaving" in fitting.why("t1")


def test_a_fresh_worker_of_ours_that_is_too_short_ends_the_task(fitting: Fitting) -> None:
    """The next one would be as short: the task would wait for ever."""
    fitting.define(2000.0, 10.0)
    worker = fitting.launched()
    assert fitting.says(worker, 1000.0) == ["t1"]
    assert fitting.state("t0") is TaskState.FAILED
    ((error,),) = fitting.store.read("SELECT error FROM tasks WHERE task_id = 't0'", ())
    assert "it asks for 2000 s" in error
    assert "warned of its end after 900 s" in error
    assert "give workers a longer time limit" in error
    ((attempts,),) = fitting.store.read("SELECT count(*) FROM attempts", ())
    assert attempts == 0


def test_a_worker_by_hand_judges_no_task(fitting: Fitting) -> None:
    """Another may be started with more time: the task waits, and says for what."""
    fitting.core.book.wanted = 0
    fitting.define(2000.0)
    worker = fitting.by_hand()
    assert fitting.says(worker, 1000.0) == []
    assert worker.shutdown is None
    assert fitting.state("t0") is TaskState.QUEUED
    assert "no worker has the 2000 s left that it needs" in fitting.why("t0")
    assert fitting.says(worker, 5000.0) == ["t0"]


def test_no_limit_no_rule(fitting: Fitting) -> None:
    fitting.core.book.durations.extend([1e6] * SAMPLES_MIN)
    fitting.define(1e7, None)
    worker = fitting.launched()
    assert fitting.says(worker, None, credit=2) == ["t0", "t1"]


@given(
    requests=st.lists(st.none() | st.floats(0, 3000), max_size=12),
    usual=st.none() | st.floats(0, 3000),
    lefts=st.lists(st.none() | st.floats(0, 3000), min_size=1, max_size=4),
)
def test_nothing_is_given_that_is_known_not_to_fit(
    requests: list[float | None], usual: float | None, lefts: list[float | None]
) -> None:
    store = Store(":memory:")
    store.open()
    try:
        fitting = Fitting(store, workers=1)
        if usual is not None:
            fitting.core.book.durations.extend([usual] * SAMPLES_MIN)
        fitting.define(None, *requests)
        worker = fitting.launched()
        for left_s in lefts:
            before = set(worker.attempts)
            had_begun = bool(before) or worker.done > 0
            for task_id in set(fitting.says(worker, left_s)) - before:
                task = worker.attempts[task_id].task
                room = float("inf") if left_s is None else max(0.0, left_s - WARNING_S)
                if task.time_request_s is not None:
                    assert task.time_request_s <= room
                elif had_begun and usual is not None:
                    assert usual <= room
    finally:
        store.close()


def test_an_idle_worker_looks_past_what_does_not_fit(fitting: Fitting) -> None:
    """It leaves only if nothing in the queue fits what it has left."""
    fitting.define(None)
    worker = fitting.launched()
    assert fitting.says(worker, 3000.0) == ["t0"]
    fitting.ends(worker, 10.0)
    fitting.define(2000.0, 2000.0, 100.0)
    assert fitting.says(worker, 1500.0) == ["t3"]
    assert worker.shutdown is None
