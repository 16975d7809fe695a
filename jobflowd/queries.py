"""Read-only SQL behind the reading verbs: tasks, failures, results, workers, launches, events.

Rules: every page is bounded and found by its key, so that no question holds up the loop; rows are
plain dicts with the names of the published JSON. Times are wall-clock seconds, bodies are bytes:
the answer layer formats and decodes, and fills in what only memory knows (marked *live*, None or
empty here). Used by the admin answers, between turns.

A page is asked for with `after`, the mark that the page before it returned as its second value
(None at first). A mark is opaque to users. ValueError: a mark or a state word that is none.
"""

from __future__ import annotations

from typing import Any, Final

from jobflow_worker.messages import ResultFile
from jobflowd.model import LaunchState, TaskState, WorkerState
from jobflowd.store import Store

#: Rows in one page at most: about 5 ms of the loop's time.
PAGE_MAX: Final = 1000
#: The word for queued tasks that wait for a survivor of a restart.
HELD: Final = "held"

Page = tuple[list[dict[str, Any]], str | None]

_TASKS: Final = (
    "SELECT t.id, t.task_id, t.state,"
    " (SELECT count(*) FROM attempts x WHERE x.task = t.id) + (t.state = 2 AND a.task IS NULL),"
    " coalesce(w.worker_id, past.worker_id), t.started_at, t.finished_at, t.error"
    " FROM tasks t {index}"
    " LEFT JOIN workers w ON w.id = t.worker"
    " LEFT JOIN attempts a ON a.task = t.id AND a.attempt = t.current"
    " LEFT JOIN workers past ON past.id = a.worker"
    " WHERE {which} t.id > ? ORDER BY t.id LIMIT ?"
)
_TASKS_ALL: Final = _TASKS.format(index="", which="")
_TASKS_IN_STATE: Final = _TASKS.format(index="INDEXED BY tasks_state", which="t.state = ? AND")
_TASKS_HELD: Final = _TASKS.format(
    index="INDEXED BY tasks_held", which="t.held = 1 AND t.state = 0 AND"
)
_TASK: Final = (
    "SELECT t.id, t.state, t.error, -t.rank, max(0, t.max_retries - t.failures),"
    " max(0, ? - t.losses), s.spec, r.body, r.file_name, r.file_size, r.file_sha256 FROM tasks t"
    " JOIN task_specs s ON s.id = t.id LEFT JOIN task_results r ON r.id = t.id WHERE t.task_id = ?"
)
_ATTEMPT_FIELDS: Final = (
    "attempt",
    "worker_id",
    "host",
    "batch_job_id",
    "started_at",
    "ended_at",
    "outcome",
    "cause",
    "charged",
    "exit_signal",
    "max_rss_bytes",
    "cpu_s",
    "error",
    "output_tail",
)
_ATTEMPTS: Final = (
    "SELECT a.attempt, w.worker_id, w.host, w.batch_job_id, a.started_at, a.ended_at, a.outcome,"
    " a.cause, a.charged, a.exit_signal, a.max_rss_bytes, a.cpu_s, a.error, a.output_tail"
    " FROM attempts a"
    " JOIN workers w ON w.id = a.worker WHERE a.task = ? ORDER BY a.attempt DESC LIMIT ?"
)
_WORKERS: Final = (
    "SELECT id, worker_id, state, host, pid, slots, transport, done, failed, launch_id,"
    " batch_job_id FROM workers WHERE (? IS NULL OR state = ?) AND id > ? ORDER BY id LIMIT ?"
)
_LAUNCHES: Final = (
    "SELECT l.id, l.launch_id, l.system, l.state, l.batch_job_id, l.submitted_at, w.worker_id,"
    " l.reason, l.script, l.output FROM launches l LEFT JOIN workers w ON w.id = l.worker"
    " WHERE (? IS NULL OR l.state = ?) AND l.id > ? ORDER BY l.id LIMIT ?"
)
_EVENTS: Final = (
    "SELECT id, at, kind, task_id, worker_id, launch_id, text FROM events"
    " WHERE id > ? AND (? IS NULL OR task_id = ?) ORDER BY id LIMIT ?"
)
_EVENTS_LAST: Final = (
    "SELECT id, at, kind, task_id, worker_id, launch_id, text FROM events"
    " WHERE (? IS NULL OR task_id = ?) ORDER BY id DESC LIMIT ?"
)
_EVENT_NAMES: Final = ("at", "kind", "task_id", "worker_id", "launch_id", "text")
# The partial index answers this by itself: about half a second for a million failed tasks.
_GROUPS: Final = (
    "SELECT signature, count(*), min(finished_at), max(finished_at) FROM tasks"
    " INDEXED BY tasks_failed WHERE state = 4 GROUP BY signature"
)
_GROUP_NAME: Final = (
    "SELECT s.text, (SELECT task_id FROM tasks INDEXED BY tasks_failed WHERE state = 4"
    " AND signature = s.id ORDER BY finished_at, id LIMIT 1) FROM signatures s WHERE s.id = ?"
)
_GROUP_HOSTS: Final = (
    "SELECT host FROM signature_hosts WHERE signature = ? ORDER BY count DESC, host LIMIT ?"
)
_NAMELESS_EXAMPLE: Final = (
    "SELECT task_id FROM tasks INDEXED BY tasks_failed WHERE state = 4 AND signature IS NULL"
    " ORDER BY finished_at, id LIMIT 1"
)
_BEFORE: Final = (
    "SELECT count(*) FROM (SELECT 1 FROM tasks INDEXED BY tasks_ready WHERE state = 0 AND held = 0"
    " AND due IS NULL AND (rank, order_no) < (SELECT rank, order_no FROM tasks WHERE task_id = ?)"
    " LIMIT ?)"
)
_RESULT_SIZES: Final = (
    "SELECT id, coalesce(length(body), 0) FROM task_results WHERE id > ? ORDER BY id LIMIT ?"
)
_RESULTS: Final = (
    "SELECT t.task_id, r.attempt, r.body, r.file_name, r.file_size, r.file_sha256"
    " FROM task_results r JOIN tasks t ON t.id = r.id WHERE r.id > ? AND r.id <= ? ORDER BY r.id"
)
#: Group number of failed tasks whose cause was not kept (by an older version).
NAMELESS: Final = 0
#: Groups in one answer, hosts of one group, and how far a queue is counted.
GROUPS_MAX: Final = 1000
HOSTS_MAX: Final = 50
BEFORE_MAX: Final = 100_000
#: Bytes of results in one page: with base64 and JSON still a quarter of what a client is sent.
RESULT_BYTES_MAX: Final = 2 * 1024 * 1024


def counts(store: Store) -> dict[str, int]:
    """Tasks by state word, with `total` and `held` (which are among the queued)."""
    found = dict.fromkeys(_words(TaskState), 0)
    store.settle()
    for state, count in store.read("SELECT state, count(*) FROM tasks GROUP BY state"):
        found[TaskState(state).word] = count
    ((held,),) = store.read("SELECT count(*) FROM tasks WHERE held = 1")
    return {"total": sum(found.values()), **found, HELD: held}


def task_page(store: Store, after: str | None, limit: int, state: str | None = None) -> Page:
    """Tasks in the order of their definition; `state` is a state word or "held".

    *Live*: `progress`. `attempts` counts the deliveries that started or whose fate is unknown.
    """
    mark, size = _mark(after), _size(limit)
    store.settle()
    if state is None:
        found = store.read(_TASKS_ALL, (mark, size + 1))
    elif state == HELD:
        found = store.read(_TASKS_HELD, (mark, size + 1))
    else:
        found = store.read(_TASKS_IN_STATE, (_state(TaskState, state), mark, size + 1))
    page = [
        {
            "task_id": row[1],
            "state": TaskState(row[2]).word,
            "attempts": row[3],
            "worker_id": row[4],
            "progress": None,
            "started_at": row[5],
            "finished_at": row[6],
            "error": row[7],
        }
        for row in found[:size]
    ]
    return page, _next(found, size)


def task_detail(store: Store, task_id: str, *, max_losses: int) -> dict[str, Any] | None:
    """Everything about one task, None if there is no such task.

    `spec` is encoded bytes; `result` is encoded bytes, a `ResultFile` or None; `attempts` are in
    order, the newest 1,000. `max_losses` is the session's setting.
    """
    store.settle()
    found = store.read(_TASK, (max_losses, task_id))
    if not found:
        return None
    row = found[0]
    return {
        "task_id": task_id,
        "state": TaskState(row[1]).word,
        "spec": row[6],
        "result": row[7] if row[8] is None else ResultFile(row[8], row[9], row[10]),
        "error": row[2],
        "priority": row[3],
        "retries_left": row[4],
        "losses_left": row[5],
        "attempts": _attempts(store, row[0]),
    }


def tracebacks(store: Store, task_id: str) -> dict[int, str]:
    """Attempt number to traceback, of the attempts of a task that have one; the newest 1,000."""
    found = store.read(
        "SELECT a.attempt, a.traceback FROM attempts a JOIN tasks t ON t.id = a.task"
        " WHERE t.task_id = ? AND a.traceback <> '' ORDER BY a.attempt DESC LIMIT ?",
        (task_id, PAGE_MAX),
    )
    return dict(reversed(found))


def worker_page(store: Store, after: str | None, limit: int, state: str | None = None) -> Page:
    """Workers in the order of their first registering, ended ones included.

    *Live*: `heartbeat_age_s`, `running`, `time_left_s`.
    """
    size, number = _size(limit), _state(WorkerState, state)
    found = store.read(_WORKERS, (number, number, _mark(after), size + 1))
    page = [
        {
            "worker_id": row[1],
            "state": WorkerState(row[2]).word,
            "host": row[3],
            "pid": row[4],
            "slots": row[5],
            "transport": row[6],
            "heartbeat_age_s": None,
            "running": [],
            "done": row[7],
            "failed": row[8],
            "launch_id": row[9],
            "batch_job_id": row[10],
            "time_left_s": None,
        }
        for row in found[:size]
    ]
    return page, _next(found, size)


def launch_page(store: Store, after: str | None, limit: int, state: str | None = None) -> Page:
    """Launches in the order of their planning."""
    size, number = _size(limit), _state(LaunchState, state)
    found = store.read(_LAUNCHES, (number, number, _mark(after), size + 1))
    page = [
        {
            "launch_id": row[1],
            "system": row[2],
            "state": LaunchState(row[3]).word,
            "batch_job_id": row[4],
            "submitted_at": row[5],
            "worker_id": row[6],
            "reason": row[7],
            "script": row[8],
            "output": row[9],
        }
        for row in found[:size]
    ]
    return page, _next(found, size)


def event_page(store: Store, after: str | None, limit: int, task_id: str | None = None) -> Page:
    """History, oldest first, optionally of one task.

    The mark is never None, unlike that of other pages, because more may come: who follows asks
    again with it; an empty page means that this is all so far.
    """
    mark, size = _mark(after), _size(limit)
    found = store.read(_EVENTS, (mark, task_id, task_id, size))
    page = [dict(zip(_EVENT_NAMES, row[1:], strict=True)) for row in found]
    return page, str(found[-1][0] if found else mark)


def last_events(store: Store, limit: int, task_id: str | None = None) -> Page:
    """The newest of the history, oldest first; the mark is the one to follow from."""
    found = store.read(_EVENTS_LAST, (task_id, task_id, _size(limit)))[::-1]
    page = [dict(zip(_EVENT_NAMES, row[1:], strict=True)) for row in found]
    ((newest,),) = store.read("SELECT coalesce(max(id), 0) FROM events")
    return page, str(newest)


def failure_groups(store: Store) -> list[dict[str, Any]]:
    """Failed tasks by cause, the largest group first; `group` is its lasting number.

    `hosts`: where attempts failed so in this session, most often first, also attempts whose task
    succeeded later.
    """
    found = sorted(store.read(_GROUPS), key=lambda row: (-row[1], row[0] or 0))
    groups = []
    for number, count, first_at, last_at in found[:GROUPS_MAX]:
        if number is None:
            ((example,),) = store.read(_NAMELESS_EXAMPLE)
            text, hosts = "cause not kept", []
        else:
            ((text, example),) = store.read(_GROUP_NAME, (number,))
            hosts = store.read(_GROUP_HOSTS, (number, HOSTS_MAX))
        groups.append(
            {
                "group": NAMELESS if number is None else number,
                "count": count,
                "signature": text,
                "example_task_id": example,
                "hosts": [host for (host,) in hosts],
                "first_at": first_at,
                "last_at": last_at,
            }
        )
    return groups


def ready_before(store: Store, task_id: str) -> int:
    """How many ready tasks are delivered before this one; counted up to `BEFORE_MAX`."""
    store.settle()
    ((count,),) = store.read(_BEFORE, (task_id, BEFORE_MAX))
    return int(count)


def result_page(store: Store, after: str | None, limit: int) -> Page:
    """Results in the order of the tasks' definition: task_id, attempt, result.

    `result` is encoded bytes or a `ResultFile`. A page ends early where its bytes are enough.
    """
    mark, size = _mark(after), _size(limit)
    sizes = store.read(_RESULT_SIZES, (mark, size + 1))
    end, total = mark, 0
    taken = 0
    for row, length in sizes[:size]:
        total += length
        if taken and total > RESULT_BYTES_MAX:
            break
        end, taken = row, taken + 1
    found = store.read(_RESULTS, (mark, end)) if taken else []
    page = [
        {
            "task_id": row[0],
            "attempt": row[1],
            "result": row[2] if row[3] is None else ResultFile(row[3], row[4], row[5]),
        }
        for row in found
    ]
    return page, str(end) if len(sizes) > taken else None


def spec_of(store: Store, task_id: str) -> tuple[bytes, int] | None:
    """The encoded spec of a task and the number of its latest attempt, None if unknown."""
    found = store.read(
        "SELECT s.spec, t.issued FROM tasks t JOIN task_specs s ON s.id = t.id WHERE t.task_id = ?",
        (task_id,),
    )
    return (found[0][0], found[0][1]) if found else None


def launch_named(store: Store, launch_id: str) -> dict[str, Any] | None:
    """One launch, whatever its state."""
    found = store.read(
        "SELECT launch_id, system, state, reason, output FROM launches WHERE launch_id = ?",
        (launch_id,),
    )
    names = ("launch_id", "system", "state", "reason", "output")
    return dict(zip(names, found[0], strict=True)) if found else None


def worker_named(store: Store, worker_id: str) -> dict[str, Any] | None:
    """One worker, an ended one too."""
    found = store.read(
        "SELECT worker_id, host, launch_id FROM workers WHERE worker_id = ?", (worker_id,)
    )
    return dict(zip(("worker_id", "host", "launch_id"), found[0], strict=True)) if found else None


def _attempts(store: Store, task_row: int) -> list[dict[str, Any]]:
    found = store.read(_ATTEMPTS, (task_row, PAGE_MAX))
    return [dict(zip(_ATTEMPT_FIELDS, row, strict=True)) for row in reversed(found)]


def _size(limit: int) -> int:
    return max(1, min(limit, PAGE_MAX))


def _mark(after: str | None) -> int:
    if after is None:
        return 0
    # Eighteen digits are below what SQLite can compare.
    if not (after.isascii() and after.isdigit() and len(after) <= 18):
        raise ValueError(f"{after!r} is not a page mark: use the `next` of the page before")
    return int(after)


def _next(found: list[Any], size: int) -> str | None:
    """One row more than the page was asked for: if it came, there is a next page."""
    return str(found[size - 1][0]) if len(found) > size else None


def _words(kind: type[TaskState] | type[WorkerState] | type[LaunchState]) -> list[str]:
    return [member.word for member in kind]


def _state(
    kind: type[TaskState] | type[WorkerState] | type[LaunchState], word: str | None
) -> int | None:
    if word is None:
        return None
    for member in kind:
        if member.word == word:
            return member.value
    raise ValueError(f"{word!r} is not a state: use one of {', '.join(_words(kind))}")
