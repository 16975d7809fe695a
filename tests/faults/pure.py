"""A manager and a worker without processes: the real coordinator, store and session, our own clock.

For questions that the simulator does not ask one at a time: this message and no other is lost.
"""

from __future__ import annotations

import hashlib
import heapq
import itertools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from jobflow_worker.codec import encode_body
from jobflow_worker.messages import Assign, Assignment, Finished, Held, Usage
from jobflow_worker.session import Session
from jobflow_worker.slotevents import Settled, SlotReady, Unstarted
from jobflow_worker.vocabulary import BeaconSeen, Feed, Identity, ReadBeacon, Recall, Send
from jobflowd import events as ev
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.effects import Deliver, Effect, Post
from jobflowd.model import Definition, TaskState
from jobflowd.store import Store

HASH = "h"
SPEC = encode_body({})
#: From one side to the other.
LATENCY_S = 0.01
#: A virtual run that takes longer than this is stuck.
PATIENCE_S = 600.0


def definitions(n: int) -> tuple[Definition, ...]:
    """Tasks t0, t1, ... with an empty spec."""
    digest = hashlib.sha256(SPEC).digest()[:16]
    return tuple(Definition(f"t{i}", SPEC, digest, 2, 0, None, None, None) for i in range(n))


class Manager:
    """The daemon without its shell. `restart` is a new life on the same store."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store(":memory:")
        self.store.open()
        self.restart()

    def restart(self) -> None:
        snapshot = self.store.begin_epoch(wall=0.0)
        self.epoch = int(snapshot.meta["epoch"])
        self.coordinator = Coordinator(self.settings, snapshot, self.epoch)

    def turn(self, now: float, *events: ev.Event) -> list[Effect]:
        """Look up, decide, commit; returns what is to be done."""
        facts = self.store.lookup(self.coordinator.questions(now, events))
        turn = self.coordinator.turn(now, now, events, facts)
        self.store.commit(turn.changes)
        self.coordinator.book.check()
        return turn.effects

    def done(self) -> bool:
        """Whether every task succeeded."""
        counts = self.coordinator.book.counts
        return counts[TaskState.SUCCEEDED] == self.coordinator.book.total > 0

    def close(self) -> None:
        self.store.close()


@dataclass
class Pair:
    """One manager and one worker with one slot; the `lost`th message of all never arrives."""

    tasks: int = 4
    task_s: float = 1.0
    lost: int = 0
    now: float = 0.0
    sent: int = 0
    executed: Counter[str] = field(default_factory=Counter)
    _heap: list[tuple[float, int, str, Any]] = field(default_factory=list)
    _serial: Any = field(default_factory=itertools.count)
    _queue: list[Held] = field(default_factory=list)
    _busy: bool = False

    def run(self) -> float:
        """When the manager knew that everything had succeeded."""
        settings = Settings("s", "p.py", stay=True)
        self.manager = Manager(settings)
        self.worker = Session(Identity("0", "3", "host", 1, 1, HASH))
        opening = (
            ev.ProgramChanged(HASH),
            ev.TransportsReady(),
            ev.Generated(definitions(self.tasks)),
            ev.GenerationEnded(),
        )
        for event in opening:
            self._at(0.0, "manager", event)
        self._at(0.0, "worker", SlotReady(0))
        while not self.manager.done():
            self._step()
            assert self.now < PATIENCE_S, "it does not end"
        self.manager.close()
        return self.now

    def _at(self, delay: float, who: str, event: Any) -> None:
        heapq.heappush(self._heap, (self.now + delay, next(self._serial), who, event))

    def _step(self) -> None:
        """The next thing that happens: an arrival, the end of a task, or somebody's deadline."""
        due = self._heap[0][0] if self._heap else float("inf")
        deadlines = [self.manager.coordinator.next_deadline(), self.worker.next_deadline()]
        at = min([due, *(one for one in deadlines if one is not None)])
        self.now = max(self.now, at)
        if due <= at:
            _, _, who, event = heapq.heappop(self._heap)
        else:
            who, event = ("manager" if deadlines[0] == at else "worker"), None
        if who == "manager":
            heard = [] if event is None else [event]
            self._out(self.manager.turn(self.now, *heard, ev.MailRead(self.now)))
        else:
            self._tell_worker([] if event is None else [event])

    def _send(self, who: str, event: Any) -> None:
        self.sent += 1
        if self.sent != self.lost:
            self._at(LATENCY_S, who, event)

    def _out(self, effects: Sequence[Effect]) -> None:
        for effect in effects:
            for message in effect.messages if isinstance(effect, Post) else ():
                self._send("worker", self._filled(message))

    @staticmethod
    def _filled(message: Any) -> Any:
        if not isinstance(message, Deliver):
            return message
        items = tuple(Assignment(x.task_id, x.attempt, SPEC, None, None) for x in message.items)
        return Assign(message.epoch, message.seq, message.base, items)

    def _tell_worker(self, events: list[Any]) -> None:
        if events and isinstance(events[0], Settled):
            self._busy = False
        for effect in self.worker.handle(self.now, events):
            if isinstance(effect, Send):
                for one in effect.fresh:
                    heard = ev.Heard("w-0000000000000001", one.counter, "zmq", one.message)
                    self._send("manager", heard)
            elif isinstance(effect, Feed):
                self._queue += [Held(one.task_id, one.attempt) for one in effect.items]
            elif isinstance(effect, Recall):
                self._at(0.0, "worker", Unstarted(0, tuple(self._queue)))
                self._queue = []
            elif isinstance(effect, ReadBeacon):
                beat = int(self.now / 10)
                self._at(0.0, "worker", BeaconSeen(self.manager.epoch, beat, "open", ()))
        self._work()

    def _work(self) -> None:
        """The slot's child takes the next attempt, if it is free."""
        if self._busy or not self._queue:
            return
        held = self._queue.pop(0)
        self._busy = True
        self.executed[held.task_id] += 1
        usage = Usage(self.task_s, 0.0, 0)
        outcome = Finished(*held, encode_body({}), None, usage, "")
        self._at(self.task_s, "worker", Settled(0, outcome))
