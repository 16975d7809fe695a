"""Words for a terminal: safe text, widths, tables, bars, durations, sizes.

Pure. Rule: every string that came from outside passes `safe` before it is shown, so that a task
id, an error or a host name can never move the cursor, set a title or reorder the line.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Final

from jobflowd.wording import count as count

_GAP: Final = "  "
#: No column is squeezed below this: an ellipsis and a few characters on both sides; on very narrow
#: terminals an ellipsis and what still can be told apart.
_COLUMN_MIN: Final = 7
#: Below this a column with more to show is a riddle: spare columns make room for it.
_COLUMN_READABLE: Final = 12
_COLUMN_LEAST: Final = 4


def safe(value: object) -> str:
    """The text with everything that is not plainly printable shown as an escape.

    That covers control characters, C1, line separators, bidirectional marks, zero-width
    characters, lone surrogates and unassigned code points. Ordinary letters of all scripts stay.
    """
    text = value if type(value) is str else str(value)
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() else _escape(char) for char in text)


def safe_lines(value: object) -> list[str]:
    """Text of several lines, each made safe; tabs become blanks, line ends are what they are."""
    text = value if type(value) is str else str(value)
    lines = text.replace("\r\n", "\n").expandtabs(8).split("\n")
    while lines and not lines[-1].strip():
        lines.pop()
    return [safe(line) for line in lines]


def _escape(char: str) -> str:
    code = ord(char)
    if char in "\n\r\t":
        return {"\n": "\\n", "\r": "\\r", "\t": "\\t"}[char]
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def width(text: str) -> int:
    """Columns that a safe text takes in a terminal."""
    if text.isascii():
        return len(text)
    return sum(_char_width(char) for char in text)


def _char_width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in ("Mn", "Me"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def clip(text: str, columns: int, *, middle: bool = False, ellipsis: str = "…") -> str:
    """A safe text cut to so many columns, at its end or in its middle."""
    if width(text) <= columns:
        return text
    room = columns - len(ellipsis)
    if room <= 0:
        return ellipsis[:columns]
    tail = room // 2 if middle else 0
    end = _tail(text, tail)
    return _head(text, room - width(end)) + ellipsis + end


def _head(text: str, columns: int) -> str:
    used = 0
    for index, char in enumerate(text):
        used += _char_width(char)
        if used > columns:
            return text[:index]
    return text


def _tail(text: str, columns: int) -> str:
    return _head(text[::-1], columns)[::-1] if columns else ""


@dataclass(frozen=True, slots=True)
class Column:
    """A table's column: ids are cut in their middle, everything else at its end.

    `spare`: it goes where there is no room for all columns that a person could still read.
    """

    title: str
    right: bool = False
    middle: bool = False
    spare: bool = False


def table(
    columns: Sequence[Column],
    rows: Sequence[Sequence[object]],
    *,
    columns_max: int | None = None,
    ellipsis: str = "…",
) -> list[str]:
    """Aligned lines, the title first; cells are made safe here. None and "" are shown as "-".

    With `columns_max` spare columns go first, the last one before the others; then the widest give
    way until a line fits, and on very narrow terminals the last ones go. Columns in which no row
    has anything to show are left out.
    """
    cells = [["-" if cell is None or cell == "" else safe(cell) for cell in row] for row in rows]
    used = [
        index
        for index in range(len(columns))
        if not cells or index == 0 or any(row[index] != "-" for row in cells)
    ]
    widths = {
        index: max(width(columns[index].title), *(width(row[index]) for row in cells), 0)
        for index in used
    }
    if columns_max is not None:
        _drop_spare(columns, widths, columns_max)
        used = _fitting(widths, columns_max)
    lines = [[column.title for column in columns], *cells]
    return [
        _GAP.join(
            _fill(columns[index], line[index], widths[index], ellipsis) for index in used
        ).rstrip()
        for line in lines
    ]


def _drop_spare(columns: Sequence[Column], widths: dict[int, int], columns_max: int) -> None:
    """Let spare columns go until every other one has a width that can be read."""
    for index in sorted(widths, reverse=True):
        needed = sum(min(one, _COLUMN_READABLE) + len(_GAP) for one in widths.values())
        if needed - len(_GAP) <= columns_max:
            return
        if columns[index].spare:
            del widths[index]


def _fitting(widths: dict[int, int], columns_max: int) -> list[int]:
    """Squeeze columns until a line fits, and let the last ones go if that is not enough.

    The indexes of those that stay.
    """
    while True:
        room = columns_max - len(_GAP) * (len(widths) - 1)
        for least in (_COLUMN_MIN, _COLUMN_LEAST):
            _squeeze(widths, room, least)
        if sum(widths.values()) <= room or len(widths) == 1:
            return list(widths)
        widths.popitem()


def _squeeze(widths: dict[int, int], room: int, least: int) -> None:
    while sum(widths.values()) > room:
        widest = max(widths, key=lambda index: widths[index])
        if widths[widest] <= least:
            return
        widths[widest] -= 1


def _fill(column: Column, cell: str, columns: int, ellipsis: str) -> str:
    cut = clip(cell, columns, middle=column.middle, ellipsis=ellipsis)
    blanks = " " * (columns - width(cut))
    return blanks + cut if column.right else cut + blanks


def duration(seconds: float | None) -> str:
    """Seconds in two units that people use: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 5 min`, `3 d`."""
    if seconds is None:
        return "-"
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    for low, unit, part, small in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= low:
            rest = whole % low // part
            return f"{whole // low} {unit}" + (f" {rest} {small}" if rest else "")
    return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")


def seconds(text: str) -> float:
    """The seconds of `90`, `90s`, `5m`, `2h` or `1d`. Raises ValueError for anything else."""
    factors = {"s": 1, "m": 60, "h": 3600, "d": 86400}
    word = text.strip().lower()
    factor = factors.get(word[-1:], 0)
    value = float(word[:-1] if factor else word) * (factor or 1)
    if not 0 <= value < 1e9:
        raise ValueError("a duration is between 0 and 30 years")
    return value


def iso(at: float | None) -> str | None:
    """Wall-clock seconds as UTC ISO-8601, as the daemon writes it."""
    if at is None:
        return None
    moment = datetime.fromtimestamp(at, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def size(count: float | None) -> str:
    """Bytes in binary units: `512 B`, `1.5 MiB`."""
    if count is None:
        return "-"
    value = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" or value >= 100 else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def rate(per_second: float | None) -> str:
    """Throughput in the unit that gives a readable number."""
    if per_second is None:
        return "-"
    for factor, unit in ((1, "s"), (60, "min")):
        if per_second * factor >= 0.95:
            value = per_second * factor
            return f"{value:,.0f} tasks/{unit}" if value >= 10 else f"{value:.1f} tasks/{unit}"
    return f"{per_second * 3600:.1f} tasks/h"


def bar(parts: Sequence[tuple[int, str]], total: int, columns: int, rest: str) -> str:
    """A bar of `columns` characters: each part's share in its own character, `rest` after them.

    A part that is not zero gets at least one character as long as there is room.
    """
    if total <= 0 or columns <= 0:
        return rest * max(0, columns)
    drawn = ""
    done = 0
    for number, char in parts:
        done += number
        end = done * columns // total
        if number and end <= len(drawn):
            end = len(drawn) + 1
        drawn += char * (min(end, columns) - len(drawn))
    return drawn + rest * (columns - len(drawn))
