"""Snapshots for other processes: one small JSON file, replaced again and again.

Rule: publishing never hurts the run. The queue is bounded and drops its oldest, a failed write is
counted and logged once until one succeeds, nothing is raised. No fsync: a snapshot lost in a power
cut is out of date anyway. Used by the daemon's loop.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from jobflow_worker.sessionfiles import write_private
from jobflowd import logs

SCHEMA: Final = "jobflow.snapshot/1"

_log: Final = logs.get(__name__)


class FilePublisher:
    """Writes the snapshots that `offer` takes to `path`, at most one per `refresh` seconds.

    `written`, `dropped` (by the bound) and `errors` count since the start.
    """

    def __init__(
        self,
        path: Path,
        queue_size: int,
        refresh: float,
        *,
        session: str = "",
        epoch: int = 0,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self.refresh = refresh
        self.session = session
        self.epoch = epoch
        self.written = 0
        self.dropped = 0
        self.errors = 0
        self._queue_size = queue_size
        self._queue: deque[dict[str, Any]] = deque()
        self._wall = wall
        self._seq = 0
        self._next_at = 0.0
        self._failing = False

    def due(self, now: float) -> bool:
        """Whether a snapshot taken at monotonic `now` would be written soon: worth making one."""
        return now >= self._next_at

    @property
    def next_at(self) -> float:
        """Monotonic time of the next write, for the loop's poll timeout."""
        return self._next_at

    def offer(self, body: Mapping[str, Any]) -> None:
        """Queue a snapshot with this status body; a full queue drops its oldest."""
        self._seq += 1
        self._queue.append(
            {
                **body,
                "schema": SCHEMA,
                "session": self.session or body.get("session", ""),
                "epoch": self.epoch,
                "seq": self._seq,
                "written_at": logs.timestamp(self._wall()),
                "interval": self.refresh,
            }
        )
        while len(self._queue) > self._queue_size:
            self._queue.popleft()
            self.dropped += 1

    def pump(self, now: float) -> None:
        """Write the oldest waiting snapshot if it is time; `now` is monotonic."""
        if self._queue and now >= self._next_at:
            self._next_at = now + self.refresh
            self._write(self._queue.popleft())

    def close(self, body: Mapping[str, Any] | None = None) -> None:
        """Write the last word: this body, or the newest that waits.

        A body is marked `final`, so that whoever follows the file knows that no other will come.
        """
        if body is not None:
            self.offer({**body, "final": True})
        if self._queue:
            self._write(self._queue.pop())
            self._queue.clear()

    def _write(self, snapshot: dict[str, Any]) -> None:
        try:
            data = json.dumps(snapshot, default=str, allow_nan=False).encode()
            write_private(self.path, data, fsync=False)
        except (OSError, ValueError, TypeError, RecursionError) as error:
            self.errors += 1
            if not self._failing:
                _log.warning("telemetry.write_failed", path=self.path, error=error)
            self._failing = True
            return
        if self._failing:
            _log.info("telemetry.write_works_again", path=self.path, errors=self.errors)
        self._failing = False
        self.written += 1
