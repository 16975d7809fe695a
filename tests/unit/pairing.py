"""A real Coordinator and real Sessions, joined through the codec, with a clock that tests move.

`Pair` is the manager's side, a `Seat` one worker. Nothing moves by itself: `pair.deliver()` takes
what workers sent into one turn, `seat.receive()` takes what was posted to it, `pair.settle()` does
both until nobody has anything to say. `lose()` on either throws away what is under way.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jobflow_worker.codec import decode_body, decode_frame, encode_frame
from jobflow_worker.messages import (
    MANAGER,
    WORKER,
    Assign,
    Assignment,
    Envelope,
    Failed,
    Finished,
    FromWorker,
    Held,
    Usage,
)
from jobflow_worker.session import Session
from jobflow_worker.slotevents import Settled, SlotReady, Unstarted
from jobflow_worker.vocabulary import Effect, Event, Exit, Feed, Identity, Kill, Recall, Send, Spool
from jobflowd import events as ev
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.effects import Deliver, Post, Turn
from jobflowd.model import Definition, Questions, Task, TaskState
from jobflowd.store import Store

HEARTBEAT_S, LEASE_S = 10.0, 60.0
USAGE = Usage(1.0, 0.5, 1000)


class Seat:
    """One worker: its session, what it runs, and what was posted to it and not received yet."""

    def __init__(self, pair: Pair, number: int, slots: int, **identity: Any) -> None:
        self.pair = pair
        self.worker_id = f"w{number}-{number:016x}"
        self.session = Session(
            Identity("1", "3.11", f"h{number}", number, slots, "hash", **identity)
        )
        self.inbox: list[bytes] = []
        self.effects: list[Effect] = []
        self.spool: list[ev.Heard] = []
        self.step(*(SlotReady(slot) for slot in range(slots)))

    def step(self, *events: Event) -> list[Effect]:
        """Hand events over; what is sent goes to the manager's mail, the rest is returned."""
        more: list[Event] = list(events)
        seen: list[Effect] = []
        while True:
            effects = self.session.handle(self.pair.now, more)
            seen += effects
            more = []
            for effect in effects:
                more += self._perform(effect)
            if not more:
                self.effects += seen
                return seen

    def _perform(self, effect: Effect) -> list[Event]:
        match effect:
            case Send(fresh):
                self.pair.mail += [self._heard(one.counter, one.message) for one in fresh]
            case Recall(slot):
                behind = tuple(self.session.work.slots[slot].fed)[1:]
                return [Unstarted(slot, behind)]
            case Kill(slot, held) if not self.session.work.is_running(held):
                return [Unstarted(slot, (held,))]
            case Spool():
                waiting = self.session.outbox.waiting()
                self.spool = [self._heard(one.counter, one.message) for one in waiting]
        return []

    def _heard(self, counter: int, message: Any) -> ev.Heard:
        frame = encode_frame([Envelope(WORKER, self.worker_id, "", counter, 0.0, message)])
        good, complaints = decode_frame(frame, sent_by=WORKER)
        assert not complaints
        return ev.Heard(self.worker_id, counter, "zmq", good[0].message)  # type: ignore[arg-type]

    def receive(self) -> list[Effect]:
        """Take in everything that was posted."""
        frames, self.inbox = self.inbox, []
        messages: list[Event] = []
        for frame in frames:
            good, complaints = decode_frame(frame, sent_by=MANAGER)
            assert not complaints
            messages += [one.message for one in good]  # type: ignore[misc]
        return self.step(*messages)

    def lose(self) -> None:
        """What was posted is lost on the way."""
        self.inbox.clear()

    @property
    def running(self) -> list[Held]:
        return self.session.work.running()

    @property
    def exited(self) -> Exit | None:
        return next((one for one in self.effects if isinstance(one, Exit)), None)

    def fed(self) -> list[Held]:
        """Every attempt that was ever fed to a slot."""
        feeds = [one for one in self.effects if isinstance(one, Feed)]
        return [Held(item.task_id, item.attempt) for feed in feeds for item in feed.items]

    def finish(self, task_id: str, result: bytes = b"\x01") -> None:
        """The running attempt of this task succeeds."""
        self._settle(Finished(*self._held(task_id), result, None, USAGE, ""))

    def fail(self, task_id: str, cause: str = "exception") -> None:
        """The running attempt of this task fails."""
        held = self._held(task_id)
        self._settle(Failed(*held, cause, f"{cause}!", "", None, None, USAGE, ""))

    def _held(self, task_id: str) -> Held:
        (held,) = [one for one in self.running if one.task_id == task_id]
        return held

    def _settle(self, outcome: Finished | Failed) -> None:
        slot = self.session.work.slot_of(Held(outcome.task_id, outcome.attempt))
        assert slot is not None
        self.step(Settled(slot, outcome))


class Pair:
    """The manager: turns on demand over a real store in memory."""

    def __init__(self, **settings: Any) -> None:
        terms = {"zmq": (HEARTBEAT_S, LEASE_S), "fs": (HEARTBEAT_S, LEASE_S)}
        self.settings = Settings("s", "p.py:P", **{"terms": terms, "stay": True} | settings)
        self.store = Store(":memory:")
        self.store.open()
        self.now = 1000.0
        self.wall = 1e9
        self.mail: list[ev.Heard] = []
        self.seats: dict[str, Seat] = {}
        self.turns: list[Turn] = []
        self._workers = 0
        self.start()

    def start(self) -> None:
        """A (new) life of the daemon; what is under way to it is lost."""
        snapshot = self.store.begin_epoch("adopt", wall=self.wall)
        self.mail.clear()
        self.coordinator = Coordinator(self.settings, snapshot, int(snapshot.meta["epoch"]))
        self.turn(ev.ProgramChanged("hash"), ev.TransportsReady())

    def turn(self, *events: ev.Event) -> Turn:
        """Look up, decide, commit, post."""
        facts = self.store.lookup(self.coordinator.questions(self.now, events))
        turn = self.coordinator.turn(self.now, self.wall + self.now, events, facts)
        self.store.commit(turn.changes)
        for effect in turn.effects:
            if isinstance(effect, Post) and effect.worker_id in self.seats:
                self.seats[effect.worker_id].inbox.append(self._frame(effect))
        self.turns.append(turn)
        return turn

    def _frame(self, post: Post) -> bytes:
        messages = [self._filled(one) if isinstance(one, Deliver) else one for one in post.messages]
        return encode_frame(
            Envelope(MANAGER, MANAGER, post.worker_id, 1, 0.0, one) for one in messages
        )

    def _filled(self, deliver: Deliver) -> Assign:
        specs = self.store.specs([one.row for one in deliver.items])
        items = [Assignment(one.task_id, one.attempt, specs[one.row], None, None)
                 for one in deliver.items]  # fmt: skip
        return Assign(deliver.epoch, deliver.seq, deliver.base, tuple(items))

    def deliver(self) -> Turn:
        """Everything that workers sent, in one turn."""
        mail, self.mail = self.mail, []
        return self.turn(*mail, ev.MailRead(self.now))

    def settle(self) -> None:
        """Let everybody talk until nobody has anything to say."""
        for _ in range(50):
            busy = bool(self.mail)
            self.now += 0.001
            if busy:
                self.deliver()
            for seat in self.seats.values():
                if seat.inbox:
                    busy = True
                    seat.receive()
            if not busy:
                return
        raise AssertionError("they talk for ever")

    def advance(self, seconds: float, *, beats: bool = True) -> None:
        """Time passes; with `beats` all workers keep their heartbeats."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + HEARTBEAT_S)
            if beats:
                for seat in self.seats.values():
                    seat.step()
                self.settle()
            deadline = self.coordinator.next_deadline()
            if deadline is not None and deadline <= self.now:
                self.turn(ev.MailRead(self.now))

    def worker(self, slots: int = 1, **identity: Any) -> Seat:
        """A worker arrives, registers and reports."""
        self._workers += 1
        seat = Seat(self, self._workers, slots, **identity)
        self.seats[seat.worker_id] = seat
        self.settle()
        return seat

    def define(self, *task_ids: str, priority: int = 0, max_retries: int = 2) -> None:
        """The generator brings these tasks."""
        made = [Definition(one, b"\x80", bytes(16), max_retries, priority, None, None, None)
                for one in task_ids]  # fmt: skip
        self.turn(ev.Generated(tuple(made)))

    def ask(self, cmd: str, **args: Any) -> Turn:
        return self.turn(ev.Asked(1, cmd, args))

    def say(self, seat: Seat, counter: int, message: FromWorker, **words: Any) -> Turn:
        """Any message in this worker's name."""
        return self.turn(ev.Heard(seat.worker_id, counter, "zmq", message, **words))

    def task(self, task_id: str) -> Task:
        """The task as memory or the disk has it."""
        book = self.coordinator.book
        found = book.in_flight.get(task_id) or book.held.get(task_id) or book.ready.get(task_id)
        return found or self.from_disk([task_id])[task_id]

    def from_disk(self, task_ids: Iterable[str]) -> dict[str, Task]:
        return as_stored(self.store, list(task_ids))

    def state(self, task_id: str) -> TaskState:
        return self.from_disk([task_id])[task_id].state

    def attempts(self, task_id: str) -> list[tuple[int, str, str]]:
        """(attempt, outcome, charged) of what is recorded."""
        return [
            tuple(row)
            for row in self.store.read(
                "SELECT a.attempt, a.outcome, a.charged FROM attempts a"
                " JOIN tasks t ON t.id = a.task WHERE t.task_id = ? ORDER BY 1",
                (task_id,),
            )
        ]

    def close(self) -> None:
        """Every test ends with the walk over all invariants."""
        self.coordinator.book.check()
        self.store.close()


def as_stored(store: Store, task_ids: list[str]) -> dict[str, Task]:
    """What the database says of these tasks, lists of assignments included, without settling."""
    tasks = store.lookup(Questions(tasks=task_ids)).tasks
    by_row = {task.row: task for task in tasks.values()}
    for (items,) in store.read("SELECT items FROM assignments ORDER BY id"):
        flat = iter(decode_body(items))
        for row, attempt, worker in zip(flat, flat, flat, strict=True):
            task = by_row.get(row)
            if task is not None and task.issued < attempt:
                task.state, task.worker = TaskState.ASSIGNED, worker
                task.issued = task.current = attempt
    return tasks
