"""Which attempt is in which slot: the worker's queue, pipelines and durations.

Pure. An attempt a worker holds is in exactly one place: waiting here, or in the pipeline of one
slot, whose head is the one that runs. Short attempts are fed several ahead of the running one, so
that a child never waits for its agent; what then gets stuck behind a long one is recalled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from jobflow_worker import limits
from jobflow_worker.messages import Assignment, Held

#: Work that lies ready in a slot's pipeline: two rests of the agent.
PIPELINE_S = 0.2
#: Work that a worker holds beyond its slots: a rest, a flush of the outcomes that it found, and the
#: round trip, so that short tasks share wake-ups and messages instead of having one each.
AHEAD_S = 0.25
#: The longest time, and the shortest worth it, for which nobody looks at slots with work ahead.
REST_S_MAX = 0.1
REST_S_MIN = 0.001
#: Attempts in one pipeline; each is a packet in a kernel buffer.
PIPELINE_MAX = 128
#: Tasks shorter than this get one attempt ahead even if round trips are fast.
SHORT_S = 0.5
#: Durations that the median is taken over.
DURATIONS_KEPT = 32


class Pipeline:
    """One slot: what was fed to it, in order. `since`: when its head began."""

    __slots__ = ("broken", "fed", "ready", "recalling", "since")

    def __init__(self) -> None:
        self.ready = False
        self.broken = False
        self.fed: deque[Held] = deque()
        self.since = 0.0
        self.recalling = False


class Workload:
    """The attempts that a worker holds and has not settled."""

    def __init__(self, slots: int) -> None:
        self.slots = [Pipeline() for _ in range(slots)]
        self.waiting: deque[Assignment] = deque()
        self.items: dict[Held, Assignment] = {}
        self.since: dict[Held, float] = {}
        self._durations: deque[float] = deque(maxlen=DURATIONS_KEPT)
        self._median: float | None = None
        self._count = 0

    def __len__(self) -> int:
        return len(self.items)

    def __contains__(self, held: Held) -> bool:
        return held in self.items

    def add(self, item: Assignment, now: float) -> None:
        held = Held(item.task_id, item.attempt)
        self.items[held] = item
        self.since[held] = now
        self.waiting.append(item)

    def running(self) -> list[Held]:
        return [slot.fed[0] for slot in self.slots if slot.fed]

    def behind(self) -> list[Held]:
        """Everything held that does not run, the next to run first."""
        fed = [held for slot in self.slots for held in list(slot.fed)[1:]]
        return fed + [Held(one.task_id, one.attempt) for one in self.waiting]

    def slot_of(self, held: Held) -> int | None:
        for number, slot in enumerate(self.slots):
            if held in slot.fed:
                return number
        return None

    def is_running(self, held: Held) -> bool:
        return any(slot.fed and slot.fed[0] == held for slot in self.slots)

    @property
    def idle_slots(self) -> int:
        return sum(1 for slot in self.slots if slot.ready and not slot.fed)

    @property
    def usable_slots(self) -> int:
        return sum(1 for slot in self.slots if not slot.broken)

    # --- what happens in slots ----------------------------------------------------------------

    def take_out(self, held: Held, now: float) -> Assignment | None:
        """The attempt is settled or dropped: the worker no longer holds it."""
        item = self.items.pop(held, None)
        if item is None:
            return None
        self.since.pop(held, None)
        number = self.slot_of(held)
        if number is None:
            self.waiting = deque(one for one in self.waiting if (one.task_id, one.attempt) != held)
            return item
        fed = self.slots[number].fed
        if fed[0] == held:
            fed.popleft()
            self.slots[number].since = now
        else:
            fed.remove(held)
        return item

    def put_back(self, slot: int, attempts: Iterable[Held]) -> None:
        """The slot certainly never began these: they wait again, before all others."""
        back = [held for held in attempts if held in self.items]
        fed = self.slots[slot].fed
        for held in back:
            if held in fed:
                fed.remove(held)
        self.waiting.extendleft(self.items[held] for held in reversed(back))

    def recalled(self, slot: int, attempts: Iterable[Held], now: float) -> None:
        """The answer to a recall, or the end of a child: these had certainly not begun."""
        pipeline = self.slots[slot]
        pipeline.recalling = False
        self.put_back(slot, attempts)
        if len(pipeline.fed) > 1:
            # What did not come back has begun, so the outcome of the one before it is on its way:
            # asking again at once would go on for ever, and nobody would read that outcome.
            pipeline.since = now

    def took(self, duration_s: float) -> None:
        """Learn from a finished attempt."""
        self._durations.append(duration_s)
        self._count += 1
        if self._median is None or self._count % 8 == 0:
            ordered, middle = sorted(self._durations), len(self._durations) // 2
            self._median = (ordered[middle] + ordered[~middle]) / 2

    @property
    def duration_s(self) -> float | None:
        """The median of the last durations, None before the first."""
        return self._median

    # --- what to do ---------------------------------------------------------------------------

    def feed(self, now: float, patience_s: float) -> list[tuple[int, tuple[Assignment, ...]]]:
        """Move waiting attempts into pipelines: the emptiest slot first, then ahead.

        Not behind what has run for `patience_s`: it would be recalled at once.
        """
        if not self.waiting:
            return []
        depth = self._depth()
        fed: dict[int, list[Assignment]] = {}
        for level in range(1, depth + 1):
            for number, slot in enumerate(self.slots):
                if not slot.ready or slot.recalling or len(slot.fed) >= level:
                    continue
                if slot.fed and now >= slot.since + patience_s:
                    continue
                if not self.waiting:
                    return [(key, tuple(items)) for key, items in fed.items()]
                item = self.waiting.popleft()
                if not slot.fed:
                    slot.since = now
                slot.fed.append(Held(item.task_id, item.attempt))
                fed.setdefault(number, []).append(item)
        return [(key, tuple(items)) for key, items in fed.items()]

    def _depth(self) -> int:
        if self._median is None or self._median > SHORT_S:
            return 1
        return max(2, min(PIPELINE_MAX, int(PIPELINE_S / max(self._median, 1e-6))))

    def ahead(self, round_trip_s: float) -> int:
        """How many attempts beyond its slots the worker should hold."""
        if self._median is None:
            return 0
        hidden = int(max(2 * round_trip_s, AHEAD_S) / max(self._median, 1e-6))
        short = 1 if self._median < SHORT_S else 0
        per_slot = min(limits.PREFETCH_PER_SLOT_MAX, hidden + short)
        return per_slot * max(1, self.usable_slots)

    def rest_s(self) -> float:
        """For how long every slot has enough to do, so that outcomes and messages may wait.

        A wake-up of the agent costs as much as several short tasks.
        """
        if self._median is None:
            return 0.0
        behind = min((len(slot.fed) - 1 for slot in self.slots if not slot.broken), default=0)
        rest_s = min(REST_S_MAX, behind * self._median / 2)
        return rest_s if rest_s >= REST_S_MIN else 0.0

    def stuck(self, now: float, patience_s: float) -> tuple[list[int], list[Held]]:
        """Slots to recall from, and waiting attempts to hand back: both are behind a long one."""
        recall: list[int] = []
        late: list[Held] = []
        if self.idle_slots:
            return recall, late
        for number, slot in enumerate(self.slots):
            if len(slot.fed) > 1 and not slot.recalling and now >= slot.since + patience_s:
                recall.append(number)
        busy = [slot for slot in self.slots if slot.fed]
        if busy and all(now >= slot.since + patience_s for slot in busy):
            late = [
                Held(one.task_id, one.attempt)
                for one in self.waiting
                if now >= self.since[Held(one.task_id, one.attempt)] + patience_s
            ]
        return recall, late

    def stuck_at(self, patience_s: float) -> float | None:
        """When `stuck` could next have something to say."""
        if self.idle_slots:
            return None
        times = [one.since for one in self.slots if len(one.fed) > 1 and not one.recalling]
        busy = [slot.since for slot in self.slots if slot.fed]
        if busy and self.waiting:
            first = self.waiting[0]
            times.append(max(*busy, self.since[Held(first.task_id, first.attempt)]))
        return min(times) + patience_s if times else None

    def began_after(self, at: float) -> float | None:
        """When the first of those that began after `at` and still run did so."""
        return min((one.since for one in self.slots if one.fed and one.since > at), default=None)
