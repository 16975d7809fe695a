"""Everything the coordinator remembers, and the one way to change it.

Pure. The rooms of the coordinator (`reports`, `outcomes`, `launching`, ...) are functions over a
`Book`. A turn begins with `begin`, and whatever a room changes is *touched* here, so that the
turn's `Changes` hold exactly what differs from the store. State words move only through
`move_task` and `move_launch`, which check the transition tables and keep the counters true.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from jobflowd.deadlines import Deadlines
from jobflowd.effects import Effect, Turn
from jobflowd.forecast import Pace
from jobflowd.model import (
    TASK_IN_FLIGHT,
    TASK_TERMINAL,
    TASK_TRANSITIONS,
    Attempting,
    AttemptRow,
    Facts,
    LaunchRecord,
    LaunchState,
    Snapshot,
    Story,
    Task,
    TaskState,
    Worker,
)
from jobflowd.window import Window


class InvariantBroken(AssertionError):
    """A bug of ours: the turn must not be committed."""


#: States that a task enters with nothing changed but what `Changes.moved` names.
_PLAIN_MOVES = (TaskState.ASSIGNED, TaskState.RUNNING, TaskState.SUCCEEDED)


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator chose, as far as decisions depend on it. Times in seconds.

    `terms` maps a transport to its (heartbeat, lease). `canary`: a first task must succeed before
    the pool fills. `warning_s`: how long before its end a launched worker is told to leave.
    """

    session: str
    program: str
    launcher: str = "none"
    launch_prefix: str = "jf"
    workers: int = 10
    slots: int = 1
    terms: dict[str, tuple[float, float]] = field(
        default_factory=lambda: {"zmq": (10.0, 60.0), "fs": (10.0, 60.0)}
    )
    worker_timeout_s: float = 60.0
    max_losses: int = 2
    max_deliveries: int = 50
    retry_backoff_s: float = 1.0
    retry_backoff_max_s: float = 60.0
    task_timeout_s: float | None = None
    task_memory: int | None = None
    max_inflight_per_worker: int | None = None
    grace_s: float = 60.0
    idle_timeout_s: float | None = 300.0
    manager_timeout_s: float = 900.0
    launch_poll_s: float = 60.0
    launch_stale_s: float = 21600.0
    canary: bool = False
    warning_s: float = 0.0
    stay: bool = False
    on_spec_change: str = "keep"

    @property
    def heartbeat_s(self) -> float:
        return max(heartbeat for heartbeat, _ in self.terms.values())

    @property
    def hold_s(self) -> float:
        """How long a restart waits for survivors: the longest lease and one heartbeat."""
        return max(lease + heartbeat for heartbeat, lease in self.terms.values())


class Book:
    """The coordinator's memory. Flat in the number of tasks."""

    def __init__(self, settings: Settings, snapshot: Snapshot, epoch: int) -> None:
        self.settings = settings
        self.epoch = epoch
        self.program_hash = ""
        self.now = 0.0
        self.wall = 0.0
        self.turn = Turn()
        self.facts = Facts()
        self.deadlines = Deadlines()
        self.ready = Window()
        # Nothing is in the window yet: the first page is asked for from the very beginning.
        self.ready.expect_disk()
        self.counts = {state: snapshot.counts.get(state, 0) for state in TaskState}
        self.held: dict[str, Task] = {}
        self.in_flight: dict[str, Task] = {}
        self.delayed = 0
        self.workers = {worker.worker_id: worker for worker in snapshot.workers}
        self.by_row = {worker.row: worker for worker in snapshot.workers}
        self.launches = {launch.launch_id: launch for launch in snapshot.launches}
        self.next_task_row = snapshot.next_task_row
        self.next_worker_row = snapshot.next_worker_row
        self.next_launch_row = snapshot.next_launch_row
        self.next_order_no = snapshot.next_order_no
        self.dirty: dict[str, Worker] = {}
        #: Workers that reported room: only these are looked at when tasks are handed out.
        self.asking: dict[str, Worker] = {}
        self.strangers: dict[str, str] = {}
        self.wanted = int(snapshot.meta.get("wanted", settings.workers))
        self.paused = bool(snapshot.meta.get("paused", False))
        self.generated = False
        self.generation_error: str | None = None
        self.generated_before = bool(snapshot.meta.get("generated", False))
        self.hold_over = not snapshot.held
        self.mail_read_at = float("-inf")
        self.finishing: str | None = None
        self.finishing_now = False
        self.finished: int | None = None
        self.samples: deque[tuple[float, int]] = deque(maxlen=120)
        self.pace = Pace()
        self.completed = 0
        self.durations: deque[float] = deque(maxlen=64)
        self.last_success: dict[str, float] = {}
        self.warnings: dict[str, str] = {}
        self._take_in(snapshot)

    def know(self, worker: Worker) -> None:
        """Take a worker's stored row into memory, unless it is there."""
        if worker.worker_id not in self.workers:
            self.workers[worker.worker_id] = self.by_row[worker.row] = worker

    def _take_in(self, snapshot: Snapshot) -> None:
        """In-flight tasks of an earlier life are held for their survivors."""
        self._unstored: list[Task] = []
        for task in snapshot.held:
            if task.state is not TaskState.QUEUED:
                self.counts[task.state] -= 1
                self.counts[TaskState.QUEUED] += 1
                task.state = TaskState.QUEUED
                self._unstored.append(task)
            task.held = True
            self.held[task.task_id] = task
        for worker in snapshot.workers:
            worker.registered = False
            worker.attempts.clear()

    # --- a turn -------------------------------------------------------------------------------

    def begin(self, now: float, wall: float, facts: Facts) -> None:
        """Start a turn: the clock is read once, the facts are taken into memory first."""
        self.now, self.wall, self.facts = now, wall, facts
        self.turn = Turn()
        self.dirty = {}
        self.strangers = {}
        for task in self._unstored:
            self.touch(task)
        self._unstored = []

    def effect(self, effect: Effect) -> None:
        self.turn.effects.append(effect)

    def story(
        self,
        kind: str,
        text: str,
        *,
        task: str | None = None,
        worker: str | None = None,
        launch: str | None = None,
        level: str = "info",
    ) -> None:
        """One line of history: kept in the events table, and written to the log."""
        line = Story(self.wall, kind, task, worker, launch, text, level)
        self.turn.changes.stories.append(line)

    def meta(self, key: str, value: object) -> None:
        self.turn.changes.meta[key] = value

    # --- tasks --------------------------------------------------------------------------------

    def find(self, task_id: str) -> Task | None:
        """The task, from memory or this turn's facts: one object per task in any turn."""
        return (
            self.in_flight.get(task_id)
            or self.held.get(task_id)
            or self.ready.get(task_id)
            or self.facts.tasks.get(task_id)
        )

    def knows(self, task_id: str) -> bool:
        """True if memory holds the task, so that no look-up is needed."""
        return (
            task_id in self.in_flight or task_id in self.held or self.ready.get(task_id) is not None
        )

    def touch(self, task: Task) -> None:
        """Anything of the task may have changed: its whole row is written."""
        changes = self.turn.changes
        changes.tasks[task.row] = task
        changes.moved.pop(task.row, None)
        changes.assigned.pop(task.row, None)

    def touch_move(self, task: Task) -> None:
        """Only what `Changes.moved` names has changed."""
        changes = self.turn.changes
        if task.row not in changes.tasks:
            changes.moved[task.row] = task
            changes.assigned.pop(task.row, None)

    def move_task(self, task: Task, state: TaskState) -> None:
        """Change a task's state; it leaves whatever collection held it.

        Raises `InvariantBroken` for a transition that the table does not have.
        """
        before = task.state
        plain = state in _PLAIN_MOVES and not task.held and task.due is None
        if state not in TASK_TRANSITIONS[before]:
            raise InvariantBroken(f"task {task.task_id}: {before.word} -> {state.word}")
        if before is TaskState.QUEUED:
            self.unqueue(task)
        else:
            self.in_flight.pop(task.task_id, None)
        self.counts[before] -= 1
        self.counts[state] += 1
        task.state = state
        if state in TASK_IN_FLIGHT:
            self.in_flight[task.task_id] = task
        elif state in TASK_TERMINAL:
            task.finished_at = self.wall
            task.worker = None
            self.completed += 1
            # A later item of this same turn may name the task again.
            self.facts.tasks[task.task_id] = task
        if plain:
            self.touch_move(task)
        else:
            self.touch(task)

    def unqueue(self, task: Task) -> None:
        """Take a queued task out of the window, the hold and the delay."""
        self.ready.remove(task.task_id)
        self.held.pop(task.task_id, None)
        task.held = False
        if task.due is not None:
            task.due = None
            self.delayed -= 1

    def enqueue(self, task: Task, *, delay_s: float = 0.0, again: bool = True) -> None:
        """Make a task wait for its next attempt.

        `again`: behind all others of its priority (a retry); else where it was (handed back).
        """
        if task.state is not TaskState.QUEUED:
            self.move_task(task, TaskState.QUEUED)
        else:
            self.unqueue(task)
        task.worker = None
        task.current = 0
        if again:
            task.order_no = self.next_order_no
            self.next_order_no += 1
        self.facts.tasks[task.task_id] = task
        if delay_s > 0:
            task.due = self.now + delay_s
            self.delayed += 1
            earliest = self.deadlines.get("due")
            if earliest is None or task.due < earliest:
                self.deadlines.set("due", task.due)
        else:
            self.ready.offer(task)
        self.touch(task)

    @property
    def busy_slots(self) -> int:
        """Slots that have a task, by what was handed out: reports say it a heartbeat late."""
        return sum(
            min(worker.slots, len(worker.attempts))
            for worker in self.workers.values()
            if worker.registered and worker.attempts
        )

    @property
    def remaining(self) -> int:
        """Tasks that are not terminal."""
        return (
            self.counts[TaskState.QUEUED]
            + self.counts[TaskState.ASSIGNED]
            + self.counts[TaskState.RUNNING]
        )

    @property
    def total(self) -> int:
        return sum(self.counts.values())

    @property
    def ready_count(self) -> int:
        """Tasks that could be assigned now, in memory or on disk."""
        return max(0, self.counts[TaskState.QUEUED] - len(self.held) - self.delayed)

    # --- attempts -----------------------------------------------------------------------------

    def record(
        self,
        task: Task,
        attempt: int,
        worker_row: int,
        outcome: str,
        cause: str,
        *,
        charged: str = "",
        started_at: float | None = None,
        error: str = "",
    ) -> None:
        """Write the row of an attempt that the manager itself ended or gave up."""
        row = AttemptRow(
            task.row,
            attempt,
            worker_row,
            started_at,
            self.wall,
            outcome,
            cause,
            charged,
            error=error,
        )
        self.write_attempt(task, row)

    def write_attempt(self, task: Task, row: AttemptRow) -> None:
        """Make an attempt's row durable; later events of this same turn see it, too."""
        self.turn.changes.attempts.append(row)
        self.facts.attempts[task.task_id, row.attempt] = row

    def assign(self, worker: Worker, task: Task, seq: int) -> Attempting:
        """Give the next attempt of a ready task to a worker."""
        self.move_task(task, TaskState.ASSIGNED)
        task.issued += 1
        task.current = task.issued
        task.worker = worker.row
        changes = self.turn.changes
        if changes.moved.pop(task.row, None) is not None:
            # Nothing else has changed, and the attempt is above all before it.
            changes.assigned[task.row] = task
        attempting = Attempting(task, task.current, seq, self.now)
        worker.attempts[task.task_id] = attempting
        return attempting

    # --- launches -----------------------------------------------------------------------------

    def touch_worker(self, worker: Worker) -> None:
        self.turn.changes.workers[worker.row] = worker

    def move_launch(self, launch: LaunchRecord, state: LaunchState, reason: str = "") -> None:
        """Change a launch's state; its end gets a time."""
        launch.state = state
        if reason:
            launch.reason = reason
        if state in (LaunchState.ENDED, LaunchState.FAILED, LaunchState.CANCELED):
            launch.ended_at = self.wall
        self.turn.changes.launches[launch.row] = launch

    def check(self) -> None:
        """Walk the invariants of memory. Raises `InvariantBroken`; every test ends with it."""
        for state in (TaskState.ASSIGNED, TaskState.RUNNING):
            have = sum(1 for task in self.in_flight.values() if task.state is state)
            if have != self.counts[state]:
                raise InvariantBroken(
                    f"{have} {state.word} in memory, {self.counts[state]} counted"
                )
        for task in self.in_flight.values():
            holder = self.by_row.get(task.worker if task.worker is not None else -1)
            attempting = holder.attempts.get(task.task_id) if holder else None
            if attempting is None or attempting.attempt != task.current:
                raise InvariantBroken(f"task {task.task_id} is in flight and nobody has it")
            if task.held or task.due is not None:
                raise InvariantBroken(f"task {task.task_id} is in flight and waits")
            if task.current > task.issued:
                raise InvariantBroken(f"task {task.task_id}: attempt never issued")
        for worker in self.workers.values():
            for task_id, attempting in worker.attempts.items():
                if self.in_flight.get(task_id) is not attempting.task:
                    raise InvariantBroken(f"{worker.worker_id} has {task_id}, not in flight")
        if any(count < 0 for count in self.counts.values()) or self.delayed < 0:
            raise InvariantBroken("a counter went below zero")
