"""What people see: the human form of every answer. Pure: a body and a `Style` in, lines out.

Rule: strings of a body go through `safe` (tables do it themselves); fields that are missing or new
do no harm.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from typing import Any, Final

from jobflowctl.statusscreen import status
from jobflowctl.storyscreens import event_line, events, explain, failures, some
from jobflowctl.style import Body, Style, block, labelled, local, moment, part
from jobflowctl.text import Column, count, duration, safe, safe_lines, size

__all__ = ["SCREENS", "done", "event_line", "events"]

Screen = Callable[[Body, Style], list[str]]

_VALUE_LINES_MAX: Final = 40


# --- lists ------------------------------------------------------------------------------------


def tasks(body: Body, style: Style) -> list[str]:
    """A page of tasks, with the command for the next one."""
    rows = body.get("tasks") or []
    if not rows:
        return ["no such tasks"]
    lines = style.table(
        [
            Column("TASK", middle=True),
            Column("STATE"),
            Column("ATTEMPTS", right=True, spare=True),
            Column("DONE", right=True, spare=True),
            Column("TOOK", right=True, spare=True),
            Column("WORKER", middle=True, spare=True),
            Column("ERROR"),
        ],
        [
            (
                row.get("task_id"),
                row.get("state"),
                row.get("attempts"),
                _percent(row.get("progress")),
                _took(row, style),
                row.get("worker_id"),
                row.get("error"),
            )
            for row in rows
        ],
    )
    if body.get("next") is not None:
        lines.append(f"more: --after {safe(body['next'])}, or --all")
    return lines


def workers(body: Body, style: Style) -> list[str]:
    """The connected workers."""
    rows = body.get("workers") or []
    if not rows:
        return ["no worker is connected"]
    return style.table(
        [
            Column("WORKER", middle=True),
            Column("STATE"),
            Column("HOST"),
            Column("SLOTS", right=True, spare=True),
            Column("HEARD", right=True, spare=True),
            Column("DONE", right=True, spare=True),
            Column("FAILED", right=True, spare=True),
            Column("LEFT", right=True, spare=True),
            Column("JOB", spare=True),
            Column("RUNNING", middle=True),
        ],
        [
            (
                row.get("worker_id"),
                row.get("state"),
                row.get("host"),
                row.get("slots"),
                _ago(row.get("heartbeat_age_s")),
                row.get("done"),
                row.get("failed"),
                _maybe_duration(row.get("time_left_s")),
                row.get("batch_job_id"),
                some(row.get("running") or ()),
            )
            for row in rows
        ],
    )


def launches(body: Body, style: Style) -> list[str]:
    """What was submitted to bring workers, newest last."""
    rows = body.get("launches") or []
    if not rows:
        return ["nothing was launched"]
    return style.table(
        [
            Column("LAUNCH", middle=True),
            Column("SYSTEM", spare=True),
            Column("STATE"),
            Column("JOB", spare=True),
            Column("SUBMITTED", spare=True),
            Column("WORKER", middle=True, spare=True),
            Column("REASON"),
        ],
        [
            (
                row.get("launch_id"),
                row.get("system"),
                row.get("state"),
                row.get("batch_job_id"),
                local(row.get("submitted_at")),
                row.get("worker_id"),
                row.get("reason"),
            )
            for row in rows
        ],
    )


def sessions(body: Body, style: Style) -> list[str]:
    """The user's sessions."""
    rows = body.get("sessions") or []
    if not rows:
        return ["no sessions; start one: jobflowd start --program FILE.py"]
    return style.table(
        [
            Column("SESSION"),
            Column("STATE"),
            Column("HOST", spare=True),
            Column("STARTED", spare=True),
            Column("DIRECTORY"),
        ],
        [
            (
                row.get("session"),
                row.get("state"),
                row.get("host"),
                local(row.get("started_at")),
                row.get("dir"),
            )
            for row in rows
        ],
    )


# --- one task ---------------------------------------------------------------------------------


def task(body: Body, style: Style) -> list[str]:
    """Everything about one task."""
    state = str(body.get("state", ""))
    lines = [f"{style.paint(safe(body.get('task_id', '')), 'bold')}  {style.state(state)}"]
    lines += labelled("budgets", _budgets(body))
    lines += block("error", safe_lines(body.get("error") or ""))
    lines += block("spec", _pretty(body.get("spec")))
    if state == "succeeded":
        lines += block("result", _pretty(body.get("result")))
    for attempt in body.get("attempts") or []:
        lines += ["", *_attempt(attempt, style)]
    if state in ("failed", "canceled"):
        word = shlex.quote(safe(body.get("task_id", "")))
        lines += ["", f"next  {style.paint(style.ctl('retry ' + word), 'bold')}"]
    return lines


def _budgets(body: Body) -> str:
    retries, losses = int(body.get("retries_left") or 0), int(body.get("losses_left") or 0)
    left = f"{count(retries, 'retry', 'retries')} and {count(losses, 'loss', 'losses')} left"
    return f"priority {safe(body.get('priority', 0))}, {left}"


def _attempt(attempt: Body, style: Style) -> list[str]:
    words = [f"attempt {safe(attempt.get('attempt', '?'))}"]
    words.append(style.state(str(attempt.get("outcome") or "running")))
    if attempt.get("cause"):
        words.append(safe(attempt["cause"]))
    if attempt.get("exit_signal"):
        words.append(f"by {safe(attempt['exit_signal'])}")
    lines = ["  ".join(words)]
    where = [f"{safe(attempt.get('worker_id') or '-')} on {safe(attempt.get('host') or '-')}"]
    if attempt.get("batch_job_id"):
        where.append(f"job {safe(attempt['batch_job_id'])}")
    lines += labelled("worker", ", ".join(where))
    when = f"from {local(attempt.get('started_at'))} to {local(attempt.get('ended_at'))}"
    lines += labelled("time", when)
    used = []
    if attempt.get("cpu_s") is not None:
        used.append(f"{duration(attempt['cpu_s'])} of CPU")
    if attempt.get("max_rss_bytes") is not None:
        used.append(f"{size(attempt['max_rss_bytes'])} of memory at most")
    lines += labelled("used", ", ".join(used))
    lines += block("error", safe_lines(attempt.get("error") or ""))
    lines += block("traceback", safe_lines(attempt.get("traceback") or ""))
    lines += block("output", safe_lines(attempt.get("output_tail") or ""))
    return lines


def _pretty(value: Any) -> list[str]:
    if value is None:
        return []
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    if len(text) <= 100:
        text = json.dumps(value, ensure_ascii=False, default=str)
    lines = safe_lines(text)
    if len(lines) > _VALUE_LINES_MAX:
        left = len(lines) - _VALUE_LINES_MAX
        lines = [*lines[:_VALUE_LINES_MAX], f"({count(left, 'line')} more; --json shows all)"]
    return lines


# --- changes and the rest ---------------------------------------------------------------------


def done(body: Body, style: Style) -> list[str]:
    """The answer to a change: what the daemon says, and what it did not know."""
    lines = safe_lines(body.get("message") or "done")
    for key in ("unknown", "unchanged"):
        names = body.get(key)
        if isinstance(names, list) and names:
            lines.append(f"{key}: {some(names, 10)}")
    return lines


def ended(body: Body, style: Style) -> list[str]:
    """The outcome of a run."""
    counts = part(body, "tasks")
    words = [
        f"{int(counts[word]):,} {word}"
        for word in ("succeeded", "failed", "canceled", "running", "assigned", "queued")
        if counts.get(word)
    ]
    what = style.dot.join(words) or "no tasks"
    return [f"{safe(body.get('session', ''))} {style.state(str(body.get('state', '')))}: {what}"]


def snapshot(body: Body, style: Style) -> list[str]:
    """Status, then workers and launches."""
    lines = status(body, style)[:-2]
    for title, key, screen in (
        ("workers", "worker_list", workers),
        ("launches", "launch_list", launches),
    ):
        rows = body.get(key)
        if rows:
            lines += ["", *screen({title: rows}, style)]
    return lines


SCREENS: Final[dict[str, Screen]] = {
    "status": status,
    "tasks": tasks,
    "task": task,
    "workers": workers,
    "launches": launches,
    "events": events,
    "sessions": sessions,
    "snapshot": snapshot,
    "wait": ended,
    "failures": failures,
    "explain": explain,
}


# --- small parts ---------------------------------------


def _percent(fraction: Any) -> str | None:
    return f"{100 * fraction:.0f} %" if isinstance(fraction, int | float) else None


def _maybe_duration(seconds: Any) -> str | None:
    return duration(seconds) if isinstance(seconds, int | float) else None


def _ago(seconds: Any) -> str | None:
    return f"{duration(seconds)} ago" if isinstance(seconds, int | float) else None


def _took(row: Body, style: Style) -> str | None:
    started, finished = moment(row.get("started_at")), moment(row.get("finished_at"))
    if started is None:
        return None
    if finished is None:
        if row.get("state") != "running":
            return None
        finished = style.wall
    return duration(max(0.0, finished - started))
