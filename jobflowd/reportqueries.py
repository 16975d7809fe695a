"""Read-only SQL behind `jobflowctl report`: every attempt and every worker of a session, in pages.

The rules are those of `queries.py`: bounded pages found by their key, opaque marks, the names of
the published JSON. No texts that could be long: a report of a million attempts is numbers.
"""

from __future__ import annotations

from typing import Any, Final

from jobflowd.model import WorkerState
from jobflowd.queries import Page
from jobflowd.store import Store

PAGE_MAX: Final = 1000
#: Attempt numbers stay below; a mark is the row of the task times this, and the attempt.
_ATTEMPT_BASE: Final = 1_000_000

_ATTEMPTS: Final = (
    "SELECT a.task, a.attempt, t.task_id, w.worker_id, a.started_at, a.ended_at, a.outcome,"
    " a.cause, a.duration_s, a.cpu_s, a.max_rss_bytes FROM attempts a"
    " JOIN tasks t ON t.id = a.task JOIN workers w ON w.id = a.worker"
    " WHERE (a.task, a.attempt) > (?, ?) ORDER BY a.task, a.attempt LIMIT ?"
)
_ATTEMPT_NAMES: Final = (
    "task_id",
    "worker_id",
    "started_at",
    "ended_at",
    "outcome",
    "cause",
    "duration_s",
    "cpu_s",
    "max_rss_bytes",
)
_FLEET: Final = (
    "SELECT w.id, w.state, w.worker_id, w.host, w.slots, w.launch_id, w.batch_job_id,"
    " w.registered_at, w.ended_at, w.done, w.failed, w.reason, l.planned_at FROM workers w"
    " LEFT JOIN launches l ON l.launch_id = w.launch_id"
    " WHERE w.id > ? ORDER BY w.id LIMIT ?"
)
_FLEET_NAMES: Final = (
    "worker_id",
    "host",
    "slots",
    "launch_id",
    "batch_job_id",
    "registered_at",
    "ended_at",
    "done",
    "failed",
    "reason",
    "planned_at",
)


def attempt_page(store: Store, after: str | None, limit: int) -> Page:
    """Attempts that have ended, in the order of their tasks."""
    size = max(1, min(limit, PAGE_MAX))
    mark = int(after or 0)
    key = divmod(mark, _ATTEMPT_BASE)
    found = store.read(_ATTEMPTS, (*key, size + 1))
    page = [
        {"attempt": row[1], **dict(zip(_ATTEMPT_NAMES, row[2:], strict=True))}
        for row in found[:size]
    ]
    if len(found) <= size:
        return page, None
    last = found[size - 1]
    return page, str(last[0] * _ATTEMPT_BASE + last[1])


def fleet_page(store: Store, after: str | None, limit: int) -> Page:
    """Every worker that ever registered, in that order; `planned_at` is when its launch was."""
    size = max(1, min(limit, PAGE_MAX))
    found = store.read(_FLEET, (int(after or 0), size + 1))
    page: list[dict[str, Any]] = [
        {"state": WorkerState(row[1]).word, **dict(zip(_FLEET_NAMES, row[2:], strict=True))}
        for row in found[:size]
    ]
    return page, str(found[size - 1][0]) if len(found) > size else None
