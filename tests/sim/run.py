"""One seed from beginning to end: chaos, healing, the end of the run, and the accounts.

Phases: chaos with safety checked at every commit; then faults stop and the run must end within a
bound computed from the settings; then nothing may be left over, and in gentle histories each task
must have been executed exactly once and each launch submitted exactly once.
"""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from jobflow_worker import reporter
from jobflow_worker.codec import encode_body
from jobflow_worker.messages import Held
from jobflowd import assignments, coordinator, schedule, window
from jobflowd import events as ev
from jobflowd.book import Book, Settings
from jobflowd.model import Definition, LaunchState, TaskState, WorkerState
from jobflowd.quarantine import QUARANTINE_S
from jobflowd.store import Store
from tests.sim.checks import Checks
from tests.sim.cluster import Cluster
from tests.sim.faststore import FastStore
from tests.sim.manager import SimManager
from tests.sim.network import Mailboxes, Network
from tests.sim.swarm import Profile, profile_of
from tests.sim.workers import Fate, SimWorker
from tests.sim.world import Violation, World

#: Long, so that a run that only ends by its grace is told from one that ends by itself.
GRACE_S = 150.0
BACKOFF_MAX_S = 4.0
#: A run that has not ended its chaos by then is broken in a way of its own.
HARD_STOP_S = 3000.0
#: Where everything fails in some histories; every third worker is there.
BROKEN_HOST = "host1"


@dataclass(slots=True)
class Outcome:
    """What a seed came to."""

    seed: int
    kind: str
    error: str | None = None
    digest: str = ""
    lines: list[str] = field(default_factory=list)
    seconds: float = 0.0
    tasks: int = 0
    stats: dict[str, int] = field(default_factory=dict)
    faults: dict[str, int] = field(default_factory=dict)


class Simulation:
    """All parts of one history."""

    def __init__(self, profile: Profile, *, keep_trace: bool = False) -> None:
        self.profile = profile
        self.world = World(profile.seed, keep_trace=keep_trace)
        self.fates = random.Random(f"fates {profile.seed}")
        self.manager_timeout_s = 600.0
        terms = (profile.heartbeat_s, profile.lease_s)
        self.settings = Settings(
            session="s",
            program="p.py:P",
            launcher=profile.launcher,
            workers=profile.workers,
            slots=profile.slots,
            terms={"zmq": terms, "fs": terms},
            worker_timeout_s=profile.lease_s,
            max_losses=2,
            max_deliveries=50,
            retry_backoff_s=0.5,
            retry_backoff_max_s=BACKOFF_MAX_S,
            grace_s=GRACE_S,
            idle_timeout_s=self.fates.choice((None, 20.0)),
            manager_timeout_s=self.manager_timeout_s,
            launch_poll_s=2.0 if profile.launcher == "multiprocess" else 5.0,
        )
        self.net = Network(self.world, profile)
        self.mail = Mailboxes(self.world, profile)
        self.by_id: dict[str, SimWorker] = {}
        self.checks = Checks(self)
        self.cluster = Cluster(self)
        store: Any = FastStore()
        if profile.sqlite:
            store = Store(":memory:")
            store.open()
        self.manager = SimManager(self, self.settings, store)
        self.beacon: tuple[int, int, str] | None = None
        self._beacon_n = 0
        self.most_wanted = profile.workers
        self.over = False
        self.stop_asked = False
        self.detached = False
        self.finishing_at: float | None = None
        self._tickets = 0
        #: The text of the program as it is on the disk that all nodes see.
        self.program_hash = "hash"
        self.special = self._draw_special()
        self.definitions = [self._definition(n) for n in range(profile.tasks)]

    def _definition(self, number: int) -> Definition:
        task_id = f"t{number}"
        priority = self.fates.choice((0, 0, 0, 1, -1))
        spec = encode_body({"n": number})
        return Definition(task_id, spec, bytes(16), 2, priority, None, None, None)

    def _draw_special(self) -> dict[str, str]:
        names = [f"t{n}" for n in range(self.profile.tasks)]
        self.fates.shuffle(names)
        special = dict.fromkeys(names[: self.profile.poison], "agent")
        for name in names[self.profile.poison :][: self.profile.always_fails]:
            special[name] = self.fates.choice(("exception", "crash", "nonretryable"))
        return special

    def fate(self, held: Held, host: str) -> Fate:
        """What becomes of an attempt: fixed per task and attempt, whenever and wherever it runs.

        Except on the broken host, where nearly everything fails at once until it is mended.
        """
        rng = random.Random(f"{self.profile.seed} {held.task_id} {held.attempt}")
        duration = rng.uniform(*self.profile.duration_s)
        special = self.special.get(held.task_id)
        if special is not None:
            return Fate(special, duration)
        if host == BROKEN_HOST and self.world.chaos and rng.random() < self.profile.broken:
            self.world.fault("broken_node")
            return Fate("exception", rng.uniform(0.005, 0.5))
        if rng.random() < self.profile.task_fails and self.world.chaos:
            return Fate(rng.choice(("exception", "exception", "timeout", "memory")), duration)
        if rng.random() < self.profile.child_dies and self.world.chaos:
            return Fate("crash", duration)
        return Fate("ok", duration)

    # --- what surrounds the manager -----------------------------------------------------------

    def put_beacon(self, state: str) -> None:
        self._beacon_n += 1
        self.beacon = (self.manager.coordinator.book.epoch, self._beacon_n, state)

    def _beat(self) -> None:
        if self.manager.up and not self.manager.frozen:
            self.put_beacon("open")
        if not self.over:
            self.checks.rates.idle(self.manager)
            self.world.at(self.profile.heartbeat_s, self._beat)

    def generate(self, life: int) -> None:
        """The generator's child: batches, then its end."""
        at, start = 0.0, 0
        while start < len(self.definitions):
            size = self.world.rng.randint(1, len(self.definitions))
            at += self.world.rng.uniform(0.01, 0.5)
            batch = tuple(self.definitions[start : start + size])
            self.world.at(at, self.manager.tell, life, ev.Generated(batch))
            start += size
            if self.world.chaos and self.world.chance(self.profile.generator_dies):
                self.world.at(at + 0.1, self._generator_fails, life)
                return
        self.world.at(at + 0.1, self.manager.tell, life, ev.GenerationEnded())

    def _generator_fails(self, life: int) -> None:
        """It raised, or was killed, in the middle of the list."""
        if self.manager.up and life == self.manager.incarnation:
            self.world.fault("generator_died")
            # The run ends with what is running, and is started again.
            self.stop_asked = True
            self.manager.tell(life, ev.GenerationEnded("ValueError: it ends here"))

    def edit_program(self) -> None:
        """Before a restart, somebody may have edited the program's file."""
        if self.world.chaos and self.world.chance(self.profile.edits):
            self.world.fault("program_edited")
            self.program_hash = f"hash{self.manager.incarnation}"

    def ask(self, cmd: str, **args: Any) -> None:
        self._tickets += 1
        self.manager.tell(self.manager.incarnation, ev.Asked(self._tickets, cmd, args))

    def written_off(self, book: Book) -> int:
        """Launches given up that may still hold a job: cancelled, lost, or said to be dead."""
        over = (LaunchState.ENDED, LaunchState.CANCELED)
        return sum(
            1
            for launch_id, job in self.cluster.jobs.items()
            if job.state in (LaunchState.PENDING, LaunchState.RUNNING)
            and (
                launch_id not in book.launches
                or book.launches[launch_id].cancel_asked
                or book.launches[launch_id].state in over
                or job.said_dead
                or self._leaving(job.worker, book)
            )
        )

    def _leaving(self, worker: SimWorker | None, book: Book) -> bool:
        known = book.workers.get(worker.worker_id) if worker is not None else None
        return known is not None and (
            known.shutdown is not None
            or known.leaving
            # It stays for its time, and another takes its place.
            or known.state is WorkerState.QUARANTINED
        )

    def crashed(self) -> None:
        """A crash inside a turn."""
        self.world.fault("crash_in_turn")
        self.manager.die()
        self._come_back()

    def _come_back(self) -> None:
        self.world.at(self.world.rng.uniform(0.1, 6.0), self._start_again)

    def _start_again(self) -> None:
        if not self.manager.up and not self.over:
            self.manager.start()

    def exited(self, code: int) -> None:
        """The daemon ended by itself."""
        book = self.manager.coordinator.book
        self.world.trace(f"manager exits with {code}")
        detached = self.detached = book.finishing == "detach"
        if book.generation_error is not None and not detached and code != 65:
            raise Violation(f"exit code {code}, and the generator failed")
        self._prompt(book)
        self.put_beacon("detached" if detached else "closed")
        self.manager.die()
        if book.remaining or not book.generated:
            if not self.world.chaos and not self.stop_asked:
                raise Violation(f"the run ended with {code}, {book.remaining} tasks remain")
            self.stop_asked = False
            self._come_back()
            return
        self.over = True
        failed = book.counts[TaskState.FAILED]
        if not detached and code != (3 if failed else 0):
            raise Violation(f"exit code {code}, and {failed} tasks failed")

    def _prompt(self, book: Book) -> None:
        """L2: a healed run ends because everybody left, not because its grace is over."""
        if self.world.chaos or self.finishing_at is None or book.finishing != "done":
            return
        took = self.world.now - self.finishing_at
        if took > 8 * self.profile.heartbeat_s + self.profile.lease_s + 40.0:
            raise Violation(f"the end took {took:.0f} s")

    # --- phases -------------------------------------------------------------------------------

    def run(self) -> None:
        world, profile = self.world, self.profile
        world.chaos = profile.chaos_s > 0
        world.at(5.0, world.jump_wall)
        self.manager.start()
        world.at(0.0, self._beat)
        if profile.launcher == "none":
            for _ in range(profile.workers):
                world.at(world.rng.uniform(0.0, 2.0), self.cluster.start_worker, None)
            world.at(5.0, self._start_by_hand)
        if world.chaos:
            from tests.sim.chaos import Chaos

            Chaos(self).begin()
            world.run(lambda: self.over, profile.chaos_s)
            world.chaos = False
        self._heal()
        bound = world.now + self.bound_s()
        if not world.run(lambda: self.over, bound):
            raise Violation(f"not over {self.bound_s():.0f} s after healing: {self._whats_left()}")
        from tests.sim.ending import settle_accounts

        settle_accounts(self)

    def _start_by_hand(self) -> None:
        """A person who starts workers by hand starts another when none is left, but none into a
        run that is done: each would have to be seen out, and the end would come late."""
        if self.over:
            return
        done = self.manager.up and self.manager.coordinator.book.finishing == "done"
        if not self.world.chaos and not self.cluster.alive and not done:
            self.cluster.start_worker(None)
        self.world.at(5.0, self._start_by_hand)

    def _heal(self) -> None:
        """No more faults, and an operator who puts things right."""
        self.net.heal()
        self.world.trace("--- heal")
        self.manager.full_until = 0.0
        if self.manager.up:
            self.manager.frozen_until = min(self.manager.frozen_until, self.world.now + 0.1)
            since = self.manager.frozen_since
            self.world.at(0.1, self.manager.thaw, self.manager.incarnation, since)
        for worker in self.cluster.alive:
            worker.thaw()
        if self.profile.kind == "swarm":
            self.world.at(8.0, self._put_right)

    def _put_right(self) -> None:
        if not self.over:
            # Again and again: a manager that is away at the moment hears nothing.
            self.world.at(20.0, self._put_right)
            self.most_wanted = max(self.most_wanted, self.profile.workers)
            self.ask("resume")
            self.ask("release", what="launcher")
            if self.profile.launcher != "none":
                self.ask("scale", workers=self.profile.workers)

    def bound_s(self) -> float:
        """How long a healed run may take: everything in a row, at one worker."""
        settings = self.settings
        work = self.profile.tasks * (self.profile.duration_s[1] + 0.5) * 2
        special = len(self.special) * 8 * (self.profile.duration_s[1] + BACKOFF_MAX_S)
        special += self.profile.poison * 8 * (self.profile.lease_s + 30.0)
        pauses = (
            settings.hold_s + 3 * self.profile.lease_s + 2 * GRACE_S + 10 * settings.heartbeat_s
        )
        if self.profile.broken:
            pauses += QUARANTINE_S
        return 120.0 + work + special + pauses

    def _whats_left(self) -> str:
        if not self.manager.up:
            return "the manager is not running"
        book = self.manager.coordinator.book
        open_tasks = [book.in_flight.get(n) or book.held.get(n) or n for n, row in
                      self.checks.rows.items() if self.checks.tasks[row][0] < 3]  # fmt: skip
        launches = {one.launch_id: one.state.name for one in book.launches.values()}
        return (
            f"finishing {book.finishing}, workers {len(self.cluster.alive)}, wanted {book.wanted},"
            f" delayed {book.delayed}, window {len(book.ready)} of {book.ready_count},"
            f" launches {launches}, tasks {open_tasks}"
        )


def _bounds(profile: Profile) -> ExitStack:
    """Limits that a simulated session reaches: its few tasks are many where these are small."""
    most, low, page = profile.window
    changed: dict[Any, dict[str, int]] = {
        window: {"WINDOW_LOW": low},
        coordinator: {"PAGE": page},
    }
    if profile.seed % 3 == 0:
        changed[reporter] = {"BRIEF_ITEMS": 1}
    if profile.seed % 5 == 1:
        changed[schedule] = {"WORK_PER_TURN": 3, "POST_WORK": 1, "PIECE": 1}
    if profile.seed % 4 == 2:
        changed[assignments] = {"ITEMS_MAX": 4}
    stack = ExitStack()
    stack.enter_context(patch.object(window.Window.__init__, "__defaults__", (most,)))
    for module, values in changed.items():
        stack.enter_context(patch.multiple(module, **values))
    return stack


def run_seed(seed: int, *, keep_trace: bool = False, profile: Profile | None = None) -> Outcome:
    """Run one seed; never raises for what the product does."""
    profile = profile if profile is not None else profile_of(seed)
    outcome = Outcome(seed, profile.kind, tasks=profile.tasks)
    bounds = _bounds(profile)
    simulation = Simulation(profile, keep_trace=keep_trace)
    try:
        simulation.run()
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {error}"
        if keep_trace or not isinstance(error, Violation):
            import traceback

            outcome.lines = traceback.format_exc().splitlines()
    finally:
        bounds.close()
        simulation.manager.store.close()
    world = simulation.world
    outcome.seconds = world.now
    outcome.stats, outcome.faults = dict(world.stats), dict(world.faults)
    if keep_trace:
        outcome.digest = world.digest()
        outcome.lines = (world.lines or []) + outcome.lines
    return outcome
