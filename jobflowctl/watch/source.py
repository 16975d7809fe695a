"""Where a view's bodies come from: the daemon's socket, or its telemetry file.

Blocking; used by the feed's thread alone. Everything that goes wrong is a `CtlError`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from jobflowctl import errors
from jobflowctl.client import Client
from jobflowctl.text import duration
from jobflowctl.waiting import Outcome, recorded
from jobflowctl.watch.plain import read_snapshot
from jobflowd import api

Body = dict[str, Any]

_CALL_TIMEOUT_S: Final = 10.0


class Source(Protocol):
    """What the feed asks. `reads` are the commands that it can answer."""

    name: str
    reads: frozenset[str]

    def call(self, cmd: str, args: Mapping[str, Any] | None = None) -> Body:
        """The body of an answer. Raises `CtlError`."""

    def outcome(self) -> Outcome | None:
        """The recorded end of the run, if there is one."""

    def close(self) -> None:
        """Hang up. Idempotent."""


class LiveSource:
    """The daemon of a session, through its socket; it may go away and come back."""

    def __init__(self, place: api.SessionPlace) -> None:
        self.name = place.session
        self.reads = api.READS
        self._place = place
        self._client = Client(place)

    def call(self, cmd: str, args: Mapping[str, Any] | None = None) -> Body:
        return self._client.call(cmd, args, timeout_s=_CALL_TIMEOUT_S)

    def outcome(self) -> Outcome | None:
        return recorded(self._place)

    def close(self) -> None:
        self._client.close()


class FileSource:
    """A telemetry file; fresh as long as its `seq` moves on our own clock."""

    def __init__(
        self, file: Path, *, stale_s: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = file.name
        self.reads = frozenset(("snapshot",))
        self._file = file
        self._stale_s = stale_s
        self._clock = clock
        self._seq: Any = None
        self._moved_at = clock()
        self._done = False

    def call(self, cmd: str, args: Mapping[str, Any] | None = None) -> Body:
        if cmd != "snapshot":
            raise errors.Refused("usage", f"A telemetry file does not have the {cmd}.")
        body = read_snapshot(self._file)
        now = self._clock()
        if body.get("seq") != self._seq:
            self._seq, self._moved_at = body.get("seq"), now
        self._done = body.get("state") == "done"
        silent = now - self._moved_at
        if silent >= self._stale_s and not self._done:
            raise errors.DaemonBusy(
                f"The file has not changed for {duration(silent)}.",
                "The daemon is busy or gone, or its file system hangs.",
            )
        return body

    def outcome(self) -> Outcome | None:
        return None

    def close(self) -> None:
        return
