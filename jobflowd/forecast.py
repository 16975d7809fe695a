"""How fast a run goes, and when it may end: a range, or the reason why nobody can know.

Pure. `Pace` is fed about once a second with what memory knows, and holds a bounded history of this
daemon's life: what happened before a restart says nothing about the workers of now. The history
counts ended tasks per bucket and the time that slots were busy with them, so that a pause or a
lack of workers does not look like slow tasks.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Final

from jobflowd.wording import count

#: When the history is full, neighbours are merged: it always covers the whole life of the daemon.
BUCKETS_MAX: Final = 120
FIRST_BUCKET_S: Final = 1.0
#: Fewer ended tasks tell nothing.
COMPLETIONS_MIN: Final = 5
#: A forecast looks back over this many ended tasks, or this share of them if that is more.
WINDOW_MIN: Final = 50
WINDOW_SHARE: Final = 0.1
_BUCKETS_MIN: Final = 3
#: Nothing ended for this long, and for this many times a task's usual duration: it is stalled.
STALLED_S_MIN: Final = 60.0
STALLED_TASKS: Final = 4.0
#: Nine of ten sums of so many random durations lie within this many deviations.
_DEVIATIONS: Final = 1.64


@dataclass(frozen=True, slots=True)
class Forecast:
    """When the run may end. Seconds; `low_s` and `high_s` are None while `reason` says why.

    `stalled_s` is the time since the last ended task, if that is suspiciously long. `history` is
    ended tasks per bucket of `bucket_s`, oldest first.
    """

    low_s: float | None = None
    high_s: float | None = None
    reason: str = ""
    stalled_s: float | None = None
    bucket_s: float = FIRST_BUCKET_S
    history: tuple[int, ...] = ()


@dataclass(slots=True)
class _Bucket:
    ended: int = 0
    busy_s: float = 0.0


class Pace:
    """Ended tasks and busy time, in buckets that grow with the run."""

    def __init__(self) -> None:
        self.bucket_s = FIRST_BUCKET_S
        self._buckets: deque[_Bucket] = deque()
        self._since = 0.0
        self._at: float | None = None
        self._busy = 0
        self._ended = 0
        self._last_end: float | None = None

    def note(self, now: float, ended: int, busy: int) -> None:
        """At `now` so many tasks have ended in this life, and so many slots run one."""
        if self._at is None:
            self._since = self._at = now
            self._buckets.append(_Bucket())
        # What ended since the last note ended in the time since then, and what was busy at the last
        # note counts until this one.
        if ended > self._ended:
            self._buckets[-1].ended += ended - self._ended
            self._last_end = now
        self._pass_time(now)
        self._ended, self._busy = ended, busy

    def _pass_time(self, now: float) -> None:
        assert self._at is not None
        while now >= self._since + self.bucket_s:
            edge = self._since + self.bucket_s
            self._buckets[-1].busy_s += self._busy * (edge - self._at)
            self._at = self._since = edge
            self._buckets.append(_Bucket())
            if len(self._buckets) > BUCKETS_MAX:
                self._merge()
        self._buckets[-1].busy_s += self._busy * (now - self._at)
        self._at = now

    def _merge(self) -> None:
        """Pairs become one; the newest bucket has just begun, and stays or opens a pair."""
        old = list(self._buckets)
        pairs = [
            _Bucket(
                sum(one.ended for one in old[index : index + 2]),
                sum(one.busy_s for one in old[index : index + 2]),
            )
            for index in range(0, len(old), 2)
        ]
        if len(old) % 2 == 0:
            self._since -= self.bucket_s
        self._buckets = deque(pairs)
        self.bucket_s *= 2

    def forecast(self, now: float, *, remaining: int, busy: int, held_back: str) -> Forecast:
        """What to expect. `remaining` tasks have no outcome yet, `busy` slots run one.

        `held_back`: why nothing can be foretold whatever the pace is, "" if it can.
        """
        history = tuple(one.ended for one in self._buckets)
        ended, busy_s, halves = self._window()
        stalled_s = self._stalled(now, ended, busy_s, remaining)
        reason = held_back or self._unknown(ended, busy_s, busy, remaining)
        if reason or not remaining:
            return Forecast(None, None, reason, stalled_s, self.bucket_s, history)
        # Tasks per second of one slot, and how sure that is: chance, or a change of pace.
        rate = ended / busy_s
        chance = _DEVIATIONS / math.sqrt(ended)
        fast, slow = rate * (1 + chance), rate / (1 + chance)
        for half in halves:
            fast, slow = max(fast, half), min(slow, half)
        # The last tasks do not share the slots evenly: at worst one begins when all others end.
        low = remaining / (fast * busy)
        high = remaining / (slow * busy) + 1 / slow
        if stalled_s is not None:
            return Forecast(
                None, None, "nothing has ended for long", stalled_s, self.bucket_s, history
            )
        return Forecast(low, high, "", None, self.bucket_s, history)

    def _window(self) -> tuple[int, float, tuple[float, ...]]:
        """Ended tasks and busy seconds of late, and the pace in each half of that time."""
        wanted = max(WINDOW_MIN, WINDOW_SHARE * self._ended)
        recent: list[_Bucket] = []
        ended = 0
        for one in reversed(self._buckets):
            recent.append(one)
            ended += one.ended
            # The newest bucket has just begun, and alone says nothing.
            if ended >= wanted and len(recent) > _BUCKETS_MIN:
                break
        busy_s = sum(one.busy_s for one in recent)
        middle = len(recent) // 2
        halves = []
        for half in (recent[:middle], recent[middle:]):
            ends, time = sum(one.ended for one in half), sum(one.busy_s for one in half)
            # A half with few ends would say more about chance than about the pace.
            if ends >= COMPLETIONS_MIN and time > 0:
                halves.append(ends / time)
        return ended, busy_s, tuple(halves)

    def _unknown(self, ended: int, busy_s: float, busy: int, remaining: int) -> str:
        if not remaining:
            return ""
        if ended < COMPLETIONS_MIN or busy_s <= 0:
            return f"{count(ended, 'task')} ended since the daemon started; too few to tell"
        return "" if busy else "no task is running"

    def _stalled(self, now: float, ended: int, busy_s: float, remaining: int) -> float | None:
        if not remaining or self._last_end is None or not ended:
            return None
        silent = now - self._last_end
        usual = busy_s / ended
        return silent if silent >= max(STALLED_S_MIN, STALLED_TASKS * usual) else None
