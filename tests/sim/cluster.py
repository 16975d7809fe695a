"""A batch system (or a process table) that lies: late, lost and refused answers, jobs that die."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobflowd.effects import CancelLaunch, QueryLaunches, Submit
from jobflowd.events import (
    Event,
    LaunchSeen,
    QueryAnswered,
    QueryFailed,
    SubmitFailed,
    Submitted,
)
from jobflowd.model import LaunchState
from tests.sim.workers import SimWorker
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.run import Simulation

#: From SIGTERM to SIGKILL of a cancelled job.
KILL_WAIT_S = 12.0
#: A launch that nobody knows is called absent once this long after it was first asked for.
ABSENT_S = 2.0


@dataclass(slots=True)
class SimJob:
    """A batch job or local process."""

    launch_id: str
    job_id: str
    state: LaunchState = LaunchState.PENDING
    worker: SimWorker | None = None
    reason: str = ""
    cancelled: bool = False
    said_dead: bool = False


class Cluster:
    """Owns nodes and jobs; answers as the launcher's shell does."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.world = sim.world
        self.local = sim.profile.launcher == "multiprocess"
        self.jobs: dict[str, SimJob] = {}
        self.workers: list[SimWorker] = []
        self.submitted: dict[str, int] = {}
        self._commands: dict[str, int] = {}
        self._absent_since: dict[str, float] = {}
        self._said_absent: dict[str, bool] = {}

    @property
    def alive(self) -> list[SimWorker]:
        return [one for one in self.workers if one.alive]

    def start_worker(self, launch_id: str | None) -> SimWorker:
        transports = self.sim.profile.transports
        transport = transports[len(self.workers) % len(transports)]
        worker = SimWorker(self.sim, len(self.workers) + 1, transport, launch_id)
        self.workers.append(worker)
        self.sim.by_id[worker.worker_id] = worker
        return worker

    # --- the launcher's shell -----------------------------------------------------------------

    def perform(self, effect: Submit | CancelLaunch | QueryLaunches) -> list[Event]:
        """Carry one out; what is known at once is returned, the rest comes later."""
        match effect:
            case Submit(launch_id):
                return self._submit(launch_id)
            case CancelLaunch(launch_id, _, now):
                self.cancel(launch_id, now)
                return []
            case QueryLaunches(launches):
                return self._query([launch_id for launch_id, _ in launches])

    def _submit(self, launch_id: str) -> list[Event]:
        world, profile = self.world, self.sim.profile
        self.sim.checks.submits(launch_id)
        self.submitted[launch_id] = self.submitted.get(launch_id, 0) + 1
        world.stats["submits"] += 1
        lie = ""
        if world.chaos and profile.closed:
            # A site that takes nothing for now.
            lie = "refused"
            world.fault("submit_refused")
        elif world.chaos and world.chance(profile.submit_lies):
            lie = world.rng.choice(("refused", "lost", "nothing", "late"))
            world.fault(f"submit_{lie}")
        if self.local and lie not in ("", "refused"):
            lie = ""
        if lie == "refused":
            refused = SubmitFailed(launch_id, "QOSMaxSubmitJobPerUserLimit")
            return [refused] if self.local else self._later(launch_id, 0.2, refused)
        good = Submitted(launch_id, f"job-{launch_id}")
        if self.local:
            self._queue(launch_id, 0.0)
            return [good]
        delay = world.rng.uniform(0.05, 0.5) if lie != "late" else world.rng.uniform(3.0, 20.0)
        if lie != "nothing":
            self._commands[launch_id] = self._commands.get(launch_id, 0) + 1
            world.at(delay * 0.7, self._take, launch_id)
        if lie in ("lost", "nothing"):
            return self._later(launch_id, delay, SubmitFailed(launch_id, "timed out", unknown=True))
        return self._later(launch_id, delay, good)

    def _take(self, launch_id: str) -> None:
        self._commands[launch_id] -= 1
        self._queue(launch_id, self.world.rng.uniform(0.1, 6.0))

    def _later(self, launch_id: str, delay: float, event: Event) -> list[Event]:
        """The command belongs to this daemon: its answer is for no other."""
        manager = self.sim.manager
        self.world.at(delay, manager.tell, manager.incarnation, event)
        return []

    def _queue(self, launch_id: str, wait_s: float) -> None:
        if launch_id in self.jobs:
            raise Violation(f"{launch_id} was submitted twice")
        self.jobs[launch_id] = SimJob(launch_id, f"job-{launch_id}")
        if self._said_absent.get(launch_id):
            raise Violation("the simulator said that a job is absent, and it came")
        self.world.at(wait_s, self._start, launch_id)

    def _start(self, launch_id: str) -> None:
        job = self.jobs[launch_id]
        if job.state is not LaunchState.PENDING:
            return
        job.state = LaunchState.RUNNING
        if self.world.chaos and self.world.chance(self.sim.profile.job_dies):
            self.world.fault("job_died_at_once")
            self._end(job, LaunchState.FAILED, "exit 127")
            return
        job.worker = self.start_worker(launch_id)

    def cancel(self, launch_id: str, now: bool) -> None:
        """scancel or SIGTERM: idempotent, and it may be lost."""
        job = self.jobs.get(launch_id)
        if job is None or job.state not in (LaunchState.PENDING, LaunchState.RUNNING):
            return
        if self.world.chaos and self.world.chance(self.sim.profile.query_fails / 2):
            self.world.fault("cancel_lost")
            return
        job.cancelled = True
        if job.worker is None:
            self._end(job, LaunchState.CANCELED, "cancelled")
            return
        job.worker.leave("draining")
        self.world.at(KILL_WAIT_S, job.worker.die, "cancelled")

    def _query(self, asked: list[str]) -> list[Event]:
        self.world.stats["queries"] += 1
        self.sim.checks.rates.queries()
        world = self.world
        if not self.local and world.chaos and world.chance(self.sim.profile.query_fails):
            world.fault("query_failed")
            failed = QueryFailed("Socket timed out on send/recv operation")
            return self._later("", world.rng.uniform(0.1, 3.0), failed)
        events: list[Event] = []
        for launch_id in asked:
            seen = self._opinion(launch_id)
            if seen is not None:
                events.append(seen)
        events.append(QueryAnswered())
        if self.local:
            return events
        manager = self.sim.manager
        self.world.at(world.rng.uniform(0.05, 0.5), manager.tell, manager.incarnation, *events)
        return []

    def _opinion(self, launch_id: str) -> LaunchSeen | None:
        world = self.world
        job = self.jobs.get(launch_id)
        if job is not None:
            self._absent_since.pop(launch_id, None)
            lying = world.chaos and world.chance(self.sim.profile.early_end)
            if lying and job.state is LaunchState.RUNNING and not self.local:
                world.fault("said_dead")
                job.said_dead = True
                return LaunchSeen(launch_id, LaunchState.FAILED, job.job_id, "NODE_FAIL, it said")
            return LaunchSeen(launch_id, job.state, job.job_id, job.reason)
        if self._commands.get(launch_id):
            return None
        since = self._absent_since.setdefault(launch_id, world.now)
        if world.now - since < ABSENT_S:
            return None
        self._said_absent[launch_id] = True
        return LaunchSeen(launch_id, LaunchState.FAILED, None, "absent")

    # --- ends ---------------------------------------------------------------------------------

    def on_worker_gone(self, worker: SimWorker, why: str) -> None:
        self.sim.net.link_up.pop(worker.worker_id, None)
        job = self.jobs.get(worker.launch_id or "")
        if job is not None and job.state is LaunchState.RUNNING:
            if why == "exit" and worker.exit_code == 0:
                self._end(job, LaunchState.ENDED, "COMPLETED")
            elif job.cancelled or why == "preempted":
                self._end(job, LaunchState.CANCELED, why)
            else:
                self._end(job, LaunchState.FAILED, why)

    def _end(self, job: SimJob, state: LaunchState, reason: str) -> None:
        job.state, job.reason = state, reason
        if self.local:
            # A pidfd wakes the daemon at once.
            manager = self.sim.manager
            seen = LaunchSeen(job.launch_id, state, job.job_id, reason)
            manager.tell(manager.incarnation, seen)

    def preempt(self, worker: SimWorker, cause: str) -> None:
        """SIGTERM, and SIGKILL if it does not leave."""
        self.world.fault(cause)
        worker.leave(cause)
        self.world.at(KILL_WAIT_S + 10.0, worker.die, cause)
