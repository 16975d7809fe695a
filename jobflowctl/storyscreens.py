"""What people see of causes and histories: failures, explain, events, what tasks printed.

Pure: a body and a `Style` in, lines out. Strings of a body go through `safe`; fields that are
missing or new do no harm.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Any, Final

from jobflowctl.style import Body, Style, block, labelled, local, part
from jobflowctl.text import Column, count, duration, safe, safe_lines

_HOSTS_SHOWN = 3
#: What an attempt took from the task's budgets.
_COSTS: Final[dict[Any, str]] = {"retries": "a retry", "losses": "a loss", "": "nothing"}
#: Columns of a terminal that has room for more than the cause and an example.
_WIDE = 120


def failures(body: Body, style: Style) -> list[str]:
    """Failed tasks by cause, and what to type for one of the causes."""
    groups = body.get("groups") or []
    if not groups:
        return ["no task has failed"]
    tasks = sum(int(one.get("count") or 0) for one in groups)
    lines = [f"{count(len(groups), 'group')}, {count(tasks, 'task')}", ""]
    columns = [
        Column("GROUP", right=True),
        Column("TASKS", right=True),
        Column("CAUSE"),
        Column("FIRST EXAMPLE", middle=True, spare=True),
        Column("HOSTS", spare=True),
        Column("LAST", spare=True),
    ]
    if style.columns is not None and style.columns < _WIDE:
        # The cause is what people came for.
        columns = columns[:4]
    lines += style.table(
        columns,
        [
            (
                one.get("group"),
                one.get("count"),
                one.get("signature"),
                one.get("example_task_id"),
                some(one.get("hosts") or (), _HOSTS_SHOWN),
                local(one.get("last_at")),
            )[: len(columns)]
            for one in groups
        ],
    )
    first = groups[0]
    example = shlex.quote(safe(first.get("example_task_id") or ""))
    lines += ["", f"see one   {style.paint(style.ctl('task ' + example), 'bold')}"]
    again = style.ctl(f"retry --group {safe(first.get('group'))}")
    return [*lines, f"go again  {style.paint(again, 'bold')}"]


def explain(body: Body, style: Style) -> list[str]:
    """The story of one task."""
    lines = [style.paint(safe(body.get("story", "")), "bold")]
    # The story ends with the first reason.
    for reason in (body.get("reasons") or [])[1 if body.get("story") else 0 :]:
        first, *rest = safe_lines(reason) or [""]
        lines += [f"  - {first}", *(f"    {line}" for line in rest)]
    lines += _holder(part(body, "holder"))
    left = part(body, "budgets")
    lines += labelled(
        "budgets",
        f"{count(int(left.get('retries_left') or 0), 'retry', 'retries')}, "
        f"{count(int(left.get('losses_left') or 0), 'loss', 'losses')} and "
        f"{count(int(left.get('deliveries_left') or 0), 'start')} left",
    )
    attempts = body.get("attempts") or []
    if attempts:
        lines += ["", *_attempts(attempts, style)]
    history = [f"  {event_line(one)}" for one in body.get("events") or []]
    return [*lines, "", "history", *history] if history else lines


def _holder(held: Body) -> list[str]:
    if not held:
        return []
    words = [f"attempt {safe(held.get('attempt'))} at {safe(held.get('worker_id'))}"]
    words.append(f"on {safe(held.get('host'))}")
    if isinstance(held.get("progress"), int | float):
        words.append(f"{100 * held['progress']:.0f} % done")
    return labelled("held by", ", ".join(words))


def _attempts(attempts: Sequence[Body], style: Style) -> list[str]:
    return style.table(
        [
            Column("ATTEMPT", right=True),
            Column("OUTCOME"),
            Column("CAUSE"),
            Column("COST"),
            Column("WORKER", middle=True, spare=True),
            Column("HOST", spare=True),
            Column("ENDED", spare=True),
            Column("ERROR"),
        ],
        [
            (
                one.get("attempt"),
                one.get("outcome"),
                _cause(one),
                None if one.get("outcome") == "succeeded" else _COSTS.get(one.get("charged")),
                one.get("worker_id"),
                one.get("host"),
                local(one.get("ended_at")),
                one.get("error"),
            )
            for one in attempts
        ],
    )


def _cause(attempt: Body) -> object:
    """What ended it. The signal says more of a crash; a time-out is one, however it was ended."""
    cause, signal = attempt.get("cause"), attempt.get("exit_signal")
    return f"{cause}: {signal}" if cause == "crash" and signal else cause or signal


def events(body: Body, style: Style) -> list[str]:
    """History, one line each."""
    return [event_line(row) for row in body.get("events") or []] or ["nothing happened yet"]


def event_line(row: Body) -> str:
    """One line of history."""
    names = [row.get(key) for key in ("task_id", "worker_id", "launch_id")]
    who = " ".join(safe(name) for name in names if name)
    text = f"{local(row.get('at'))}  {safe(row.get('kind', '')):<18} {who}"
    return f"{text}  {safe(row.get('text') or '')}".rstrip()


def printed(body: Body, style: Style) -> list[str]:
    """What the attempts of a task printed, as far as it is kept."""
    attempts = body.get("attempts") or []
    lines: list[str] = []
    for one in attempts:
        outcome = style.state(str(one.get("outcome") or "running"))
        where = f"{safe(one.get('worker_id') or '-')} on {safe(one.get('host') or '-')}"
        lines += [f"attempt {safe(one.get('attempt', '?'))}  {outcome}  {where}"]
        lines += block("output", safe_lines(one.get("output_tail") or ""))
        lines += block("traceback", safe_lines(one.get("traceback") or ""))
    running = part(body, "running")
    if running:
        lines += _still_running(running, str(body.get("state") or "running"), style)
    elif not attempts:
        lines.append("no attempt has begun; what one prints is here when it has ended")
    return lines


def _still_running(running: Body, state: str, style: Style) -> list[str]:
    """The attempt of now: who has it, how far it is, and its output so far or why there is none."""
    words = [f"attempt {safe(running.get('attempt', '?'))}  {style.state(state)}"]
    if isinstance(running.get("running_s"), int | float):
        words.append(f"for {duration(running['running_s'])}")
    if isinstance(running.get("progress"), int | float):
        words.append(f"{100 * running['progress']:.0f} % done")
    who = f"{safe(running.get('worker_id') or '-')} on {safe(running.get('host') or '-')}"
    lines = ["  ".join([*words, who])]
    if "text" in running:
        found = safe_lines(running.get("text") or "")
        return lines + (block("so far", found) or ["  it has printed nothing so far"])
    why = running.get("why_not")
    reason = f" ({safe(why)})" if why else ""
    return [*lines, f"  its output comes with its end: until then its worker has it{reason}"]


def some(names: Sequence[object], most: int = 3) -> str:
    """The first few names, and how many there are besides."""
    text = ", ".join(safe(name) for name in names[:most])
    return text + (f" and {len(names) - most:,} more" if len(names) > most else "")
