"""What a slot watches while an attempt runs: its time, memory, output and progress.

Rule: only `slots.py` uses this. It looks and tells; what follows from it is the slot's.
"""

from __future__ import annotations

import os
import time
from typing import Final, NamedTuple

from jobflow_worker import childwire
from jobflow_worker.childproc import ChildProcess
from jobflow_worker.messages import Assignment, Progress

#: How often memory and progress are looked at.
_SAMPLE_S: Final = 0.5
#: How often a busy child is looked at even if nothing announces its death: a process that it left
#: behind may keep the pipe open.
_LOOK_S: Final = 1.0


class Excess(NamedTuple):
    """A limit that was passed: a failure cause and its sentence."""

    cause: str
    error: str


class Watch:
    """Of the one running attempt. Times are monotonic seconds."""

    def __init__(self, child: ChildProcess) -> None:
        self._child = child
        self.started_at = 0.0
        self.memory_peak = 0
        self._looked_at = 0.0
        self._progress: Progress | None = None
        self._progress_fd = -1

    def begin(self) -> None:
        """An attempt begins now, or none does."""
        self.started_at = self._looked_at = time.monotonic()
        self.memory_peak = 0
        self._progress = None
        if self._progress_fd >= 0:
            os.close(self._progress_fd)
            self._progress_fd = -1

    def announce(self, first: Progress) -> None:
        """The attempt reports progress: from now on it is looked for."""
        self._progress = first
        try:
            path = os.path.join(self._child.folder, childwire.PROGRESS_FILE)
            self._progress_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            self._progress_fd = -1

    def next_look(self, head: Assignment) -> float:
        """When to look again."""
        close = head.memory_bytes is not None or self._progress_fd >= 0
        look_at = self._looked_at + (_SAMPLE_S if close else _LOOK_S)
        if head.timeout_s is None:
            return look_at
        return min(look_at, self.started_at + head.timeout_s)

    def excess(self, now: float, head: Assignment) -> Excess | None:
        """The limit that the attempt has passed, if any."""
        if head.timeout_s is not None and now >= self.started_at + head.timeout_s:
            return Excess("timeout", f"ran longer than its time-out of {head.timeout_s:g} s")
        if now < self._looked_at + _SAMPLE_S:
            return None
        self._looked_at = now
        self._child.trim_output()
        if head.memory_bytes is None:
            return None
        used = self._child.memory(head.memory_bytes)
        self.memory_peak = max(self.memory_peak, used)
        if used <= head.memory_bytes:
            return None
        text = f"used {used} bytes of memory, more than its limit of {head.memory_bytes}"
        return Excess("memory", text)

    def progress(self) -> Progress | None:
        """The latest progress, if it is another than the last one told."""
        if self._progress_fd < 0:
            return None
        try:
            record = childwire.read_progress(self._progress_fd)
            latest = Progress(*record) if record else None
        except (OSError, ValueError, TypeError):
            return None
        if latest is None or latest == self._progress:
            return None
        self._progress = latest
        return latest
