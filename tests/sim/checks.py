"""Observers: what must hold after every commit, at every message, and when all is over.

They see what the product sees and more (both sides at once, and all of the past), and never
change anything. A broken promise raises `Violation`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jobflow_worker.codec import decode_frame
from jobflow_worker.messages import (
    WORKER,
    Ack,
    Assign,
    FromWorker,
    Heartbeat,
    Held,
    RequestWork,
    TaskFailed,
    TaskFinished,
    TaskReturned,
    Verdict,
)
from jobflow_worker.outbox import Outgoing
from jobflowd.book import Book
from jobflowd.effects import Deliver, Post
from jobflowd.model import (
    LAUNCH_OVER,
    TASK_IN_FLIGHT,
    TASK_TERMINAL,
    AttemptRow,
    Changes,
    LaunchState,
    Snapshot,
    Task,
    TaskState,
    WorkerState,
)
from tests.sim.faststore import FastStore
from tests.sim.rates import Rates
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.manager import SimManager
    from tests.sim.run import Simulation
    from tests.sim.workers import SimWorker

Outcomes = TaskFinished | TaskFailed | TaskReturned


class Checks:
    """The ledger of one history."""

    def __init__(self, sim: Simulation) -> None:
        self.sim = sim
        self.world = sim.world
        #: What the disk says, kept apart from store and coordinator.
        self.tasks: dict[int, tuple[TaskState, int, int]] = {}
        self.ids: dict[int, str] = {}
        self.rows: dict[str, int] = {}
        self.retried: dict[str, None] = {}
        self.allow_retry: dict[str, None] = {}
        self.results: dict[str, int] = {}
        self.launches: dict[str, LaunchState] = {}
        self.executions: dict[Held, str] = {}
        self.starts: dict[str, int] = {}
        self.recorded: dict[Held, None] = {}
        self.failures: dict[str, int] = {}
        self.kills: dict[str, int] = {}
        self.verdicts: dict[tuple[str, int], str] = {}
        self.counters: dict[tuple[str, Held], int] = {}
        self.outbox: dict[str, dict[int, Outcomes]] = {}
        self.rates = Rates(sim)

    # --- the disk -----------------------------------------------------------------------------

    def before_commit(self, manager: SimManager, changes: Changes) -> None:
        """Is this a legal step from what is on disk?"""
        for new in changes.new_tasks:
            if new.definition.task_id in self.rows:
                raise Violation(f"{new.definition.task_id} is inserted twice")
        for row, task in changes.all_tasks.items():
            if row in self.tasks:
                self._step(task, *self.tasks[row])
        for result in changes.results:
            task_id = self.ids[result.task]
            if task_id in self.results:
                raise Violation(f"{task_id} has a second result")
            if changes.all_tasks[result.task].state is not TaskState.SUCCEEDED:
                raise Violation(f"{task_id} has a result and is not SUCCEEDED")
            execution = self.executions.get(Held(task_id, result.attempt))
            if execution != "ok":
                raise Violation(f"{task_id}: a result of attempt {result.attempt}: {execution}")
        for story in changes.stories:
            if story.kind == "worker_lost" and "lease expired" in story.text:
                self._expired(manager, story.worker_id or "")
            if story.kind == "quarantined":
                self.world.stats["quarantines"] += 1
            if story.kind == "refused":
                raise Violation(f"an honest worker is refused: {story}")

    def _step(self, task: Task, state: TaskState, issued: int, charges: int) -> None:
        name = task.task_id
        if state in TASK_TERMINAL and task.state is not state:
            # Several steps in one turn are one step on disk.
            if state is TaskState.SUCCEEDED or name not in self.allow_retry:
                raise Violation(f"{name}: {state.word} -> {task.state.word}")
            if task.state not in TASK_TERMINAL:
                del self.allow_retry[name]
        if task.issued < issued:
            raise Violation(f"{name}: attempt numbers go back")
        if task.current > task.issued:
            raise Violation(f"{name}: attempt {task.current} was never issued")
        # One over ends a task; a second comes if a late failure meets a task that is held for its
        # survivor, which may yet succeed, and then does not.
        if task.losses > self.sim.settings.max_losses + 2:
            raise Violation(f"{name}: budgets exceeded: {task}")
        if task.deliveries > self.sim.settings.max_deliveries + 1:
            raise Violation(f"{name}: delivered {task.deliveries} times")

    def after_commit(self, manager: SimManager, changes: Changes) -> None:
        """Take in what is durable now, and audit memory."""
        for new in changes.new_tasks:
            self.ids[new.row] = new.definition.task_id
            self.rows[new.definition.task_id] = new.row
            self.tasks[new.row] = (TaskState.QUEUED, 0, 0)
        for row, task in changes.all_tasks.items():
            new = row in self.tasks and task.issued > self.tasks[row][1]
            self.tasks[row] = (task.state, task.issued, 0)
            if task.state is TaskState.ASSIGNED:
                self._assigned(manager, task, new=new)
        for attempt in changes.attempts:
            name = self.ids[attempt.task]
            held = Held(name, attempt.attempt)
            if attempt.charged and attempt.cause.startswith("worker left"):
                raise Violation(f"{held} is charged for a known cause: {attempt.cause}")
            late = held in self.recorded
            if len(changes.attempts) == 1:
                self._broken_node(manager, attempt)
            self.recorded[held] = None
            if attempt.outcome == "failed" and attempt.charged and not late:
                self.failures[name] = self.failures.get(name, 0) + 1
        for result in changes.results:
            self.results[self.ids[result.task]] = result.attempt
        for launch in changes.launches.values():
            self.launches[launch.launch_id] = launch.state
        book = manager.coordinator.book
        book.check()
        if self.world.rng.random() < 0.1:
            self.audit(manager)

    def _assigned(self, manager: SimManager, task: Task, *, new: bool) -> None:
        """I8: only to who is connected, and nothing new to who leaves or is quarantined."""
        worker = manager.coordinator.book.by_row.get(task.worker or -1)
        if worker is None or not worker.registered:
            raise Violation(f"{task.task_id} is assigned to a worker that is not connected")
        if new and (worker.state is not WorkerState.ONLINE or worker.shutdown is not None):
            raise Violation(f"{task.task_id} is given to a worker that is {worker.state.word}")
        if new and worker.program_hash != self.sim.program_hash:
            raise Violation(f"{task.task_id} is given to a worker of another program's text")

    def _broken_node(self, manager: SimManager, attempt: AttemptRow) -> None:
        """What fails on a quarantined worker while other hosts work is not the task's fault."""
        book = manager.coordinator.book
        worker = book.by_row[attempt.worker]
        if worker.state is not WorkerState.QUARANTINED or (attempt.duration_s or 9.0) > 2.0:
            return
        if attempt.outcome == "failed" and attempt.charged and any(
            one.registered and one.state is WorkerState.ONLINE and one.host != worker.host
            and book.last_success.get(one.host, float("-inf")) >= worker.streak_since
            for one in book.workers.values()
        ):  # fmt: skip
            raise Violation(f"{attempt.task} is charged for the broken node of {worker.worker_id}")

    def on_life(self, snapshot: Snapshot) -> None:
        """A new life: in-flight tasks are queued, launches stale; nothing else may differ."""
        self.rates.on_life()
        total = sum(snapshot.counts.values())
        if total != len(self.tasks):
            raise Violation(f"{len(self.tasks)} tasks are durable, {total} are found")
        for row, (state, issued, _) in self.tasks.items():
            if state in TASK_IN_FLIGHT:
                self.tasks[row] = (TaskState.QUEUED, issued, 0)

    def audit(self, manager: SimManager) -> None:
        """I13, I14: memory is what a fresh load would give."""
        book, store = manager.coordinator.book, manager.store
        snapshot = store.load()
        counts = {state: count for state, count in book.counts.items() if count}
        if counts != snapshot.counts:
            raise Violation(f"counters: {counts} in memory, {snapshot.counts} on disk")
        stored = {task.task_id: task for task in snapshot.held}
        live = book.in_flight | book.held
        if live != stored:
            wrong = [(live.get(k), stored.get(k)) for k in live | stored
                     if live.get(k) != stored.get(k)]  # fmt: skip
            raise Violation(f"tasks differ (memory, disk): {wrong}")
        if book.delayed != snapshot.delayed:
            raise Violation(f"{book.delayed} delayed in memory, {snapshot.delayed} on disk")
        memory = {one.launch_id: (one.state, one.worker, one.batch_job_id)
                  for one in book.launches.values() if one.state not in LAUNCH_OVER}  # fmt: skip
        disk = {one.launch_id: (one.state, one.worker, one.batch_job_id)
                for one in snapshot.launches}  # fmt: skip
        if memory != disk:
            raise Violation(f"launches differ: {memory} in memory, {disk} on disk")
        if isinstance(store, FastStore):
            self._charges(book, store)
        for worker in snapshot.workers:
            held = book.workers[worker.worker_id]
            if (held.state, held.ended_at) != (worker.state, worker.ended_at):
                raise Violation(f"worker differs: {held.state} {worker.state}")
            if held.verdicts != worker.verdicts:
                raise Violation(f"verdicts differ: {held.verdicts} {worker.verdicts}")

    def _charges(self, book: Book, store: FastStore) -> None:
        """Each attempt is charged at most once: counters are the sums of what is recorded."""
        for task in book.in_flight.values():
            if task.task_id in self.retried:
                continue
            charged = [store.attempts[task.row, n].charged for n in range(1, task.issued + 1)
                       if (task.row, n) in store.attempts]  # fmt: skip
            if (charged.count("retries"), charged.count("losses")) != (task.failures, task.losses):
                raise Violation(f"{task.task_id}: recorded {charged}, counted {task}")

    def _expired(self, manager: SimManager, worker_id: str) -> None:
        """I9: no lease ends over a gap of the manager, or with mail unread."""
        if any(sender == worker_id for sender, _ in manager.socket):
            raise Violation(f"{worker_id} is declared lost with its mail unread")
        listened = self.world.now - manager.listening_since
        if listened < self.sim.profile.lease_s - 1e-6:
            raise Violation(f"{worker_id} is declared lost after {listened:.1f} s of listening")

    # --- messages -----------------------------------------------------------------------------

    def valid(self, complaints: Sequence[str]) -> None:
        if complaints:
            raise Violation(f"a worker sent what is not valid: {complaints}")

    def posts(self, manager: SimManager, post: Post) -> None:
        """Nothing is visible that is not durable."""
        for message in post.messages:
            if isinstance(message, Deliver):
                for item in message.items:
                    _, issued, _ = self.tasks[item.row]
                    if item.attempt > issued:
                        raise Violation(f"{item} is sent before it is durable")
            elif isinstance(message, Ack):
                for verdict in message.verdicts:
                    self._verdict(post.worker_id, verdict)

    def _verdict(self, worker_id: str, verdict: Verdict) -> None:
        """A verdict is durable, and stays what it was; only "duplicate" may come after.

        Once its worker has left, what was judged is forgotten, and a frame that the network held
        back until then is late: nobody hears it, and no outcome counts twice.
        """
        known = self.verdicts.setdefault((worker_id, verdict.counter), verdict.verdict)
        workers = self.sim.cluster.workers
        left = any(one.worker_id == worker_id and one.session.exited for one in workers)
        forgotten = left and verdict.verdict == "late"
        if verdict.verdict not in (known, "duplicate") and not forgotten:
            raise Violation(f"{worker_id}: {verdict} after {known}")
        message = self.outbox.get(worker_id, {}).get(verdict.counter)
        if not isinstance(message, TaskFinished):
            return
        for item in message.items:
            self._not_lost(item.task_id, verdict.verdict)

    def taken_in(self, spool: bytes) -> None:
        """A spool is removed: what succeeded in it must not be lost with it."""
        for one in decode_frame(spool, sent_by=WORKER)[0] if spool else ():
            if isinstance(one.message, TaskFinished):
                for item in one.message.items:
                    self._not_lost(item.task_id, "spooled")

    def _not_lost(self, task_id: str, how: str) -> None:
        state = self.tasks[self.rows[task_id]][0]
        if state not in TASK_TERMINAL and task_id not in self.retried:
            raise Violation(f"{task_id}: {how}, and it is {state.word}")

    def sent(self, worker: SimWorker, fresh: tuple[Outgoing, ...]) -> None:
        """An outcome travels under one msg_id, however often."""
        mine = self.outbox.setdefault(worker.worker_id, {})
        for one in fresh:
            message: FromWorker | Any = one.message
            if isinstance(message, Heartbeat | RequestWork):
                worker.room = max(worker.room, len(worker.session.work) + message.report.credit)
            if not isinstance(message, Outcomes):
                continue
            mine[one.counter] = message
            for item in message.items:
                key = (worker.worker_id, Held(item.task_id, item.attempt))
                if self.counters.setdefault(key, one.counter) != one.counter:
                    raise Violation(f"{key} is sent under two message ids")

    def acted(self, worker: SimWorker, events: Sequence[Any]) -> None:
        """A worker is never given more than it once said it had room for."""
        held = len(worker.session.work)
        if held > worker.room and any(isinstance(one, Assign) for one in events):
            raise Violation(f"{worker.worker_id} holds {held}, its room was {worker.room}")

    # --- executions ---------------------------------------------------------------------------

    def began(self, worker: SimWorker, held: Held) -> None:
        """Each attempt is executed at most once, by anyone."""
        if held in self.executions:
            raise Violation(f"{held} begins a second time, at {worker.worker_id}")
        self.executions[held] = "running"
        self.starts[held.task_id] = self.starts.get(held.task_id, 0) + 1
        self.world.stats["executions"] += 1
        self.rates.works(worker)

    def ended(self, worker: SimWorker, held: Held, kind: str) -> None:
        self.executions[held] = kind

    def killed_by(self, held: Held) -> None:
        self.kills[held.task_id] = self.kills.get(held.task_id, 0) + 1

    # --- launches -----------------------------------------------------------------------------

    def submits(self, launch_id: str) -> None:
        """I10, I11: intended on disk first, submitted once, for work that is there."""
        if self.launches.get(launch_id) is not LaunchState.PLANNED:
            raise Violation(f"{launch_id} is submitted and not planned on disk")
        if launch_id in self.sim.cluster.submitted:
            raise Violation(f"{launch_id} is submitted twice")
        book = self.sim.manager.coordinator.book
        if not book.remaining:
            raise Violation(f"{launch_id} is submitted, and nothing remains to be done")
        alive = sum(
            1
            for job in self.sim.cluster.jobs.values()
            if not job.cancelled and job.state in (LaunchState.PENDING, LaunchState.RUNNING)
        )
        # One that was taken for lost and still lives, or was told to leave, may be there as well.
        if alive > self.sim.most_wanted + self.sim.written_off(book):
            raise Violation(f"{alive} jobs live, {self.sim.most_wanted} were ever wanted")
        gone = sum(1 for one in book.workers.values() if one.state is WorkerState.OFFLINE)
        self.world.stats["offline_seen"] = max(self.world.stats["offline_seen"], gone)
        self.rates.submits(launch_id, book)
