"""Many messages through the real coordinator and the real store: does the database stay bounded?

    python -m tests.faults.messages 1000000

Workers that only hand their attempts back: each task goes round for ever and leaves no row, so
whatever grows in the database grows with the number of messages, which it must not.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from jobflow_worker.codec import encode_body
from jobflow_worker.messages import (
    Ack,
    FromWorker,
    Heartbeat,
    Held,
    Register,
    Report,
    Returned,
    TaskReturned,
)
from jobflowd import events as ev
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.effects import Deliver, Effect, Post
from jobflowd.model import Definition
from jobflowd.store import Store

HASH = "h"


@dataclass(slots=True)
class Fake:
    """A worker that is given one task at a time and hands it back at once."""

    name: str
    counter: int = 0
    hb_seq: int = 0
    seen: int = 0
    floor: int = 1
    has: list[Held] = field(default_factory=list)
    unacked: set[int] = field(default_factory=set)

    def say(self, message: FromWorker) -> ev.Heard:
        self.counter += 1
        return ev.Heard(self.name, self.counter, "zmq", message)

    def events(self, epoch: int) -> list[ev.Heard]:
        """What it says in one round: an outcome if it has one, and a report."""
        said = []
        floor = min(self.unacked, default=self.counter + 1)
        if self.has:
            items = tuple(Returned(*held, "draining", False) for held in self.has)
            said.append(self.say(TaskReturned(floor, items)))
            self.unacked.add(self.counter)
            self.has = []
        self.hb_seq += 1
        report = Report(epoch, self.hb_seq, self.seen, floor, 1)
        return [*said, self.say(Heartbeat(report))]

    def hear(self, message: object) -> None:
        """What the manager says: more to do, or verdicts."""
        self.seen = max(self.seen, getattr(message, "seq", 0))
        if isinstance(message, Deliver):
            self.has += [Held(one.task_id, one.attempt) for one in message.items]
        elif isinstance(message, Ack):
            self.unacked -= {one.counter for one in message.verdicts}


class Crowd:
    """`workers` of them, on a database of their own."""

    def __init__(self, database: Path, workers: int = 100) -> None:
        self.workers = workers
        self._store = Store(database)
        self._store.open()
        settings = Settings("s", "p.py", stay=True)
        snapshot = self._store.begin_epoch(wall=0.0)
        self._epoch = int(snapshot.meta["epoch"])
        self._coordinator = Coordinator(settings, snapshot, self._epoch)
        self._fakes = {name: Fake(name) for name in (f"w-{n:016x}" for n in range(workers))}
        self._now = 0.0
        self.messages = 0
        spec = encode_body({})
        digest = hashlib.sha256(spec).digest()[:16]
        tasks = (Definition(f"t{n}", spec, digest, 2, 0, None, None, None) for n in range(workers))
        hello = Register(1, 1, "0", "3", "h", 1, 1, "zmq", HASH, 1)
        self._turn(
            [
                ev.ProgramChanged(HASH),
                ev.TransportsReady(),
                ev.Generated(tuple(tasks)),
                *(fake.say(hello) for fake in self._fakes.values()),
            ]
        )

    def _turn(self, events: list[ev.Event]) -> None:
        self._now += 0.1
        facts = self._store.lookup(self._coordinator.questions(self._now, events))
        turn = self._coordinator.turn(self._now, self._now, events, facts)
        self._store.commit(turn.changes)
        for effect in turn.effects:
            self._hear(effect)

    def _hear(self, effect: Effect) -> None:
        if isinstance(effect, Post):
            for message in effect.messages:
                self._fakes[effect.worker_id].hear(message)

    def run(self, messages: int) -> None:
        """Exchange so many messages of workers."""
        until = self.messages + messages
        while self.messages < until:
            events: list[ev.Event] = []
            for fake in self._fakes.values():
                events += fake.events(self._epoch)
            self.messages += len(events)
            self._turn(events)
        self._coordinator.book.check()

    def sizes(self) -> dict[str, int]:
        """Rows of the tables that messages write to, and bytes."""
        tables = {
            "processed_messages": "SELECT count(*) FROM processed_messages",
            "attempts": "SELECT count(*) FROM attempts",
            "events": "SELECT count(*) FROM events",
        }
        rows = {name: int(self._store.read(sql)[0][0]) for name, sql in tables.items()}
        self._store.settle()
        issued = int(self._store.read("SELECT sum(issued) FROM tasks")[0][0])
        return {
            "messages": self.messages,
            **rows,
            "deliveries": issued,
            "bytes": self._store.size_bytes(),
        }

    def close(self) -> None:
        self._store.close()


def main() -> int:
    """Print the sizes ten times over the run."""
    total = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as place:
        crowd = Crowd(Path(place) / "m.db")
        began = time.monotonic()
        for _ in range(10):
            crowd.run(total // 10)
            print(f"{time.monotonic() - began:7.1f} s  {crowd.sizes()}", flush=True)
        crowd.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
