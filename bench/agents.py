"""A swarm of simulated workers in one process: real sessions, real links, no children.

    python -m bench.agents SESSION_DIR COUNT zmq | fs

Each has the worker's own `Session` and the transport's own link, with keys, and does a task by
saying at once that it is done. They share one zmq context, where real ones are processes. Runs
until it is ended. What it prints on stdout is one line: how many it has started.
"""

from __future__ import annotations

import heapq
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import zmq

from jobflow_worker import __version__, collector
from jobflow_worker.codec import encode_body
from jobflow_worker.keyfile import worker_keys
from jobflow_worker.messages import WORKER, Envelope, Finished, Usage
from jobflow_worker.outbox import Outgoing
from jobflow_worker.program import ProgramRef, program_hash
from jobflow_worker.session import Session
from jobflow_worker.sessionfiles import Beacon, SessionPaths, SessionRecord, read_beacon
from jobflow_worker.slotevents import Settled, SlotReady, Unstarted
from jobflow_worker.transport.base import Link
from jobflow_worker.transport.fs import FsLink
from jobflow_worker.transport.zmq import ZmqLink
from jobflow_worker.vocabulary import (
    BeaconSeen,
    Event,
    Exit,
    Feed,
    Identity,
    NoBeacon,
    ReadBeacon,
    Recall,
    Reconnect,
    Send,
)

#: How soon after each other they join: all at once is a storm that no cluster makes.
_JOIN_S = 0.002
_RESULT = encode_body({})
_NO_COST = Usage(0.0001, 0.0001, 1_000_000)


class Simulated:
    """One worker without a process of its own."""

    def __init__(self, name: str, identity: Identity, paths: SessionPaths, link: Link) -> None:
        self.name = name
        self.link = link
        self.due = 0.0
        self.left = False
        self._paths = paths
        self._session = Session(identity)
        self._session.transport = link.kind

    def begin(self, now: float) -> None:
        """Its slot is ready: it registers."""
        self._step(now, [SlotReady(0)])

    def wake(self, now: float) -> None:
        """Take in what came, do what is due."""
        inbox = self.link.receive()
        self._step(now, [one.message for one in inbox.envelopes])  # type: ignore[misc]

    def _step(self, now: float, events: list[Event]) -> None:
        self._session.full = self.link.full
        while True:
            more: list[Event] = []
            for effect in self._session.handle(now, events):
                more += self._perform(effect)
            if not more:
                break
            events = more
        times = (self._session.next_deadline(), self.link.next_poll(now))
        self.due = min((at for at in times if at is not None), default=now + 60.0)

    def _perform(self, effect: object) -> list[Event]:
        match effect:
            case Send(fresh):
                self.link.send(self._sealed(fresh), self._everything)
            case Feed(slot, items):
                return [
                    Settled(slot, Finished(one.task_id, one.attempt, _RESULT, None, _NO_COST, ""))
                    for one in items
                ]
            case Recall(slot):
                return [Unstarted(slot, ())]
            case ReadBeacon():
                return [self._look(read_beacon(self._paths.beacon))]
            case Reconnect(endpoints):
                self.link.reconnect(endpoints)
            case Exit():
                self.left = True
        return []

    def _look(self, beacon: Beacon | None) -> Event:
        if beacon is None:
            return NoBeacon()
        return BeaconSeen(beacon.epoch, beacon.n, beacon.state, beacon.endpoints)

    def _everything(self) -> list[Envelope]:
        return self._sealed(tuple(self._session.everything()))

    def _sealed(self, outgoing: tuple[Outgoing, ...]) -> list[Envelope]:
        ts = time.time()
        return [Envelope(WORKER, self.name, "", one.counter, ts, one.message) for one in outgoing]


class Swarm:
    """All of them and the loop that wakes those for whom there is something to do."""

    def __init__(self, directory: Path, count: int, mode: str) -> None:
        self._paths = SessionPaths(directory)
        self._mode = mode
        self._count = count
        beacon = read_beacon(self._paths.beacon)
        assert beacon is not None
        self._beacon = beacon
        record = SessionRecord.load(self._paths.session_file)
        self._hash = program_hash(ProgramRef.from_json(record.program))
        self._keys = worker_keys(self._paths, beacon, None, None) if mode == "zmq" else None
        self._context = zmq.Context(io_threads=1)
        self._context.set(zmq.MAX_SOCKETS, 10 * count + 100)
        self._poller = zmq.Poller()
        self._of_socket: dict[Any, int] = {}
        self._sockets: dict[int, list[Any]] = {}
        self._due: list[tuple[float, int]] = []
        self._all: list[Simulated] = []

    def run(self) -> None:
        """Join one after the other, then live."""
        join_at = time.monotonic()
        while True:
            now = time.monotonic()
            if len(self._all) < self._count and now >= join_at:
                join_at = now + _JOIN_S
                self._join(now)
                if len(self._all) == self._count:
                    sys.stdout.write(f"{self._count}\n")
                    sys.stdout.flush()
            until = join_at if len(self._all) < self._count else now + 1.0
            if self._due:
                until = min(until, self._due[0][0])
            self._wake(max(0.0, until - now))

    def _join(self, now: float) -> None:
        number = len(self._all)
        name = f"sim-{os.getpid()}-{number}-{os.urandom(8).hex()}"
        identity = Identity(
            __version__, platform.python_version(), platform.node(), os.getpid(), 1, self._hash
        )
        one = Simulated(name, identity, self._paths, self._link(name))
        self._all.append(one)
        one.begin(now)
        self._plan(number, now)

    def _plan(self, number: int, now: float) -> None:
        """When to wake this one again, and by which socket: a link that probes anew has others."""
        one = self._all[number]
        # One that is due again at once would keep all others waiting.
        heapq.heappush(self._due, (max(one.due, now + 0.001), number))
        known, present = self._sockets.get(number, []), one.link.sockets()[:1]
        if known == present:
            return
        for sock in known:
            self._poller.unregister(sock)
            del self._of_socket[sock]
        for sock in present:
            self._poller.register(sock, zmq.POLLIN)
            self._of_socket[sock] = number
        self._sockets[number] = list(present)

    def _link(self, name: str) -> Link:
        if self._mode == "fs":
            return FsLink(self._paths, name, self._beacon.heartbeat_s, time.monotonic)
        link = ZmqLink(name, time.monotonic, self._keys)
        # A context each would be two threads each.
        link._context.term()
        link._context = self._context
        link.open(self._beacon.endpoints[:1])
        return link

    def _wake(self, wait_s: float) -> None:
        if self._of_socket:
            ready = [sock for sock, _ in self._poller.poll(int(wait_s * 1000))]
        else:
            time.sleep(wait_s)
            ready = []
        now = time.monotonic()
        # Waking one may change the table.
        numbers = dict.fromkeys(self._of_socket[sock] for sock in ready)
        while self._due and self._due[0][0] <= now:
            _, number = heapq.heappop(self._due)
            if self._all[number].due <= now:
                numbers[number] = None
        for number in numbers:
            if not self._all[number].left:
                self._all[number].wake(now)
                self._plan(number, now)


def main() -> int:
    """The command line."""
    directory, count, mode = sys.argv[1:4]
    collector.calm()
    Swarm(Path(directory), int(count), mode).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
