"""Pool policy: how many launches to submit, which to cancel, which workers to drain.

Rules
-----
* Pure. Time comes in as monotonic seconds; the coordinator carries the decisions out.
* Asking twice gives the same answer, and a plan that was carried out is followed by an empty one:
  launches that are coming count from the moment they are PLANNED.
* Never more than `wanted` workers and launches of ours at a time, those on their way out included.
* Growing follows the work, shrinking follows the operator. While a queue runs empty, workers are
  not sent away one by one: they leave by their idle time-out or at the end of the run. Only
  launches that still wait in a batch queue are taken back, and only after they have been
  unneeded for SURPLUS_S, so that a queue that goes up and down costs no place in the line.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from jobflowd.model import LaunchState
from jobflowd.wording import count

#: How long queued launches must have been unneeded before they are taken back.
SURPLUS_S: Final = 60.0
#: What pauses submitting, and for how long: 30 s, 60 s, ... 600 s.
SUBMIT_FAILURES_MAX: Final = 10
EMPTY_ENDS_MAX: Final = 3
BACKOFF_S: Final = 30.0
BACKOFF_S_MAX: Final = 600.0

#: A launch in one of these may still bring a worker.
COMING: Final = frozenset(
    (
        LaunchState.PLANNED,
        LaunchState.SUBMITTED,
        LaunchState.PENDING,
        LaunchState.RUNNING,
        LaunchState.STALE,
    )
)
#: Coming launches that can be taken back, the cheapest first. PLANNED has a submission in flight
#: and STALE is unresolved: both are looked at again when it is known what became of them.
_QUEUED: Final = (LaunchState.PENDING, LaunchState.SUBMITTED)
_REVOCABLE: Final = (*_QUEUED, LaunchState.RUNNING)


class LaunchView(NamedTuple):
    """A launch that is not over and whose worker has not registered; higher `order`, younger.

    `cancel_asked`: it was cancelled and its end is awaited.
    """

    launch_id: str
    state: LaunchState
    order: int
    cancel_asked: bool = False


class WorkerView(NamedTuple):
    """A connected worker. `busy` counts the attempts it holds; `leaving`: no new ones for it.

    `managed`: it came from a launch of ours, so it counts towards the wanted number. Workers
    started by hand do work, but are neither counted nor sent away.
    """

    worker_id: str
    order: int
    slots: int
    busy: int
    leaving: bool
    managed: bool = True


@dataclass(frozen=True, slots=True)
class PoolView:
    """All that the policy looks at.

    `ready`, `soon_due` and `running` are tasks; `running` are those given to a worker. `may_submit`
    is False while the hold of a restart, a pause or a missing status answer forbids it.
    `coming_max` bounds the launches that have not brought a worker yet (None: no bound): 0 while
    the breaker is open, 1 while one launch must prove that workers can start at all. `overlap`:
    replacements wait in a batch queue, so they are submitted while those they replace still leave.
    """

    now: float
    wanted: int
    slots_per_worker: int
    ready: int
    running: int
    soon_due: int
    launches: tuple[LaunchView, ...] = ()
    workers: tuple[WorkerView, ...] = ()
    may_submit: bool = True
    coming_max: int | None = None
    overlap: bool = False


class PoolState(NamedTuple):
    """What the policy remembers: since when queued launches have been unneeded."""

    surplus_since: float | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do. `cancel` are launch ids, `drain` worker ids, both in the order to take.

    `target` is the number of workers aimed at; `again_at` is when to plan again although nothing
    has happened; `state` is for the next call.
    """

    target: int
    submit: int = 0
    cancel: tuple[str, ...] = ()
    drain: tuple[str, ...] = ()
    again_at: float | None = None
    state: PoolState = field(default_factory=PoolState)

    @property
    def empty(self) -> bool:
        """True if nothing is to be done now."""
        return not (self.submit or self.cancel or self.drain)


def plan(view: PoolView, state: PoolState = PoolState()) -> Plan:  # noqa: B008 (immutable)
    """Decide. See the module's rules."""
    coming = [one for one in view.launches if one.state in COMING and not one.cancel_asked]
    staying = [one for one in view.workers if one.managed and not one.leaving]
    present = len(coming) + len(staying)
    target = min(view.wanted, _useful_workers(view))

    over = present - view.wanted
    if over > 0:
        cancel = _revocable(coming, _REVOCABLE)[:over]
        drain = _least_missed(staying)[: over - len(cancel)]
        return Plan(target, cancel=tuple(cancel), drain=tuple(drain))

    if present < target:
        return Plan(target, submit=_room_to_submit(view, len(coming), present, target))

    unneeded = _revocable(coming, _QUEUED)[: present - target]
    if not unneeded:
        return Plan(target)
    since = view.now if state.surplus_since is None else state.surplus_since
    if view.now - since < SURPLUS_S:
        return Plan(target, again_at=since + SURPLUS_S, state=PoolState(since))
    return Plan(target, cancel=tuple(unneeded), state=PoolState(since))


def _useful_workers(view: PoolView) -> int:
    """How many managed workers the open tasks can keep busy."""
    elsewhere = 0
    for one in view.workers:
        if one.leaving:
            # What a leaving worker runs needs no other slot; a longer wait in its hands does.
            elsewhere += min(one.busy, one.slots)
        elif not one.managed:
            elsewhere += one.slots
    tasks = view.ready + view.running + view.soon_due - elsewhere
    return -(-max(0, tasks) // max(1, view.slots_per_worker))


def _room_to_submit(view: PoolView, coming: int, present: int, target: int) -> int:
    if not view.may_submit:
        return 0
    leaving = 0
    if not view.overlap:
        leaving = sum(1 for one in view.workers if one.managed and one.leaving)
    # A job whose worker was lost may take hours to vanish from a batch queue; it is no capacity.
    gone = (LaunchState.STALE,) if view.overlap else ()
    canceled = sum(
        1
        for one in view.launches
        if one.state in COMING and one.cancel_asked and one.state not in gone
    )
    room = min(target - present, view.wanted - present - leaving - canceled)
    if view.coming_max is not None:
        room = min(room, view.coming_max - coming)
    return max(0, room)


def _revocable(coming: Iterable[LaunchView], states: tuple[LaunchState, ...]) -> list[str]:
    """Queued before started, the youngest first: it has waited least."""
    found = [one for one in coming if one.state in states]
    found.sort(key=lambda one: (one.state is LaunchState.RUNNING, -one.order))
    return [one.launch_id for one in found]


def _least_missed(workers: list[WorkerView]) -> list[str]:
    """Idle before busy, then the youngest first."""
    ordered = sorted(workers, key=lambda one: (one.busy, -one.order))
    return [one.worker_id for one in ordered]


@dataclass(slots=True)
class Breaker:
    """Stops a pool that submits in vain.

    It opens after SUBMIT_FAILURES_MAX refused submissions in a row, or EMPTY_ENDS_MAX launches in
    a row that ended before a worker registered. While it is open nothing is submitted; after a
    pause one launch is tried, and each failed trial doubles the pause. A registration closes it.

    `why` is a sentence, `tail` the last output of the launch that opened it.
    """

    why: str = ""
    tail: str = ""
    submit_failures: int = 0
    empty_ends: int = 0
    limited: bool = False
    pause_s: float = BACKOFF_S
    paused_until: float | None = None

    @property
    def open(self) -> bool:
        """True from the failure that opened it until it is closed, trials included."""
        return self.paused_until is not None

    def on_submitted(self) -> None:
        """The batch system took a launch: submitting works. Whether workers start is not known."""
        if self.open and (self.limited or self.submit_failures >= SUBMIT_FAILURES_MAX):
            self._close()
        self.submit_failures = 0

    def on_submit_failed(self, now: float, reason: str, *, limited: bool = False) -> None:
        """A submission was refused (not: its fate is unknown). `limited`: the site has enough of
        our jobs for now, so that the next try can only fail as well."""
        self.submit_failures += 1
        often = self.submit_failures >= SUBMIT_FAILURES_MAX
        self.limited = limited
        if limited:
            self.why = f"the site takes no more jobs for now: {reason}"
        elif often:
            self.why = f"{count(self.submit_failures, 'submission')} in a row failed: {reason}"
        if often or limited:
            self.tail = ""
        self._failed(now, often or limited)

    def on_ended_empty(self, now: float, reason: str, tail: str) -> None:
        """A launch ended before its worker registered, and neither we nor the user cancelled it."""
        self.empty_ends += 1
        if self.empty_ends >= EMPTY_ENDS_MAX:
            many = f"{count(self.empty_ends, 'launch', 'launches')} in a row"
            self.why = f"{many} ended before a worker registered: {reason}"
            self.tail = tail
        self._failed(now, self.empty_ends >= EMPTY_ENDS_MAX)

    def on_registered(self) -> None:
        """A worker registered: launching works. Everything is forgotten."""
        self.release()

    def release(self) -> None:
        """An operator says that the cause is gone."""
        self.submit_failures = 0
        self.empty_ends = 0
        self.pause_s = BACKOFF_S
        self._close()

    def coming_max(self, now: float) -> int | None:
        """For `PoolView.coming_max`: None while closed, 0 during a pause, 1 for the trial."""
        if self.paused_until is None:
            return None
        return 0 if now < self.paused_until else 1

    def next_at(self, now: float) -> float | None:
        """When a trial becomes allowed, if that is still ahead."""
        if self.paused_until is None or self.paused_until <= now:
            return None
        return self.paused_until

    def _failed(self, now: float, too_often: bool) -> None:
        if self.paused_until is None:
            if too_often:
                self.paused_until = now + self.pause_s
        elif now >= self.paused_until:
            self.pause_s = min(2 * self.pause_s, BACKOFF_S_MAX)
            self.paused_until = now + self.pause_s
        # A failure during the pause belongs to a launch of before it and does not prolong it.

    def _close(self) -> None:
        self.paused_until = None
        self.limited = False
        self.why = ""
        self.tail = ""


@dataclass(slots=True)
class TokenBucket:
    """A rate with a burst: `rate` tokens a second, at most `burst` saved up."""

    rate: float
    burst: int
    level: float = -1.0
    at: float = 0.0

    def take(self, now: float, wanted: int) -> int:
        """Take up to `wanted` tokens; the number that was there."""
        self._fill(now)
        taken = max(0, min(wanted, int(self.level)))
        self.level -= taken
        return taken

    def next_at(self, now: float) -> float:
        """When a token will be there; `now` if one is."""
        self._fill(now)
        return now if self.level >= 1.0 else now + (1.0 - self.level) / self.rate

    def _fill(self, now: float) -> None:
        if self.level < 0.0:
            self.level = float(self.burst)
        else:
            self.level = min(float(self.burst), self.level + max(0.0, now - self.at) * self.rate)
        self.at = now


def submit_bucket(*, local: bool) -> TokenBucket:
    """The pace of submissions: a batch system's controller is shared by all, a fork is not."""
    return TokenBucket(rate=20.0, burst=64) if local else TokenBucket(rate=1.0, burst=10)
