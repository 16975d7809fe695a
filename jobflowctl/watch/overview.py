"""The first screen of the view: everything at a glance, in as many lines as there are. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from jobflowctl.statusscreen import CANARY
from jobflowctl.style import local, part
from jobflowctl.text import clip, count, duration, rate, safe, safe_lines, size
from jobflowctl.watch.drawing import (
    STATE_STYLES,
    Body,
    Line,
    Piece,
    clip_line,
    eta_words,
    heartbeat_style,
    joined,
    progress_bar,
    sparkline,
)

_LABEL_COLUMNS: Final = 10
_SPARK_COLUMNS_MAX: Final = 60
_WARNING_LINES_MAX: Final = 4
_NAMES_MAX: Final = 3


@dataclass(slots=True)
class Model:
    """What the view knows: the latest of everything that it has heard."""

    body: Body = field(default_factory=dict)
    groups: Sequence[Body] = ()
    events: Sequence[Body] = ()
    unicode: bool = True

    @property
    def dot(self) -> str:
        return " · " if self.unicode else ", "

    @property
    def ellipsis(self) -> str:
        return "…" if self.unicode else "~"


def overview(model: Model, columns: int, lines: int) -> list[Line]:
    """So many lines of so many columns: first what always matters, then what there is room for."""
    if not model.body:
        return [[("waiting for the first answer of the daemon", "dim")]]
    top = [
        *_progress(model, columns),
        _labelled("speed", _speed(model, columns)),
        _labelled("end", [eta_words(model.body)]),
        _labelled("workers", _worker_counts(model)),
        _labelled("launches", _launch_counts(model)),
        _labelled("uses", _resources(model)),
        *_warnings(model),
    ]
    room = max(0, lines - len(top))
    sections = [
        ("working on", _running(model, columns)),
        ("why launches wait", _waiting_launches(model)),
        ("failures", _failures(model)),
        ("lately", [event_line(one) for one in reversed(model.events)]),
    ]
    found = top + _shared(sections, room)
    return [clip_line(line, columns, model.ellipsis) for line in found[:lines]]


def _shared(sections: Sequence[tuple[str, list[Line]]], room: int) -> list[Line]:
    """The sections that have something to say, each with its share of the room.

    One that needs less than its share leaves the rest to the others; the log comes last and takes
    what is left.
    """
    speaking = [(title, found) for title, found in sections if found]
    sizes = dict.fromkeys((title for title, _ in speaking), 0)
    left = room - 2 * len(speaking)
    while left > 0 and any(sizes[title] < len(found) for title, found in speaking):
        for title, found in speaking:
            if left > 0 and sizes[title] < len(found):
                sizes[title] += 1
                left -= 1
    lines: list[Line] = []
    for title, found in speaking:
        shown = found[: sizes[title]]
        if not shown:
            continue
        hidden = len(found) - len(shown)
        more = f"  ({hidden:,} more)" if hidden and title != "lately" else ""
        lines += [[], [(title, "bold"), (more, "dim")], *shown]
    return lines


def _labelled(label: str, words: Sequence[Piece]) -> Line:
    return [(f"{label:<{_LABEL_COLUMNS}}", "dim"), *words]


def _progress(model: Model, columns: int) -> list[Line]:
    tasks = part(model.body, "tasks")
    total = int(tasks.get("total") or 0)
    ended = sum(int(tasks.get(word) or 0) for word in ("succeeded", "failed", "canceled"))
    so_far = " so far" if model.body.get("state") == "generating" else ""
    share = f"{100 * ended / total:5.1f} %" if total else "    -"
    if total and ended == total:
        share = "  100 %"
    words = f" {share}  {ended:,} of {total:,}{so_far}"
    bar = progress_bar(tasks, max(10, columns - len(words)), unicode=model.unicode)
    counts: list[Piece] = []
    for word in ("succeeded", "failed", "canceled", "running", "assigned", "queued"):
        number = int(tasks.get(word) or 0)
        if not number and word not in ("succeeded", "failed", "running", "queued"):
            continue
        text = f"{number:,} {word}"
        if word == "queued" and tasks.get("held"):
            text += f" ({int(tasks['held']):,} held)"
        style = {"failed": "red", "succeeded": "green", "canceled": "yellow"}.get(word, "")
        counts.append((text, style if number else "dim"))
    return [[*bar, (words, "bold")], _labelled("tasks", joined(counts, model.dot))]


def _speed(model: Model, columns: int) -> Line:
    body, pace = model.body, part(model.body, "pace")
    known = body.get("throughput_per_s") is not None and body.get("state") != "done"
    words = rate(body["throughput_per_s"]) if known else "-"
    line: Line = [(f"{words:<16} ", "")]
    ended, bucket_s = pace.get("ended"), pace.get("bucket_s")
    if isinstance(ended, list) and ended and isinstance(bucket_s, int | float):
        numbers = [float(one) for one in ended if isinstance(one, int | float)]
        over = f" last {duration(bucket_s * len(numbers))}"
        room = min(_SPARK_COLUMNS_MAX, columns - _LABEL_COLUMNS - 17 - len(over))
        line += [(sparkline(numbers, room, unicode=model.unicode), "green"), (over, "dim")]
    return line


def _worker_counts(model: Model) -> Line:
    workers = part(model.body, "workers")
    words: list[Piece] = [
        (
            f"{int(workers.get('online') or 0):,} of {int(workers.get('target') or 0):,} wanted",
            "" if workers.get("online") else "yellow",
        )
    ]
    for word in ("busy", "idle", "draining", "quarantined", "offline"):
        if workers.get(word):
            words.append((f"{int(workers[word]):,} {word}", STATE_STYLES.get(word, "dim")))
    return joined(words, model.dot)


def _launch_counts(model: Model) -> Line:
    launches = part(model.body, "launches")
    words = [
        (f"{int(number):,} {safe(word)}", STATE_STYLES.get(word, ""))
        for word, number in launches.items()
        if number
    ]
    return joined(words, model.dot) if words else [("none", "dim")]


def _resources(model: Model) -> Line:
    uses = part(model.body, "resources")
    words: list[Piece] = []
    for key, text, what in (("cpu_s", duration, "CPU"), ("rss_bytes", size, "memory")):
        if uses.get(key) is not None:
            words.append((f"{text(uses[key])} of {what}", ""))
    if uses.get("db_bytes") is not None:
        words.append((f"{size(uses['db_bytes'])} of database", ""))
    return joined(words, model.dot)


def _warnings(model: Model) -> list[Line]:
    found = [str(one) for one in model.body.get("warnings") or ()]
    launching = part(model.body, "launching")
    if launching.get("paused"):
        found.insert(0, f"no launches are submitted: {launching.get('reason') or 'paused'}")
    if launching.get("canary"):
        found.append(CANARY)
    lines = [(safe_lines(one) or [""])[0] for one in found]
    shown: list[Line] = [[(f"! {one}", "yellow")] for one in lines[:_WARNING_LINES_MAX]]
    if len(lines) > _WARNING_LINES_MAX:
        shown.append(
            [(f"! and {count(len(lines) - _WARNING_LINES_MAX, 'more warning')}", "yellow")]
        )
    return shown


def _running(model: Model, columns: int) -> list[Line]:
    """Who runs what, and how far it is."""
    name_columns = 24 if columns < 120 else 40
    lines: list[Line] = []
    for worker in model.body.get("worker_list") or ():
        progress = part(worker, "progress")
        for task_id in worker.get("running") or ():
            fraction = progress.get(task_id)
            share = f"{100 * fraction:3.0f} %" if isinstance(fraction, int | float) else "     "
            age = worker.get("heartbeat_age_s")
            heard = f"heard {duration(age)} ago" if isinstance(age, int | float) else ""
            task = clip(safe(task_id), name_columns, middle=True, ellipsis=model.ellipsis)
            lines.append(
                [
                    (f"  {task:<{name_columns}} ", ""),
                    (f"{share}  ", "green"),
                    (f"{heard:<16} ", heartbeat_style(age)),
                    (f"{safe(worker.get('host'))} {safe(worker.get('worker_id'))}", "dim"),
                ]
            )
    return lines


def _waiting_launches(model: Model) -> list[Line]:
    lines: list[Line] = []
    for one in model.body.get("launch_list") or ():
        if one.get("state") in ("planned", "submitted", "pending", "stale") and one.get("reason"):
            lines.append(
                [
                    (f"  {safe(one.get('batch_job_id') or one.get('launch_id'))}  ", ""),
                    (f"{safe(one.get('state'))}  ", STATE_STYLES.get(str(one["state"]), "")),
                    (safe(one["reason"]), "yellow"),
                ]
            )
    return lines


def _failures(model: Model) -> list[Line]:
    return [
        [
            (f"  {int(one.get('count') or 0):>6,} ", "red"),
            (f" {safe(one.get('signature'))}", ""),
            (f"   e.g. {safe(one.get('example_task_id'))}", "dim"),
        ]
        for one in model.groups
    ]


def event_line(event: Body) -> Line:
    """One line of history: when, what, who, and the words about it."""
    kind = safe(event.get("kind", ""))
    names: list[Any] = [event.get(key) for key in ("task_id", "worker_id", "launch_id")]
    who = next((safe(name) for name in names if name), "")
    return [
        (f"  {local(event.get('at'))[-8:]} ", "dim"),
        (f"{kind:<16} ", event_style(kind)),
        (f"{who}  ", ""),
        (safe(event.get("text") or ""), "dim"),
    ]


def event_style(kind: str) -> str:
    """The colour of a kind of event."""
    if "failed" in kind or "lost" in kind or "expired" in kind:
        return "red"
    return "yellow" if "paused" in kind or "stale" in kind or "left" in kind else "green"


def waited_for(body: Body) -> str:
    """Who still runs what, while the run is being stopped."""
    busy = [
        f"{safe(task_id)} on {safe(one.get('host'))}"
        for one in body.get("worker_list") or ()
        for task_id in one.get("running") or ()
    ]
    names = ", ".join(busy[:_NAMES_MAX])
    more = f" and {len(busy) - _NAMES_MAX} more" if len(busy) > _NAMES_MAX else ""
    online = int(part(body, "workers").get("online") or 0)
    what = f"{names}{more}" if busy else count(online, "worker")
    return f"stopping (Ctrl-C: now), waiting for {what}"
