"""Objects to rows and back: the SQL text of the store, and nothing that runs it.

Pure; used by `store.py` only. Every statement is a constant, so that SQLite prepares it once and
`executemany` does the rest. The order in `statements` is that of the foreign keys.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

from jobflowd.model import (
    AttemptRow,
    Changes,
    LaunchRecord,
    LaunchState,
    NewTask,
    Story,
    Task,
    TaskState,
    Worker,
    WorkerState,
)
from jobflowd.signatures import Signatures

Row = Sequence[Any]

#: Keys in one look-up statement, largest first. Fixed sizes keep the texts few and prepared;
#: 512 variables stay below the limit of 999 that SQLite had before 3.32.
CHUNKS: Final = (512, 64, 8, 1)

#: In the order of the fields of `Task`.
TASK_COLUMNS: Final = (
    "id, task_id, state, -rank, order_no, issued, current, failures, losses, deliveries,"
    " walltimes, max_retries, timeout_s, time_request_s, memory_bytes, spec_bytes, worker,"
    " held, due, solo, started_at, finished_at, error, late_until"
)
WORKER_COLUMNS: Final = (
    "id, worker_id, transport, host, pid, slots, state, launch_id, batch_job_id, program_hash,"
    " version, registered_at, ended_at, done, failed, reason"
)
LAUNCH_COLUMNS: Final = (
    "id, launch_id, system, state, batch_job_id, planned_at, submitted_at, ended_at, worker,"
    " reason, script, output"
)


def _upsert(table: str, columns: str, fixed: tuple[str, ...]) -> str:
    """Insert by id, or update all but the `fixed` columns of the row that is there."""
    names = columns.split(", ")
    marks = ", ".join("?" * len(names))
    moves = ", ".join(f"{name} = excluded.{name}" for name in names if name not in fixed)
    return (
        f"INSERT INTO {table} ({columns}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {moves}"
    )


_WORKER_UPSERT: Final = _upsert("workers", WORKER_COLUMNS, ("id", "worker_id"))
_LAUNCH_UPSERT: Final = _upsert("launches", LAUNCH_COLUMNS, ("id", "launch_id"))
_TASK_INSERT: Final = (
    "INSERT INTO tasks (id, task_id, rank, order_no, max_retries, timeout_s, time_request_s,"
    " memory_bytes, spec_bytes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SPEC_INSERT: Final = "INSERT INTO task_specs (id, spec_hash, spec) VALUES (?, ?, ?)"
#: What never changes (id, task_id) is not written again, and spec_bytes belongs to the new specs.
_TASK_UPDATE: Final = (
    "UPDATE tasks SET state = ?, rank = ?, order_no = ?, issued = ?, current = ?, failures = ?,"
    " losses = ?, deliveries = ?, walltimes = ?, max_retries = ?, timeout_s = ?,"
    " time_request_s = ?, memory_bytes = ?, worker = ?, held = ?, due = ?, solo = ?,"
    " started_at = ?, finished_at = ?, error = ?, late_until = ? WHERE id = ?"
)
#: The common way of a task, told in full in `Changes`.
_TASK_MOVE: Final = (
    "UPDATE tasks SET state = ?, issued = ?, current = ?, deliveries = ?, worker = ?,"
    " started_at = ?, finished_at = ? WHERE id = ?"
)
_SPEC_UPDATE: Final = "UPDATE task_specs SET spec_hash = ?, spec = ? WHERE id = ?"
_SPEC_SIZE_UPDATE: Final = "UPDATE tasks SET spec_bytes = ? WHERE id = ?"
_ATTEMPT_REPLACE: Final = (
    "INSERT OR REPLACE INTO attempts (task, attempt, worker, started_at, ended_at, outcome, cause,"
    " charged, exit_signal, exit_code, duration_s, cpu_s, max_rss_bytes, error, traceback,"
    " output_tail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
)
_SIGNATURE_INSERT: Final = "INSERT OR IGNORE INTO signatures (text) VALUES (?)"
_SIGNATURE_HOST: Final = (
    "INSERT INTO signature_hosts (signature, host, count)"
    " SELECT s.id, w.host, 1 FROM signatures s, workers w WHERE s.text = ? AND w.id = ?"
    " ON CONFLICT (signature, host) DO UPDATE SET count = count + 1"
)
_TASK_SIGNATURE: Final = (
    "UPDATE tasks SET signature = (SELECT id FROM signatures WHERE text = ?) WHERE id = ?"
)
#: Not OR REPLACE: that a second result of a task cannot be written is a promise.
_RESULT_INSERT: Final = (
    "INSERT INTO task_results (id, attempt, body, file_name, file_size, file_sha256)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)
_PROCESSED_REPLACE: Final = (
    "INSERT OR REPLACE INTO processed_messages (worker, counter, verdict) VALUES (?, ?, ?)"
)
_FLOOR_RAISE: Final = "UPDATE workers SET floor = max(floor, ?) WHERE id = ?"
_FLOOR_PRUNE: Final = "DELETE FROM processed_messages WHERE counter < ? AND worker = ?"
_STORY_INSERT: Final = (
    "INSERT INTO events (at, kind, task_id, worker_id, launch_id, text, level)"
    " VALUES (?, ?, ?, ?, ?, ?, ?)"
)
META_REPLACE: Final = "INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)"
#: Rows that one statement inserts where there are many: a quarter cheaper than one by one, since
#: each run of a statement opens its table and indexes. With 16 columns below the 999 variables.
ROWS_AT_ONCE: Final = 60


def _wide(sql: str) -> str:
    head, values, marks = sql.partition(" VALUES ")
    return head + values + ", ".join([marks] * ROWS_AT_ONCE)


#: The inserts of which there are many, by their text for one row.
WIDE: Final = {
    sql: _wide(sql) for sql in (_TASK_INSERT, _SPEC_INSERT, _ATTEMPT_REPLACE, _RESULT_INSERT)
}

READY_PAGE: Final = (
    f"SELECT {TASK_COLUMNS} FROM tasks INDEXED BY tasks_ready"
    " WHERE state = 0 AND held = 0 AND due IS NULL AND (rank, order_no) > (?, ?)"
    " ORDER BY rank, order_no LIMIT ?"
)
DUE_PAGE: Final = (
    f"SELECT {TASK_COLUMNS} FROM tasks INDEXED BY tasks_due"
    " WHERE due IS NOT NULL AND due <= ? ORDER BY due, id LIMIT ?"
)


def by_keys(sql: str) -> dict[int, str]:
    """A look-up by keys, with `{keys}` where they go: one text for each chunk size."""
    return {size: sql.format(keys="(" + ", ".join("?" * size) + ")") for size in CHUNKS}


TASKS_BY_ID: Final = by_keys(f"SELECT {TASK_COLUMNS} FROM tasks WHERE task_id IN {{keys}}")
KNOWN_BY_ID: Final = by_keys(
    "SELECT t.task_id, t.id, s.spec_hash, t.state FROM tasks t"
    " JOIN task_specs s ON s.id = t.id WHERE t.task_id IN {keys}"
)
WORKERS_BY_ID: Final = by_keys(
    f"SELECT {WORKER_COLUMNS}, floor FROM workers WHERE worker_id IN {{keys}}"
)
VERDICTS_BY_WORKER: Final = by_keys(
    "SELECT worker, counter, verdict FROM processed_messages WHERE worker IN {keys}"
)
SPECS_BY_ROW: Final = by_keys("SELECT id, spec FROM task_specs WHERE id IN {keys}")
#: Two variables a key. CROSS JOIN fixes the order: the few wanted drive, indexes answer.
ATTEMPTS_BY_NAME: Final = {
    size: "WITH wanted (task_id, attempt) AS (VALUES "
    + ", ".join(["(?, ?)"] * size)
    + ") SELECT w.task_id, w.attempt, a.worker, a.outcome, a.charged FROM wanted w"
    " CROSS JOIN tasks t ON t.task_id = w.task_id"
    " CROSS JOIN attempts a ON a.task = t.id AND a.attempt = w.attempt"
    for size in CHUNKS
    if size <= 256
}

_TASK_STATES: Final = tuple(TaskState)


def chunks(keys: Sequence[Any], texts: dict[int, str]) -> Iterator[tuple[str, Sequence[Any]]]:
    """Cut keys into statements of fixed sizes; a short rest repeats its last key."""
    largest = max(texts)
    for start in range(0, len(keys), largest):
        part = list(keys[start : start + largest])
        size = min(size for size in texts if size >= len(part))
        part.extend([part[-1]] * (size - len(part)))
        yield texts[size], _flat(part) if isinstance(part[0], tuple) else part


def _flat(pairs: Sequence[Any]) -> list[Any]:
    return [value for pair in pairs for value in pair]


def clean(text: str | None) -> str | None:
    """Text that SQLite takes: what is not Unicode (names and words of a site) becomes "?"."""
    if text is None or text.isascii():
        return text
    return text.encode("utf-8", "replace").decode("utf-8")


# --- rows to objects --------------------------------------------------------------------------


def task_of(row: Row) -> Task:
    """A `Task` from a row of `TASK_COLUMNS`."""
    task = Task(*row)
    task.state = _TASK_STATES[task.state]
    task.held = bool(task.held)
    return task


def worker_of(row: Row) -> Worker:
    """A `Worker` from a row of `WORKER_COLUMNS` and its floor."""
    worker = Worker(*row[:-1])
    worker.state = WorkerState(worker.state)
    worker.floor = row[-1]
    return worker


def launch_of(row: Row) -> LaunchRecord:
    """A `LaunchRecord` from a row of `LAUNCH_COLUMNS`."""
    launch = LaunchRecord(*row)
    launch.state = LaunchState(launch.state)
    return launch


# --- objects to rows --------------------------------------------------------------------------
# Plain ints throughout: sqlite3 looks for an adapter for every value of another type.


def _new_task_values(new: NewTask) -> Row:
    made = new.definition
    return (
        new.row,
        made.task_id,
        -made.priority,
        new.order_no,
        made.max_retries,
        made.timeout_s,
        made.time_request_s,
        made.memory_bytes,
        len(made.spec),
    )


def _task_values(row: int, task: Task) -> Row:
    return (
        task.state.value,
        -task.priority,
        task.order_no,
        task.issued,
        task.current,
        task.failures,
        task.losses,
        task.deliveries,
        task.walltimes,
        task.max_retries,
        task.timeout_s,
        task.time_request_s,
        task.memory_bytes,
        task.worker,
        1 if task.held else 0,
        task.due,
        task.solo,
        task.started_at,
        task.finished_at,
        clean(task.error),
        task.late_until,
        row,
    )


def _move_values(row: int, task: Task) -> Row:
    return (
        int(task.state),
        task.issued,
        task.current,
        task.deliveries,
        task.worker,
        task.started_at,
        task.finished_at,
        row,
    )


def _worker_values(worker: Worker) -> Row:
    return (
        worker.row,
        worker.worker_id,
        worker.transport,
        clean(worker.host),
        worker.pid,
        worker.slots,
        worker.state.value,
        clean(worker.launch_id),
        clean(worker.batch_job_id),
        clean(worker.program_hash),
        clean(worker.version),
        worker.registered_at,
        worker.ended_at,
        worker.done,
        worker.failed,
        clean(worker.reason),
    )


def _launch_values(launch: LaunchRecord) -> Row:
    return (
        launch.row,
        launch.launch_id,
        launch.system,
        launch.state.value,
        clean(launch.batch_job_id),
        launch.planned_at,
        launch.submitted_at,
        launch.ended_at,
        launch.worker,
        clean(launch.reason),
        clean(launch.script),
        clean(launch.output),
    )


def _attempt_values(row: AttemptRow) -> Row:
    # The last three are what programs and sites wrote: nothing, mostly.
    if not (row.error or row.traceback or row.output_tail):
        return row
    return (*row[:-3], clean(row.error), clean(row.traceback), clean(row.output_tail))


def _story_values(story: Story) -> Row:
    return (
        story.at,
        story.kind,
        clean(story.task_id),
        clean(story.worker_id),
        clean(story.launch_id),
        clean(story.text),
        story.level,
    )


def _failure_statements(
    changes: Changes, signatures: Signatures
) -> Iterator[tuple[str, Sequence[Row]]]:
    """Into which group each failed attempt belongs, and each task that it ended."""
    named: dict[int, str] = {}
    seen: list[Row] = []
    for attempt in changes.attempts:
        task = changes.tasks.get(attempt.task)
        ended = task is not None and task.state is TaskState.FAILED
        if attempt.outcome in ("failed", "lost") or (ended and attempt.outcome == "returned"):
            text = clean(signatures.of(attempt)) or ""
            seen.append((text, attempt.worker))
            if ended:
                named[attempt.task] = text
    if seen:
        yield _SIGNATURE_INSERT, [(text,) for text in dict.fromkeys(one[0] for one in seen)]
        yield _SIGNATURE_HOST, seen
    if named:
        yield _TASK_SIGNATURE, [(text, row) for row, text in named.items()]


def statements(changes: Changes, signatures: Signatures) -> Iterator[tuple[str, Sequence[Row]]]:
    """The statements that make `changes` durable, in order, each with its rows.

    Without the assignments, which have a module of their own.
    """
    if changes.workers:
        yield _WORKER_UPSERT, [_worker_values(worker) for worker in changes.workers.values()]
    if changes.launches:
        yield _LAUNCH_UPSERT, [_launch_values(launch) for launch in changes.launches.values()]
    if changes.new_tasks:
        yield _TASK_INSERT, [_new_task_values(new) for new in changes.new_tasks]
        yield (
            _SPEC_INSERT,
            [(n.row, n.definition.spec_hash, n.definition.spec) for n in changes.new_tasks],
        )
    if changes.tasks:
        yield _TASK_UPDATE, [_task_values(row, task) for row, task in changes.tasks.items()]
    if changes.moved:
        yield _TASK_MOVE, [_move_values(row, task) for row, task in changes.moved.items()]
    if changes.new_specs:
        yield _SPEC_UPDATE, [(digest, spec, row) for row, digest, spec in changes.new_specs]
        yield _SPEC_SIZE_UPDATE, [(len(spec), row) for row, _, spec in changes.new_specs]
    if changes.attempts:
        yield _ATTEMPT_REPLACE, [_attempt_values(row) for row in changes.attempts]
        yield from _failure_statements(changes, signatures)
    if changes.results:
        yield _RESULT_INSERT, changes.results
    if changes.processed:
        yield _PROCESSED_REPLACE, changes.processed
    if changes.floors:
        floors = [(floor, row) for row, floor in changes.floors.items()]
        yield _FLOOR_RAISE, floors
        # After the inserts above: what is below the floor is a duplicate without any row.
        yield _FLOOR_PRUNE, floors
    if changes.stories:
        yield _STORY_INSERT, [_story_values(story) for story in changes.stories]
    if changes.meta:
        yield META_REPLACE, [(key, json.dumps(value)) for key, value in changes.meta.items()]
