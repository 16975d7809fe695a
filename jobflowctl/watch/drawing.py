"""Lines of coloured words, and the small pictures in them. Pure.

A line is a list of (text, style) pairs; a style is "", "bold", "dim" or a colour with a meaning
(green good, yellow look, red bad), or several of these words. Texts are safe: who puts data into a
line passes it through `text.safe`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobflowctl.statusscreen import time_left
from jobflowctl.style import part
from jobflowctl.text import clip, duration, safe, width

Body = Mapping[str, Any]
Piece = tuple[str, str]
Line = list[Piece]

STATE_STYLES: Final = {
    "running": "green",
    "generating": "green",
    "succeeded": "green",
    "done": "green",
    "online": "green",
    "busy": "green",
    "paused": "yellow",
    "draining": "yellow",
    "quarantined": "yellow",
    "stale": "yellow",
    "pending": "yellow",
    "held": "yellow",
    "canceled": "yellow",
    "degraded": "red",
    "failed": "red",
    "ended": "dim",
    "idle": "dim",
    "queued": "dim",
}
_SPARKS: Final = "▁▂▃▄▅▆▇█"
_ASCII_SPARKS: Final = "_.-:=+*#"
#: A worker is late after this many of its usual heartbeats, and very late after these.
LATE_S: Final = 20.0
VERY_LATE_S: Final = 40.0


def clip_line(line: Sequence[Piece], columns: int, ellipsis: str = "…") -> Line:
    """The line cut to so many columns."""
    found: Line = []
    room = columns
    for text, style in line:
        if width(text) > room:
            found.append((clip(text, room, ellipsis=ellipsis), style))
            return found
        found.append((text, style))
        room -= width(text)
    return found


def plain(line: Sequence[Piece]) -> str:
    """The line without its colours."""
    return "".join(text for text, _ in line)


def joined(pieces: Sequence[Piece], gap: str) -> Line:
    """Pieces with a gap between them."""
    line: Line = []
    for piece in pieces:
        line += [(gap, "dim"), piece] if line else [piece]
    return line


def sparkline(numbers: Sequence[float], columns: int, *, unicode: bool = True) -> str:
    """The numbers as columns of different height, neighbours added up where there is no room."""
    if columns <= 0 or not numbers:
        return ""
    sums = _fitted(numbers, columns)
    sparks = _SPARKS if unicode else _ASCII_SPARKS
    top = max(sums)
    if top <= 0:
        return sparks[0] * len(sums)
    # What is not zero is never drawn as if it were.
    steps = len(sparks) - 1
    return "".join(sparks[0 if one <= 0 else max(1, round(steps * one / top))] for one in sums)


def _fitted(numbers: Sequence[float], columns: int) -> list[float]:
    count = len(numbers)
    if count <= columns:
        return list(numbers)
    return [
        sum(numbers[index * count // columns : (index + 1) * count // columns])
        for index in range(columns)
    ]


def progress_bar(tasks: Body, columns: int, *, unicode: bool = True) -> Line:
    """Succeeded, failed, running and the rest, each in its share of the columns."""
    total = int(tasks.get("total") or 0)
    full, rest = ("█", "░") if unicode else ("#", ".")
    marks = {"failed": full if unicode else "!", "running": "▒" if unicode else ">"}
    if total <= 0 or columns <= 0:
        return [(rest * max(0, columns), "dim")]
    line: Line = []
    done = drawn = 0
    shares = (
        ("succeeded", "green"),
        ("failed", "red"),
        ("canceled", "yellow"),
        ("running", "yellow"),
    )
    for word, style in shares:
        number = int(tasks.get(word) or 0)
        done += number
        end = done * columns // total
        if number and end <= drawn:
            end = drawn + 1
        end = min(end, columns)
        if end > drawn:
            line.append((marks.get(word, full) * (end - drawn), style))
            drawn = end
    if drawn < columns:
        line.append((rest * (columns - drawn), "dim"))
    return line


def eta_words(body: Body) -> Piece:
    """When it ends, as a range; or since when nothing ends; or why nobody knows."""
    tasks = part(body, "tasks")
    total = int(tasks.get("total") or 0)
    ended = sum(int(tasks.get(word) or 0) for word in ("succeeded", "failed", "canceled"))
    if body.get("stalled_s") is not None:
        return f"stalled: no task has ended for {duration(body['stalled_s'])}", "yellow"
    if total and ended >= total and body.get("state") != "generating":
        return "nothing left to do", "green"
    left = time_left({"eta_range_s": body.get("eta_range_s")})
    if left:
        return left, ""
    reason = safe(str(body.get("eta_reason") or "").replace("\n", " "))
    return f"end unknown{': ' + reason if reason else ''}", "dim"


def heartbeat_style(age_s: Any) -> str:
    """How worrying a heartbeat's age is."""
    if not isinstance(age_s, int | float):
        return "dim"
    return "red" if age_s >= VERY_LATE_S else "yellow" if age_s >= LATE_S else ""
