"""A Poisson killer: each kind of violence comes at random moments, at its own mean interval.

What it did is kept with the time, because a worker that was killed after its task ended and before
its manager knew is the one excuse for a task that is executed again.
"""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import dataclass
from typing import Final, NamedTuple

from tests.faults.bench import kill

from .cast import cast


class Kind(NamedTuple):
    """Victims of `role` get `number` every `mean_s` seconds on average; stops last `stop_s`."""

    role: str
    number: signal.Signals
    mean_s: float
    stop_s: float = 0.0


KILL: Final = signal.SIGKILL
STOP: Final = signal.SIGSTOP
EVERYTHING: Final = (
    Kind("manager", KILL, 20.0),
    Kind("manager", STOP, 60.0, 12.0),
    Kind("agent", KILL, 4.0),
    Kind("agent", STOP, 8.0, 15.0),
    Kind("child", KILL, 5.0),
    Kind("child", STOP, 15.0, 8.0),
    Kind("generator", KILL, 30.0),
    Kind("mailboxes", KILL, 40.0),
    Kind("mailboxes", STOP, 60.0, 5.0),
)


@dataclass(frozen=True, slots=True)
class Blow:
    """One signal that was sent; `until` is when a stopped process was continued.

    `at` is after a kill, since a busy victim may note something until it comes, and before a stop.
    """

    role: str
    pid: int
    number: signal.Signals
    at: float
    until: float = 0.0


class Killer:
    """Call `strike` often; it does what is due. `calm` continues whatever is stopped."""

    def __init__(self, mark: str, kinds: tuple[Kind, ...], seed: int) -> None:
        self._mark = mark
        self._random = random.Random(seed)
        now = time.monotonic()
        self._due = {kind: now + self._wait(kind) for kind in kinds}
        self._stopped: dict[int, tuple[str, float, float]] = {}
        self.blows: list[Blow] = []

    def _wait(self, kind: Kind) -> float:
        return self._random.expovariate(1 / kind.mean_s)

    def strike(self) -> None:
        """Send what is due now."""
        now = time.monotonic()
        for pid in [pid for pid, (_, _, until) in self._stopped.items() if until <= now]:
            self._continue(pid)
        due = [kind for kind, at in self._due.items() if at <= now]
        if not due:
            return
        roles = cast(self._mark)
        for kind in due:
            self._due[kind] = now + self._wait(kind)
            victims = [pid for pid in roles[kind.role] if pid not in self._stopped]
            if not victims:
                continue
            pid = self._random.choice(sorted(victims))
            if not kill(pid, kind.number):
                continue
            if kind.number is STOP:
                until = now + self._random.uniform(0.5, kind.stop_s)
                self._stopped[pid] = (kind.role, now, until)
            else:
                self.blows.append(Blow(kind.role, pid, kind.number, time.monotonic()))

    def _continue(self, pid: int) -> None:
        role, at, _ = self._stopped.pop(pid)
        kill(pid, signal.SIGCONT)
        self.blows.append(Blow(role, pid, STOP, at, time.monotonic()))

    def calm(self) -> None:
        """No more blows; everything that is stopped goes on."""
        self._due.clear()
        for pid in list(self._stopped):
            self._continue(pid)

    def counts(self) -> Counter[str]:
        """Blows by what was hit and how, as `manager_kills`, `agent_stops`."""
        return Counter(
            f"{one.role}_{'stops' if one.number is STOP else 'kills'}" for one in self.blows
        )
