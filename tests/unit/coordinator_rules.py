"""The coordinator's rules in plain words, and a worker that tells the truth: see
`test_coordinator_model.py`, which plays the real coordinator against them.

The model is a dict of tasks with their attempts, budgets and holders; it is told the same events as
the coordinator and says what each must come to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pairing import HEARTBEAT_S, LEASE_S

from jobflow_worker.messages import (
    Ack,
    Cancel,
    Failed,
    Finished,
    Heartbeat,
    Held,
    Register,
    Report,
    Returned,
    TaskFailed,
    TaskFinished,
    TaskReturned,
    Usage,
    Welcome,
)
from jobflowd.effects import Deliver, Post
from jobflowd.model import TASK_TERMINAL, Task, TaskState

QUEUED, ASSIGNED, RUNNING, SUCCEEDED, FAILED, CANCELED = TaskState
OUT = (ASSIGNED, RUNNING)
HOLD_S = HEARTBEAT_S + LEASE_S
MAX_LOSSES, MAX_RETRIES, MAX_DELIVERIES = 2, 1, 8
SLOTS, ROOM = 2, 3
#: Failures that took their time: a fast one would be a matter of the quarantine.
USAGE = Usage(5.0, 1.0, 1000)
Outcome = TaskFinished | TaskFailed | TaskReturned


# --- the model ----------------------------------------------------------------------------------


@dataclass(slots=True)
class Try:
    """An attempt: `open` may still bring an outcome, `closed` not, `gone` left no trace."""

    worker: str
    fate: str = "current"
    running: bool = False
    charged: str = ""
    back: bool = False
    recorded: bool = False


@dataclass(slots=True)
class Entry:
    """A task, by the rules. `barred`: attempts up to this one were before an operator's retry."""

    state: TaskState = QUEUED
    tries: dict[int, Try] = field(default_factory=dict)
    current: int = 0
    held: bool = False
    failures: int = 0
    losses: int = 0
    deliveries: int = 0
    solo: bool = False
    barred: int = 0
    ready_at: float = 0.0
    winner: int = 0

    @property
    def holder(self) -> str | None:
        """Who has, or before a restart had, the current attempt."""
        return self.tries[self.current].worker if self.current else None

    @property
    def used_up(self) -> bool:
        return self.failures > MAX_RETRIES or self.losses > MAX_LOSSES

    def charge(self, budget: str, amount: int = 1) -> None:
        if budget == "losses":
            self.losses = max(0, self.losses + amount)
        elif budget == "retries":
            self.failures = max(0, self.failures + amount)


@dataclass(slots=True)
class Contact:
    """What the manager knows of a worker."""

    registered: bool = False
    confirmed: bool = False
    draining: bool = False
    heard_at: float = 0.0
    hb_seq: int = 0
    verdicts: dict[int, str] = field(default_factory=dict)
    stopping: set[Held] = field(default_factory=set)


class Model:
    """The rules of DESIGN.md section 7, as plainly as they can be said."""

    def __init__(self) -> None:
        self.tasks: dict[str, Entry] = {}
        self.contacts: dict[str, Contact] = {}
        self.paused = False
        self.now = 0.0
        self.hold_ends: float | None = None
        self.read_at = 0.0

    def out_at(self, worker: str) -> list[tuple[str, Entry, Try]]:
        """What this worker has, by the manager's belief."""
        return [
            (task_id, one, one.tries[one.current])
            for task_id, one in self.tasks.items()
            if one.state in OUT and one.holder == worker
        ]

    def _queue(self, task: Entry, delay_s: float = 0.0) -> None:
        task.state, task.held, task.current = QUEUED, False, 0
        task.ready_at = self.now + delay_s

    def _again(self, task: Entry) -> None:
        """Another attempt after a while, or the end if a budget is used up."""
        if task.used_up or task.deliveries >= MAX_DELIVERIES:
            self._end(task, FAILED)
            return
        tries = task.failures + task.losses
        self._queue(task, min(8.0, 2.0 ** (tries - 1)) if tries else 0.0)

    def _end(self, task: Entry, state: TaskState) -> None:
        task.state, task.held, task.current = state, False, 0

    def _give_back_charge(self, task: Entry, one: Try) -> None:
        task.charge(one.charged, -1)
        one.charged = ""

    def _withdraw(self, task_id: str, task: Entry) -> None:
        """Whoever else has it is told to stop; it stays open."""
        if not task.current:
            return
        other = task.tries[task.current]
        other.fate, other.recorded = "open", True
        if not task.held:
            task.deliveries += other.running
            self.contacts[other.worker].stopping.add(Held(task_id, task.current))

    def _kind(self, worker: str, task_id: str, attempt: int) -> str:
        task = self.tasks.get(task_id)
        one = task.tries.get(attempt) if task is not None else None
        if task is None or one is None or one.worker != worker or one.fate == "gone":
            return "never"
        return "closed" if one.fate == "open" and attempt <= task.barred else one.fate

    def outcome(self, worker: str, counter: int, message: Outcome) -> None:
        """A worker's word about one attempt; the verdict that it must get is kept."""
        contact = self.contacts[worker]
        if counter in contact.verdicts:
            return
        (item,) = message.items
        kind = self._kind(worker, item.task_id, item.attempt)
        if isinstance(item, Returned):
            verdict = self._returned(kind, item)
        elif kind == "never":
            verdict = "refused"
        elif kind == "closed":
            verdict = "late"
        elif isinstance(item, Finished):
            verdict = self._finished(kind, item)
        else:
            verdict = self._failed(kind, item)
        contact.verdicts[counter] = verdict

    def _finished(self, kind: str, item: Finished) -> str:
        task = self.tasks[item.task_id]
        if task.state in TASK_TERMINAL:
            return "late"
        one = task.tries[item.attempt]
        if kind == "open":
            self._withdraw(item.task_id, task)
            self._give_back_charge(task, one)
        task.deliveries += 1
        one.fate, one.recorded, task.winner = "closed", True, item.attempt
        self._end(task, SUCCEEDED)
        return "accepted"

    def _failed(self, kind: str, item: Failed) -> str:
        task = self.tasks[item.task_id]
        one = task.tries[item.attempt]
        budget = {"crash": "losses", "canceled": ""}.get(item.cause, "retries")
        over = task.state in TASK_TERMINAL
        if kind == "open" and not over:
            self._give_back_charge(task, one)
        one.charged = "" if over else budget
        task.charge(one.charged)
        one.fate, one.recorded = "closed", True
        if kind == "open":
            # Nobody has the task, and another attempt would be one too many.
            if one.charged and task.state is QUEUED and not task.held and task.used_up:
                self._end(task, FAILED)
            return "late"
        task.deliveries += 1
        if item.cause == "nonretryable":
            self._end(task, FAILED)
        else:
            self._again(task)
        return "accepted"

    def _returned(self, kind: str, item: Returned) -> str:
        if kind != "current":
            return "late"
        task = self.tasks[item.task_id]
        one = task.tries[item.attempt]
        if not item.started:
            one.fate = "open" if one.recorded else "gone"
            self._queue(task)
            return "accepted"
        task.deliveries += 1
        one.fate, one.recorded = "closed", True
        self._again(task)
        return "accepted"

    def register(self, worker: str, message: Register) -> None:
        contact = self.contacts.setdefault(worker, Contact())
        contact.registered, contact.confirmed, contact.heard_at = True, False, self.now
        for held in message.held:
            if not self._has(worker, held):
                self._claim(worker, held, running=False)

    def _has(self, worker: str, held: Held) -> bool:
        task = self.tasks[held.task_id]
        return task.state in OUT and task.current == held.attempt and task.holder == worker

    def _claim(self, worker: str, held: Held, *, running: bool) -> None:
        """It has what it is not believed to have: taken back, or told to stop."""
        task = self.tasks[held.task_id]
        wanted = task.state not in TASK_TERMINAL
        wanted = wanted and self._kind(worker, *held) in ("current", "open")
        if wanted and task.state in OUT:
            # Only what has begun later, or not at all, makes way for it.
            wanted = not task.tries[task.current].running and held.attempt <= task.current
        if not wanted:
            self.contacts[worker].stopping.add(held)
            return
        if held.attempt != task.current:
            self._withdraw(held.task_id, task)
        one = task.tries[held.attempt]
        self._give_back_charge(task, one)
        one.fate, one.back = "current", True
        task.state, task.held, task.current = ASSIGNED, False, held.attempt
        one.running = False
        if running:
            self._runs(task)

    def _runs(self, task: Entry) -> None:
        task.state, task.tries[task.current].running = RUNNING, True

    def report(self, worker: str, report: Report) -> None:
        contact = self.contacts[worker]
        if report.hb_seq <= contact.hb_seq:
            return
        contact.hb_seq, contact.heard_at = report.hb_seq, self.now
        if report.brief:
            return
        for held in (*report.running, *report.waiting):
            running = held in report.running
            if not self._has(worker, held):
                if held not in contact.stopping:
                    self._claim(worker, held, running=running)
            elif running:
                self._runs(self.tasks[held.task_id])
        if not contact.confirmed:
            contact.confirmed = True
            for task_id, task in self.tasks.items():
                mine = task.held and task.holder == worker
                if mine and Held(task_id, task.current) not in report.settled:
                    self._release(task)

    def _release(self, task: Entry) -> None:
        one = task.tries[task.current]
        one.fate, one.recorded = "open", True
        if task.used_up:
            self._end(task, FAILED)
        else:
            self._queue(task)

    def offline(self, worker: str, *, charge: bool) -> None:
        """Gone with all it had: only what certainly ran is charged, and one alone."""
        contact = self.contacts[worker]
        had = self.out_at(worker)
        alone = len(had) == 1
        certain = all(one.running for _, _, one in had) or (alone and had[0][1].solo)
        for _, task, one in had:
            last_try = task.losses >= MAX_LOSSES
            one.charged = "losses" if charge and certain and (alone or not last_try) else ""
            task.charge(one.charged)
            task.solo = task.solo or (charge and (not certain or last_try))
            started = certain or one.running
            one.fate, one.recorded = "open", True
            if started:
                task.deliveries += 1
                self._again(task)
            else:
                self._queue(task)
        contact.registered = False
        contact.stopping.clear()

    def lost(self, worker: str) -> None:
        """The coordinator calls it lost: was its lease over?"""
        contact = self.contacts[worker]
        assert contact.registered, "lost a worker that it did not have"
        assert self.now >= contact.heard_at + LEASE_S, "lost before its lease was over"
        assert self.read_at >= contact.heard_at + LEASE_S, "lost with its mail unread"
        self.offline(worker, charge=not contact.draining)

    def assigned(self, task: Task, worker: str) -> None:
        """The coordinator gives a task out: was it free, and the worker there?"""
        entry, contact = self.tasks[task.task_id], self.contacts[worker]
        assert entry.state is QUEUED, f"{task.task_id} is assigned and was {entry.state.word}"
        assert not entry.held, "assigned while its survivor is waited for"
        assert entry.ready_at <= self.now, "assigned before its back-off was over"
        assert contact.registered, "assigned to a worker that is gone"
        assert not contact.draining, "assigned to a worker that leaves"
        assert not self.paused, "assigned while paused"
        assert task.current == max(entry.tries, default=0) + 1, "attempt numbers leave gaps"
        company = self.out_at(worker)
        assert not (entry.solo and company), "assigned in company"
        assert not any(one.solo and not this.back for _, one, this in company), "company for solo"
        entry.state, entry.current = ASSIGNED, task.current
        entry.tries[task.current] = Try(worker)

    def cancel(self, task_id: str) -> None:
        task = self.tasks[task_id]
        if task.state in TASK_TERMINAL:
            return
        if task.current:
            one = task.tries[task.current]
            one.fate, one.recorded = "closed", True
            if not task.held:
                self.contacts[one.worker].stopping.add(Held(task_id, task.current))
        self._end(task, CANCELED)

    def retry(self, task_id: str) -> None:
        task = self.tasks[task_id]
        if task.state in (FAILED, CANCELED):
            task.failures = task.losses = task.deliveries = 0
            task.solo, task.barred = False, max(task.tries, default=0)
            self._queue(task)

    def restart(self) -> None:
        """What was out is held for its survivors; nobody is registered; no back-off."""
        for task in self.tasks.values():
            task.ready_at = 0.0
            if task.state in OUT:
                task.state, task.held = QUEUED, True
                task.tries[task.current].running = False
        for contact in self.contacts.values():
            contact.registered = contact.draining = False
            contact.hb_seq = 0
            contact.stopping.clear()
        self.hold_ends = self.now + HOLD_S

    def pass_time(self) -> None:
        if self.hold_ends is not None and self.now >= self.hold_ends:
            self.hold_ends = None
            for task in self.tasks.values():
                if task.held:
                    self._release(task)


# --- a worker that tells the truth --------------------------------------------------------------


class Toy:
    """A worker without processes: what it holds, what it still has to tell, what it has seen."""

    def __init__(self, number: int) -> None:
        self.worker_id = f"w{number}-{number:016x}"
        self.number = number
        self.epoch = self.seen = self.hb_seq = self.counter = 0
        self.holds: dict[Held, bool] = {}
        self.outbox: dict[int, Outcome] = {}
        self.told: dict[int, Outcome] = {}
        self.registers = True

    @property
    def floor(self) -> int:
        return min(self.outbox, default=self.counter + 1)

    def next(self) -> int:
        self.counter += 1
        return self.counter

    def registration(self) -> Register:
        return Register(
            *(1, 1, "1", "3.11", f"h{self.number}", self.number, SLOTS, "zmq", "hash", self.floor),
            held=tuple(self.holds),
        )

    def report(self, *, brief: bool) -> Heartbeat:
        self.hb_seq += 1
        settled = tuple(Held(*item[:2]) for one in self.outbox.values() for item in one.items)
        running = tuple(held for held, runs in self.holds.items() if runs)
        waiting = tuple(held for held, runs in self.holds.items() if not runs)
        lists = ((), (), ()) if brief else (running, waiting, settled)
        room = ROOM - len(self.holds)
        return Heartbeat(
            Report(self.epoch, self.hb_seq, self.seen, self.floor, room, *lists, brief=brief)
        )

    def begin(self) -> None:
        """Free slots take what waits."""
        free = SLOTS - sum(self.holds.values())
        for held in [one for one, runs in self.holds.items() if not runs][:free]:
            self.holds[held] = True

    def settle(self, held: Held, how: str) -> None:
        """An attempt ends; its outcome waits in the outbox."""
        runs = self.holds.pop(held)
        counter = self.next()
        message: Outcome
        if how == "finished":
            item = Finished(*held, b"\xc3", None, USAGE, "")
            message = TaskFinished(self.floor, (item,))
        elif how == "returned" or not runs:
            message = TaskReturned(self.floor, (Returned(*held, "draining", runs),))
        else:
            failed = Failed(*held, how, f"{how}!", "", None, None, USAGE, "")
            message = TaskFailed(self.floor, (failed,))
        self.outbox[counter] = self.told[counter] = message

    def receive(self, post: Post) -> None:
        for message in post.messages:
            if isinstance(message, Welcome):
                if message.again:
                    self.registers = True
                    return
                if message.epoch != self.epoch:
                    self.epoch, self.hb_seq = message.epoch, 0
                self.seen = message.seq
                continue
            new = message.seq > self.seen
            if message.base <= self.seen:
                self.seen = max(self.seen, message.seq)
            if isinstance(message, Ack):
                for verdict in message.verdicts:
                    self.outbox.pop(verdict.counter, None)
            elif new and isinstance(message, Deliver):
                for item in message.items:
                    held = Held(item.task_id, item.attempt)
                    if not any(held == Held(*i[:2]) for m in self.told.values() for i in m.items):
                        self.holds.setdefault(held, False)
            elif new and isinstance(message, Cancel):
                for held in message.items:
                    if held in self.holds:
                        self.settle(held, "canceled")
        assert len(self.holds) <= ROOM, "more than it had room for"
