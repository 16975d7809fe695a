"""Seed -> what kind of history it is: sizes, terms, and which faults are on and how strong.

A fixed share of the seeds is gentle: calm (no fault), or with one kind of fault that must cost
nothing (restarts, pauses). There each task must be executed exactly once. All others draw a swarm
of faults, so that no fault hides behind another.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

#: Kinds of histories and their shares.
KINDS = (("calm", 12), ("restarts", 10), ("pauses", 8), ("swarm", 70))


@dataclass(slots=True)
class Profile:
    """What a seed means. Rates are per second of virtual time, probabilities per occasion."""

    seed: int
    kind: str = "calm"
    sqlite: bool = False
    tasks: int = 10
    workers: int = 2
    slots: int = 1
    launcher: str = "none"
    transports: tuple[str, ...] = ("zmq",)
    heartbeat_s: float = 2.0
    lease_s: float = 12.0
    duration_s: tuple[float, float] = (0.1, 2.0)
    chaos_s: float = 0.0
    #: Window sizes small enough that pages, cuts and refusals happen with few tasks.
    window: tuple[int, int, int] = (16, 8, 8)
    ordered: bool = True
    delay_s: float = 0.002
    loss: float = 0.0
    duplicate: float = 0.0
    partition: float = 0.0
    visible_s: float = 0.05
    manager_crash: float = 0.0
    crash_in_turn: float = 0.0
    manager_pause: float = 0.0
    worker_crash: float = 0.0
    worker_pause: float = 0.0
    preempt: float = 0.0
    disk_full: float = 0.0
    task_fails: float = 0.0
    child_dies: float = 0.0
    always_fails: int = 0
    poison: int = 0
    submit_lies: float = 0.0
    job_dies: float = 0.0
    query_fails: float = 0.0
    early_end: float = 0.0
    operator: float = 0.0
    stops: float = 0.0
    drain_few: float = 0.0
    #: A host on which everything fails at once; a generator that fails; an edit before a restart.
    broken: float = 0.0
    generator_dies: float = 0.0
    edits: float = 0.0
    #: A batch system that refuses every submission until it is put right.
    closed: bool = False
    notes: dict[str, float] = field(default_factory=dict)

    @property
    def gentle(self) -> bool:
        """Nothing in this history is a reason to execute a task twice."""
        return self.kind != "swarm"


def profile_of(seed: int) -> Profile:
    """Draw a history. A generator of its own, so that a new knob moves no later draw."""
    rng = random.Random(f"swarm {seed}")
    kinds = [kind for kind, _ in KINDS]
    one = Profile(seed, rng.choices(kinds, [share for _, share in KINDS])[0])
    one.sqlite = rng.random() < 0.1
    one.tasks = rng.choice((1, 3, 8, 12, 20, 30))
    one.workers = rng.choice((1, 2, 2, 3, 5))
    one.slots = rng.choice((1, 1, 2, 3))
    one.launcher = rng.choice(("none", "multiprocess", "slurm", "slurm"))
    one.transports = rng.choice((("zmq",), ("zmq",), ("fs",), ("zmq", "fs")))
    one.heartbeat_s = rng.choice((1.0, 2.0, 5.0))
    one.lease_s = one.heartbeat_s * rng.choice((4, 6))
    one.duration_s = rng.choice(((0.005, 0.05), (0.1, 2.0), (0.1, 2.0), (1.0, 15.0), (0.01, 15.0)))
    one.window = rng.choice(((20_000, 5_000, 5_000), (16, 8, 8), (6, 3, 3)))
    one.delay_s = rng.choice((0.001, 0.01, 0.1))
    one.visible_s = rng.choice((0.01, 0.1, 0.5))
    if one.kind == "calm":
        return one
    one.chaos_s = rng.uniform(10.0, 50.0)
    if one.kind == "restarts":
        one.manager_crash = 1 / rng.uniform(4.0, 15.0)
        one.crash_in_turn = rng.choice((0.0, 0.01, 0.05))
        return one
    if one.kind == "pauses":
        one.manager_pause = 1 / rng.uniform(5.0, 20.0)
        return one
    _swarm(one, rng)
    return one


def _swarm(one: Profile, rng: random.Random) -> None:
    def perhaps(value: float) -> float:
        return value if rng.random() < 0.45 else 0.0

    one.ordered = rng.random() < 0.6
    one.delay_s = rng.choice((0.001, 0.02, 0.1, 0.5))
    one.loss = perhaps(rng.uniform(0.0, 0.3))
    one.duplicate = perhaps(rng.uniform(0.0, 0.3))
    one.partition = perhaps(1 / rng.uniform(10.0, 60.0))
    one.visible_s = rng.choice((0.01, 0.1, 0.5, 2.0))
    one.manager_crash = perhaps(1 / rng.uniform(5.0, 40.0))
    one.crash_in_turn = perhaps(rng.choice((0.002, 0.01, 0.05)))
    one.manager_pause = perhaps(1 / rng.uniform(8.0, 40.0))
    one.worker_crash = perhaps(1 / rng.uniform(8.0, 60.0))
    one.worker_pause = perhaps(1 / rng.uniform(8.0, 60.0))
    one.preempt = perhaps(1 / rng.uniform(10.0, 60.0))
    one.disk_full = perhaps(1 / rng.uniform(10.0, 60.0))
    one.task_fails = perhaps(rng.uniform(0.0, 0.4))
    one.child_dies = perhaps(rng.uniform(0.0, 0.2))
    one.always_fails = int(perhaps(rng.randint(1, 2)))
    one.poison = int(perhaps(1))
    one.submit_lies = perhaps(rng.uniform(0.05, 0.4))
    one.job_dies = perhaps(rng.uniform(0.05, 0.3))
    one.query_fails = perhaps(rng.uniform(0.1, 0.6))
    one.early_end = perhaps(rng.uniform(0.0, 0.05))
    one.operator = perhaps(1 / rng.uniform(3.0, 15.0))
    one.stops = perhaps(1 / rng.uniform(20.0, 60.0))
    one.drain_few = perhaps(rng.uniform(0.1, 0.7))
    one.broken = rng.choice((0.0, 0.0, 0.0, 0.9, 1.0))
    one.generator_dies = rng.choice((0.0, 0.0, 0.0, 0.3))
    one.edits = rng.choice((0.0, 0.0, 0.0, 0.5))
    one.closed = rng.random() < 0.05
