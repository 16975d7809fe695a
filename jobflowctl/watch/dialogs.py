"""Screens above the view: details, a question before a change, a line to type, help."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.screen import ModalScreen, Screen
from textual.widgets import Footer, Input, Static

from jobflowctl.text import safe

HELP: Final = (
    ("look", ""),
    ("1 to 6, Tab", "overview, tasks, workers, launches, failures, log"),
    ("arrows j k g G", "move; Enter shows details, Esc goes back"),
    ("/", "only rows that contain a text; Esc: all"),
    ("s", "sort by the next column, then the other way"),
    ("f  n  b", "tasks: next state, next page, page before"),
    ("space", "freeze the picture; the run goes on"),
    ("q", "leave"),
    ("change, after a question", ""),
    ("+  -", "one worker more, one less"),
    ("P", "give out no new tasks, or go on"),
    ("r", "queue again: this task, this group, all failed"),
    ("c", "cancel this task"),
    ("d", "let this worker finish and leave"),
    ("S", "end the run"),
)


class DetailScreen(Screen[None]):
    """Lines about one thing; they may be replaced while they are read."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,backspace,q", "app.pop_screen", "Back"),
        Binding("j", "scroll(1)", show=False),
        Binding("k", "scroll(-1)", show=False),
    ]

    def __init__(self, title: str, lines: Sequence[str]) -> None:
        super().__init__()
        self._title = title
        self._lines = list(lines)
        self.subject = ""

    def compose(self) -> ComposeResult:
        yield Static(Text(safe(self._title), style="bold"), id="detail-title")
        with VerticalScroll(id="detail-scroll"):
            yield Static(Text("\n".join(self._lines)), id="detail")
        yield Footer()

    def on_mount(self) -> None:
        self.query_one("#detail-scroll").focus()

    def show(self, lines: Sequence[str]) -> None:
        """Other lines, at the same place."""
        if list(lines) != self._lines:
            self._lines = list(lines)
            self.query_one("#detail", Static).update(Text("\n".join(self._lines)))

    def action_scroll(self, step: int) -> None:
        self.query_one("#detail-scroll").scroll_relative(y=step, animate=False)


class Question(ModalScreen[bool]):
    """Yes or no before a change; `typed` must be typed where the change is a big one."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", show=False),
        Binding("n,escape", "answer(False)", "No", show=False),
    ]

    AUTO_FOCUS = "Input"

    def __init__(self, question: str, typed: str = "") -> None:
        super().__init__()
        self._question = question
        self._typed = typed

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(Text(self._question))
            if self._typed:
                yield Static(Text(f"Type {safe(self._typed)} to do it, Esc not to.", style="dim"))
                yield Input(id="typed")
            else:
                yield Static(Text("y yes   n no", style="dim"))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip() == self._typed)

    def action_answer(self, answer: bool) -> None:
        # A name to type may contain these letters; the field takes them then.
        if not (answer and self._typed):
            self.dismiss(answer)


class Line(ModalScreen[str | None]):
    """One line of text, None if it was left by Esc."""

    AUTO_FOCUS = "Input"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", show=False)]

    def __init__(self, label: str, value: str = "") -> None:
        super().__init__()
        self._label = label
        self._value = value

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Static(Text(self._label))
            yield Input(self._value, id="line")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value.strip())

    def action_leave(self) -> None:
        self.dismiss(None)


class Help(ModalScreen[None]):
    """The keys."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,question_mark,enter", "app.pop_screen", show=False)
    ]

    def compose(self) -> ComposeResult:
        text = Text()
        for keys, what in HELP:
            if what:
                text.append(f"  {keys:<16}", style="bold")
                text.append(f"{what}\n")
            else:
                text.append(f"{keys}\n", style="dim")
        with VerticalScroll(id="dialog"):
            yield Static(text)
