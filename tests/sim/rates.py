"""Observers of what others feel: batch systems that are asked, workers that wait for work.

I11: no launch beyond what the open tasks can keep busy. I12: status queries and submissions keep
their pace. L3: once healed, no worker is idle for long while a task is ready that it may have.
The arithmetic is made anew here; nothing of `pool.py` is used but its published numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jobflow_worker.messages import Register
from jobflowd import events as ev
from jobflowd.book import Book
from jobflowd.launching import HURRY_S
from jobflowd.model import TASK_IN_FLIGHT, TASK_TERMINAL, Worker, WorkerState
from jobflowd.pool import BACKOFF_S, COMING, SUBMIT_FAILURES_MAX
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.manager import SimManager
    from tests.sim.run import Simulation
    from tests.sim.workers import SimWorker

#: Submissions a second and the burst: DESIGN.md's figures for a batch system and for local ones.
PACE = {False: (1.0, 10), True: (20.0, 64)}


class Rates:
    """The pace of one history. A new life of the daemon knows nothing of the pace of the last."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.world = sim.world
        self.on_life()

    def on_life(self) -> None:
        """A daemon that starts, or begins anew after a full disk, may ask at once."""
        self._local = self.sim.profile.launcher == "multiprocess"
        self._tokens = float(PACE[self._local][1])
        self._filled_at = self.world.now
        self._asked_at = float("-inf")
        self._failed_queries = 0
        self._refusals = 0
        self._refused_at = float("-inf")
        self._trials = 0
        self._stopped_now = False
        self._idle_since: dict[str, float] = {}

    # --- the batch system ---------------------------------------------------------------------

    def submits(self, launch_id: str, book: Book) -> None:
        """One submission: is there work for it, and is it time?"""
        rate, burst = PACE[self._local]
        now = self.world.now
        self._tokens = min(burst, self._tokens + (now - self._filled_at) * rate) - 1.0
        self._filled_at = now
        if self._tokens < -1e-6:
            raise Violation(f"{launch_id}: more than {burst} submissions and {rate:g} a second")
        if now < self._refused_at + BACKOFF_S:
            self._trials += 1
            if self._trials > 1:
                raise Violation(f"{launch_id} is submitted after {self._refusals} refusals")
        self._needed(launch_id, book)

    def _needed(self, launch_id: str, book: Book) -> None:
        """I11: without this one, the workers there and coming could not hold all open tasks."""
        if self._stopped_now:
            return  # It may have been planned by an earlier event of this turn.
        counted = TASK_IN_FLIGHT if book.paused or book.generation_error else None
        tasks = self.sim.checks.tasks.values()
        open_tasks = sum(
            1
            for state, _, _ in tasks
            if state not in TASK_TERMINAL and (counted is None or state in counted)
        )
        coming = sum(
            1 for one in book.launches.values() if one.state in COMING and not one.cancel_asked
        )
        slots = self.sim.profile.slots
        there = sum(1 for one in book.workers.values() if self._stays(one, book))
        if (coming + there - 1) * slots >= open_tasks:
            raise Violation(
                f"{launch_id} is submitted: {there} workers, {coming} coming, {open_tasks} tasks"
            )

    @staticmethod
    def _stays(worker: Worker, book: Book) -> bool:
        return (
            worker.registered
            and worker.launch_id in book.launches
            and worker.state is WorkerState.ONLINE
            and worker.shutdown is None
            and not worker.leaving
        )

    def queries(self) -> None:
        """One status query for all jobs: I12."""
        poll = self.sim.settings.launch_poll_s
        pause = poll if self._local else min(poll, HURRY_S)
        if self._failed_queries:
            # The failure came somewhat after the question; from there on at least twice the pause.
            pause = 2 * poll
        since = self.world.now - self._asked_at
        if since < pause - 1e-6:
            raise Violation(f"a status query {since:.2f} s after the last, not {pause:g} s")
        self._asked_at = self.world.now

    def heard(self, events: Sequence[ev.Event]) -> None:
        """What the daemon learns in a turn, before anything is done about it."""
        self._stopped_now = any(
            isinstance(one, ev.GenerationEnded)
            or (isinstance(one, ev.Asked) and one.cmd in ("pause", "scale", "cancel"))
            for one in events
        )
        for event in events:
            match event:
                case ev.QueryAnswered():
                    self._failed_queries = 0
                case ev.QueryFailed():
                    self._failed_queries += 1
                    self._asked_at = self.world.now
                case ev.SubmitFailed(unknown=False):
                    self._refusals += 1
                    if self._refusals == SUBMIT_FAILURES_MAX:
                        self._refused_at, self._trials = self.world.now, 0
                case ev.Submitted() | ev.Heard(message=Register()) | ev.Asked(cmd="release"):
                    self._refusals, self._refused_at = 0, float("-inf")

    def works(self, worker: SimWorker) -> None:
        """It began a task: what comes now is another wait."""
        self._idle_since.pop(worker.worker_id, None)

    # --- workers that wait --------------------------------------------------------------------

    def idle(self, manager: SimManager) -> None:
        """L3, looked at once a heartbeat: a healed run leaves nobody without work for long."""
        book = manager.coordinator.book
        serving = manager.up and not manager.frozen and not manager.recovery.degraded
        stopped = book.paused or book.finishing is not None or book.generation_error is not None
        if self.world.chaos or not serving or stopped or not book.ready_count:
            self._idle_since.clear()
            return
        idle = [one for one in self.sim.cluster.alive if self._waits(one, book)]
        self._idle_since = {
            one.worker_id: self._idle_since.get(one.worker_id, self.world.now) for one in idle
        }
        profile = self.sim.profile
        patience = 4 * profile.heartbeat_s + 4 * (profile.visible_s + profile.delay_s) + 2.0
        for worker_id, since in self._idle_since.items():
            if self.world.now - since > patience:
                raise Violation(
                    f"{worker_id} idles since {since:.1f}, {book.ready_count} tasks are ready"
                )

    def _waits(self, worker: SimWorker, book: Book) -> bool:
        known = book.workers.get(worker.worker_id)
        return (
            known is not None
            and known.registered
            and known.state is WorkerState.ONLINE
            and known.shutdown is None
            and not known.leaving
            and not worker.frozen
            and not worker.session.work
            and any(slot.ready for slot in worker.slots)
        )
