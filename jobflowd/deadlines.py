"""One heap of deadlines: it both sets the poll time-out and expires.

Pure. A key has at most one deadline; setting it again moves it. Moving later is cheap: the old
entry stays in the heap and is corrected when it surfaces, so that a lease renewed a thousand
times costs one heap entry.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable


class Deadlines:
    """Keys and the monotonic times (seconds) at which they fall due."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Hashable]] = []
        self._at: dict[Hashable, float] = {}
        self._earliest: dict[Hashable, float] = {}
        self._count = 0

    def set(self, key: Hashable, at: float) -> None:
        """Let `key` fall due at `at`, in place of what was set before."""
        self._at[key] = at
        queued = self._earliest.get(key)
        if queued is None or at < queued:
            self._push(key, at)

    def drop(self, key: Hashable) -> None:
        """Forget `key`; unknown keys are fine."""
        self._at.pop(key, None)

    def get(self, key: Hashable) -> float | None:
        return self._at.get(key)

    def next(self) -> float | None:
        """The earliest deadline, None if there is none."""
        self._settle()
        return self._heap[0][0] if self._heap else None

    def due(self, now: float) -> list[Hashable]:
        """Take out every key whose time has come, earliest first."""
        taken: list[Hashable] = []
        while True:
            self._settle()
            if not self._heap or self._heap[0][0] > now:
                return taken
            _, _, key = heapq.heappop(self._heap)
            self._earliest.pop(key, None)
            del self._at[key]
            taken.append(key)

    def _push(self, key: Hashable, at: float) -> None:
        self._count += 1
        self._earliest[key] = at
        heapq.heappush(self._heap, (at, self._count, key))

    def _settle(self) -> None:
        """Drop or correct what surfaced, until the head of the heap is true."""
        while self._heap:
            at, _, key = self._heap[0]
            wanted = self._at.get(key)
            if wanted == at and self._earliest.get(key) == at:
                return
            heapq.heappop(self._heap)
            if self._earliest.get(key) == at:
                del self._earliest[key]
                if wanted is not None:
                    self._push(key, wanted)
