"""The pool over a batch system, in the coordinator: absence, doubt, canary, limits, time left."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobflow_worker import limits
from jobflow_worker.messages import Heartbeat, Register, Report, ShutdownAck
from jobflowd import events as ev
from jobflowd import walltime
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.effects import CancelLaunch, Effect, QueryLaunches, Submit
from jobflowd.launching import ABSENT_S, CANARY
from jobflowd.model import Definition, LaunchState, Worker, WorkerState
from jobflowd.store import Store

TERMS = {"zmq": (10.0, 60.0), "fs": (10.0, 60.0)}


class Inside:
    """A coordinator on a store in memory, with time that the test moves."""

    def __init__(self, store: Store, tasks: int = 50, **settings: Any) -> None:
        base = Settings("t1", "t.py", "slurm", "jf-a", workers=4, terms=TERMS)
        self.store = store
        snapshot = store.begin_epoch("adopt", wall=0.0)
        self.core = Coordinator(replace(base, **settings), snapshot, int(snapshot.meta["epoch"]))
        self.now = 100.0
        self.effects: list[Effect] = []
        self.hb = 0
        made = tuple(
            Definition(f"t{n}", b"x", b"h" * 16, 2, 0, None, None, None) for n in range(tasks)
        )
        self.turn(ev.ProgramChanged("h"), ev.TransportsReady(), ev.Generated(made))
        self.after(1.0)

    def turn(self, *events: ev.Event) -> list[Effect]:
        facts = self.store.lookup(self.core.questions(self.now, events))
        turn = self.core.turn(self.now, self.now, events, facts)
        self.store.commit(turn.changes)
        self.core.book.check()
        self.effects = turn.effects
        return turn.effects

    def after(self, seconds: float, *events: ev.Event) -> list[Effect]:
        """Let time pass in steps, as the loop would; the effects of all turns."""
        found: list[Effect] = []
        end = self.now + seconds
        while True:
            due = self.core.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now + 0.01, due)
            found += self.turn(ev.MailRead(self.now))
        self.now = end
        return found + self.turn(*events, ev.MailRead(self.now))

    def state(self, launch_id: str) -> LaunchState:
        return self.core.book.launches[launch_id].state

    def submitted(self) -> list[str]:
        """Every launch that is PLANNED gets its job."""
        planned = [
            one.launch_id
            for one in self.core.book.launches.values()
            if one.state is LaunchState.PLANNED
        ]
        self.turn(*(ev.Submitted(one, f"job-{one}") for one in planned))
        return planned

    def register(self, launch_id: str) -> Worker:
        worker_id = f"w-{launch_id}"
        hello = Register(
            *(limits.PROTOCOL_MIN, limits.PROTOCOL_MAX, "0", "3", "n1", 7, 1, "zmq", "h", 1),
            launch_id=launch_id,
        )
        self.turn(ev.Heard(worker_id, 1, "zmq", hello))
        return self.core.book.workers[worker_id]

    def beat(self, worker: Worker, **report: Any) -> None:
        self.hb += 1
        full = Report(self.core.book.epoch, self.hb, worker.seq, 1, 0, **report)
        self.turn(ev.Heard(worker.worker_id, 1 + self.hb, "zmq", Heartbeat(full)))


def test_absent_once_is_no_evidence_and_twice_is(store: Store) -> None:
    inside = Inside(store, workers=1)
    (launch,) = inside.submitted()
    inside.turn(ev.LaunchSeen(launch, LaunchState.RUNNING, "7"), ev.QueryAnswered())
    inside.after(ABSENT_S, ev.QueryAnswered((launch,)))
    assert inside.state(launch) is LaunchState.STALE
    inside.after(ABSENT_S / 4, ev.QueryAnswered((launch,)))
    assert inside.state(launch) is LaunchState.STALE
    effects = inside.after(ABSENT_S + 1, ev.QueryAnswered((launch,)))
    assert inside.state(launch) is LaunchState.FAILED
    effects += inside.after(1.0)
    assert sum(isinstance(one, Submit) for one in effects) == 1


def test_seen_again_begins_anew(store: Store) -> None:
    inside = Inside(store, workers=1)
    (launch,) = inside.submitted()
    inside.after(ABSENT_S, ev.QueryAnswered((launch,)))
    inside.turn(ev.LaunchSeen(launch, LaunchState.PENDING, "7"), ev.QueryAnswered())
    inside.after(ABSENT_S + 1, ev.QueryAnswered((launch,)))
    assert inside.state(launch) is LaunchState.STALE


def test_a_worker_that_reports_wins_over_the_queue(store: Store) -> None:
    inside = Inside(store, workers=1)
    (launch,) = inside.submitted()
    worker = inside.register(launch)
    for _ in range(10):
        inside.turn(ev.LaunchSeen(launch, LaunchState.ENDED, "7", "gone"), ev.QueryAnswered())
        inside.after(10.0)
        inside.beat(worker)
    assert worker.registered
    assert inside.state(launch) is LaunchState.ONLINE


def test_a_silent_worker_of_an_ended_job_is_lost_early_and_uncharged(store: Store) -> None:
    inside = Inside(store, workers=1)
    (launch,) = inside.submitted()
    worker = inside.register(launch)
    inside.beat(worker)
    inside.turn(
        ev.LaunchSeen(launch, LaunchState.ENDED, "7", "the job's node failed"), ev.QueryAnswered()
    )
    inside.after(31.0)
    assert not worker.registered
    assert worker.reason == "the job's node failed"


def test_a_job_that_nobody_claims_is_taken_back(store: Store) -> None:
    inside = Inside(store)
    effects = inside.turn(ev.LaunchSeen("jf-a-99", LaunchState.PENDING, "7"))
    assert CancelLaunch("jf-a-99", "7") in effects


def test_the_first_launches_are_few(store: Store) -> None:
    inside = Inside(store, workers=20, canary=True)
    launches = inside.submitted()
    assert len(launches) == CANARY
    for launch in launches:
        inside.register(launch)
    inside.after(20.0)
    assert inside.submitted() == []
    assert inside.core.launching.canary
    inside.core.launching._proven = True
    inside.after(20.0)
    assert len(inside.submitted()) == 20 - CANARY
    assert not inside.core.launching.canary


def test_a_limit_pauses_at_once_and_opens_by_itself(store: Store) -> None:
    inside = Inside(store, workers=2)
    planned = list(inside.core.book.launches)
    inside.turn(
        *(ev.SubmitFailed(one, "QOSMaxSubmitJobPerUserLimit", limited=True) for one in planned)
    )
    assert inside.core.launching.breaker.open
    assert "QOSMaxSubmit" in inside.core.launching.breaker.why
    inside.after(10.0)
    assert inside.submitted() == []
    inside.after(25.0)
    assert len(inside.submitted()) == 1
    assert not inside.core.launching.breaker.open


def test_questions_that_bring_nothing_are_asked_more_rarely(store: Store) -> None:
    inside = Inside(store, launch_poll_s=60.0)
    inside.submitted()
    asked = 0
    for _ in range(60):
        effects = inside.after(60.0)
        if any(isinstance(one, QueryLaunches) for one in effects):
            asked += 1
            inside.turn(ev.QueryFailed("Socket timed out"))
    assert 10 <= asked <= 16
    assert "Socket timed out" in inside.core.book.warnings["query"]


def test_a_preempted_worker_may_come_back_under_its_id(store: Store) -> None:
    inside = Inside(store, workers=1)
    (launch,) = inside.submitted()
    worker = inside.register(launch)
    inside.turn(ev.Heard(worker.worker_id, 5, "zmq", ShutdownAck("preempted")))
    assert inside.state(launch) is LaunchState.STALE
    inside.turn(ev.LaunchSeen(launch, LaunchState.PENDING, "7"), ev.QueryAnswered())
    inside.after(5.0)
    assert inside.state(launch) is LaunchState.PENDING
    assert inside.submitted() == []


def test_quarantined_hosts_get_no_launch(store: Store) -> None:
    inside = Inside(store, workers=1)
    (launch,) = inside.submitted()
    worker = inside.register(launch)
    worker.state = WorkerState.QUARANTINED
    effects = inside.after(5.0)
    submits = [one for one in effects if isinstance(one, Submit)]
    assert [one.exclude for one in submits] == [("n1",)]


# --- time left --------------------------------------------------------------------------------


def limited_worker(inside: Inside, left_s: float) -> Worker:
    (launch,) = inside.submitted()
    worker = inside.register(launch)
    worker.time_left_s = left_s
    return worker


def test_what_does_not_fit_is_not_started(store: Store) -> None:
    inside = Inside(store, workers=1, warning_s=120.0)
    worker = limited_worker(inside, 1000.0)
    task = inside.core.book.ready.pop()
    assert task is not None
    task.time_request_s = 900.0
    assert not walltime.fits(inside.core.book, worker, task, None)
    task.time_request_s = 880.0
    assert walltime.fits(inside.core.book, worker, task, None)
    task.time_request_s = None
    worker.done = 3
    assert not walltime.fits(inside.core.book, worker, task, 900.0)
    worker.done = 0
    assert walltime.fits(inside.core.book, worker, task, 900.0)
    inside.core.book.ready.offer(task)
