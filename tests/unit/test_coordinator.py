"""Stories of a session: one manager, some workers, and what goes wrong between them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from pairing import HEARTBEAT_S, LEASE_S, USAGE, Pair

from jobflow_worker.messages import (
    Failed,
    Finished,
    Heartbeat,
    Held,
    Register,
    Report,
    Returned,
    ShutdownAck,
    TaskFailed,
    TaskFinished,
    TaskReturned,
)
from jobflowd import events as ev
from jobflowd.effects import CancelLaunch, Reply, Submit
from jobflowd.model import SOLO_WORKER, LaunchState, TaskState, WorkerState

QUEUED, ASSIGNED, RUNNING, SUCCEEDED, FAILED, CANCELED = TaskState


def lost(pair: Pair, seat: object) -> None:
    """The worker is never heard of again, until its lease is over."""
    del pair.seats[seat.worker_id]  # type: ignore[attr-defined]
    pair.advance(LEASE_S + HEARTBEAT_S)


# --- the good path ----------------------------------------------------------------------------


def test_a_task_goes_to_a_worker_and_its_result_comes_back(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    assert seat.running == [Held("a", 1)]
    seat.finish("a", b"\x2a")
    pair.settle()
    assert pair.state("a") is SUCCEEDED
    assert pair.attempts("a") == [(1, "succeeded", "")]
    assert seat.session.outbox.empty


def test_the_run_ends_when_all_is_done_and_everybody_left(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(stay=False)
    pair.define("a")
    pair.turn(ev.GenerationEnded())
    seat = pair.worker()
    seat.finish("a")
    pair.settle()
    assert seat.exited is not None
    assert seat.exited.code == 0
    assert pair.coordinator.finished == 0


def test_a_task_that_runs_is_shown_as_running_within_seconds(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    assert pair.state("a") is ASSIGNED
    pair.now += 1.0
    seat.step()
    pair.settle()
    assert pair.state("a") is RUNNING


def test_priority_then_order(pair: Pair) -> None:
    pair.define("a", "b")
    pair.define("c", priority=5)
    seat = pair.worker()
    for task_id in "cab":
        seat.finish(task_id)
        pair.settle()
    assert [held.task_id for held in seat.fed()] == ["c", "a", "b"]


# --- lost messages ----------------------------------------------------------------------------


def test_a_lost_assign_costs_one_heartbeat(pair: Pair) -> None:
    seat = pair.worker()
    pair.define("a")
    seat.lose()
    pair.advance(HEARTBEAT_S)
    assert seat.running == [Held("a", 1)]


def test_a_lost_result_is_sent_again_while_other_work_flows(pair: Pair) -> None:
    pair.define("a", "b", "c", "d")
    seat = pair.worker()
    seat.finish("a")
    pair.mail = [one for one in pair.mail if not isinstance(one.message, TaskFinished)]
    pair.settle()
    for task_id in "bcd":
        pair.now += 0.6 * HEARTBEAT_S
        seat.finish(task_id)
        pair.settle()
    assert pair.state("a") is SUCCEEDED


def test_a_lost_verdict_is_given_again_and_changes_nothing(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    seat.finish("a")
    pair.deliver()
    seat.lose()
    assert not seat.session.outbox.empty
    pair.advance(2 * HEARTBEAT_S)
    assert seat.session.outbox.empty
    assert pair.attempts("a") == [(1, "succeeded", "")]


def test_an_outcome_below_the_floor_is_a_duplicate(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    seat.finish("a")
    (sent,) = [one for one in pair.mail if isinstance(one.message, TaskFinished)]
    pair.settle()
    pair.advance(HEARTBEAT_S)
    pair.turn(sent)
    worker = pair.coordinator.book.workers[seat.worker_id]
    assert worker.floor > sent.counter
    assert worker.verdicts == {}


def test_a_shutdown_is_said_again_to_a_worker_that_registers_again(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    pair.ask("drain", worker=seat.worker_id)
    seat.lose()
    register = seat.session.reporter.register(seat.session.identity, "zmq")
    pair.say(seat, register.counter, register.message)  # type: ignore[arg-type]
    seat.receive()
    assert seat.session.leaving == "draining"


# --- leases -----------------------------------------------------------------------------------


def test_a_silent_worker_is_lost_even_if_nothing_else_ever_happens(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    lost(pair, seat)
    assert pair.coordinator.book.workers[seat.worker_id].state is WorkerState.OFFLINE
    assert pair.state("a") is QUEUED


def test_no_lease_expires_before_the_mail_is_read(pair: Pair) -> None:
    seat = pair.worker()
    for _ in range(7):
        pair.now += HEARTBEAT_S
        pair.turn()  # Without MailRead: the daemon was busy and did not look.
    assert pair.coordinator.book.workers[seat.worker_id].registered
    pair.turn(ev.MailRead(pair.now))
    pair.now += 0.1
    pair.turn(ev.MailRead(pair.now))
    assert not pair.coordinator.book.workers[seat.worker_id].registered


def test_a_pause_of_the_manager_itself_gives_every_lease_a_fresh_term(pair: Pair) -> None:
    seat = pair.worker()
    pair.now += 10 * LEASE_S
    pair.turn(ev.MailRead(pair.now))
    assert pair.coordinator.book.workers[seat.worker_id].registered


def test_a_worker_known_to_be_dead_is_not_kept_by_its_last_words(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(launcher="multiprocess", workers=1)
    pair.define("a")
    pair.advance(1.0)
    (launch_id,) = pair.coordinator.book.launches
    seat = pair.worker(launch_id=launch_id)
    seat.finish("a")
    pair.turn(ev.LaunchSeen(launch_id, LaunchState.FAILED, None, "killed"))
    pair.deliver()
    pair.now += 0.1
    pair.turn(ev.MailRead(pair.now))
    assert pair.state("a") is SUCCEEDED
    assert not pair.coordinator.book.workers[seat.worker_id].registered


# --- late and double --------------------------------------------------------------------------


def test_a_late_success_wins_and_the_second_attempt_is_stopped(pair: Pair) -> None:
    pair.define("a")
    first = pair.worker()
    del pair.seats[first.worker_id]
    pair.advance(LEASE_S + 2 * HEARTBEAT_S)
    second = pair.worker()
    assert second.running == [Held("a", 2)]
    pair.seats = {first.worker_id: first, second.worker_id: second}
    first.finish("a")
    pair.advance(2 * HEARTBEAT_S)
    assert pair.state("a") is SUCCEEDED
    assert pair.attempts("a")[0] == (1, "succeeded", "")
    assert Held("a", 2) in second.session._doomed


def test_a_late_failure_is_only_noted(pair: Pair) -> None:
    pair.define("a")
    first = pair.worker()
    del pair.seats[first.worker_id]
    pair.advance(LEASE_S + 2 * HEARTBEAT_S)
    second = pair.worker()
    pair.advance(HEARTBEAT_S)
    item = Failed("a", 1, "exception", "late", "", None, None, USAGE, "")
    register = first.session.reporter.register(first.session.identity, "zmq")
    pair.say(first, register.counter, register.message)  # type: ignore[arg-type]
    pair.say(first, register.counter + 1, TaskFailed(0, (item,)))
    assert second.running == [Held("a", 2)]
    assert pair.task("a").current == 2


def test_an_outcome_is_recorded_once_whatever_its_message_is_called(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    seat.fail("a")
    pair.settle()
    again = Failed("a", 1, "exception", "again", "", None, None, USAGE, "")
    pair.say(seat, 900, TaskFailed(0, (again,)))
    assert pair.task("a").failures == 1
    pair.say(seat, 901, TaskFinished(0, (Finished("a", 1, b"\x01", None, USAGE, ""),)))
    assert pair.state("a") is QUEUED


def test_an_old_report_takes_nothing_back_that_was_settled_since(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    seat.fail("a")
    pair.settle()
    worker = pair.coordinator.book.workers[seat.worker_id]
    stale = Report(1, worker.hb_seq + 1, worker.seen, 0, 0, running=(Held("a", 1),))
    pair.say(seat, 900, Heartbeat(stale))
    assert pair.task("a").failures == 1
    assert "a" not in worker.attempts


def test_a_canceled_task_stays_canceled_and_its_result_is_late(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    seat.finish("a")
    pair.ask("cancel", task_ids=["a"])
    pair.settle()
    assert pair.state("a") is CANCELED
    assert seat.session.outbox.empty


def test_a_retried_task_takes_no_result_of_a_canceled_attempt(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    seat.finish("a")
    pair.ask("cancel", task_ids=["a"])
    pair.ask("retry", task_ids=["a"])
    pair.deliver()
    assert pair.task("a").state is not SUCCEEDED
    pair.settle()
    assert seat.fed() == [Held("a", 1), Held("a", 2)]


def test_cancel_and_result_in_one_turn_call_nobody_a_liar(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    seat.finish("a")
    mail, pair.mail = pair.mail, []
    turn = pair.turn(ev.Asked(1, "cancel", {"task_ids": ["a"]}), *mail)
    assert not [one for one in turn.changes.stories if one.kind == "refused"]


# --- budgets ----------------------------------------------------------------------------------


def test_a_failing_task_is_retried_with_back_off_and_then_failed(pair: Pair) -> None:
    pair.define("a", max_retries=1)
    seat = pair.worker()
    seat.fail("a")
    pair.settle()
    assert pair.state("a") is QUEUED
    assert not seat.running
    pair.advance(HEARTBEAT_S)
    seat.fail("a")
    pair.settle()
    assert pair.state("a") is FAILED
    assert pair.attempts("a") == [(1, "failed", "retries"), (2, "failed", "retries")]


def test_what_ran_alone_is_charged_for_the_loss_of_its_worker(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    pair.advance(HEARTBEAT_S)
    lost(pair, seat)
    assert pair.attempts("a") == [(1, "lost", "losses")]


def test_what_may_not_have_begun_is_not_charged_but_goes_alone_next(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    lost(pair, seat)
    assert pair.attempts("a") == [(1, "unknown", "")]
    assert pair.task("a").solo == SOLO_WORKER


def test_a_task_that_kills_faster_than_workers_report_ends(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(max_losses=1)
    pair.define("a")
    for _ in range(3):
        assert pair.state("a") is not FAILED
        lost(pair, pair.worker())
    assert pair.state("a") is FAILED


def test_a_result_from_before_the_operators_retry_is_late(
    make_pair: Callable[..., Pair],
) -> None:
    """It may come from the program as it was before it was mended."""
    pair = make_pair(max_losses=0)
    pair.define("a")
    seat = pair.worker()
    pair.advance(HEARTBEAT_S)
    lost(pair, seat)
    assert pair.state("a") is FAILED
    pair.ask("retry", task_ids=["a"])
    pair.start()  # What the retry closed stays closed over a restart.
    pair.seats[seat.worker_id] = seat
    seat.finish("a", b"\x2a")
    pair.settle()
    pair.advance(HEARTBEAT_S)
    assert pair.state("a") is not SUCCEEDED
    assert seat.session.outbox.empty
    assert pair.attempts("a")[0] == (1, "lost", "losses")


def test_an_innocent_neighbour_never_fails_by_the_loss_of_a_worker(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(max_losses=0)
    pair.define("a", "b")
    seat = pair.worker(slots=2)
    pair.advance(HEARTBEAT_S)
    lost(pair, seat)
    assert {pair.state("a"), pair.state("b")} == {QUEUED}
    assert pair.worker(slots=2).running == [Held("a", 2)]


def test_what_a_leaving_worker_hands_back_is_charged_to_nobody(pair: Pair) -> None:
    pair.define("a", "b")
    seat = pair.worker()
    pair.ask("drain", worker=seat.worker_id)
    pair.settle()
    seat.finish("a")
    pair.settle()
    assert seat.exited is not None
    assert (pair.state("a"), pair.state("b")) == (SUCCEEDED, QUEUED)
    assert pair.attempts("b") == []


# --- restarts ---------------------------------------------------------------------------------


def test_a_survivor_of_a_restart_keeps_what_it_runs(pair: Pair) -> None:
    pair.define("a", "b")
    seat = pair.worker()
    pair.start()
    pair.advance(HEARTBEAT_S)
    assert seat.running == [Held("a", 1)]
    assert pair.state("a") in (ASSIGNED, RUNNING)
    seat.finish("a")
    pair.settle()
    assert pair.attempts("a") == [(1, "succeeded", "")]


def test_a_result_that_waits_in_an_outbox_survives_the_restart(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    seat.finish("a")
    pair.start()
    pair.advance(2 * HEARTBEAT_S)
    assert pair.state("a") is SUCCEEDED
    assert seat.fed() == [Held("a", 1)]


def test_what_nobody_claims_is_released_when_the_hold_ends(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    del pair.seats[seat.worker_id]
    pair.start()
    pair.advance(LEASE_S)
    assert pair.task("a").held
    pair.advance(2 * HEARTBEAT_S)
    assert not pair.task("a").held
    assert pair.attempts("a") == [(1, "unknown", "")]


def test_what_a_survivor_does_not_list_is_released_at_once(pair: Pair) -> None:
    seat = pair.worker()
    pair.define("a")
    seat.lose()
    pair.start()
    pair.advance(HEARTBEAT_S)
    assert seat.running == [Held("a", 2)]


def test_a_worker_that_ended_in_an_earlier_life_comes_back_as_itself(pair: Pair) -> None:
    pair.define("a")
    seat = pair.worker()
    del pair.seats[seat.worker_id]
    pair.advance(LEASE_S + 2 * HEARTBEAT_S)
    pair.start()
    pair.seats[seat.worker_id] = seat
    seat.finish("a")
    pair.advance(2 * HEARTBEAT_S)
    assert pair.state("a") is SUCCEEDED


@pytest.mark.parametrize("known", [True, False])
def test_spools_are_taken_in_from_whoever_was_known(pair: Pair, known: bool) -> None:
    pair.define("a")
    seat = pair.worker()
    del pair.seats[seat.worker_id]
    pair.advance(LEASE_S + 2 * HEARTBEAT_S)
    pair.start()
    result = TaskFinished(0, (Finished("a", 1, b"\x01", None, USAGE, ""),))
    who = seat.worker_id if known else "nobody-0000000000000000"
    pair.turn(ev.Heard(who, 50, "fs", result, spooled=True))
    assert pair.state("a") is (SUCCEEDED if known else QUEUED)


def test_the_attempt_that_was_held_is_closed_when_an_older_one_succeeds(pair: Pair) -> None:
    pair.define("a")
    first = pair.worker()
    del pair.seats[first.worker_id]
    pair.advance(LEASE_S + 2 * HEARTBEAT_S)
    second = pair.worker()
    assert second.running == [Held("a", 2)]
    pair.start()
    result = TaskFinished(0, (Finished("a", 1, b"\x01", None, USAGE, ""),))
    pair.turn(ev.Heard(first.worker_id, 50, "fs", result, spooled=True))
    assert pair.state("a") is SUCCEEDED
    second.finish("a")
    pair.advance(2 * HEARTBEAT_S)
    assert second.session.outbox.empty
    refused = [s for turn in pair.turns for s in turn.changes.stories if s.kind == "refused"]
    assert not refused


# --- operators and ends -----------------------------------------------------------------------


def test_nothing_new_starts_after_the_generator_failed(pair: Pair) -> None:
    pair.define("a", "b")
    seat = pair.worker()
    pair.turn(ev.GenerationEnded("it broke"))
    seat.finish("a")
    pair.settle()
    assert seat.fed() == [Held("a", 1)]
    assert pair.state("b") is QUEUED


def test_nothing_starts_while_paused(pair: Pair) -> None:
    pair.ask("pause")
    pair.define("a")
    seat = pair.worker()
    assert seat.fed() == []
    pair.ask("resume")
    pair.settle()
    assert seat.fed() == [Held("a", 1)]


def test_a_shutdown_ends_although_its_launches_never_come(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(launcher="slurm", workers=2, grace_s=5.0)
    pair.define("a")
    pair.advance(1.0)
    launches = [one for turn in pair.turns for one in turn.effects if isinstance(one, Submit)]
    assert launches
    pair.ask("shutdown")
    pair.advance(60.0)
    assert pair.coordinator.finished == 4


def test_a_launch_that_is_cancelled_before_it_was_taken_is_cancelled_after(
    make_pair: Callable[..., Pair],
) -> None:
    pair = make_pair(launcher="slurm", workers=1)
    pair.define("a")
    pair.advance(1.0)
    (launch_id,) = pair.coordinator.book.launches
    pair.ask("shutdown")
    turn = pair.turn(ev.Submitted(launch_id, "77"))
    assert CancelLaunch(launch_id, "77") in turn.effects


def test_every_request_is_answered_once(pair: Pair) -> None:
    for cmd, args in (
        ("scale", {"workers": 3}),
        ("pause", {}),
        ("resume", {}),
        ("drain", {"worker": "nobody"}),
        ("cancel", {"task_ids": ["nothing"]}),
        ("retry", {"task_ids": ["nothing"]}),
        ("release", {"what": "nobody"}),
        ("shutdown", {}),
    ):
        turn = pair.ask(cmd, **args)
        assert len([one for one in turn.effects if isinstance(one, Reply)]) == 1


# --- totality ---------------------------------------------------------------------------------


def bring_to(pair: Pair, state: str) -> None:
    """One task "t", in this state; its first attempt was given to worker 1."""
    pair.define("t", max_retries=0 if state == "failed" else 2)
    seat = pair.worker()
    if state == "running":
        pair.advance(HEARTBEAT_S)
    elif state == "succeeded":
        seat.finish("t")
    elif state in ("failed", "delayed"):
        seat.fail("t")
    elif state == "canceled":
        pair.ask("cancel", task_ids=["t"])
    elif state == "held":
        pair.seats.clear()
        pair.start()
    elif state == "queued":
        lost(pair, seat)
    elif state == "second":
        lost(pair, seat)
        pair.worker()
    if state in ("succeeded", "failed", "delayed", "canceled"):
        pair.settle()


STATES = ("assigned", "running", "second", "queued", "delayed", "held", "succeeded", "failed",
          "canceled")  # fmt: skip


def messages(attempt: int) -> list[object]:
    held = Held("t", attempt)
    causes = ("exception", "crash", "canceled", "unencodable")
    reports = [
        Report(1, 99, 0, 0, 1, running=(held,)),
        Report(1, 99, 10**6, 0, 1, waiting=(held,)),
        Report(1, 99, 0, 0, 0, settled=(held,), leaving="walltime"),
        Report(1, 99, 3, 0, 1, same=True, gap=True),
    ]
    register = Register(1, 1, "1", "3", "h", 1, 1, "zmq", "hash", 0, held=(held,))
    return [
        TaskFinished(0, (Finished("t", attempt, b"\x01", None, USAGE, ""),)),
        *[TaskFailed(0, (Failed("t", attempt, one, "e", "", None, None, USAGE, ""),))
          for one in causes],
        *[TaskReturned(0, (Returned("t", attempt, "walltime", one),)) for one in (True, False)],
        *[Heartbeat(one) for one in reports],
        register,
        ShutdownAck("bye"),
        TaskFinished(0, (Finished("unheard-of", 1, b"\x01", None, USAGE, ""),)),
    ]  # fmt: skip


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("attempt", [1, 2, 7])
@pytest.mark.parametrize("number", range(len(messages(1))))
def test_no_report_about_any_attempt_in_any_state_raises(
    pair: Pair, state: str, attempt: int, number: int
) -> None:
    bring_to(pair, state)
    before = pair.state("t")
    message = messages(attempt)[number]
    names = [*pair.coordinator.book.workers, "foreign-00000000000000ff"]
    for count, name in enumerate(names):
        pair.turn(ev.Heard(name, 500 + count, "zmq", message))  # type: ignore[arg-type]
        pair.turn(ev.Heard(name, 500 + count, "zmq", message))  # type: ignore[arg-type]
        pair.turn(ev.Heard(name, 600 + count, "fs", message, spooled=True))
        pair.coordinator.book.check()
    if before in (SUCCEEDED, FAILED, CANCELED):
        assert pair.state("t") is before
