"""Known failures of the original that need no process to be shown: messages, restarts, queues."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from jobflow_worker.codec import encode_body
from jobflow_worker.messages import (
    Ack,
    Assign,
    Assignment,
    Finished,
    Register,
    TaskFinished,
    Usage,
    Verdict,
    Welcome,
)
from jobflow_worker.session import Session
from jobflow_worker.slotevents import Settled, SlotReady, Unstarted
from jobflow_worker.transport import mailfile
from jobflow_worker.vocabulary import Feed, Identity, Recall
from jobflowd import events as ev
from jobflowd import queries
from jobflowd.book import Settings
from jobflowd.effects import Post, Submit
from jobflowd.model import Definition, LaunchState, TaskState

from .pure import HASH, SPEC, Manager, Pair, definitions

HEARTBEAT_S: Final = Settings("s", "p.py").heartbeat_s


def test_any_single_lost_message_costs_at_most_one_heartbeat() -> None:
    """Known failure 7: every message of a run, in either direction, is lost once."""
    undisturbed = Pair()
    quickest = undisturbed.run()
    assert set(undisturbed.executed.values()) == {1}
    assert undisturbed.sent > 10
    for number in range(1, undisturbed.sent + 1):
        pair = Pair(lost=number)
        cost = pair.run() - quickest
        assert cost <= HEARTBEAT_S + 0.5, f"message {number} costs {cost:g} s"
        assert set(pair.executed.values()) == {1}, f"message {number} repeats a task"


def test_an_outcome_that_was_never_asked_for_is_refused_and_noted() -> None:
    """RELIABILITY X5: of a database that was put back, or of somebody who invents it."""
    manager = Manager(Settings("s", "p.py"))
    name = "w-0000000000000001"
    hello = Register(1, 1, "0", "3", "h", 1, 1, "zmq", HASH, 1, None)
    opening = (ev.ProgramChanged(HASH), ev.TransportsReady(), ev.Generated(definitions(1)))
    manager.turn(0.0, *opening, ev.Heard(name, 1, "zmq", hello))
    invented = [Finished(task, 7, b"\x80", None, Usage(1.0, 0.0, 0), "") for task in ("t0", "t9")]
    for counter, item in enumerate(invented, 2):
        heard = ev.Heard(name, counter, "zmq", TaskFinished(2, (item,)))
        posts = [one for one in manager.turn(1.0, heard) if isinstance(one, Post)]
        verdicts = [v.verdict for post in posts for a in post.messages for v in _verdicts(a)]
        assert verdicts[-1] == "refused"
    book = manager.coordinator.book
    assert book.counts[TaskState.QUEUED] == book.total == 1
    noted, _ = queries.last_events(manager.store, 10)
    assert [one["kind"] for one in noted].count("refused") == len(invented)


@pytest.mark.parametrize(("on_change", "replaced"), [("keep", False), ("update", True)])
def test_another_list_at_the_next_start_is_merged_by_id(on_change: str, replaced: bool) -> None:
    """RELIABILITY R8: what is missing stays, what is new comes, what has changed is told."""
    manager = Manager(Settings("s", "p.py", on_spec_change=on_change))
    start = (ev.ProgramChanged(HASH), ev.TransportsReady())
    manager.turn(0.0, *start, ev.Generated(definitions(3)), ev.GenerationEnded())
    manager.restart()
    other = encode_body({"kept": "new"})
    changed = Definition("t1", other, bytes(16), 2, 0, None, None, None)
    listed = (changed, *definitions(4)[2:])
    manager.turn(1.0, *start, ev.Generated(listed), ev.GenerationEnded())
    book = manager.coordinator.book
    assert book.total == 4
    assert "changed their spec" in book.warnings["specs"]
    specs = manager.store.specs([1, 2, 3, 4])
    assert [specs[row] for row in (1, 3, 4)] == [SPEC] * 3
    assert specs[2] == (other if replaced else SPEC)


def _verdicts(message: object) -> tuple[Verdict, ...]:
    return message.verdicts if isinstance(message, Ack) else ()


def test_a_recall_that_comes_too_late_is_not_repeated_at_once() -> None:
    """The child took the next attempt just as it was to be taken back. Found by the soak: the
    agent asked again and again, and never read what its child had said."""
    session = Session(Identity("0", "3", "host", 1, 1, HASH))
    session.handle(0.0, [SlotReady(0)])
    session.handle(0.0, [Welcome(1, 1, 0, "s", 10.0, 60.0)])
    session.work.took(0.1)
    pair = tuple(Assignment(name, 1, SPEC, None, None) for name in ("a", "b"))
    fed = session.handle(0.1, [Assign(1, 2, 1, pair)])
    assert [len(one.items) for one in fed if isinstance(one, Feed)] == [2]
    late = session.handle(5.0, [])
    assert Recall(0) in late
    assert Recall(0) not in session.handle(5.0, [Unstarted(0, ())])
    done = [Finished(name, 1, b"\x80", None, Usage(5.0, 0.0, 0), "") for name in ("a", "b")]
    session.handle(5.0, [Settled(0, one) for one in done])
    assert len(session.work) == 0


def test_ten_workers_stay_ten_over_a_hundred_starts() -> None:
    """Known failure 2: every start of the manager finds its workers, and asks for no others."""
    manager = Manager(Settings("s", "p.py", launcher="multiprocess", workers=10))
    launched: dict[str, int] = {}
    now = 0.0
    for life in range(100):
        if life:
            manager.restart()
        opening: list[ev.Event] = [ev.ProgramChanged(HASH), ev.TransportsReady()]
        opening += [ev.Generated(definitions(50)), ev.GenerationEnded()]
        for launch_id, pid in launched.items():
            hello = Register(1, 1, "0", "3", "h", pid, 1, "zmq", HASH, 1, launch_id)
            opening.append(ev.Heard(f"w-{pid:016x}", 1, "zmq", hello))
            opening.append(ev.LaunchSeen(launch_id, LaunchState.RUNNING))
        events = [*opening, ev.QueryAnswered()]
        for _ in range(40):
            now += 1.0
            effects = manager.turn(now, *events, ev.MailRead(now))
            events = []
            for effect in effects:
                if isinstance(effect, Submit):
                    launched[effect.launch_id] = len(launched) + 1
                    events.append(ev.Submitted(effect.launch_id, f"j-{effect.launch_id}"))
        assert len(launched) == 10, f"start {life + 1} brought {len(launched) - 10} more"
    manager.close()


@pytest.mark.parametrize("poll_s", [30.0, 60.0])
def test_a_batch_job_that_vanishes_is_replaced_within_two_polls(poll_s: float) -> None:
    """Known failure 18. Two answers without it, a minute apart, are the evidence."""
    settings = Settings("s", "p.py", launcher="slurm", workers=1, launch_poll_s=poll_s)
    manager = Manager(settings)
    first, vanished_at, replaced_at = "", 0.0, 0.0
    opening = [ev.ProgramChanged(HASH), ev.TransportsReady()]
    events: list[ev.Event] = [*opening, ev.Generated(definitions(5)), ev.GenerationEnded()]
    next_poll = 0.0
    for now in range(1, 900):
        if now >= next_poll:
            next_poll = now + poll_s
            gone = first and now > 200
            vanished_at = vanished_at or (float(now) if gone else 0.0)
            if first and not gone:
                events.append(ev.LaunchSeen(first, LaunchState.RUNNING, "17"))
            events.append(ev.QueryAnswered((first,) if gone else ()))
        effects = manager.turn(float(now), *events, ev.MailRead(float(now)))
        events = []
        for effect in effects:
            if isinstance(effect, Submit):
                replaced_at = float(now) if first else 0.0
                first = first or effect.launch_id
                events.append(ev.Submitted(effect.launch_id, "17"))
        if replaced_at:
            break
    manager.close()
    assert replaced_at, "it was never replaced"
    assert replaced_at - vanished_at <= max(2 * poll_s, 60.0 + poll_s) + 2


@pytest.mark.parametrize(("times", "found"), [(2, b"news"), (3, None)])
def test_a_mailbox_that_is_replaced_while_it_is_read_is_read_again(
    monkeypatch: pytest.MonkeyPatch, times: int, found: bytes | None
) -> None:
    """NFS says ESTALE of a file that was replaced after it was opened: no reason to wait."""
    answers: Iterator[Any] = iter([OSError(errno.ESTALE, "stale")] * times + [b"news"])

    def read(path: Path, limit: int, known: bytes) -> bytes:
        answer = next(answers)
        if isinstance(answer, OSError):
            raise answer
        return bytes(answer)

    monkeypatch.setattr(mailfile, "read_private_unless", read)
    if found is not None:
        assert mailfile.read_if_new("x", b"") == found
    else:
        with pytest.raises(OSError, match="stale"):
            mailfile.read_if_new("x", b"")
