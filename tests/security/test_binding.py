"""The core believes a connection only what its key proves (T1, T24)."""

from __future__ import annotations

import pytest
from peers import ID, OTHER, beat, register

from jobflow_worker.messages import (
    HAND,
    Finished,
    FromWorker,
    Heartbeat,
    Held,
    Reject,
    Report,
    ShutdownAck,
    TaskFinished,
    Usage,
)
from jobflowd import events as ev
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.effects import Post, Turn
from jobflowd.model import (
    Definition,
    Facts,
    LaunchRecord,
    LaunchState,
    Snapshot,
    TaskState,
    Worker,
    WorkerState,
)

L1, L2 = "jf-abc-1", "jf-abc-2"
RESULT = (Finished("t1", 1, b"\x80", None, Usage(1.0, 1.0, 1), ""),)


def launch(row: int, name: str) -> LaunchRecord:
    return LaunchRecord(row, name, "none", LaunchState.SUBMITTED)


class Core:
    """A coordinator with two launches, and its clock."""

    def __init__(self, workers: tuple[Worker, ...] = ()) -> None:
        launches = [launch(1, L1), launch(2, L2)]
        snapshot = Snapshot({}, {}, [], 0, list(workers), launches, 1, len(workers) + 1, 3, 1)
        self.made = Coordinator(Settings("t1", "p.py", launcher="none"), snapshot, 1)
        self.now = 1.0

    def turn(self, *events: ev.Event) -> Turn:
        self.now += 0.1
        return self.made.turn(self.now, self.now, events, Facts())

    def heard(
        self, message: FromWorker, peer: str | None, sender: str = ID, counter: int = 1
    ) -> Turn:
        return self.turn(ev.Heard(sender, counter, "zmq", message, peer))


def rejects(turn: Turn) -> list[Reject]:
    return [
        message
        for effect in turn.effects
        if isinstance(effect, Post)
        for message in effect.messages
        if isinstance(message, Reject)
    ]


@pytest.mark.parametrize(
    ("launch_id", "peer"),
    [(L1, L1), (L1, None), (None, HAND), (None, None), ("my-own", HAND)],
)
def test_a_worker_with_the_right_key_is_taken(launch_id: str | None, peer: str | None) -> None:
    core = Core()
    turn = core.heard(register(launch_id), peer)
    assert not rejects(turn)
    assert core.made.book.workers[ID].registered


@pytest.mark.parametrize(
    ("launch_id", "peer"), [(L1, L2), (L1, HAND), (None, L1), ("my-own", L1), ("jf-old-9", L2)]
)
def test_a_register_for_another_launch_is_refused(launch_id: str | None, peer: str) -> None:
    core = Core()
    turn = core.heard(register(launch_id), peer)
    assert [one.code for one in rejects(turn)] == ["launch"]
    assert ID not in core.made.book.workers
    assert not core.made.book.launches[L1].registered


def ready(core: Core) -> None:
    """A task assigned to the worker ID of launch L1."""
    core.heard(register(L1), L1)
    core.turn(
        ev.Generated((Definition("t1", b"\x80", b"h" * 32, 3, 0, None, None, None),)),
        ev.GenerationEnded(None, ""),
    )
    core.heard(Heartbeat(Report(1, 1, 1, 0, 1)), L1)
    core.turn()


@pytest.mark.parametrize("thief", [L2, HAND, "jf-nobody-1"])
@pytest.mark.parametrize("said", ["result", "report", "farewell", "register"])
def test_nobody_else_speaks_for_a_workers_attempts(thief: str, said: str) -> None:
    core = Core()
    ready(core)
    book = core.made.book
    held = dict(book.workers[ID].attempts)
    assert "t1" in held, "the test needs an assigned task"
    message: FromWorker = {
        "result": TaskFinished(0, RESULT),
        "report": Heartbeat(Report(1, 99, 9, 0, 0, running=(Held("t9", 1),))),
        "farewell": ShutdownAck("bye"),
        "register": register(L2 if thief == L2 else None),
    }[said]
    heard_at = book.workers[ID].heard_at
    turn = core.heard(message, thief, counter=7)
    worker = book.workers[ID]
    assert worker.attempts == held
    assert worker.heard_at == heard_at, "a stranger renews no lease"
    assert worker.launch_id == L1
    assert book.counts[TaskState.SUCCEEDED] == 0
    assert worker.state is WorkerState.ONLINE
    assert not turn.changes.processed
    assert [one.kind for one in turn.changes.stories] == ["foreign_key"]
    assert core.heard(TaskFinished(0, RESULT), L1, counter=8).changes.processed
    assert book.counts[TaskState.SUCCEEDED] == 1


def test_a_restart_does_not_forget_whose_worker_it_was() -> None:
    """The border's memory of addresses is gone then; the core's is on disk."""
    known = Worker(1, ID, "zmq", "h", 1, 1, launch_id=L1)
    core = Core((known,))
    core.heard(register(L2), L2)
    assert not core.made.book.workers[ID].registered
    core.heard(register(L1), L1)
    assert core.made.book.workers[ID].registered


def test_a_finish_of_another_workers_attempt_is_not_taken() -> None:
    """Two honest keys: each can only finish what it was given."""
    core = Core()
    ready(core)
    core.heard(register(L2), L2, sender=OTHER)
    core.heard(beat(), L2, sender=OTHER)
    core.heard(TaskFinished(0, RESULT), L2, sender=OTHER, counter=5)
    assert core.made.book.counts[TaskState.SUCCEEDED] == 0
