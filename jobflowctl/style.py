"""How screens are drawn: width, colours, characters, and the parts that they share. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from jobflowctl.text import Column, clip, safe, table, width

Body = Mapping[str, Any]

_COLOURS: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33"}
_STATE_COLOURS: Final = {
    "running": "green",
    "generating": "green",
    "succeeded": "green",
    "done": "green",
    "live": "green",
    "paused": "yellow",
    "draining": "yellow",
    "quarantined": "yellow",
    "stale": "yellow",
    "degraded": "red",
    "failed": "red",
}
_LABEL_COLUMNS: Final = 10


@dataclass(frozen=True, slots=True)
class Style:
    """How to draw: `columns` None means that nothing is cut. `wall` is now, for ages."""

    columns: int | None = None
    colour: bool = False
    unicode: bool = True
    wall: float = 0.0
    session: str = ""

    def paint(self, text: str, colour: str | None) -> str:
        """The text in a colour, where colours are wanted."""
        if not (self.colour and colour and text):
            return text
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m"

    def state(self, word: str) -> str:
        """A state word in the colour of its meaning."""
        return self.paint(safe(word), _STATE_COLOURS.get(word))

    @property
    def ellipsis(self) -> str:
        return "…" if self.unicode else "~"

    @property
    def dot(self) -> str:
        return " · " if self.unicode else ", "

    def table(self, columns: Sequence[Column], rows: Sequence[Sequence[object]]) -> list[str]:
        """A table that fits."""
        return table(columns, rows, columns_max=self.columns, ellipsis=self.ellipsis)

    def ctl(self, words: str) -> str:
        """A command to type next, for this session."""
        return f"jobflowctl -s {safe(self.session)} {words}" if self.session else words


def part(body: Body, key: str) -> Body:
    """The object under a key; {} if there is none."""
    value = body.get(key)
    return value if isinstance(value, Mapping) else {}


def labelled(label: str, text: str) -> list[str]:
    """A labelled line, or none if there is nothing to say."""
    return [f"  {label:<{_LABEL_COLUMNS}}{text}"] if text else []


def block(label: str, lines: Sequence[str]) -> list[str]:
    """A labelled line, or a label with its lines below."""
    if len(lines) < 2:
        return [f"  {label:<{_LABEL_COLUMNS}}{line}" for line in lines]
    return [f"  {label}", *(f"    {line}" for line in lines)]


def clipped(text: str, style: Style) -> str:
    """A safe text cut in its middle to the width of the screen."""
    columns = style.columns or width(text)
    return clip(text, columns, middle=True, ellipsis=style.ellipsis)


def moment(text: Any) -> float | None:
    """Seconds since the epoch of an ISO-8601 text of the daemon; None if it is none."""
    if not isinstance(text, str):
        return None
    try:
        return datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()
    except (ValueError, OverflowError, OSError):
        return None


def local(text: Any) -> str:
    """A moment in the reader's own time zone."""
    at = moment(text)
    if at is None:
        return "-"
    try:
        return datetime.fromtimestamp(at, timezone.utc).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return "-"


def clock(wall: float) -> str:
    """The time of day, for lines that come one after another."""
    return datetime.fromtimestamp(wall, timezone.utc).astimezone().strftime("%H:%M:%S")
