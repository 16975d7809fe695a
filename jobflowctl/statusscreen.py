"""The status of a run, on one screen or on one line. Pure: a body and a `Style` in, lines out.

Rule: strings of a body go through `safe`; fields that are missing or new do no harm. Colours mean:
green good, yellow look, red bad.
"""

from __future__ import annotations

from typing import Final

from jobflowctl.style import Body, Style, clipped, clock, labelled, part
from jobflowctl.text import bar, count, duration, rate, safe, safe_lines, size

_BAR_COLUMNS_MAX: Final = 60
_ALERT_LINES_MAX: Final = 40
#: Said while only a few launches are out and the rest waits.
CANARY: Final = (
    "a few launches go ahead; the rest follows when a first task has succeeded (--no-canary: all "
    "at once)"
)


def status(body: Body, style: Style) -> list[str]:
    """One screen: state, why, counts, workers, launches, speed, warnings, what to type next."""
    tasks, workers = part(body, "tasks"), part(body, "workers")
    state = str(body.get("state", ""))
    lines = [
        f"{style.paint(safe(body.get('session', '')), 'bold')}  "
        f"{style.state(state)}{style.dot}up {duration(body.get('uptime_s'))}{style.dot}"
        f"pid {safe(body.get('pid', '-'))} on {safe(body.get('host', '-'))}",
        style.paint(clipped(safe(body.get("program", "")), style), "dim"),
    ]
    lines += [f"  {line}" for line in safe_lines(body.get("state_reason") or "")]
    lines += ["", *_progress(tasks, state, style), ""]
    lines += labelled("tasks", _task_counts(tasks, style))
    lines += labelled("speed", _speed(body))
    lines += labelled("workers", _worker_counts(workers))
    lines += labelled("launches", _launch_counts(part(body, "launches"), style))
    lines += labelled("uses", _resources(part(body, "resources")))
    lines += _alerts(body, tasks, style)
    lines += ["", f"next  {style.paint(_next_command(body, style), 'bold')}"]
    return lines


def _progress(tasks: Body, state: str, style: Style) -> list[str]:
    total = int(tasks.get("total") or 0)
    ended = sum(int(tasks.get(word) or 0) for word in ("succeeded", "failed", "canceled"))
    if not total:
        text = "no task yet" if state == "generating" else "no tasks"
        return [f"  {text}"]
    share = f"{100 * ended / total:5.1f} %" if ended < total else "100 %"
    so_far = " so far" if state == "generating" else ""
    words = f"{share}  {ended:,} of {count(total, 'task')}{so_far}"
    columns = min(_BAR_COLUMNS_MAX, (style.columns or 80) - len(words) - 8)
    if columns < 5:
        return [f"  {words}"]
    good, bad, now, rest = "█▓▒░" if style.unicode else "#!>."
    drawn = bar(
        [
            (int(tasks.get("succeeded") or 0), good),
            (int(tasks.get("failed") or 0) + int(tasks.get("canceled") or 0), bad),
            (int(tasks.get("running") or 0), now),
        ],
        total,
        columns,
        rest,
    )
    for char, colour in ((good, "green"), (bad, "red"), (now, "yellow")):
        run = char * drawn.count(char)
        if run:
            drawn = drawn.replace(run, style.paint(run, colour))
    return [f"  [{drawn}] {words}"]


def _task_counts(tasks: Body, style: Style) -> str:
    words = []
    for word in ("succeeded", "failed", "canceled", "running", "assigned", "queued"):
        number = int(tasks.get(word) or 0)
        if not number and word not in ("succeeded", "failed"):
            continue
        text = f"{number:,} {word}"
        if word == "queued" and tasks.get("held"):
            text += f" ({int(tasks['held']):,} held)"
        words.append(style.paint(text, "red" if word == "failed" and number else None))
    return style.dot.join(words)


def _speed(body: Body) -> str:
    # An average of late fades slowly: when nothing is left to do, it would be a lie.
    if body.get("throughput_per_s") is None or body.get("state") == "done":
        return ""
    left = time_left(body)
    return rate(body["throughput_per_s"]) + (f", {left}" if left else "")


def time_left(body: Body) -> str:
    """When the run may end: `5 min to 8 min left`; "" while it cannot be known."""
    found = body.get("eta_range_s")
    if isinstance(found, list) and [isinstance(one, int | float) for one in found] == [True] * 2:
        low, high = duration(found[0]), duration(found[1])
        return f"{low} to {high} left" if low != high else f"about {low} left"
    eta = body.get("eta_s")
    return f"about {duration(eta)} left" if eta is not None else ""


def _worker_counts(workers: Body) -> str:
    online = int(workers.get("online") or 0)
    words = [
        f"{int(workers.get(word) or 0):,} {word}"
        for word in ("busy", "idle", "draining", "quarantined")
        if workers.get(word)
    ]
    text = f"{online:,} of {int(workers.get('target') or 0):,} wanted"
    return text + (": " + ", ".join(words) if words else "")


def _launch_counts(launches: Body, style: Style) -> str:
    return style.dot.join(f"{number:,} {safe(word)}" for word, number in launches.items() if number)


def _resources(resources: Body) -> str:
    words = []
    if resources.get("cpu_s") is not None:
        words.append(f"{duration(resources['cpu_s'])} of CPU")
    if resources.get("rss_bytes") is not None:
        words.append(f"{size(resources['rss_bytes'])} of memory")
    if resources.get("db_bytes") is not None:
        words.append(f"{size(resources['db_bytes'])} of database")
    return ", ".join(words)


def _alerts(body: Body, tasks: Body, style: Style) -> list[str]:
    found = [str(one) for one in body.get("warnings") or ()]
    launching = part(body, "launching")
    if launching.get("paused"):
        found.insert(0, f"no launches are submitted: {launching.get('reason') or 'paused'}")
    if launching.get("canary"):
        found.append(CANARY)
    lines = []
    for one in found:
        first, *rest = safe_lines(one) or [""]
        lines.append(style.paint(f"! {first}", "yellow"))
        lines += [f"    {line}" for line in rest[:_ALERT_LINES_MAX]]
    return ["", *lines] if lines else []


def _next_command(body: Body, style: Style) -> str:
    tasks, state = part(body, "tasks"), body.get("state")
    if part(body, "launching").get("paused"):
        return style.ctl("release launcher")
    if state == "paused":
        return style.ctl("resume")
    if tasks.get("failed"):
        return style.ctl("failures")
    if state in ("done", "draining"):
        return style.ctl("wait")
    return style.ctl("watch")


def status_line(body: Body, style: Style) -> str:
    """The status on one line, for `watch` and the wrapper."""
    tasks, workers = part(body, "tasks"), part(body, "workers")
    total = int(tasks.get("total") or 0)
    ended = sum(int(tasks.get(word) or 0) for word in ("succeeded", "failed", "canceled"))
    words = [style.state(str(body.get("state", "")))]
    if total:
        words.append(f"{100 * ended / total:.1f} %  {ended:,}/{count(total, 'task')}")
    for word, colour in (("running", None), ("failed", "red"), ("canceled", "yellow")):
        if tasks.get(word):
            words.append(style.paint(f"{int(tasks[word]):,} {word}", colour))
    target = count(int(workers.get("target") or 0), "worker")
    words.append(f"{int(workers.get('online') or 0):,}/{target}")
    if body.get("throughput_per_s") is not None and body.get("state") != "done":
        words.append(rate(body["throughput_per_s"]))
    left = time_left(body)
    if left:
        words.append(left)
    if not workers.get("online") and body.get("state_reason"):
        words.append(safe(body["state_reason"]))
    return f"{clock(style.wall)}  {style.dot.join(words)}"
