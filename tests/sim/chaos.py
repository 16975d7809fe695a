"""Injects the faults of a profile, each as a Poisson process of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from jobflowd import events as ev
from tests.sim.workers import SimWorker

if TYPE_CHECKING:
    from tests.sim.run import Simulation


_COMMANDS = (
    "scale",
    "scale",
    "drain",
    "drain",
    "drain",
    "cancel",
    "retry",
    "retry",
    "pause",
    "resume",
)


class Chaos:
    """Faults that come by themselves; those of single messages are where the messages are."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.world = sim.world

    def begin(self) -> None:
        profile = self.sim.profile
        for rate, fault in (
            (profile.manager_crash, self._manager_crash),
            (profile.manager_pause, self._manager_pause),
            (profile.worker_crash, self._worker_crash),
            (profile.worker_pause, self._worker_pause),
            (profile.preempt, self._preempt),
            (profile.partition, self._partition),
            (profile.disk_full, self._disk_full),
            (profile.operator, self._operator),
            (profile.stops, self._stop),
        ):
            if rate:
                self._next(rate, fault)
        if profile.launcher == "none" and profile.kind == "swarm":
            self._next(0.2, self._new_worker)

    def _next(self, rate: float, fault: Callable[[], None]) -> None:
        self.world.at(self.world.rng.expovariate(rate), self._strike, rate, fault)

    def _strike(self, rate: float, fault: Callable[[], None]) -> None:
        if self.world.chaos and not self.sim.over:
            fault()
            self._next(rate, fault)

    def _any_worker(self) -> SimWorker | None:
        alive = self.sim.cluster.alive
        return self.world.rng.choice(alive) if alive else None

    # --- faults -------------------------------------------------------------------------------

    def _manager_crash(self) -> None:
        if self.sim.manager.up:
            self.world.fault("manager_crash")
            self.sim.manager.die()
            self.sim._come_back()

    def _manager_pause(self) -> None:
        self.world.fault("manager_pause")
        self.sim.manager.freeze(self.world.rng.choice((0.5, 5.0, 20.0, 60.0)))

    def _worker_crash(self) -> None:
        worker = self._any_worker()
        if worker is not None:
            self.world.fault("worker_crash")
            worker.die("crash")

    def _worker_pause(self) -> None:
        worker = self._any_worker()
        if worker is not None:
            worker.freeze(self.world.rng.choice((0.5, 5.0, 30.0)))

    def _preempt(self) -> None:
        worker = self._any_worker()
        if worker is not None:
            self.sim.cluster.preempt(worker, self.world.rng.choice(("preempted", "walltime")))

    def _partition(self) -> None:
        worker = self._any_worker()
        if worker is not None and worker.transport == "zmq":
            way = self.world.rng.choice(("up", "down", "all"))
            self.sim.net.partition(worker.worker_id, way, self.world.rng.choice((1.0, 8.0, 40.0)))

    def _disk_full(self) -> None:
        self.sim.manager.full_until = self.world.now + self.world.rng.uniform(0.1, 5.0)

    def _new_worker(self) -> None:
        if len(self.sim.cluster.alive) < self.sim.profile.workers:
            self.sim.cluster.start_worker(None)

    def _operator(self) -> None:
        sim, rng = self.sim, self.world.rng
        task_id = f"t{rng.randrange(sim.profile.tasks)}"
        match rng.choice(_COMMANDS):
            case "scale":
                wanted = rng.randint(0, sim.profile.workers + 1)
                sim.most_wanted = max(sim.most_wanted, wanted)
                sim.ask("scale", workers=wanted, now=rng.random() < 0.3)
            case "cancel":
                sim.ask("cancel", task_ids=[task_id])
            case "retry":
                sim.checks.retried[task_id] = None
                sim.checks.allow_retry[task_id] = None
                # If the run is ending already, this is for the next one.
                sim.stop_asked = True
                sim.ask("retry", task_ids=[task_id])
            case "drain":
                worker = self._any_worker()
                if worker is not None:
                    sim.ask("drain", worker=worker.worker_id)
            case word:
                sim.ask(word)
        self.world.fault("operator")

    def _stop(self) -> None:
        """SIGTERM with a batch launcher, or a person who ends the run and starts it again."""
        detach = self.world.rng.random() < 0.5
        self.world.fault("detach" if detach else "shutdown")
        now = self.world.rng.random() < 0.3
        manager = self.sim.manager
        self.sim.stop_asked = self.sim.stop_asked or manager.up
        manager.tell(manager.incarnation, ev.StopAsked("a signal", now=now, detach=detach))
