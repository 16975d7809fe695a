"""Response bodies of the read verbs, from plain values: the JSON contract of SPEC.md.

Pure. Input is a `Census` from the coordinator and row dicts from `queries.py`, whose keys are the
contract's names already; output is JSON-safe. Wall-clock seconds become UTC ISO-8601, durations
stay seconds, sizes bytes, states lower-case words. Used by the daemon and the telemetry publisher.
"""

from __future__ import annotations

import base64
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from typing import Any, Final

from jobflow_worker import codec
from jobflow_worker.messages import ResultFile
from jobflowd.census import Census, Here, LaunchView, WorkerView
from jobflowd.model import LaunchState

Body = dict[str, Any]
#: What `queries.py` returns: rows, and the mark of the next page.
Page = tuple[list[dict[str, Any]], str | None]

#: Rows of each list in a snapshot: it is written again and again, and read by people.
SNAPSHOT_ROWS_MAX: Final = 200
#: Columns whose bytes are an encoded body.
_BODIES: Final = frozenset(("spec", "result"))
_NESTING_MAX: Final = 100


def status(census: Census, here: Here, wall: float) -> Body:
    """The `status` body at wall-clock time `wall`."""
    tasks = census.tasks
    return {
        "session": census.session,
        "program": census.program,
        "state": census.state,
        "state_reason": census.state_reason,
        "started_at": iso(census.started_at),
        "uptime_s": round(max(0.0, wall - census.started_at), 3),
        "pid": here.pid,
        "host": here.host,
        "version": here.version,
        "tasks": {
            "total": tasks.total,
            "queued": tasks.queued,
            "assigned": tasks.assigned,
            "running": tasks.running,
            "succeeded": tasks.succeeded,
            "failed": tasks.failed,
            "canceled": tasks.canceled,
            "held": tasks.held,
        },
        "workers": _worker_counts(census),
        "launches": _launch_counts(census),
        "throughput_per_s": _number(census.throughput_per_s),
        "eta_s": _number(census.eta_s),
        "eta_range_s": _range(census.forecast.low_s, census.forecast.high_s),
        "eta_reason": census.forecast.reason,
        "stalled_s": _number(census.forecast.stalled_s),
        "launching": {
            "paused": census.launching.paused,
            "reason": census.launching.reason,
            "canary": census.launching.canary,
        },
        "resources": {
            "cpu_s": _number(here.cpu_s),
            "rss_bytes": here.rss_bytes,
            "db_bytes": here.db_bytes,
        },
        "warnings": [*census.warnings, *here.warnings],
    }


def workers(census: Census, *, after: str = "", limit: int = 1000) -> Body:
    """One page of the connected workers, by id; `next` is the `after` of the next page."""
    page, following = _by_id({one.worker_id: one for one in census.workers}, after, limit)
    return {"workers": [_worker(one) for one in page], "next": following}


def launches(page: Page) -> Body:
    """A page of all launches from `queries.launch_page`, the ended ones too."""
    return {"launches": [_row(one) for one in page[0]], "next": page[1]}


def snapshot(census: Census, here: Here, wall: float) -> Body:
    """The status, and the first workers and launches: what the telemetry file holds."""
    return {
        **status(census, here, wall),
        "pace": {
            "bucket_s": census.forecast.bucket_s,
            "ended": list(census.forecast.history),
        },
        "worker_list": [_worker(one) for one in census.workers[:SNAPSHOT_ROWS_MAX]],
        "launch_list": [_launch(one) for one in census.launches[-SNAPSHOT_ROWS_MAX:]],
    }


def tasks(page: Page, progress: Mapping[str, float] | None = None) -> Body:
    """A page of tasks from `queries.task_page`; `progress` of running tasks lives in memory."""
    known = progress or {}
    rows = []
    for row in page[0]:
        body = _row(row)
        if body.get("progress") is None:
            body["progress"] = _number(known.get(row["task_id"]))
        rows.append(body)
    return {"tasks": rows, "next": page[1]}


def progress_of(census: Census) -> dict[str, float]:
    """How far every running task is, by task id, as far as it is known: for `tasks`."""
    return {name: value for one in census.workers for name, value in one.progress.items()}


def task(detail: Mapping[str, Any]) -> Body:
    """Everything about one task from `queries.task_detail`, bodies decoded.

    A result that was too large for a message is shown as {"file", "size_bytes", "sha256"}.
    """
    body = _row(detail)
    body["attempts"] = [_row(one) for one in detail.get("attempts") or ()]
    return body


def failures(groups: Sequence[Mapping[str, Any]]) -> Body:
    """Failed tasks by cause, from `queries.failure_groups`."""
    return {"groups": [_row(one) for one in groups]}


def results(page: Page) -> Body:
    """A page of results from `queries.result_page`, bodies decoded."""
    return {"results": [_row(one) for one in page[0]], "next": page[1]}


def history(rows: str, page: Page) -> Body:
    """A page of `reportqueries.py`, its rows under this name."""
    return {rows: [_row(one) for one in page[0]], "next": page[1]}


def events(page: Page) -> Body:
    """A page of history from `queries.event_page`; `next` is never null, for who follows."""
    return {"events": [_row(one) for one in page[0]], "next": page[1]}


def iso(at: float | None) -> str | None:
    """Wall-clock seconds as UTC ISO-8601 with milliseconds; None stays None."""
    if at is None or not math.isfinite(at):
        return None
    try:
        moment = datetime.fromtimestamp(at, timezone.utc)
    except (OverflowError, ValueError, OSError):
        return None
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def json_safe(value: Any, depth: int = 0) -> Any:
    """The same value as JSON can carry it.

    Bytes become {"base64": text}; NaN and the infinities become texts, since JSON has no word for
    them; what is of no JSON type becomes its type's name, so that an answer never fails.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return {"base64": base64.b64encode(bytes(value)).decode("ascii")}
    if depth >= _NESTING_MAX:
        return "(nested too deep to show)"
    if isinstance(value, Mapping):
        return {str(key): json_safe(one, depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_safe(one, depth + 1) for one in value]
    if isinstance(value, int):
        return int(value)
    return f"({type(value).__name__})"


# --- inside -----------------------------------------------------------------------------------


def _worker_counts(census: Census) -> Body:
    states = Counter(census.worker_counts or (one.state for one in census.workers))
    return {
        "target": census.target,
        "online": states["idle"] + states["busy"],
        "idle": states["idle"],
        "busy": states["busy"],
        "draining": states["draining"],
        "quarantined": states["quarantined"],
        "offline": census.workers_offline + states["offline"],
    }


def _launch_counts(census: Census) -> Body:
    counts = census.launch_counts or Counter(one.state for one in census.launches)
    return {state.word: int(counts.get(state.word, 0)) for state in LaunchState}


def _worker(one: WorkerView) -> Body:
    return {
        "worker_id": one.worker_id,
        "state": one.state,
        "host": one.host,
        "pid": one.pid,
        "slots": one.slots,
        "transport": one.transport,
        "heartbeat_age_s": _number(one.heartbeat_age_s),
        "running": list(one.running),
        "done": one.done,
        "failed": one.failed,
        "launch_id": one.launch_id,
        "batch_job_id": one.batch_job_id,
        "time_left_s": _number(one.time_left_s),
        "rss_bytes": one.rss_bytes,
        "reason": one.reason,
        "progress": {name: _number(value) for name, value in one.progress.items()},
    }


def _launch(one: LaunchView) -> Body:
    return {
        "launch_id": one.launch_id,
        "system": one.system,
        "state": one.state,
        "batch_job_id": one.batch_job_id,
        "submitted_at": iso(one.submitted_at),
        "worker_id": one.worker_id,
        "reason": one.reason,
        "script": one.script,
        "output": one.output,
    }


def _by_id(rows: Mapping[str, Any], after: str, limit: int) -> tuple[Sequence[Any], str | None]:
    names = sorted(name for name in rows if name > after)
    shown = names[:limit]
    return [rows[name] for name in shown], shown[-1] if len(names) > limit else None


def _number(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    return round(value, 3)


def _range(low: float | None, high: float | None) -> list[float | None] | None:
    return None if low is None or high is None else [_number(low), _number(high)]


def _row(row: Mapping[str, Any]) -> Body:
    return {key: _cell(key, value) for key, value in row.items()}


def _cell(key: str, value: Any) -> Any:
    if key == "at" or key.endswith("_at"):
        return iso(value) if isinstance(value, int | float) else json_safe(value)
    if isinstance(value, ResultFile):
        return {"file": value.name, "size_bytes": value.size, "sha256": value.sha256}
    if key in _BODIES and isinstance(value, bytes):
        return _decoded(value)
    return json_safe(value)


def _decoded(body: bytes) -> Any:
    try:
        return json_safe(codec.decode_body(body))
    except (ValueError, TypeError, RecursionError):
        return {"undecodable": True, "bytes": len(body)}
