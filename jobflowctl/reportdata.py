"""What a report says, from rows of attempts and workers. Pure.

The ledger divides all slot seconds of all workers: a slot second is one slot of one worker for one
second between its registration and its end. Each belongs to exactly one line, so they add up to
all of them. Times are wall-clock seconds, shown from the run's first moment on.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jobflowctl.style import moment

Row = Mapping[str, Any]

BUCKETS: Final = 120
CELLS: Final = 160
#: Workers in the timeline, evenly picked if there are more.
TIMELINE_MAX: Final = 60
SLOWEST: Final = 20
_BINS: Final = 32
MORE_WORKERS: Final = 10

USEFUL: Final = "useful: attempts that succeeded"
STARTING: Final = "waiting: registered, first task not begun"
BETWEEN: Final = "waiting: between tasks"
ENDING: Final = "waiting: after the last task"


@dataclass(frozen=True, slots=True)
class Span:
    """An attempt: when, whose, what became of it. `busy_s` is what its slot was taken for."""

    task_id: str
    attempt: int
    worker_id: str
    begun: float
    ended: float
    outcome: str
    cause: str
    cpu_s: float
    rss_bytes: int

    @property
    def busy_s(self) -> float:
        return self.ended - self.begun


@dataclass(frozen=True, slots=True)
class Life:
    """A worker: when it was there, with how many slots."""

    worker_id: str
    host: str
    slots: int
    begun: float
    ended: float
    planned: float | None

    @property
    def slot_s(self) -> float:
        return self.slots * (self.ended - self.begun)


@dataclass(frozen=True, slots=True)
class Run:
    """A whole run; `begun` and `ended` of the first and last thing that happened."""

    spans: tuple[Span, ...]
    lives: tuple[Life, ...]
    begun: float
    ended: float


def read_run(attempts: Sequence[Row], fleet: Sequence[Row], now: float) -> Run:
    """The run from the rows of the verbs; `now` ends what has not ended."""
    lives = {one.worker_id: one for one in (_life(row, now) for row in fleet) if one is not None}
    spans = tuple(one for one in (_span(row, lives) for row in attempts) if one is not None)
    begins = [one.begun for one in lives.values()] + [one.begun for one in spans]
    ends = [one.ended for one in lives.values()] + [one.ended for one in spans]
    begun = min(begins, default=now)
    return Run(spans, tuple(lives.values()), begun, max(ends, default=begun))


def _life(row: Row, now: float) -> Life | None:
    begun = moment(row.get("registered_at"))
    if begun is None:
        return None
    ended = moment(row.get("ended_at"))
    slots = int(row.get("slots") or 1)
    name, host = str(row.get("worker_id")), str(row.get("host"))
    stop = max(begun, now if ended is None else ended)
    return Life(name, host, slots, begun, stop, moment(row.get("planned_at")))


def _span(row: Row, lives: Mapping[str, Life]) -> Span | None:
    ended = moment(row.get("ended_at"))
    worker_id = str(row.get("worker_id"))
    life = lives.get(worker_id)
    if ended is None or life is None:
        return None
    duration = row.get("duration_s")
    begun = moment(row.get("started_at"))
    if isinstance(duration, int | float):
        begun = ended - duration
    # A clock that differs, or an end that was noticed late, must not give a worker more time than
    # it had.
    ended = min(max(ended, life.begun), life.ended)
    begun = min(max(ended if begun is None else begun, life.begun), ended)
    return Span(
        task_id=str(row.get("task_id")),
        attempt=int(row.get("attempt") or 0),
        worker_id=worker_id,
        begun=begun,
        ended=ended,
        outcome=str(row.get("outcome") or ""),
        cause=str(row.get("cause") or ""),
        cpu_s=float(row.get("cpu_s") or 0.0),
        rss_bytes=int(row.get("max_rss_bytes") or 0),
    )


def _by_worker(run: Run) -> dict[str, list[Span]]:
    found: dict[str, list[Span]] = defaultdict(list)
    for span in run.spans:
        found[span.worker_id].append(span)
    return found


# --- the ledger ---------------------------------------------------------------------------------


def ledger(run: Run) -> list[tuple[str, float]]:
    """Slot seconds by what they went into, useful first, then the largest; they sum to all."""
    lines: dict[str, float] = defaultdict(float)
    spans_of = _by_worker(run)
    for life in run.lives:
        for word, seconds in _of_worker(life, spans_of.get(life.worker_id, [])):
            lines[word] += seconds
    useful = lines.pop(USEFUL, 0.0)
    rest = sorted(((word, one) for word, one in lines.items() if one > 0), key=lambda one: -one[1])
    return [(USEFUL, useful), *rest]


def _of_worker(life: Life, spans: Sequence[Span]) -> list[tuple[str, float]]:
    capacity = life.slot_s
    if not spans:
        return [(STARTING, capacity)]
    busy = sum(one.busy_s for one in spans)
    # More work than slots is an error of clocks; it is taken back from all in proportion.
    scale = min(1.0, capacity / busy) if busy > 0 else 0.0
    lines = [(_word(one), one.busy_s * scale) for one in spans]
    idle = capacity - busy * scale
    before = min(idle, life.slots * (min(one.begun for one in spans) - life.begun))
    after = min(idle - before, life.slots * (life.ended - max(one.ended for one in spans)))
    return [*lines, (STARTING, before), (ENDING, after), (BETWEEN, idle - before - after)]


def _word(span: Span) -> str:
    if span.outcome == "succeeded":
        return USEFUL
    kind = {"failed": "failed", "lost": "lost", "returned": "handed back"}
    word = kind.get(span.outcome, span.outcome or "unknown")
    return f"wasted: {word}{', ' + span.cause if span.cause else ''}"


# --- over time ----------------------------------------------------------------------------------


def throughput(run: Run) -> dict[str, list[float]]:
    """Per bucket: its time, ended attempts a second, good and bad, and workers that were there."""
    width = max(run.ended - run.begun, 1e-3) / BUCKETS
    good, bad, there = [0.0] * BUCKETS, [0.0] * BUCKETS, [0.0] * BUCKETS
    for span in run.spans:
        index = min(BUCKETS - 1, int((span.ended - run.begun) / width))
        counts = good if span.outcome == "succeeded" else bad
        counts[index] += 1 / width
    for life in run.lives:
        first = int((life.begun - run.begun) / width)
        last = min(BUCKETS - 1, int((life.ended - run.begun) / width))
        for index in range(first, last + 1):
            begin = run.begun + index * width
            overlap = min(life.ended, begin + width) - max(life.begun, begin)
            there[index] += max(0.0, overlap) / width
    return {
        "at": [round((index + 0.5) * width, 3) for index in range(BUCKETS)],
        "good": [round(one, 4) for one in good],
        "bad": [round(one, 4) for one in bad],
        "workers": [round(one, 3) for one in there],
    }


def timeline(run: Run) -> list[dict[str, Any]]:
    """Per worker its life and its bars: "good", "bad" or "mixed", as [kind, from, to]."""
    lives = sorted(run.lives, key=lambda one: one.begun)
    if len(lives) > TIMELINE_MAX:
        step = len(lives) / TIMELINE_MAX
        lives = [lives[int(index * step)] for index in range(TIMELINE_MAX)]
    spans_of = _by_worker(run)
    width = max(run.ended - run.begun, 1e-3) / CELLS
    return [
        {
            "worker": one.worker_id,
            "host": one.host,
            "from": round(one.begun - run.begun, 3),
            "to": round(one.ended - run.begun, 3),
            "bars": _bars(one, spans_of.get(one.worker_id, []), run.begun, width),
        }
        for one in lives
    ]


def _bars(life: Life, spans: Sequence[Span], start: float, width: float) -> list[list[Any]]:
    """Cells that were at least half busy, neighbours of one kind joined."""
    good, bad = [0.0] * CELLS, [0.0] * CELLS
    for span in spans:
        target = good if span.outcome == "succeeded" else bad
        first = int((span.begun - start) / width)
        for index in range(first, min(CELLS - 1, int((span.ended - start) / width)) + 1):
            begin = start + index * width
            target[index] += max(0.0, min(span.ended, begin + width) - max(span.begun, begin))
    bars: list[list[Any]] = []
    for index in range(CELLS):
        busy = good[index] + bad[index]
        if busy < 0.5 * width * life.slots:
            continue
        kind = (
            "good" if bad[index] < 0.25 * busy else "bad" if good[index] < 0.25 * busy else "mixed"
        )
        begin = round(index * width, 3)
        if bars and bars[-1][0] == kind and bars[-1][2] == begin:
            bars[-1][2] = round((index + 1) * width, 3)
        else:
            bars.append([kind, begin, round((index + 1) * width, 3)])
    return bars


def durations(run: Run) -> dict[str, list[Any]]:
    """A histogram of the durations of good attempts; bins grow, for a second and a day fit."""
    values = [max(one.busy_s, 1e-4) for one in run.spans if one.outcome == "succeeded"]
    if not values:
        return {"from": [], "to": [], "count": []}
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = (low - 0.1, high + 0.1) if high - low < 0.2 else (low, high)
    step = (high - low) / _BINS
    counts = [0] * _BINS
    for value in values:
        counts[min(_BINS - 1, int((math.log10(value) - low) / step))] += 1
    edges = [10 ** (low + index * step) for index in range(_BINS + 1)]
    return {"from": edges[:-1], "to": edges[1:], "count": counts}


def quantiles(run: Run) -> dict[str, float]:
    """Middle, 95 of 100 and longest of the durations of good attempts; {} if there are none."""
    values = sorted(one.busy_s for one in run.spans if one.outcome == "succeeded")
    if not values:
        return {}
    return {
        "median": values[len(values) // 2],
        "95 %": values[min(len(values) - 1, int(0.95 * len(values)))],
        "longest": values[-1],
    }


def slowest(run: Run) -> list[Span]:
    """The attempts that took longest."""
    return heapq.nlargest(SLOWEST, run.spans, key=lambda one: one.busy_s)


# --- what if ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class WhatIf:
    """The same attempts on other numbers of slots. Seconds; `took_s` is what it really took."""

    slots: int
    more_slots: int
    took_s: float
    would_take_s: float
    longest_s: float


def what_if(run: Run) -> WhatIf | None:
    """What ten more workers would have bought; None without attempts.

    The attempts are given out in the order in which they began, each to the slot that is free
    first; what the real run took beyond that (waiting, submitting) is taken to stay the same.
    """
    if not run.spans or not run.lives:
        return None
    slots = _peak_slots(run)
    each = max(1, round(sum(one.slots for one in run.lives) / len(run.lives)))
    spans = sorted(run.spans, key=lambda one: one.begun)
    lengths = [one.busy_s for one in spans]
    now, then = _makespan(lengths, slots), _makespan(lengths, slots + MORE_WORKERS * each)
    took = run.ended - run.begun
    would = max(0.0, took - max(0.0, now - then))
    return WhatIf(slots, MORE_WORKERS * each, took, would, max(lengths))


def _peak_slots(run: Run) -> int:
    changes = sorted(
        [(one.begun, one.slots) for one in run.lives]
        + [(one.ended, -one.slots) for one in run.lives]
    )
    peak = now = 0
    for _, change in changes:
        now += change
        peak = max(peak, now)
    return max(1, peak)


def _makespan(lengths: Sequence[float], slots: int) -> float:
    free = [0.0] * max(1, min(slots, len(lengths)))
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)
