"""Which link a worker uses: zmq, fs, or whichever works.

Rules
-----
* In `auto`, all endpoints of the beacon are tried first. The mailbox is chosen if none answered
  in time *and* the beacon moves: then the manager lives and only the network is in the way.
  While it does not move, the manager is being restarted, and the endpoints are tried on.
* A manager that refuses our key is no reason for the mailbox: it can be reached.
* The choice is made once, before the first message from the manager, and kept for life.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from jobflow_worker import limits
from jobflow_worker.keyfile import CurveKeys
from jobflow_worker.messages import Envelope, Register
from jobflow_worker.record import replace
from jobflow_worker.sessionfiles import Beacon, SessionPaths, read_beacon
from jobflow_worker.transport.base import Everything, Inbox, Link, Pollable

if TYPE_CHECKING:
    from jobflow_worker.transport.zmq import ZmqLink

#: How often the beacon is read while the choice is open.
_BEACON_LOOK_S: Final = 1.0


class AutoLink:
    """zmq if an endpoint answers, else the mailbox; see `base.Link`."""

    def __init__(
        self,
        paths: SessionPaths,
        beacon: Beacon,
        worker_id: str,
        clock: Callable[[], float],
        keys: CurveKeys | None = None,
    ) -> None:
        self.notes: list[str] = []
        self._paths = paths
        self._beacon = beacon
        self._moved = False
        self._worker_id = worker_id
        self._clock = clock
        self._zmq = _tcp(worker_id, clock, keys)
        self._link: Link = self._zmq
        self._decided = False
        self._everything: Everything | None = None
        self._started_at = clock()
        self._look_at = self._started_at + _BEACON_LOOK_S

    @property
    def kind(self) -> str:
        return self._link.kind

    @property
    def full(self) -> bool:
        return self._link.full

    @property
    def refused(self) -> bool:
        return self._link.refused

    def rekey(self, keys: CurveKeys | None) -> None:
        self._link.rekey(keys)

    def open(self) -> None:
        """Start with the endpoints; with none, the manager serves mailboxes only."""
        if self._beacon.endpoints:
            self._zmq.open(self._beacon.endpoints)
        else:
            self._use_mailbox("the manager serves no TCP endpoint")

    def sockets(self) -> list[Pollable]:
        return self._link.sockets()

    def send(self, fresh: Sequence[Envelope], everything: Everything) -> None:
        self._everything = everything
        self._link.send(self._stamp(fresh), lambda: self._stamp(everything()))

    def _stamp(self, envelopes: Sequence[Envelope]) -> list[Envelope]:
        """A Register names the transport that really carries it."""
        return [
            replace(one, message=replace(one.message, transport=self.kind))
            if isinstance(one.message, Register)
            else one
            for one in envelopes
        ]

    def receive(self) -> Inbox:
        inbox = self._link.receive()
        self.notes += self._link.notes
        self._link.notes.clear()
        if not self._decided:
            self._decide()
        return inbox

    def _decide(self) -> None:
        if self._zmq.heard:
            self._decided = True
            self.notes.append("connected to the manager over TCP")
            return
        now = self._clock()
        if now >= self._look_at:
            self._look_at = now + _BEACON_LOOK_S
            self._watch_beacon(now)
        patient = now - self._started_at < limits.CONNECT_PATIENCE_S
        if self._moved and not patient and not self._zmq.refused:
            self._use_mailbox(
                f"no endpoint of the manager answered within {limits.CONNECT_PATIENCE_S:g} s "
                f"({', '.join(self._beacon.endpoints)[:300]})"
            )

    def _watch_beacon(self, now: float) -> None:
        beacon = read_beacon(self._paths.beacon)
        if beacon is None or (beacon.epoch, beacon.n) == (self._beacon.epoch, self._beacon.n):
            return
        self._moved = True
        before, self._beacon = self._beacon, beacon
        if beacon.endpoints != before.endpoints or beacon.epoch != before.epoch:
            # A manager that has just started gets its full time to answer.
            self._started_at = now
            self._zmq.open(beacon.endpoints)

    def _use_mailbox(self, why: str) -> None:
        self._decided = True
        self._zmq.close(0)
        self._link = _mailbox(self._paths, self._worker_id, self._beacon, self._clock)
        self.notes.append(f"using the mailbox in the session directory: {why}")
        if self._everything is not None:
            self.send((), self._everything)

    def next_poll(self, now: float) -> float | None:
        due = self._link.next_poll(now)
        if self._decided:
            return due
        return self._look_at if due is None else min(due, self._look_at)

    def busy(self, now: float) -> None:
        self._link.busy(now)

    def reconnect(self, endpoints: Sequence[str]) -> None:
        if self._decided or tuple(endpoints) != self._beacon.endpoints:
            self._link.reconnect(endpoints)

    def close(self, linger_s: float = 2.0) -> None:
        self._link.close(linger_s)


# Each link is imported by those who use it: the one brings zmq, 15 ms of a start, the other files.


def _tcp(worker_id: str, clock: Callable[[], float], keys: CurveKeys | None) -> ZmqLink:
    from jobflow_worker.transport.zmq import ZmqLink

    return ZmqLink(worker_id, clock, keys)


def _mailbox(
    paths: SessionPaths, worker_id: str, beacon: Beacon, clock: Callable[[], float]
) -> Link:
    from jobflow_worker.transport.fs import FsLink

    return FsLink(paths, worker_id, beacon.heartbeat_s, clock)


def open_link(
    mode: str,
    paths: SessionPaths | None,
    beacon: Beacon,
    worker_id: str,
    clock: Callable[[], float],
    keys: CurveKeys | None = None,
) -> Link:
    """A started link of mode "zmq", "fs" or "auto".

    `paths` may be None for a worker that sees no session directory: then only TCP is left, and
    "fs" raises ValueError, as any other mode does.
    """
    if mode == "fs" and paths is not None:
        return _mailbox(paths, worker_id, beacon, clock)
    if mode == "auto" and paths is not None:
        auto = AutoLink(paths, beacon, worker_id, clock, keys)
        auto.open()
        return auto
    if mode in ("zmq", "auto"):
        link = _tcp(worker_id, clock, keys)
        link.open(beacon.endpoints)
        return link
    raise ValueError(f"no transport {mode!r} without a session directory")
