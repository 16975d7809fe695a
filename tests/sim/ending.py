"""What must be true when a run is over: nothing open, nothing left, nothing done in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobflowd.model import TASK_TERMINAL, LaunchState, TaskState
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.run import Simulation

#: Workers that saw nothing of the end must notice it by the beacon within this many heartbeats.
NOTICE_BEATS = 8


def settle_accounts(sim: Simulation) -> None:
    """All final checks of a history."""
    _all_terminal(sim)
    _budgets(sim)
    _nobody_left(sim)
    if sim.profile.gentle:
        _thrift(sim)


def _all_terminal(sim: Simulation) -> None:
    checks = sim.checks
    if len(checks.tasks) != sim.profile.tasks:
        raise Violation(f"{len(checks.tasks)} tasks of {sim.profile.tasks}")
    for row, (state, _, _) in checks.tasks.items():
        name = checks.ids[row]
        if state not in TASK_TERMINAL:
            raise Violation(f"{name} is {state.word} and the run is over")
        if (state is TaskState.SUCCEEDED) != (name in checks.results):
            raise Violation(f"{name} is {state.word}, its result is {checks.results.get(name)}")
        if name in sim.special and state is TaskState.SUCCEEDED:
            raise Violation(f"{name} cannot succeed")
        if state is TaskState.FAILED and sim.profile.gentle:
            raise Violation(f"{name} failed in a history without a reason to")


def _budgets(sim: Simulation) -> None:
    """A task that always fails or kills is not tried for ever."""
    for name, kind in sim.special.items():
        if name in sim.checks.retried:
            continue
        failures = sim.checks.failures.get(name, 0)
        if kind == "exception" and failures > 3:
            raise Violation(f"{name} failed {failures} times, with two retries")
        if kind == "nonretryable" and failures > 1:
            raise Violation(f"{name} was tried again, and it cannot be retried")
        kills = sim.checks.kills.get(name, 0)
        # In company and in the dark nobody is blamed, nor while the manager is away.
        # The same after a full disk, when memory begins anew from what was stored.
        away = sim.world.stats["lives"] - 1 + sim.world.faults["disk_full"]
        if kills > 3 + 3 + away:
            raise Violation(f"{name} killed {kills} workers, with two losses allowed")


def _nobody_left(sim: Simulation) -> None:
    """Jobs and workers are gone soon: asked, cancelled, or by the beacon."""
    world = sim.world
    beats = NOTICE_BEATS * sim.profile.heartbeat_s
    bound = world.now + beats + 2 * 15.0 + sim.profile.duration_s[1] + 12.0
    if sim.detached:
        # Left alone on purpose, they wait for a next manager, each as long as it was told to.
        bound += sim.manager_timeout_s
    world.run(lambda: not sim.cluster.alive, bound)
    if sim.cluster.alive:
        left = [one.worker_id for one in sim.cluster.alive]
        raise Violation(f"workers still live {bound - world.now:.0f} s after the end: {left}")
    for job in sim.cluster.jobs.values():
        if job.state in (LaunchState.PENDING, LaunchState.RUNNING):
            raise Violation(f"job {job.launch_id} is {job.state.word} after the end")


def _thrift(sim: Simulation) -> None:
    for name, starts in sorted(sim.checks.starts.items()):
        if starts != 1:
            raise Violation(f"{name} was executed {starts} times for no reason")
    if sim.profile.kind == "calm":
        submits = len(sim.cluster.submitted)
        # A worker that left by its idle time-out is replaced if work comes back.
        if submits > sim.profile.workers and sim.settings.idle_timeout_s is None:
            raise Violation(f"{submits} launches for {sim.profile.workers} workers")
