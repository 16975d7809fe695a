"""The store's promises without SQLite: the same four methods on dicts, for fast seeds.

Rows are tuples, copied in and out like the database's, so that an object changed after its commit
is not changed here. `test_faststore.py` compares it with the real store, operation by operation.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from typing import Any

from jobflow_worker.messages import Held
from jobflowd.model import (
    LAUNCH_OVER,
    TASK_IN_FLIGHT,
    AttemptRow,
    Changes,
    Facts,
    Known,
    LaunchRecord,
    LaunchState,
    PastAttempt,
    Questions,
    ResultRow,
    Snapshot,
    Task,
    TaskState,
    Worker,
    WorkerState,
)
from jobflowd.store import VERDICTS_KEPT_S, ChangesRefused, Recovery

_TASK = (
    "row", "task_id", "state", "priority", "order_no", "issued", "current", "failures", "losses",
    "deliveries", "walltimes", "max_retries", "timeout_s", "time_request_s", "memory_bytes",
    "spec_bytes", "worker", "held", "due", "solo", "started_at", "finished_at", "error",
    "late_until",
)  # fmt: skip
_WORKER = (
    "row", "worker_id", "transport", "host", "pid", "slots", "state", "launch_id", "batch_job_id",
    "program_hash", "version", "registered_at", "ended_at", "done", "failed", "reason",
)  # fmt: skip
_LAUNCH = (
    "row", "launch_id", "system", "state", "batch_job_id", "planned_at", "submitted_at",
    "ended_at", "worker", "reason", "script", "output",
)  # fmt: skip
_task_row = attrgetter(*_TASK)
_worker_row = attrgetter(*_WORKER)
_launch_row = attrgetter(*_LAUNCH)
_MOVED = [
    _TASK.index(name)
    for name in (
        "state", "issued", "current", "deliveries", "worker", "started_at", "finished_at",
    )
]  # fmt: skip
_STATE, _WORKER_OF, _HELD, _DUE = (_TASK.index(name) for name in ("state", "worker", "held", "due"))


class FastStore:
    """A `Store` on dicts; it survives its manager as the disk would."""

    def __init__(self) -> None:
        self.tasks: dict[int, tuple[Any, ...]] = {}
        self.rows: dict[str, int] = {}
        self.bodies: dict[int, tuple[bytes, bytes]] = {}
        self.attempts: dict[tuple[int, int], AttemptRow] = {}
        self.results: dict[int, ResultRow] = {}
        self.workers: dict[int, tuple[Any, ...]] = {}
        self.worker_rows: dict[str, int] = {}
        self.floors: dict[int, int] = {}
        self.processed: dict[int, dict[int, str]] = {}
        self.launches: dict[int, tuple[Any, ...]] = {}
        self.meta: dict[str, Any] = {}
        #: Assignments whose rows still say something else.
        self.lists: list[tuple[int, int, int | None]] = []

    # --- writing ------------------------------------------------------------------------------

    def commit(self, changes: Changes) -> None:
        """As `Store.commit`: refuses what the schema refuses."""
        for row, worker in changes.workers.items():
            if self.worker_rows.setdefault(worker.worker_id, row) != row:
                raise ChangesRefused(f"a second row for worker {worker.worker_id}")
            self.workers[row] = _worker_row(worker)
        for row, launch in changes.launches.items():
            if launch.worker is not None and launch.worker not in self.workers:
                raise ChangesRefused(f"launch {launch.launch_id} names no worker")
            self.launches[row] = _launch_row(launch)
        for new in changes.new_tasks:
            made = new.definition
            if made.task_id in self.rows:
                raise ChangesRefused(f"a second row for task {made.task_id}")
            task = Task(
                new.row,
                made.task_id,
                TaskState.QUEUED,
                made.priority,
                new.order_no,
                max_retries=made.max_retries,
                timeout_s=made.timeout_s,
                time_request_s=made.time_request_s,
                memory_bytes=made.memory_bytes,
                spec_bytes=len(made.spec),
            )
            self.rows[made.task_id] = new.row
            self.tasks[new.row] = _task_row(task)
            self.bodies[new.row] = (made.spec_hash, made.spec)
        for row, task in changes.tasks.items():
            if row not in self.tasks:
                raise ChangesRefused(f"no row for task {task.task_id}")
            self.tasks[row] = _task_row(task)
        for row, task in changes.moved.items():
            if row not in self.tasks:
                raise ChangesRefused(f"no row for task {task.task_id}")
            # Only what the real statement writes: a change that nobody told of is lost here, too.
            values = list(self.tasks[row])
            for place in _MOVED:
                values[place] = getattr(task, _TASK[place])
            self.tasks[row] = tuple(values)
        self.lists += [(row, task.current, task.worker) for row, task in changes.assigned.items()]
        self._commit_rest(changes)

    def settle(self) -> None:
        """As `Store.settle`."""
        for row, attempt, worker in self.lists:
            task = Task(*self.tasks[row])
            if task.issued < attempt:
                task.state, task.worker = TaskState.ASSIGNED, worker
                task.issued = task.current = attempt
                self.tasks[row] = _task_row(task)
        self.lists.clear()

    def _commit_rest(self, changes: Changes) -> None:
        for row, digest, spec in changes.new_specs:
            self.bodies[row] = (digest, spec)
        for attempt in changes.attempts:
            if attempt.worker not in self.workers or attempt.task not in self.tasks:
                raise ChangesRefused("an attempt of nobody")
            self.attempts[attempt.task, attempt.attempt] = attempt
        for result in changes.results:
            if result.task in self.results:
                raise ChangesRefused(f"a second result for task row {result.task}")
            self.results[result.task] = result
        for worker_row, counter, verdict in changes.processed:
            self.processed.setdefault(worker_row, {})[counter] = verdict
        for row, floor in changes.floors.items():
            self.floors[row] = max(self.floors.get(row, 0), floor)
            kept = self.processed.get(row, {})
            self.processed[row] = {one: kept[one] for one in kept if one >= floor}
        self.meta.update(changes.meta)

    def begin_epoch(self, recovery: Recovery = "adopt", *, wall: float) -> Snapshot:
        """As `Store.begin_epoch`."""
        self.settle()
        self.meta["epoch"] = int(self.meta.get("epoch", 0)) + 1
        for row, values in list(self.tasks.items()):
            if values[_DUE] is None and values[_STATE] not in TASK_IN_FLIGHT and not values[_HELD]:
                continue
            task = Task(*values)
            task.due = None
            if task.state in TASK_IN_FLIGHT or task.held:
                task.held = recovery == "adopt"
                if recovery == "requeue":
                    self._give_up(task, wall)
                task.state = TaskState.QUEUED
            self.tasks[row] = _task_row(task)
        for row, values in list(self.workers.items()):
            worker = Worker(*values)
            if worker.ended_at is None:
                worker.state = WorkerState.OFFLINE
                self.workers[row] = _worker_row(worker)
            elif worker.ended_at < wall - VERDICTS_KEPT_S:
                self.processed.pop(row, None)
        for row, values in list(self.launches.items()):
            launch = LaunchRecord(*values)
            if launch.state not in LAUNCH_OVER:
                launch.state = LaunchState.STALE
                self.launches[row] = _launch_row(launch)
        return self.load()

    def _give_up(self, task: Task, wall: float) -> None:
        if task.worker is not None and task.current > 0:
            unknown = AttemptRow(
                task.row, task.current, task.worker, task.started_at, wall,
                "unknown", "manager restart", "",
            )  # fmt: skip
            self.attempts.setdefault((task.row, task.current), unknown)
        task.current, task.worker = 0, None

    # --- reading ------------------------------------------------------------------------------

    def load(self) -> Snapshot:
        """As `Store.load`."""
        self.settle()
        counts: dict[TaskState, int] = {}
        alive: list[Task] = []
        delayed = 0
        for values in self.tasks.values():
            counts[values[_STATE]] = counts.get(values[_STATE], 0) + 1
            delayed += values[_DUE] is not None
            if values[_STATE] in TASK_IN_FLIGHT or values[_HELD]:
                alive.append(Task(*values))
        launches = [LaunchRecord(*values) for values in self.launches.values()]
        launches = [one for one in launches if one.state not in LAUNCH_OVER]
        named = {task.worker for task in alive} | {one.worker for one in launches}
        workers = [
            self._worker(row)
            for row, values in sorted(self.workers.items())
            if values[_WORKER.index("ended_at")] is None or row in named
        ]
        return Snapshot(
            meta=dict(self.meta),
            counts=counts,
            held=alive,
            delayed=delayed,
            workers=workers,
            launches=launches,
            next_task_row=max(self.tasks, default=0) + 1,
            next_worker_row=max(self.workers, default=0) + 1,
            next_launch_row=max(self.launches, default=0) + 1,
            next_order_no=max((one[4] for one in self.tasks.values()), default=0) + 1,
        )

    def _worker(self, row: int) -> Worker:
        worker = Worker(*self.workers[row])
        worker.floor = self.floors.get(row, 0)
        worker.verdicts = dict(self.processed.get(row, {}))
        return worker

    def lookup(self, asked: Questions) -> Facts:
        """As `Store.lookup`."""
        facts = Facts()
        for task_id in asked.tasks:
            if task_id in self.rows:
                facts.tasks[task_id] = Task(*self.tasks[self.rows[task_id]])
        for held in asked.attempts:
            attempt = self.attempts.get((self.rows.get(held.task_id, -1), held.attempt))
            if attempt is not None:
                past = PastAttempt(attempt.worker, attempt.outcome, attempt.charged)
                facts.attempts[Held(*held)] = past
        for task_id in asked.definitions:
            row = self.rows.get(task_id)
            if row is not None:
                facts.known[task_id] = Known(row, self.bodies[row][0], self.tasks[row][_STATE])
        for worker_id in asked.workers:
            if worker_id in self.worker_rows:
                facts.workers[worker_id] = self._worker(self.worker_rows[worker_id])
        if asked.ready_after is not None and asked.ready_limit > 0:
            after = asked.ready_after
            ready = [Task(*one) for one in self.tasks.values() if _is_ready(one)]
            beyond = [task for task in ready if task.key > after]
            beyond.sort(key=lambda task: task.key)
            facts.ready = beyond[: asked.ready_limit]
        if asked.due_before is not None and asked.due_limit > 0:
            due = [
                Task(*one)
                for one in self.tasks.values()
                if one[_DUE] is not None and one[_DUE] <= asked.due_before
            ]
            due.sort(key=lambda task: (task.due, task.row))
            facts.due = due[: asked.due_limit]
        return facts

    def specs(self, task_rows: Sequence[int]) -> dict[int, bytes]:
        """As `Store.specs`."""
        return {row: self.bodies[row][1] for row in task_rows if row in self.bodies}

    def close(self) -> None:
        """Nothing to close."""


def _is_ready(values: tuple[Any, ...]) -> bool:
    return values[_STATE] is TaskState.QUEUED and not values[_HELD] and values[_DUE] is None
