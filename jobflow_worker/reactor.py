"""The one place that waits: sockets, descriptors and signals, in a single poller.

Rules
-----
* It knows no domain: it says what is readable, and which signals came.
* A signal wakes it at once. Without the wake-up socket, a SIGTERM during a poll of 1.5 s was seen
  to be handled only when the poll had run its full time.
* One reactor per process, in its main thread.
"""

from __future__ import annotations

import math
import select
import signal
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from types import FrameType
from typing import Any

Pollable = Any
#: The poller's clock has milliseconds; an endless wait would hide a lost wake-up for ever.
WAIT_S_MAX = 60.0


def _noop(number: int, frame: FrameType | None) -> None:
    """The wake-up descriptor carries the signal; a handler must exist for it to be written."""


def _plain_poller() -> tuple[Any, int]:
    """A poller, and what it calls POLLOUT."""
    return select.poll(), select.POLLOUT


def _zmq_poller() -> tuple[Any, int]:
    """The same that takes zmq sockets: another number for POLLOUT, the same for POLLIN."""
    import zmq

    return zmq.Poller(), zmq.POLLOUT


class Reactor:
    """A poller with a wake-up socket. Use it as a context manager.

    With `zmq_sockets` it waits for these, too; a worker that uses files needs no zmq at all.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, *, zmq_sockets: bool = True
    ) -> None:
        self._clock = clock
        self._poller, self._writable = _zmq_poller() if zmq_sockets else _plain_poller()
        self._interest: dict[Pollable, int] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._poller.register(self._reader, select.POLLIN)
        self._signals: list[int] = []
        self._previous: dict[int, Any] = {}
        self._previous_fd: int | None = None

    def __enter__(self) -> Reactor:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def watch_signals(self, numbers: Iterable[int]) -> None:
        """From now on these signals are collected instead of acting."""
        if self._previous_fd is None:
            self._previous_fd = signal.set_wakeup_fd(
                self._writer.fileno(), warn_on_full_buffer=False
            )
        for number in numbers:
            self._previous[number] = signal.signal(number, _noop)

    def signals(self) -> list[int]:
        """The signals that came since the last call, in order."""
        taken, self._signals = self._signals, []
        return taken

    def watch(self, interest: Mapping[Pollable, int]) -> None:
        """Poll exactly these sockets and descriptors (and the signals).

        The flags are POLLIN and POLLOUT of `select`.
        """
        for pollable in [one for one in self._interest if one not in interest]:
            self._poller.unregister(pollable)
            del self._interest[pollable]
        for pollable, flags in interest.items():
            if self._interest.get(pollable) != flags:
                writable = self._writable if flags & select.POLLOUT else 0
                self._poller.register(pollable, flags & select.POLLIN | writable)
                self._interest[pollable] = flags

    def wait(self, until: float | None) -> dict[Pollable, int]:
        """Wait for input or for the time `until` (monotonic seconds; None: as long as allowed).

        Returns what is ready, with the poller's own flags. A signal ends the wait, perhaps with an
        empty answer.
        """
        pause_s = WAIT_S_MAX if until is None else until - self._clock()
        pause_ms = math.ceil(max(0.0, min(pause_s, WAIT_S_MAX)) * 1000)
        ready = dict(self._poller.poll(pause_ms))
        if ready.pop(self._reader, None) or ready.pop(self._reader.fileno(), None):
            self._drain_wakeups()
        return ready

    def _drain_wakeups(self) -> None:
        while True:
            try:
                data = self._reader.recv(4096)
            except BlockingIOError:
                return
            self._signals.extend(data)
            if len(data) < 4096:
                return

    def close(self) -> None:
        """Give signals back and close the wake-up socket. Idempotent."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
        if self._previous_fd is not None:
            signal.set_wakeup_fd(self._previous_fd)
            self._previous_fd = None
        self._reader.close()
        self._writer.close()
