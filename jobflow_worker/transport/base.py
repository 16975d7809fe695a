"""What the agent expects of a link to the manager, whatever carries it.

A link carries envelopes and nothing else. It never blocks for a peer, never raises for a missing
one, and runs no thread. Times are monotonic seconds of the clock that it was given.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from jobflow_worker.keyfile import CurveKeys
from jobflow_worker.messages import Envelope

#: What a poller can wait for: a zmq socket or a file descriptor.
Pollable = Any
#: Gives the whole present state of the worker: its outbox and its latest report.
Everything = Callable[[], Sequence[Envelope]]


class Inbox(NamedTuple):
    """One bounded reading: valid envelopes for this worker, and a sentence for each fault."""

    envelopes: list[Envelope]
    complaints: list[str]


class Link(Protocol):
    """A worker's connection to its manager."""

    @property
    def kind(self) -> str:
        """ "zmq" or "fs"; changes at most once, in `auto`, before the first message came."""

    @property
    def notes(self) -> list[str]:
        """Sentences for the log; the agent takes them out."""

    @property
    def full(self) -> bool:
        """True while the outbox does not fit: start no new task."""

    @property
    def refused(self) -> bool:
        """The peer says that it does not know this worker's key. Not proven: ask the beacon."""

    def rekey(self, keys: CurveKeys | None) -> None:
        """The manager has another key now, or none: `reconnect` will use these."""

    def sockets(self) -> list[Pollable]:
        """What to poll for input, as of now; asked before every wait."""

    def send(self, fresh: Sequence[Envelope], everything: Everything) -> None:
        """Send what is new; a link that had lost something sends `everything()` instead.

        `everything` is kept and may be called later, when a connection is there again.
        """

    def receive(self) -> Inbox:
        """What has come. To be called when a socket is readable and at `next_poll`."""

    def next_poll(self, now: float) -> float | None:
        """The time of the next `receive`, even if no socket is readable; None for no need."""

    def busy(self, now: float) -> None:
        """A hint that an answer is expected soon."""

    def reconnect(self, endpoints: Sequence[str]) -> None:
        """The beacon names these endpoints now. Does nothing if the link works with them."""

    def close(self, linger_s: float = 2.0) -> None:
        """Give what was sent at most `linger_s` to leave, then end; idempotent."""
