"""The simulated world: one heap of things to come, one virtual clock, one source of chance.

Rule: whatever happens is picked from `rng`, which is seeded; nothing here or in the modules around
it looks at a real clock, at `id()`, or at the order of a set. So a seed is a whole history.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

#: The wall clock at the beginning; it is for people, and here it jumps about.
WALL_0 = 1_700_000_000.0


class Violation(AssertionError):
    """The product broke a promise. The seed that raised it is the evidence."""


class World:
    """Time, chance and the trace of one history."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.chaos = False
        self.stats: Counter[str] = Counter()
        self.faults: Counter[str] = Counter()
        self.lines: list[str] | None = [] if keep_trace else None
        self._heap: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._count = 0
        self._wall_offset = 0.0
        self._digest = hashlib.sha256()

    def at(self, delay_s: float, do: Callable[..., None], *args: Any) -> None:
        """Let `do(*args)` happen `delay_s` from now."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + max(0.0, delay_s), self._count, do, args))

    def run(self, done: Callable[[], bool], until: float) -> bool:
        """Let things happen; True once `done`, False if time or all that could happen ran out."""
        heap = self._heap
        while heap and not done():
            if heap[0][0] > until:
                self.now = until
                return done()
            self.now, _, do, args = heapq.heappop(heap)
            do(*args)
        return done()

    @property
    def wall(self) -> float:
        """What the manager's wall clock shows."""
        return WALL_0 + self.now + self._wall_offset

    def jump_wall(self) -> None:
        """NTP steps, summer time and wrong years happen in every history, calm ones too."""
        self._wall_offset += self.rng.choice((-3e7, -3600.0, -1.0, 1.0, 3600.0, 3e7))
        self.at(self.rng.expovariate(1 / 15.0), self.jump_wall)

    def chance(self, probability: float) -> bool:
        """True with this probability; draws nothing for a fault that is off."""
        return probability > 0.0 and self.rng.random() < probability

    def fault(self, kind: str) -> None:
        """Count a fault that was injected."""
        self.faults[kind] += 1

    # --- trace --------------------------------------------------------------------------------

    @property
    def traced(self) -> bool:
        return self.lines is not None

    def trace(self, text: str) -> None:
        """One line of the history; callers ask `traced` first, so that a fast run formats none."""
        if self.lines is not None:
            self.lines.append(f"{self.now:10.4f} {text}")

    def digest(self) -> str:
        """A hash of the trace."""
        for line in self.lines or ():
            self._digest.update(line.encode())
        return self._digest.hexdigest()
