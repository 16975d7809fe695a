"""The launches of the pool: planned on disk, submitted, watched, taken back.

Pure. `pool.plan` decides how many; this room turns its plan into launch records and effects, and
the launcher's answers into their states. STALE is the one word for *unresolved*.
"""

from __future__ import annotations

from jobflowd import outbound, outcomes, pool, reports
from jobflowd.book import Book
from jobflowd.effects import CancelLaunch, QueryLaunches, Submit
from jobflowd.events import LaunchSeen, SubmitFailed, Submitted
from jobflowd.model import (
    LAUNCH_OVER,
    LaunchRecord,
    LaunchState,
    TaskState,
    Worker,
    WorkerState,
)

#: The pool is planned at most this often: its inputs change with every finished task.
PLAN_INTERVAL_S = 0.2
#: Launches that go ahead until a first task has succeeded, or has run for so long.
CANARY = 3
CANARY_PATIENCE_S = 600.0
#: A launch is given up as absent after two good answers this far apart.
ABSENT_S = 60.0
#: Longest pause between status queries that bring nothing.
QUERY_PAUSE_S_MAX = 300.0
#: Between status queries at the end of a run, and after a worker was preempted.
HURRY_S = 5.0
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
        self._asked_at = float("-inf")
        self._failures = 0
        self._absent: dict[str, float] = {}
        self._silent: dict[str, float] = {}
        self._proven = not book.settings.canary
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
            if launch.cancel_asked:
                self._cancel(launch)
            return
        self.book.move_launch(launch, LaunchState.FAILED, event.reason)
        self.breaker.on_submit_failed(self.book.now, event.reason, limited=event.limited)
        self._tell("launch_failed", launch, event.reason, "warning")

    def on_seen(self, event: LaunchSeen) -> None:
        launch = self.book.launches.get(event.launch_id)
        if launch is None or launch.state in LAUNCH_OVER:
            self._orphan(event)
            return
        if event.batch_job_id and not launch.batch_job_id:
            launch.batch_job_id = event.batch_job_id
            self.book.move_launch(launch, launch.state)
        if event.state in LAUNCH_OVER:
            self._over(launch, event)
            return
        worker = self._worker_of(launch)
        if worker is not None and event.time_left_s is not None:
            worker.time_left_s = event.time_left_s
        known = launch.state is event.state and launch.reason == event.reason
        if launch.state is not LaunchState.ONLINE and not known and not launch.cancel_asked:
            launch.reason = event.reason
            self.book.move_launch(launch, event.state, event.reason)

    def _worker_of(self, launch: LaunchRecord) -> Worker | None:
        return self.book.by_row.get(launch.worker if launch.worker is not None else -1)

    def _orphan(self, event: LaunchSeen) -> None:
        """A job of ours that no open launch claims: a submission that was given up came through."""
        if self.local or event.state in LAUNCH_OVER or event.batch_job_id is None:
            return
        self.book.story("orphan", f"job {event.batch_job_id} is taken back", level="warning")
        self.book.effect(CancelLaunch(event.launch_id, event.batch_job_id))

    def _over(self, launch: LaunchRecord, event: LaunchSeen) -> None:
        """The process or batch job is gone."""
        book = self.book
        worker = self._worker_of(launch)
        asked = launch.cancel_asked
        if worker is not None and event.blameless:
            outcomes.give_back(book, worker, event.reason)
        if worker is not None and worker.registered and not self.local:
            charge = not asked and event.state is LaunchState.FAILED
            reports.doubt(book, worker, event.reason or "its batch job is over", charge=charge)
            return
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

    def on_answered(self, absent: tuple[str, ...] = ()) -> None:
        """A good answer: from now on the pool knows where it stands. A launch is over if it was
        `absent` from two of them, ABSENT_S apart; a single one may be a restart of the queue."""
        self.evidence = True
        self._failures = 0
        self.book.warnings.pop("query", None)
        self._absent = {one: self._absent.get(one, self._asked_at) for one in absent}
        for launch_id, since in self._absent.items():
            launch = self.book.launches.get(launch_id)
            if launch is None or launch.state in LAUNCH_OVER:
                continue
            if self._asked_at - since >= ABSENT_S:
                text = "the batch system does not know its job"
                self._over(launch, LaunchSeen(launch_id, LaunchState.ENDED, reason=text))
            elif launch.state in (LaunchState.PENDING, LaunchState.RUNNING):
                text = "missing from one answer of the batch system"
                self.book.move_launch(launch, LaunchState.STALE, text)

    def on_query_failed(self, reason: str) -> None:
        """No evidence: everything stays as it was, and the next question waits longer."""
        book = self.book
        book.warnings["query"] = f"the launcher's status is unknown: {reason}"
        self._failures += 1
        pause = book.settings.launch_poll_s * 2.0 ** min(self._failures, 10)
        book.deadlines.set("query", book.now + max(1.0, min(QUERY_PAUSE_S_MAX, pause)))

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
            coming_max=self._coming_max(workers),
            overlap=not self.local,
        )

    @property
    def canary(self) -> bool:
        """True while few launches go ahead and the others wait for their success."""
        book = self.book
        if not self._proven:
            long_ago = book.now - CANARY_PATIENCE_S
            self._proven = bool(book.counts[TaskState.SUCCEEDED]) or any(
                attempting.running and attempting.sent_at <= long_ago
                for worker in book.workers.values()
                for attempting in worker.attempts.values()
            )
        return not self._proven

    def _coming_max(self, workers: tuple[pool.WorkerView, ...]) -> int | None:
        bounds = [self.breaker.coming_max(self.book.now)]
        if self.canary:
            staying = sum(1 for one in workers if one.managed and not one.leaving)
            bounds.append(max(0, CANARY - staying))
        return min((one for one in bounds if one is not None), default=None)

    def _submit(self, wanted: int) -> None:
        book = self.book
        bad = {one.host for one in book.workers.values() if one.state is WorkerState.QUARANTINED}
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
            book.effect(Submit(launch_id, tuple(sorted(bad))))
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
        self._hurry()

    def cancel_coming(self) -> None:
        """Take back what has not brought a worker: nobody needs it any more."""
        for launch in self.open_launches():
            if launch.state is not LaunchState.ONLINE:
                self._cancel(launch)
        self._hurry()

    def _hurry(self) -> None:
        """Somebody waits for the next answer: ask soon, but never in a hot loop."""
        if not self.local and self.active and not self._failures:
            soon = max(self.book.now + 1.0, self._asked_at + HURRY_S)
            at = self.book.deadlines.get("query")
            self.book.deadlines.set("query", soon if at is None else min(at, soon))

    def _give_up_silent(self, launch: LaunchRecord) -> None:
        """A launch that neither waits in a queue nor brings a worker is taken back in the end."""
        book, name = self.book, launch.launch_id
        if launch.state not in (LaunchState.RUNNING, LaunchState.STALE) or launch.cancel_asked:
            self._silent.pop(name, None)
        elif book.now - self._silent.setdefault(name, book.now) >= book.settings.launch_stale_s:
            del self._silent[name]
            self._tell("launch_stale", launch, "it brought no worker and is taken back", "warning")
            self._cancel(launch)

    def query(self) -> None:
        """One status query for all open launches; repeat what was cancelled and is still there."""
        book = self.book
        open_launches = self.open_launches()
        hurry = book.finishing is not None and not self.local
        pause = min(HURRY_S, book.settings.launch_poll_s) if hurry else book.settings.launch_poll_s
        book.deadlines.set("query", book.now + pause)
        self._asked_at = book.now
        if not open_launches:
            self.evidence = True
            return
        for launch in open_launches if not self.local else ():
            self._give_up_silent(launch)
        for launch in open_launches:
            if launch.cancel_asked and launch.state is not LaunchState.PLANNED:
                book.effect(CancelLaunch(launch.launch_id, launch.batch_job_id))
        book.effect(
            QueryLaunches(tuple((one.launch_id, one.batch_job_id) for one in open_launches))
        )

    def _tell(self, kind: str, launch: LaunchRecord, text: str, level: str) -> None:
        self.book.story(kind, text, launch=launch.launch_id, level=level)
