"""The launches of the pool: planned on disk, submitted, watched, taken back.

Pure. `pool.plan` decides how many; this room turns its plan into launch records and effects, and
the launcher's answers into their states. STALE is the one word for *unresolved*.
"""

from __future__ import annotations

from jobflowd import outbound, outcomes, pool, reports
from jobflowd.book import Book
from jobflowd.effects import CancelLaunch, QueryLaunches, Submit
from jobflowd.events import LaunchSeen, SubmitFailed, Submitted
from jobflowd.model import LAUNCH_OVER, LaunchRecord, LaunchState, Worker, WorkerState

#: The pool is planned at most this often: its inputs change with every finished task.
PLAN_INTERVAL_S = 0.2
#: A launch of ours that is over stays in memory for late messages, up to this many.
OVER_KEPT = 1000


class Launching:
    """The pool's side of the coordinator."""

    def __init__(self, book: Book) -> None:
        self.book = book
        self.local = book.settings.launcher == "multiprocess"
        self.active = book.settings.launcher != "none"
        self.breaker = pool.Breaker()
        self.bucket = pool.submit_bucket(local=self.local)
        self.state = pool.PoolState()
        self.target = 0
        self.evidence = not self.open_launches()
        self._planned_at = float("-inf")
        if self.active:
            book.deadlines.set("query", float("-inf"))

    def open_launches(self) -> list[LaunchRecord]:
        return [one for one in self.book.launches.values() if one.state not in LAUNCH_OVER]

    # --- what the launcher says ---------------------------------------------------------------

    def on_submitted(self, event: Submitted) -> None:
        launch = self.book.launches.get(event.launch_id)
        if launch is None:
            return
        self.breaker.on_submitted()
        launch.batch_job_id = launch.batch_job_id or event.batch_job_id
        launch.script, launch.output = event.script, event.output
        launch.submitted_at = self.book.wall
        fresh = launch.state in (LaunchState.PLANNED, LaunchState.STALE)
        self.book.move_launch(launch, LaunchState.SUBMITTED if fresh else launch.state)
        if launch.cancel_asked or self.book.finishing is not None:
            self._cancel(launch)

    def on_submit_failed(self, event: SubmitFailed) -> None:
        launch = self.book.launches.get(event.launch_id)
        if launch is None or launch.state not in (LaunchState.PLANNED, LaunchState.STALE):
            return
        if event.unknown:
            self.book.move_launch(launch, LaunchState.STALE, event.reason)
            return
        self.book.move_launch(launch, LaunchState.FAILED, event.reason)
        self.breaker.on_submit_failed(self.book.now, event.reason)
        self._tell("launch_failed", launch, event.reason, "warning")

    def on_seen(self, event: LaunchSeen) -> None:
        launch = self.book.launches.get(event.launch_id)
        if launch is None or launch.state in LAUNCH_OVER:
            return
        if event.batch_job_id and not launch.batch_job_id:
            launch.batch_job_id = event.batch_job_id
            self.book.move_launch(launch, launch.state)
        if event.state in LAUNCH_OVER:
            self._over(launch, event)
        elif launch.state not in (LaunchState.ONLINE, event.state) and not launch.cancel_asked:
            self.book.move_launch(launch, event.state, event.reason)

    def _over(self, launch: LaunchRecord, event: LaunchSeen) -> None:
        """The process or batch job is gone."""
        book = self.book
        worker = book.by_row.get(launch.worker if launch.worker is not None else -1)
        asked = launch.cancel_asked
        if worker is not None and worker.registered:
            charge = not asked and event.state is LaunchState.FAILED
            reports.gone(book, worker, event.reason or "its process ended", charge=charge)
        elif worker is not None:
            self._release_held_of(worker)
        elif not launch.registered and not asked and book.finishing is None:
            self.breaker.on_ended_empty(book.now, event.reason, event.tail)
            book.warnings["launch"] = f"launch {launch.launch_id} brought no worker: {event.reason}"
        if asked:
            state = LaunchState.CANCELED
        elif launch.registered or worker is not None:
            state = LaunchState.ENDED
        else:
            state = LaunchState.FAILED
        book.move_launch(launch, state, event.reason)
        level = "warning" if state is LaunchState.FAILED else "info"
        self._tell("launch_over", launch, event.reason or state.word, level)

    def _release_held_of(self, worker: Worker) -> None:
        """Its process is dead and spools are read: nobody will claim what it held."""
        if self.book.deadlines.get("hold") is None:
            return
        for task in [one for one in self.book.held.values() if one.worker == worker.row]:
            outcomes.release_held(self.book, task, "manager restart")

    def on_answered(self) -> None:
        """A good answer: from now on the pool knows where it stands."""
        self.evidence = True
        self.book.warnings.pop("query", None)

    def on_query_failed(self, reason: str) -> None:
        self.book.warnings["query"] = f"the launcher's status is unknown: {reason}"

    def on_registered(self) -> None:
        self.breaker.on_registered()
        self.book.warnings.pop("launch", None)

    def hold_ended(self) -> None:
        """Local launches of another host or boot that did not report are given up."""
        if not self.local:
            return
        for launch in self.open_launches():
            if launch.state is LaunchState.STALE and not launch.cancel_asked:
                self.book.move_launch(launch, LaunchState.ENDED, "not found after a restart")

    # --- what the pool wants ------------------------------------------------------------------

    def step(self, *, changed: bool) -> None:
        """Plan the pool if something changed, no more often than PLAN_INTERVAL_S."""
        book = self.book
        if not self.active or book.finishing is not None:
            return
        if not changed and book.deadlines.get("plan") is not None:
            return
        if book.now < self._planned_at + PLAN_INTERVAL_S:
            if book.deadlines.get("plan") is None:
                book.deadlines.set("plan", self._planned_at + PLAN_INTERVAL_S)
            return
        self._planned_at = book.now
        plan = pool.plan(self._view(), self.state)
        self.state, self.target = plan.state, plan.target
        self._submit(plan.submit)
        for launch_id in plan.cancel:
            self._cancel(book.launches[launch_id])
        for worker_id in plan.drain:
            outbound.shut_down(book, book.workers[worker_id], "scale", now=False)
        again = [at for at in (plan.again_at, self.breaker.next_at(book.now)) if at is not None]
        if again:
            book.deadlines.set("plan", min(again))

    def _view(self) -> pool.PoolView:
        book = self.book
        launches = tuple(
            pool.LaunchView(one.launch_id, one.state, one.row, one.cancel_asked)
            for one in book.launches.values()
            if one.state in pool.COMING
        )
        workers = tuple(
            pool.WorkerView(
                one.worker_id,
                one.row,
                one.slots,
                len(one.attempts),
                one.leaving or one.shutdown is not None or one.state is not WorkerState.ONLINE,
                one.launch_id in book.launches,
            )
            for one in book.workers.values()
            if one.registered
        )
        idle = book.paused or book.generation_error is not None
        return pool.PoolView(
            now=book.now,
            wanted=book.wanted,
            slots_per_worker=book.settings.slots,
            ready=0 if idle else book.ready_count,
            running=len(book.in_flight),
            soon_due=0 if idle else book.delayed,
            launches=launches,
            workers=workers,
            may_submit=self.evidence,
            coming_max=self.breaker.coming_max(book.now),
        )

    def _submit(self, wanted: int) -> None:
        book = self.book
        for _ in range(self.bucket.take(book.now, wanted)):
            launch_id = f"{book.settings.launch_prefix}-{book.next_launch_row}"
            launch = LaunchRecord(
                book.next_launch_row,
                launch_id,
                book.settings.launcher,
                LaunchState.PLANNED,
                planned_at=book.wall,
            )
            book.next_launch_row += 1
            book.launches[launch_id] = launch
            book.turn.changes.launches[launch.row] = launch
            book.effect(Submit(launch_id))
        if wanted:
            book.deadlines.set("plan", max(self.bucket.next_at(book.now), book.now + 0.2))
        self._forget_old()

    def _forget_old(self) -> None:
        over = [one for one in self.book.launches.values() if one.state in LAUNCH_OVER]
        for launch in over[: max(0, len(over) - OVER_KEPT)]:
            del self.book.launches[launch.launch_id]

    def _cancel(self, launch: LaunchRecord, *, now: bool = False) -> None:
        launch.cancel_asked = True
        self.book.turn.changes.launches[launch.row] = launch
        if launch.state is not LaunchState.PLANNED:
            self.book.effect(CancelLaunch(launch.launch_id, launch.batch_job_id, now))

    def cancel_all(self, *, now: bool) -> None:
        """Take every launch back that is not over: the end of a run."""
        for launch in self.open_launches():
            self._cancel(launch, now=now)

    def cancel_coming(self) -> None:
        """Take back what has not brought a worker: nobody needs it any more."""
        for launch in self.open_launches():
            if launch.state is not LaunchState.ONLINE:
                self._cancel(launch)

    def query(self) -> None:
        """One status query for all open launches; repeat what was cancelled and is still there."""
        book = self.book
        open_launches = self.open_launches()
        book.deadlines.set("query", book.now + book.settings.launch_poll_s)
        if not open_launches:
            self.evidence = True
            return
        for launch in open_launches:
            if launch.cancel_asked and launch.state is not LaunchState.PLANNED:
                book.effect(CancelLaunch(launch.launch_id, launch.batch_job_id))
        book.effect(
            QueryLaunches(tuple((one.launch_id, one.batch_job_id) for one in open_launches))
        )

    def _tell(self, kind: str, launch: LaunchRecord, text: str, level: str) -> None:
        self.book.story(kind, text, launch=launch.launch_id, level=level)
