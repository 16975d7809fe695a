"""A list of any length of which only the visible rows are ever formatted, with a cursor.

Ten thousand rows cost no more than the thirty that are seen; sorting them is all that grows. Cells
are plain text through `text.safe`, never markup.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from rich.segment import Segment
from rich.style import Style
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.scroll_view import ScrollView
from textual.strip import Strip

from jobflowctl.text import clip, safe, width

Body = Mapping[str, Any]

_GAP: Final = 2
_COLUMN_MIN: Final = 5
#: Rows around the visible ones whose widths count, so that scrolling does not move columns.
_MEASURED: Final = 100


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its words from a row, the value to sort by, and how it looks."""

    title: str
    words: Callable[[Body], Any]
    order: Callable[[Body], Any] | None = None
    style: Callable[[Body], str] | None = None
    right: bool = False
    middle: bool = False

    def text(self, row: Body) -> str:
        """The cell, safe to show; a dash where there is nothing."""
        words = self.words(row)
        return "-" if words is None or words == "" else safe(words).replace("\\n", " ")


def sort_key(found: Any) -> tuple[int, Any]:
    """Values of any kind in one order: numbers, texts, and nothing last."""
    if found is None or found == "":
        return (2, "")
    if isinstance(found, bool | int | float):
        return (0, found)
    return (1, str(found))


class RowList(ScrollView, can_focus=True):
    """Rows under a line of titles. Enter on a row sends `Opened`."""

    DEFAULT_CSS = "RowList { height: 1fr; scrollbar-size-horizontal: 0; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "go(0)", "First", show=False),
        Binding("end,G", "go(-1)", "Last", show=False),
        Binding("enter", "open", "Details", show=True),
    ]

    class Opened(Message):
        """A row was chosen."""

        def __init__(self, row: Body) -> None:
            super().__init__()
            self.row = row

    def __init__(
        self, fields: Sequence[Field], key: Callable[[Body], object], *, nothing: str, id: str
    ) -> None:
        """`key` tells rows apart; `nothing` is shown where there are none."""
        super().__init__(id=id)
        self._fields = tuple(fields)
        self._key = key
        self.nothing = nothing
        self._rows: list[Body] = []
        self._cursor = 0
        self._sort: int | None = None
        self._down = False
        self._widths: list[int] = []
        self._measured_for: tuple[int, int, int] = (-1, -1, -1)
        self.unicode = True

    # --- what others call -----------------------------------------------------------------------

    @property
    def current(self) -> Body | None:
        """The row under the cursor."""
        return self._rows[self._cursor] if self._rows else None

    @property
    def rows(self) -> Sequence[Body]:
        """All rows, in the order shown."""
        return self._rows

    def show(self, rows: Sequence[Body], *, follow: bool = False) -> None:
        """Show these; the cursor stays on its row, or with `follow` at the end if it was there."""
        before = self.current
        at_end = self._cursor >= len(self._rows) - 1
        self._rows = self._sorted(rows)
        if follow and at_end:
            self._cursor = max(0, len(self._rows) - 1)
        elif before is not None:
            name = self._key(before)
            same = (index for index, row in enumerate(self._rows) if self._key(row) == name)
            self._cursor = next(same, min(self._cursor, max(0, len(self._rows) - 1)))
        else:
            self._cursor = 0
        self._lay_out()

    def sort_next(self) -> str:
        """Sort by the next column, then the other way round, then as it came; says how."""
        if self._sort is not None and not self._down:
            self._down = True
        else:
            start = 0 if self._sort is None else self._sort + 1
            columns = range(start, len(self._fields))
            self._sort = next((n for n in columns if self._fields[n].order is not None), None)
            self._down = False
        self.show(self._rows)
        self._to(0)
        if self._sort is None:
            return "in the daemon's order"
        return f"by {self._fields[self._sort].title.lower()}{', descending' * self._down}"

    # --- keys -----------------------------------------------------------------------------------

    def action_move(self, step: int) -> None:
        self._to(self._cursor + step)

    def action_page(self, direction: int) -> None:
        self._to(self._cursor + direction * max(1, self.size.height - 2))

    def action_go(self, index: int) -> None:
        self._to(index if index >= 0 else len(self._rows) - 1)

    def action_open(self) -> None:
        if self.current is not None:
            self.post_message(self.Opened(self.current))

    def _to(self, index: int) -> None:
        self._cursor = max(0, min(index, len(self._rows) - 1))
        self._keep_in_view()
        self.refresh()

    def on_resize(self) -> None:
        self._lay_out()

    # --- drawing --------------------------------------------------------------------------------

    def _sorted(self, rows: Sequence[Body]) -> list[Body]:
        if self._sort is None:
            return list(rows)
        order = self._fields[self._sort].order
        assert order is not None
        value = order
        known = [row for row in rows if value(row) not in (None, "")]
        unknown = [row for row in rows if value(row) in (None, "")]
        known.sort(key=lambda row: sort_key(value(row)), reverse=self._down)
        return known + unknown

    def _lay_out(self) -> None:
        self.virtual_size = Size(self.size.width, len(self._rows) + 1)
        self._measured_for = (-1, -1, -1)
        self._keep_in_view()
        self.refresh()

    def _keep_in_view(self) -> None:
        visible = max(1, self.size.height - 1)
        top = self.scroll_offset.y
        if self._cursor < top:
            self.scroll_to(y=self._cursor, animate=False, immediate=True)
        elif self._cursor >= top + visible:
            self.scroll_to(y=self._cursor - visible + 1, animate=False, immediate=True)

    def _measure(self) -> None:
        top, columns = self.scroll_offset.y, self.scrollable_content_region.width
        state = (top // _MEASURED, columns, len(self._rows))
        if state == self._measured_for:
            return
        self._measured_for = state
        first = top // _MEASURED * _MEASURED
        some = self._rows[first : first + _MEASURED + self.size.height]
        cells = [[one.text(row) for row in some] for one in self._fields]
        # A column that has nothing to say leaves its room to the others.
        widths = [
            max([width(self._title(index)), *map(width, column)])
            if index == 0 or any(cell != "-" for cell in column)
            else 0
            for index, column in enumerate(cells)
        ]
        room = columns - _GAP * sum(1 for one in widths if one)
        while sum(widths) > room:
            widest = max(range(len(widths)), key=lambda index: widths[index])
            if widths[widest] <= _COLUMN_MIN:
                break
            widths[widest] -= 1
        self._widths = widths

    def _title(self, index: int) -> str:
        title = self._fields[index].title
        if index != self._sort:
            return title
        up, down = ("▲", "▼") if self.unicode else ("^", "v")
        return f"{title} {down if self._down else up}"

    def render_line(self, y: int) -> Strip:
        """One line of the window: the titles, a row, or nothing."""
        columns = self.size.width
        self._measure()
        if y == 0:
            titles = [self._title(index) for index in range(len(self._fields))]
            return self._strip(titles, [Style(bold=True, dim=True)] * len(titles), columns, None)
        index = self.scroll_offset.y + y - 1
        if not self._rows and y == 1:
            return Strip(
                [Segment(clip(self.nothing, columns), Style(dim=True))]
            ).adjust_cell_length(columns, self.rich_style)
        if index >= len(self._rows):
            return Strip.blank(columns, self.rich_style)
        row = self._rows[index]
        cells = [one.text(row) for one in self._fields]
        styles = [Style.parse(one.style(row) if one.style else "") for one in self._fields]
        under = Style(reverse=True) if index == self._cursor and self.has_focus else None
        return self._strip(cells, styles, columns, under)

    def _strip(
        self, cells: Sequence[str], styles: Sequence[Style], columns: int, under: Style | None
    ) -> Strip:
        base = self.rich_style + under if under is not None else self.rich_style
        segments: list[Segment] = []
        for index, (cell, style) in enumerate(zip(cells, styles, strict=True)):
            one, room = self._fields[index], self._widths[index]
            if not room:
                continue
            text = clip(cell, room, middle=one.middle, ellipsis="…" if self.unicode else "~")
            blanks = " " * (room - width(text))
            text = blanks + text if one.right else text + blanks
            segments += [Segment(text, base + style), Segment(" " * _GAP, base)]
        return Strip(segments).adjust_cell_length(columns, base)
