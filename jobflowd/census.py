"""What the coordinator knows of itself at one moment, for people: counts, workers, launches.

Pure values. The coordinator fills a `Census`; `answers.py` turns it into response bodies, and the
telemetry publisher uses the same bodies. `*_at` is wall-clock seconds since the epoch, everything
else is seconds or a count. Words (states) are lower-case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from jobflowd.forecast import Forecast

#: What `state` may be, with the meaning that people read.
STATES: dict[str, str] = {
    "generating": "generate_tasks() is still running",
    "running": "tasks are handed out",
    "paused": "an operator paused the hand-out of tasks",
    "draining": "the run is ending: no new task is handed out",
    "done": "every task has its outcome",
    "degraded": "the database cannot be written; nothing is acknowledged until it can",
}


@dataclass(frozen=True, slots=True)
class TaskCounts:
    """Tasks by state. `held` tasks are among the queued: they wait for a survivor of a restart."""

    queued: int = 0
    assigned: int = 0
    running: int = 0
    succeeded: int = 0
    failed: int = 0
    canceled: int = 0
    held: int = 0

    @property
    def total(self) -> int:
        """All tasks that the generator has named so far."""
        return (
            self.queued
            + self.assigned
            + self.running
            + self.succeeded
            + self.failed
            + self.canceled
        )


#: What a worker without tasks has.
NO_PROGRESS: Final[Mapping[str, float]] = MappingProxyType({})


class WorkerView(NamedTuple):
    """One worker; `state` is idle, busy, draining, quarantined or offline.

    `running` are the ids of the tasks that it runs now, `progress` of each (0 to 1) where known.
    A tuple, because thousands of them are made for each answer.
    """

    worker_id: str
    state: str
    host: str
    pid: int
    slots: int
    transport: str
    heartbeat_age_s: float | None = None
    running: tuple[str, ...] = ()
    done: int = 0
    failed: int = 0
    launch_id: str | None = None
    batch_job_id: str | None = None
    time_left_s: float | None = None
    rss_bytes: int = 0
    reason: str = ""
    progress: Mapping[str, float] = NO_PROGRESS


class LaunchView(NamedTuple):
    """One launch; `worker_id` once its worker has registered."""

    launch_id: str
    system: str
    state: str
    batch_job_id: str | None = None
    submitted_at: float | None = None
    worker_id: str | None = None
    reason: str = ""
    script: str | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True)
class Launching:
    """Whether launches are submitted now. `reason` says why not; `canary`: a few launches go
    ahead and the rest waits until a first task has succeeded."""

    paused: bool = False
    reason: str = ""
    canary: bool = False


@dataclass(frozen=True, slots=True)
class Census:
    """One moment of a session.

    `workers` are those that are connected, `worker_counts` counts them by state word, and
    `workers_offline` counts the rest. `launches` are those that memory holds; `launch_counts`
    counts them by state word. The lists may be made as they are looked at, in the same moment.
    `target` is the wanted number of workers. `eta_s` is None while it cannot be known.
    """

    session: str
    program: str
    state: str
    state_reason: str = ""
    started_at: float = 0.0
    tasks: TaskCounts = field(default_factory=TaskCounts)
    workers: Sequence[WorkerView] = ()
    worker_counts: Mapping[str, int] = field(default_factory=dict)
    workers_offline: int = 0
    launches: Sequence[LaunchView] = ()
    launch_counts: Mapping[str, int] = field(default_factory=dict)
    target: int = 0
    throughput_per_s: float | None = None
    eta_s: float | None = None
    forecast: Forecast = field(default_factory=Forecast)
    launching: Launching = field(default_factory=Launching)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Here:
    """What only the daemon process knows of itself. `warnings` are added to the census's."""

    pid: int
    host: str
    version: str
    cpu_s: float | None = None
    rss_bytes: int | None = None
    db_bytes: int | None = None
    warnings: tuple[str, ...] = ()
