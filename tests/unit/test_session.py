"""The worker's side by itself: what it does with whatever the manager says, or does not say."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from jobflow_worker import limits
from jobflow_worker.messages import (
    Ack,
    Assign,
    Assignment,
    Cancel,
    Failed,
    Finished,
    Heartbeat,
    Held,
    Register,
    Reject,
    RequestWork,
    Shutdown,
    ShutdownAck,
    TaskFinished,
    TaskReturned,
    Usage,
    Verdict,
    Welcome,
)
from jobflow_worker.record import replace
from jobflow_worker.session import FAREWELL_S, Session
from jobflow_worker.slotevents import Settled, SlotBroken, SlotReady, Unstarted
from jobflow_worker.vocabulary import (
    BeaconSeen,
    Effect,
    Event,
    Exit,
    Feed,
    Identity,
    Kill,
    Leave,
    ReadBeacon,
    Send,
    Spool,
)

HB = 10.0
USAGE = Usage(0.1, 0.1, 1)
WELCOME = Welcome(1, 1, 0, "s", HB, 60.0, idle_timeout_s=300.0, manager_timeout_s=900.0)


class Worker:
    """A session and its clock."""

    def __init__(self, slots: int = 1, *, welcome: bool = True) -> None:
        self.session = Session(Identity("1", "3", "h", 1, slots, "hash"))
        self.now = 100.0
        self.step(*(SlotReady(slot) for slot in range(slots)))
        if welcome:
            self.step(WELCOME)

    def step(self, *events: Event, after: float = 0.0) -> list[Effect]:
        self.now += after
        return self.session.handle(self.now, events)

    def assign(self, *names: str, seq: int = 2, base: int = 1) -> list[Effect]:
        items = tuple(Assignment(one, 1, b"", None, None) for one in names)
        return self.step(Assign(1, seq, base, items))

    def done(self, name: str, slot: int = 0) -> list[Effect]:
        return self.step(Settled(slot, Finished(name, 1, b"\x01", None, USAGE, "")))


def sent(effects: Iterable[Effect], kind: type) -> list[object]:
    return [
        one.message
        for effect in effects
        if isinstance(effect, Send)
        for one in effect.fresh
        if isinstance(one.message, kind)
    ]


def exits(effects: Iterable[Effect]) -> list[Exit]:
    return [one for one in effects if isinstance(one, Exit)]


def report(effects: Iterable[Effect]) -> object:
    (one,) = sent(effects, Heartbeat) + sent(effects, RequestWork)
    return one.report  # type: ignore[attr-defined]


def test_it_registers_once_a_slot_is_ready_and_again_with_growing_pauses() -> None:
    worker = Worker(welcome=False)
    pauses = []
    for _ in range(7):
        before = worker.now
        worker.now = worker.session.next_deadline() or 0.0
        assert sent(worker.step(), Register)
        pauses.append(worker.now - before)
    assert pauses[0] < pauses[-1] <= min(HB, limits.REGISTER_RETRY_S_MAX)


def test_a_welcome_is_answered_with_a_full_report() -> None:
    worker = Worker(welcome=False)
    found = report(worker.step(WELCOME))
    assert not found.same  # type: ignore[attr-defined]
    assert found.seen == 1  # type: ignore[attr-defined]


def test_an_old_welcome_never_moves_seen_back() -> None:
    worker = Worker()
    worker.assign("a", seq=5)
    worker.step(Welcome(1, 0, 0, "s", HB, 60.0, again=True))
    worker.step(WELCOME)
    assert worker.session.seen == 5


def test_an_assign_is_taken_once() -> None:
    worker = Worker()
    assert [one for one in worker.assign("a") if isinstance(one, Feed)]
    assert not [one for one in worker.assign("a") if isinstance(one, Feed)]
    worker.done("a")
    assert not [one for one in worker.assign("a", seq=9) if isinstance(one, Feed)]


def test_a_gap_is_told_and_seen_waits_for_it() -> None:
    worker = Worker()
    worker.assign("b", seq=4, base=3)
    assert worker.session.seen == 1
    found = report(worker.step(after=1.5))
    assert found.gap  # type: ignore[attr-defined]
    worker.assign("a", seq=5, base=1)
    assert worker.session.seen == 5


def test_outcomes_stay_until_a_verdict_and_keep_their_name() -> None:
    worker = Worker()
    worker.assign("a")
    (first,) = sent(worker.done("a"), TaskFinished)
    again: list[object] = []
    for _ in range(3):
        again += sent(worker.step(after=HB), TaskFinished)
    assert again
    assert all(one.items == first.items for one in again)  # type: ignore[attr-defined]
    (counter,) = worker.session.outbox.packed
    worker.step(Ack(1, 3, 2, 1, (Verdict(counter, "late"),)))
    assert worker.session.outbox.empty


def test_when_nothing_changed_the_report_says_so() -> None:
    worker = Worker()
    worker.step(Ack(1, 2, 1, worker.session.reporter.hb_seq))
    assert report(worker.step(after=HB)).same  # type: ignore[attr-defined]


def test_the_manager_can_ask_for_everything_at_once() -> None:
    worker = Worker()
    worker.step(Ack(1, 2, 1, worker.session.reporter.hb_seq))
    worker.step(Ack(1, 3, 2, 1, want_full=True), after=2.0)
    assert not report(worker.step(after=1.1)).same  # type: ignore[attr-defined]


def test_a_cancelled_attempt_that_did_not_begin_is_dropped_in_silence() -> None:
    worker = Worker()
    worker.assign("a", "b")
    worker.step(Cancel(1, 3, 2, (Held("b", 1),), "canceled"))
    assert Held("b", 1) not in worker.session.work
    assert worker.session.outbox.empty


def test_a_cancelled_attempt_that_runs_is_killed_and_its_end_not_told() -> None:
    worker = Worker()
    worker.assign("a")
    effects = worker.step(Cancel(1, 3, 2, (Held("a", 1),), "canceled"))
    assert Kill(0, Held("a", 1)) in effects
    worker.step(Settled(0, Failed("a", 1, "canceled", "", "", None, None, USAGE, "")))
    assert worker.session.outbox.empty


def test_success_that_was_faster_than_its_cancel_is_told() -> None:
    worker = Worker()
    worker.assign("a")
    worker.step(Cancel(1, 3, 2, (Held("a", 1),), "canceled"))
    assert sent(worker.done("a"), TaskFinished)


def test_a_graceful_shutdown_hands_back_what_waits_and_finishes_what_runs() -> None:
    worker = Worker()
    worker.assign("a", "b")
    effects = worker.step(Shutdown(1, 3, 2, False, "drain", 60.0))
    effects += worker.step(after=0.01)
    (back,) = sent(effects, TaskReturned)
    assert [item.task_id for item in back.items] == ["b"]  # type: ignore[attr-defined]
    worker.done("a")
    verdicts = tuple(Verdict(one, "accepted") for one in worker.session.outbox.packed)
    effects = worker.step(Ack(1, 4, 3, 1, verdicts))
    assert sent(effects, ShutdownAck)
    assert exits(effects)[0].code == 0


def test_a_signal_kills_what_runs_and_spools_what_nobody_answers() -> None:
    worker = Worker()
    worker.assign("a")
    assert Kill(0, Held("a", 1)) in worker.step(Leave("walltime"))
    worker.step(Settled(0, Failed("a", 1, "canceled", "", "", None, None, USAGE, "")))
    effects = worker.step(after=FAREWELL_S)
    assert Spool() in effects
    assert exits(effects)


def test_a_child_that_cannot_be_killed_does_not_keep_its_worker() -> None:
    worker = Worker()
    worker.assign("a")
    worker.step(Leave("walltime"))
    effects = worker.step(after=FAREWELL_S)
    assert Spool() in effects
    assert exits(effects)


def test_a_rejected_worker_spools_what_it_has() -> None:
    worker = Worker()
    worker.assign("a")
    worker.done("a")
    effects = worker.step(Reject(1, 0, 0, "program", "Another program."))
    assert Spool() in effects
    assert exits(effects)[0].code == 78


def test_a_newer_epoch_is_registered_with_and_an_older_one_ignored() -> None:
    worker = Worker()
    assert sent(worker.step(Ack(2, 5, 4, 1)), Register)
    worker.step(Welcome(2, 1, 0, "s", HB, 60.0))
    worker.assign("old")
    assert not len(worker.session.work)


def test_a_restarted_manager_is_registered_with_as_soon_as_its_beacon_is_seen() -> None:
    worker = Worker()
    worker.step(BeaconSeen(1, 7, "open", ()))
    worker.step(Welcome(1, 0, 0, "s", HB, 60.0, again=True))
    for _ in range(5):
        worker.now = worker.session._register_at or worker.now
        worker.step()
    assert sent(worker.step(BeaconSeen(2, 1, "open", ())), Register)


def test_silence_is_measured_by_the_beacon_too() -> None:
    worker = Worker(welcome=False)
    worker.step(replace(WELCOME, idle_timeout_s=None))
    effects: list[Effect] = []
    for n in range(100):
        effects = worker.step(after=HB)
        if ReadBeacon() in effects:
            effects += worker.step(BeaconSeen(1, n, "open", ()))
    assert worker.session.leaving is None
    for _ in range(100):
        if worker.session.exited:
            break
        effects = worker.step(after=HB)
    assert worker.session.exited


def test_a_closed_beacon_sends_an_unanswered_worker_away() -> None:
    worker = Worker()
    worker.step(BeaconSeen(1, 1, "open", ()))
    worker.step(after=3 * HB)
    worker.step(BeaconSeen(1, 2, "closed", ()))
    worker.step(after=FAREWELL_S)
    assert worker.session.exited


def test_an_idle_worker_leaves_after_its_time() -> None:
    worker = Worker()
    worker.step(after=1.0)
    assert exits(worker.step(after=301.0))[0].code == 0


def test_a_program_that_cannot_be_loaded_anywhere_is_the_end() -> None:
    worker = Worker(slots=2, welcome=False)
    assert not exits(worker.step(SlotBroken(0, "no module")))
    assert exits(worker.step(SlotBroken(1, "no module")))[0].code == 78


@pytest.mark.parametrize("idle", [True, False])
def test_its_deadline_is_never_due_again_at_once(idle: bool) -> None:
    worker = Worker(slots=2)
    if not idle:
        worker.session.work.took(0.001)
        worker.assign(*(f"t{n}" for n in range(20)))
    for _ in range(200):
        deadline = worker.session.next_deadline()
        assert deadline is not None
        worker.now = max(worker.now, deadline)
        if exits(effects := worker.step()):
            return
        for effect in effects:
            if type(effect).__name__ == "Recall":
                behind = tuple(worker.session.work.slots[effect.slot].fed)[1:]
                worker.step(Unstarted(effect.slot, behind))  # type: ignore[union-attr]
        following = worker.session.next_deadline()
        assert following is None or following > worker.now
