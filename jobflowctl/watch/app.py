"""The full-screen view of a run, with Textual: six screens in one terminal.

It looks through a `Feed` in a thread of its own and never waits for anything; leaving it never
ends the run. In the wrapper a `Steering` is given, and then `q` and Ctrl-C are its business. Keys
that change something ask first.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Mapping
from typing import Any, ClassVar, Final, Protocol

from rich.text import Text
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import ContentSwitcher, Footer, Static

from jobflowctl import screens
from jobflowctl.style import Style, part
from jobflowctl.text import count, duration, safe
from jobflowctl.watch import feed
from jobflowctl.watch.dialogs import DetailScreen, Help, Line, Question
from jobflowctl.watch.drawing import STATE_STYLES, clip_line
from jobflowctl.watch.drawing import Line as DrawnLine
from jobflowctl.watch.feed import Feed, Want
from jobflowctl.watch.overview import Model, overview, waited_for
from jobflowctl.watch.rows import RowList
from jobflowctl.watch.source import Source
from jobflowctl.watch.tables import detail_lines, make_lists, matches
from jobflowd import api

TABS: Final = ("overview", "tasks", "workers", "launches", "failures", "log")
LOG_LINES: Final = 500
_STATES: Final = (None, *api.TASK_STATES)
_CSS: Final = """
Screen { background: $background; }
#head, #tabs, #banner, #note { height: 1; padding: 0 1; }
#banner { background: $warning; color: $text; display: none; }
#banner.shown { display: block; }
ContentSwitcher { height: 1fr; padding: 0 1; }
#overview { height: 1fr; }
#detail-title { padding: 0 1; }
#detail-scroll { padding: 0 1; }
Question, Line, Help { align: center middle; }
#dialog { width: 76; max-width: 95%; height: auto; max-height: 95%; padding: 1 2;
  background: $surface; border: round $primary; }
"""


class Steering(Protocol):
    """What the wrapper lets the view do with its daemon."""

    def stop(self) -> str:
        """Stop, the second time now; says what was done."""

    def ended(self) -> bool:
        """Whether the daemon has ended, so that the view is over."""


class Dashboard(App[None]):
    """`run` shows it until the person leaves."""

    CSS = _CSS
    ENABLE_COMMAND_PALETTE = False
    AUTO_FOCUS = ""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "leave", "Leave"),
        Binding("question_mark", "help", "Help", key_display="?"),
        *(
            Binding(str(number), f"tab('{name}')", name.title(), show=False)
            for number, name in enumerate(TABS, 1)
        ),
        Binding("tab", "next_tab(1)", "Next screen", show=False, priority=True),
        Binding("shift+tab", "next_tab(-1)", "Screen before", show=False, priority=True),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("s", "sort", "Sort"),
        Binding("f", "next_state", "State", show=False),
        Binding("n", "page(1)", "Next page", show=False),
        Binding("b", "page(-1)", "Page before", show=False),
        Binding("space", "freeze", "Freeze", show=False),
        Binding("plus", "scale(1)", "Workers", key_display="+/-"),
        Binding("minus", "scale(-1)", "Fewer workers", show=False),
        Binding("P", "pause", "Pause"),
        Binding("r", "retry", "Retry"),
        Binding("c", "cancel", "Cancel", show=False),
        Binding("d", "drain", "Drain", show=False),
        Binding("S", "shutdown", "End run"),
        Binding("escape", "no_filter", "Back", show=False),
        Binding("ctrl+c", "interrupt", show=False, priority=True),
        Binding("ctrl+q", "leave", show=False, priority=True),
    ]

    class Heard(Message):
        """News of the feed."""

        def __init__(self, news: feed.News) -> None:
            super().__init__()
            self.news = news

    def __init__(
        self,
        source: Source,
        *,
        interval_s: float,
        read_only: bool = False,
        log_lines: int = LOG_LINES,
        steering: Steering | None = None,
    ) -> None:
        super().__init__()
        self.model = Model(unicode="utf" in (sys.stdout.encoding or "").lower())
        self._events: deque[Mapping[str, Any]] = deque(maxlen=max(1, log_lines))
        self._run_name = source.name
        self._read_only = read_only
        self._reads = source.reads
        self._steering = steering
        self._feed = Feed(
            source,
            interval_s=interval_s,
            emit=self._emit,
            log_lines=log_lines,
        )
        self._all: dict[str, list[Mapping[str, Any]]] = {name: [] for name in TABS[1:]}
        self._filter = ""
        self._state: str | None = None
        self._marks: list[str | None] = [None]
        self._next: str | None = None
        self._note = ""
        self._said = ""
        self._frozen = False
        self._stops = 0
        if steering is not None:
            self._bindings.key_to_bindings["q"] = [Binding("q", "leave", "Stop the run")]
        self._lists: dict[str, RowList] = {}

    def _emit(self, news: feed.News) -> None:
        self.post_message(self.Heard(news))

    # --- the frame ------------------------------------------------------------------------------

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        yield Static(id="banner")
        yield Static(id="tabs")
        self._lists = make_lists()
        with ContentSwitcher(initial="overview"):
            yield Static(id="overview")
            yield from self._lists.values()
        yield Static(id="note")
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        for name, one in self._lists.items():
            one.unicode = self.model.unicode
            if "tasks" not in self._reads and name in ("tasks", "failures", "log"):
                one.nothing = "a telemetry file does not have this; ask the daemon: -s SESSION"
        self._draw()
        self._feed.start()
        if self._steering is not None:
            self.set_interval(0.2, self._watch_the_end)

    def on_unmount(self) -> None:
        self._feed.stop()

    def on_resize(self) -> None:
        self.call_after_refresh(self._draw)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Which keys count now, and so are shown at the foot."""
        changing = ("scale", "pause", "retry", "cancel", "drain", "shutdown")
        if action in changing and self._read_only:
            return False
        if action == "shutdown" and self._steering is not None:
            return False
        if action in ("filter", "sort") and self.tab == "overview":
            return False
        return not (action in (*changing, "tab", "next_tab", "filter", "sort") and self._covered)

    @property
    def tab(self) -> str:
        """The screen that is shown."""
        found = self.screen_stack[0].query(ContentSwitcher) if self.screen_stack else None
        return (found.first().current or "overview") if found else "overview"

    @property
    def _covered(self) -> bool:
        return len(self.screen_stack) > 1

    # --- news -----------------------------------------------------------------------------------

    def on_dashboard_heard(self, message: Heard) -> None:
        """One piece of news; a frozen picture takes only what became of requests."""
        news = message.news
        if not self._has_frame:
            return
        if self._frozen and not isinstance(news, feed.Answered):
            return
        match news:
            case feed.Seen(body):
                self.model.body = body
                self._banner(waited_for(body) if self._stops else "")
                self._fill_from_snapshot(body)
            case feed.Rows(want, rows, following, note) if want.kind == self.tab:
                self._all[want.kind] = list(rows)
                self._next, self._note = following, note
                self._fill(want.kind)
            case feed.Detail(want, body):
                self._show_task(want, body)
            case feed.Happened(events):
                self._events.extend(events)
                self._all["log"] = list(self._events)
                self.model.events = self._all["log"]
                self._fill("log")
            case feed.Groups(groups):
                self.model.groups = groups
                self._all["failures"] = list(groups)
                self._fill("failures")
            case feed.Silent():
                self._banner(_silence(news))
            case feed.Answered(cmd, words, good):
                self._said = ""
                self.notify(safe(words), title=cmd, severity="information" if good else "error")
        self._draw()

    def _banner(self, words: str) -> None:
        banner = self.screen_stack[0].query_one("#banner", Static)
        banner.update(Text(words))
        banner.set_class(bool(words), "shown")

    def _fill(self, name: str) -> None:
        rows = self._all[name]
        if self._filter and name != "tasks":
            rows = [row for row in rows if matches(row, self._filter)]
        self._lists[name].show(rows, follow=name == "log")

    def _fill_from_snapshot(self, body: Mapping[str, Any]) -> None:
        """A telemetry file has the first workers and launches, and nothing else to list."""
        for name, key in (("workers", "worker_list"), ("launches", "launch_list")):
            if name not in self._reads:
                self._all[name] = list(body.get(key) or ())
                self._fill(name)

    def _show_task(self, want: Want, body: Mapping[str, Any]) -> None:
        screen = self.screen
        if isinstance(screen, DetailScreen) and screen.subject == want.task_id:
            screen.show(screens.task(body, Style(session=self._run_name)))

    # --- drawing --------------------------------------------------------------------------------

    @property
    def _has_frame(self) -> bool:
        """News may come before the first picture and after the last."""
        return bool(self.screen_stack and self.screen_stack[0].query("#note"))

    def _draw(self) -> None:
        if not self._has_frame:
            return
        base = self.screen_stack[0]
        base.query_one("#head", Static).update(self._text([self._head()]))
        base.query_one("#tabs", Static).update(self._text([self._tabs()]))
        base.query_one("#note", Static).update(self._text([self._foot()]))
        if self.tab == "overview":
            place = base.query_one("#overview", Static)
            size = place.size
            place.update(self._text(overview(self.model, size.width, size.height)))

    def _text(self, lines: list[DrawnLine]) -> Text:
        text = Text(no_wrap=True, overflow="crop")
        for number, line in enumerate(lines):
            if number:
                text.append("\n")
            for words, style in line:
                text.append(words, style=style)
        return text

    def _head(self) -> DrawnLine:
        body = self.model.body
        state = safe(body.get("state", "")) or "connecting"
        line: DrawnLine = [
            (safe(body.get("session") or self._run_name), "bold"),
            ("  ", ""),
            (state, STATE_STYLES.get(state, "") + " bold"),
        ]
        if body:
            words = [
                f"up {duration(body.get('uptime_s'))}",
                f"pid {safe(body.get('pid', '-'))} on {safe(body.get('host', '-'))}",
            ]
            if body.get("state_reason"):
                words.insert(0, safe(body["state_reason"]))
            line.append((self.model.dot + self.model.dot.join(words), "dim"))
        if self._frozen:
            line.insert(0, ("FROZEN ", "yellow bold"))
        return clip_line(line, max(10, self.size.width - 2), self.model.ellipsis)

    def _tabs(self) -> DrawnLine:
        line: DrawnLine = []
        for number, name in enumerate(TABS, 1):
            style = "reverse" if name == self.tab else "dim"
            line += [(f" {number} {name} ", style), (" ", "")]
        return line

    def _foot(self) -> DrawnLine:
        """What is in the list: how many rows, of which, in which order."""
        name = self.tab
        if name == "overview":
            return [("", "")]
        shown = self._lists[name].rows
        words = [count(len(shown), "row")]
        if name == "tasks":
            words.append(f"state: {self._state or 'any'} (f)")
            words.append(f"page {len(self._marks)}{' (n: next)' if self._next else ''}")
        if self._filter:
            words.append(f"with {safe(self._filter)!r} (Esc: all)")
        words += [one for one in (self._note, self._said) if one]
        return [(self.model.dot.join(words), "dim")]

    # --- looking --------------------------------------------------------------------------------

    def action_tab(self, name: str) -> None:
        self.query_one(ContentSwitcher).current = name
        self._filter = self._note = self._said = ""
        self._marks, self._next = [None], None
        if name != "overview":
            self._lists[name].focus()
            self._fill(name)
        else:
            self.set_focus(None)
        self._look()
        self.refresh_bindings()

    def action_next_tab(self, step: int) -> None:
        self.action_tab(TABS[(TABS.index(self.tab) + step) % len(TABS)])

    def _look(self) -> None:
        match = self._filter if self.tab == "tasks" else ""
        state = self._state if self.tab == "tasks" else None
        kind = self.tab if self.tab in ("tasks", "workers", "launches") else ""
        self._feed.want(Want(kind, state, match, self._marks[-1]))
        self._draw()

    def action_next_state(self) -> None:
        if self.tab == "tasks":
            self._state = _STATES[(_STATES.index(self._state) + 1) % len(_STATES)]
            self._marks = [None]
            self._look()

    def action_page(self, step: int) -> None:
        if self.tab != "tasks":
            return
        if step > 0 and self._next is not None:
            self._marks.append(self._next)
        elif step < 0 and len(self._marks) > 1:
            self._marks.pop()
        self._look()

    def action_sort(self) -> None:
        if self.tab != "overview":
            self._said = self._lists[self.tab].sort_next()
            self._draw()

    def action_filter(self) -> None:
        if self.tab != "overview":
            label = f"Show only {self.tab} with this text in them; empty: all"
            self.push_screen(Line(label, self._filter), self._set_filter)

    def action_no_filter(self) -> None:
        if self._filter:
            self._set_filter("")

    def _set_filter(self, text: str | None) -> None:
        if text is None:
            return
        self._filter, self._marks = text, [None]
        if self.tab != "tasks":
            self._fill(self.tab)
        self._look()

    def action_freeze(self) -> None:
        self._frozen = not self._frozen
        self._draw()

    def action_help(self) -> None:
        self.push_screen(Help())

    def on_row_list_opened(self, message: RowList.Opened) -> None:
        """Details of the chosen row; those of a task come from the daemon."""
        row = message.row
        task_id = row.get("example_task_id") if self.tab == "failures" else row.get("task_id")
        if self.tab in ("tasks", "failures", "log") and task_id and "task" in self._reads:
            screen = DetailScreen(f"task {task_id}", ["asking the daemon"])
            screen.subject = str(task_id)
            self._feed.want(Want("task", task_id=str(task_id)))
        else:
            screen = DetailScreen(
                self.tab[:-1] if self.tab != "log" else "event", detail_lines(row)
            )
        self.push_screen(screen, lambda _: self._look())

    # --- changing -------------------------------------------------------------------------------

    def _ask(self, question: str, cmd: str, args: Mapping[str, Any], *, typed: str = "") -> None:
        def decided(yes: bool | None) -> None:
            if yes:
                self._feed.ask(cmd, args)
            else:
                self.notify("nothing was done")

        self.push_screen(Question(question, typed), decided)

    def action_scale(self, step: int) -> None:
        target = int(part(self.model.body, "workers").get("target") or 0)
        wanted = max(0, target + step)
        what = "one is started" if step > 0 else "the idlest leaves; a task it runs is finished"
        if wanted != target:
            question = f"Want {count(wanted, 'worker')} instead of {target}: {what}?"
            self._ask(question, "scale", {"workers": wanted})

    def action_pause(self) -> None:
        if self.model.body.get("state") == "paused":
            self._ask("Give out tasks again?", "resume", {})
        else:
            self._ask("Give out no new tasks? Running ones go on.", "pause", {})

    def action_retry(self) -> None:
        row = self._chosen()
        if self.tab == "tasks" and row is not None and row.get("state") in ("failed", "canceled"):
            args: dict[str, Any] = {"task_ids": [row["task_id"]]}
            self._ask(f"Queue task {safe(row['task_id'])} again?", "retry", args)
            return
        if self.tab == "failures" and row is not None and "group" in api.COMMANDS["retry"].args:
            question = f"Queue the {count(int(row.get('count') or 0), 'task')} of this group again?"
            self._ask(question, "retry", {"group": row.get("group")})
            return
        failed = int(part(self.model.body, "tasks").get("failed") or 0)
        if failed:
            question = f"Queue {count(failed, 'failed task')} again, with fresh budgets?"
            self._ask(question, "retry", {"failed": True})
        else:
            self.notify("nothing has failed")

    def action_cancel(self) -> None:
        row = self._chosen()
        if self.tab == "tasks" and row is not None:
            question = f"Cancel task {safe(row['task_id'])} for good?"
            self._ask(question, "cancel", {"task_ids": [row["task_id"]]})

    def action_drain(self) -> None:
        row = self._chosen()
        if self.tab == "workers" and row is not None:
            question = f"Let worker {safe(row['worker_id'])} finish what it runs and leave?"
            self._ask(question, "drain", {"worker": row["worker_id"]})

    def action_shutdown(self) -> None:
        question = "End the run? Workers finish what they run; the rest waits for the next start."
        name = str(self.model.body.get("session") or self._run_name)
        self._ask(question, "shutdown", {}, typed=name)

    def _chosen(self) -> Mapping[str, Any] | None:
        return self._lists[self.tab].current if self.tab != "overview" else None

    # --- leaving --------------------------------------------------------------------------------

    def action_leave(self) -> None:
        if self._steering is None:
            self.exit()
            return
        self._stops += 1
        self._frozen = False
        self.notify(self._steering.stop())

    def action_interrupt(self) -> None:
        self.action_leave()

    def _watch_the_end(self) -> None:
        if self._steering is not None and self._steering.ended():
            self.exit()


def _silence(news: feed.Silent) -> str:
    if news.outcome is not None:
        counts = news.outcome.tasks
        words = [f"{number:,} {word}" for word, number in counts.items() if number]
        return f"the run has ended ({news.outcome.state}): {', '.join(words)}; q leaves"
    gone = f"no answer for {duration(news.for_s)}: " if news.for_s >= 1 else ""
    return f"{gone}{safe(news.message)} Trying again."
