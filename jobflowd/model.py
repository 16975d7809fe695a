"""What the daemon knows: tasks, workers, launches, their states and transition tables.

Pure data: no clock, no I/O. `*_at` is wall-clock seconds since the epoch (for people), every other
time is monotonic seconds of this daemon's life and is never stored.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Final, NamedTuple

from jobflow_worker.messages import Held, Progress, Report


class _Word(IntEnum):
    """Small numbers in the database, lower-case words for people."""

    @property
    def word(self) -> str:
        return self.name.lower()


class TaskState(_Word):
    QUEUED = 0
    ASSIGNED = 1
    RUNNING = 2
    SUCCEEDED = 3
    FAILED = 4
    CANCELED = 5


class WorkerState(_Word):
    ONLINE = 0
    DRAINING = 1
    QUARANTINED = 2
    OFFLINE = 3


class LaunchState(_Word):
    PLANNED = 0
    SUBMITTED = 1
    PENDING = 2
    RUNNING = 3
    ONLINE = 4
    ENDED = 5
    FAILED = 6
    CANCELED = 7
    STALE = 8


TASK_TERMINAL: Final = frozenset((TaskState.SUCCEEDED, TaskState.FAILED, TaskState.CANCELED))
TASK_IN_FLIGHT: Final = frozenset((TaskState.ASSIGNED, TaskState.RUNNING))
LAUNCH_OVER: Final = frozenset((LaunchState.ENDED, LaunchState.FAILED, LaunchState.CANCELED))

#: Company that a task may have: any; none in its slot's queue; none in its whole worker.
SOLO_NO: Final = 0
SOLO_SLOT: Final = 1
SOLO_WORKER: Final = 2

#: From each task state, where it may go. QUEUED -> SUCCEEDED is a late result of an attempt that
#: was given up; FAILED and CANCELED are left only by an operator's retry.
TASK_TRANSITIONS: Final[dict[TaskState, frozenset[TaskState]]] = {
    TaskState.QUEUED: frozenset(TaskState) - {TaskState.QUEUED},
    TaskState.ASSIGNED: frozenset(TaskState) - {TaskState.ASSIGNED},
    TaskState.RUNNING: frozenset(TaskState) - {TaskState.ASSIGNED, TaskState.RUNNING},
    TaskState.SUCCEEDED: frozenset(),
    TaskState.FAILED: frozenset((TaskState.QUEUED,)),
    TaskState.CANCELED: frozenset((TaskState.QUEUED,)),
}


class Definition(NamedTuple):
    """A task as the generator child encoded it; `spec_hash` is 16 bytes over the spec."""

    task_id: str
    spec: bytes
    spec_hash: bytes
    max_retries: int
    priority: int
    timeout_s: float | None
    time_request_s: float | None
    memory_bytes: int | None


@dataclass(slots=True)
class Task:
    """The hot row of a task. Bodies are never here.

    `issued` is the highest attempt number ever given out, `current` the attempt that counts (0:
    none); they differ when a survivor of a restart takes an older attempt back. `worker` is the
    row of the worker that has (or, while `held`, had) the current attempt. `due` set: delayed
    until then. `solo`: one of the SOLO words.
    """

    row: int
    task_id: str
    state: TaskState
    priority: int
    order_no: int
    issued: int = 0
    current: int = 0
    failures: int = 0
    losses: int = 0
    deliveries: int = 0
    walltimes: int = 0
    max_retries: int = 2
    timeout_s: float | None = None
    time_request_s: float | None = None
    memory_bytes: int | None = None
    spec_bytes: int = 0
    worker: int | None = None
    held: bool = False
    due: float | None = None
    solo: int = SOLO_NO
    started_at: float | None = None
    finished_at: float | None = None
    error: str | None = None
    late_until: int = 0

    @property
    def key(self) -> tuple[int, int]:
        """Place in the ready queue: smaller is sooner."""
        return (-self.priority, self.order_no)


class AttemptRow(NamedTuple):
    """The record of one delivery that started or whose fate is unknown.

    `outcome`: succeeded, failed, lost, returned, canceled, or unknown (given up, may still come).
    `charged`: the budget it was charged to: "retries", "losses" or "".
    """

    task: int
    attempt: int
    worker: int
    started_at: float | None
    ended_at: float | None
    outcome: str
    cause: str
    charged: str
    exit_signal: str | None = None
    exit_code: int | None = None
    duration_s: float | None = None
    cpu_s: float | None = None
    max_rss_bytes: int | None = None
    error: str = ""
    traceback: str = ""
    output_tail: str = ""


class ResultRow(NamedTuple):
    """The result of a succeeded task: inline bytes, or a file in the session."""

    task: int
    attempt: int
    body: bytes | None
    file_name: str | None
    file_size: int | None
    file_sha256: str | None


class Story(NamedTuple):
    """One line of history, kept in the events table and written to the log."""

    at: float
    kind: str
    task_id: str | None
    worker_id: str | None
    launch_id: str | None
    text: str
    level: str = "info"


@dataclass(slots=True)
class Attempting:
    """An attempt that a worker has been given: its task, and whether the worker has seen it."""

    task: Task
    attempt: int
    seq: int
    sent_at: float
    running: bool = False
    started_at: float | None = None


@dataclass(slots=True)
class Line:
    """The conversation with one worker: what was posted to it and what it is owed.

    `posted`: highest seq ever posted. `welcomed`: a report of this epoch arrived. `repair`: post
    everything unseen again. `answer`: an Ack is due. `solo`: it may hold a task that wants no
    company.
    `gone_cause`: its process is known to be gone, and why; it is lost once its mail is read.
    `doubt`: the batch system says that its job is over, and why; the next report disproves it.
    `confirmed`: a full report has come since it registered.
    """

    posted: int = 0
    welcome_seq: int = 0
    welcomed: bool = False
    repair: bool = False
    answer: bool = False
    want_full: bool = False
    fresh_verdicts: dict[int, str] = field(default_factory=dict)
    cancel_seqs: dict[Held, int] = field(default_factory=dict)
    shutdown_seq: int = 0
    solo: bool = False
    gone_cause: str = ""
    gone_charge: bool = True
    doubt: str = ""
    doubt_charge: bool = True
    confirmed: bool = False


@dataclass(slots=True)
class Worker:
    """One connected agent. Stored: the first block; the rest lives with the connection."""

    row: int
    worker_id: str
    transport: str
    host: str
    pid: int
    slots: int
    state: WorkerState = WorkerState.ONLINE
    launch_id: str | None = None
    batch_job_id: str | None = None
    program_hash: str = ""
    version: str = ""
    registered_at: float = 0.0
    ended_at: float | None = None
    done: int = 0
    failed: int = 0
    reason: str = ""

    registered: bool = False
    lease_until: float = 0.0
    read_at: float = 0.0
    heard_at: float = 0.0
    hb_seq: int = 0
    seen: int = 0
    seq: int = 0
    credit: int = 0
    floor: int = 0
    attempts: dict[str, Attempting] = field(default_factory=dict)
    cancels: dict[Held, str] = field(default_factory=dict)
    verdicts: dict[int, str] = field(default_factory=dict)
    report: Report | None = None
    progress: dict[str, Progress] = field(default_factory=dict)
    shutdown: str | None = None
    shutdown_now: bool = False
    leaving: bool = False
    time_left_s: float | None = None
    rss_bytes: int = 0
    line: Line = field(default_factory=Line)
    streak: dict[int, None] = field(default_factory=dict)
    streak_since: float = 0.0
    #: What was charged as lost with it, until somebody knows that its task had no part in it.
    charged: list[Held] = field(default_factory=list)


@dataclass(slots=True)
class LaunchRecord:
    """One submission to a launcher that should bring a worker.

    `cancel_asked` and `silent_since` are of this daemon's life, the rest is stored.
    """

    row: int
    launch_id: str
    system: str
    state: LaunchState
    batch_job_id: str | None = None
    planned_at: float = 0.0
    submitted_at: float | None = None
    ended_at: float | None = None
    worker: int | None = None
    reason: str = ""
    script: str | None = None
    output: str | None = None

    cancel_asked: bool = False
    registered: bool = False


class Known(NamedTuple):
    """What the store says of a task that the generator names again."""

    row: int
    spec_hash: bytes
    state: TaskState


class PastAttempt(NamedTuple):
    """What the store says of an attempt that memory no longer holds."""

    worker: int
    outcome: str
    charged: str


@dataclass(slots=True)
class Questions:
    """The rows that a turn needs and memory does not hold."""

    tasks: list[str] = field(default_factory=list)
    attempts: list[Held] = field(default_factory=list)
    definitions: list[str] = field(default_factory=list)
    workers: list[str] = field(default_factory=list)
    ready_after: tuple[int, int] | None = None
    ready_limit: int = 0
    due_before: float | None = None
    due_limit: int = 0


@dataclass(slots=True)
class Facts:
    """The answers, read in one go before the turn. Absent keys mean: no such row."""

    tasks: dict[str, Task] = field(default_factory=dict)
    #: By task id and number; what this turn itself wrote is its whole row.
    attempts: dict[tuple[str, int], PastAttempt | AttemptRow] = field(default_factory=dict)
    known: dict[str, Known] = field(default_factory=dict)
    workers: dict[str, Worker] = field(default_factory=dict)
    ready: list[Task] = field(default_factory=list)
    due: list[Task] = field(default_factory=list)


class NewTask(NamedTuple):
    """A row to insert: the definition and where it stands in the queue."""

    row: int
    order_no: int
    definition: Definition


@dataclass(slots=True)
class Changes:
    """What one turn makes durable, in one transaction. Dicts coalesce by row.

    A task is in one of three dicts: `tasks` writes its whole row, `moved` only what the common way
    of a task changes (state, issued, current, deliveries, worker and times), at half the cost, and
    `assigned` only an item of a list (see `assignments.py`).
    """

    new_tasks: list[NewTask] = field(default_factory=list)
    new_specs: list[tuple[int, bytes, bytes]] = field(default_factory=list)
    tasks: dict[int, Task] = field(default_factory=dict)
    moved: dict[int, Task] = field(default_factory=dict)
    assigned: dict[int, Task] = field(default_factory=dict)
    attempts: list[AttemptRow] = field(default_factory=list)
    results: list[ResultRow] = field(default_factory=list)
    workers: dict[int, Worker] = field(default_factory=dict)
    launches: dict[int, LaunchRecord] = field(default_factory=dict)
    processed: list[tuple[int, int, str]] = field(default_factory=list)
    floors: dict[int, int] = field(default_factory=dict)
    stories: list[Story] = field(default_factory=list)
    meta: dict[str, Any] = field(default_factory=dict)

    @property
    def all_tasks(self) -> dict[int, Task]:
        """Every task that is written, by row."""
        return {**self.tasks, **self.moved, **self.assigned}

    @property
    def empty(self) -> bool:
        return not (
            self.tasks
            or self.moved
            or self.assigned
            or self.processed
            or self.results
            or self.attempts
            or self.new_tasks
            or self.workers
            or self.launches
            or self.floors
            or self.stories
            or self.meta
            or self.new_specs
        )


@dataclass(slots=True)
class Snapshot:
    """All that memory needs after opening the store (in-flight tasks already held)."""

    meta: dict[str, Any]
    counts: dict[TaskState, int]
    held: list[Task]
    delayed: int
    workers: list[Worker]
    launches: list[LaunchRecord]
    next_task_row: int
    next_worker_row: int
    next_launch_row: int
    next_order_no: int
