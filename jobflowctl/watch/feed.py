"""A thread that asks a source again and again, and gives what it hears to the view.

Rule: the view never waits. It says what it wants to see (`want`) and what it wants done (`ask`);
answers come as news through `emit`, from this thread. What costs the daemon much is asked rarely:
after a question that took t seconds, the next of its kind comes no sooner than 10 t later.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from jobflowctl import errors
from jobflowctl.text import count
from jobflowctl.waiting import Outcome
from jobflowctl.watch.grouping import group_failures
from jobflowctl.watch.source import Source
from jobflowd import api

Body = dict[str, Any]

#: Lists take no more of a daemon's time than one part in this.
_THRIFT: Final = 10.0
_LIST_S_MIN: Final = 1.0
_FAILURES_S: Final = 5.0
#: Rows of a list that is read whole: workers, launches.
ROWS_MAX: Final = 20_000
#: Rows of a page of tasks, and how many are looked through for a filter.
TASK_ROWS: Final = 500
TASKS_SEARCHED_MAX: Final = 20_000
_EVENTS_AT_ONCE: Final = 500
_FAILED_ROWS: Final = 2000


@dataclass(frozen=True, slots=True)
class Want:
    """What the visible screen shows besides the snapshot: a kind of list, or one task."""

    kind: str = ""
    state: str | None = None
    match: str = ""
    after: str | None = None
    task_id: str = ""


@dataclass(frozen=True, slots=True)
class Seen:
    """A snapshot."""

    body: Body


@dataclass(frozen=True, slots=True)
class Rows:
    """The list that was wanted. `note` says what is not in it."""

    want: Want
    rows: list[Body]
    next: str | None = None
    note: str = ""


@dataclass(frozen=True, slots=True)
class Detail:
    """The task that was wanted."""

    want: Want
    body: Body


@dataclass(frozen=True, slots=True)
class Happened:
    """New events, oldest first."""

    events: list[Body]


@dataclass(frozen=True, slots=True)
class Groups:
    """The failure groups."""

    groups: list[Body]


@dataclass(frozen=True, slots=True)
class Silent:
    """Nobody answers for so long; `outcome` if the run has ended."""

    for_s: float
    message: str
    hint: str
    outcome: Outcome | None = None


@dataclass(frozen=True, slots=True)
class Answered:
    """What became of a request."""

    cmd: str
    message: str
    good: bool


News = Seen | Rows | Detail | Happened | Groups | Silent | Answered


@dataclass(slots=True)
class _Turnstile:
    """When a kind of question may be asked again."""

    at: dict[object, float] = field(default_factory=dict)

    def open(self, kind: object, now: float) -> bool:
        return now >= self.at.get(kind, 0.0)

    def passed(self, kind: object, now: float, took: float, at_least: float) -> None:
        self.at[kind] = now + max(at_least, _THRIFT * took)


class Feed(threading.Thread):
    """Asks until `stop`. `log_lines` events are fetched at first."""

    def __init__(
        self,
        source: Source,
        *,
        interval_s: float,
        emit: Callable[[News], None],
        log_lines: int = 500,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__(name="feed", daemon=True)
        self._source = source
        self._interval_s = interval_s
        self._emit = emit
        self._log_lines = log_lines
        self._clock = clock
        self._want = Want()
        self._asked: queue.SimpleQueue[tuple[str, Body]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._stopping = False
        self._turnstile = _Turnstile()
        self._mark: str | None = None
        self._silent_since: float | None = None
        self._failed = -1

    # --- from the view's thread -----------------------------------------------------------------

    def want(self, want: Want) -> None:
        """From now on this is to be seen."""
        if want != self._want:
            self._want = want
            self._turnstile.at.pop("list", None)
            self._wake.set()

    def ask(self, cmd: str, args: Mapping[str, Any]) -> None:
        """Do this; an `Answered` will come."""
        self._asked.put((cmd, dict(args)))
        self._wake.set()

    def stop(self) -> None:
        """End soon. Idempotent."""
        self._stopping = True
        self._wake.set()

    # --- the thread -----------------------------------------------------------------------------

    def run(self) -> None:
        """Until `stop`."""
        try:
            while not self._stopping:
                self._wake.clear()
                self.turn()
                self._wake.wait(self._interval_s)
        finally:
            self._source.close()

    def turn(self) -> None:
        """Do what was asked, then look at everything that is wanted."""
        while not self._asked.empty():
            self._do(*self._asked.get())
        try:
            body = self._source.call("snapshot")
            self._silent_since = None
            self._emit(Seen(body))
            self._look_at_events()
            self._look_at_failures(body)
            self._look_at_list()
        except errors.Refused as error:
            self._emit(Answered("look", error.message, False))
        except errors.CtlError as error:
            now = self._clock()
            self._silent_since = now if self._silent_since is None else self._silent_since
            outcome = self._source.outcome() if isinstance(error, errors.NoSession) else None
            self._emit(Silent(now - self._silent_since, error.message, error.hint, outcome))

    def _do(self, cmd: str, args: Body) -> None:
        try:
            body = self._source.call(cmd, args)
        except errors.CtlError as error:
            self._emit(Answered(cmd, f"{error.message} {error.hint}".strip(), False))
            return
        # What was changed is to be seen at once.
        self._turnstile.at.clear()
        self._emit(Answered(cmd, str(body.get("message") or "done"), True))

    def _look_at_events(self) -> None:
        if "events" not in self._source.reads:
            return
        args: Body = {"after": self._mark, "limit": _EVENTS_AT_ONCE}
        if self._mark is None:
            args = {"last": min(self._log_lines, api.PAGE_MAX)}
        body = self._source.call("events", args)
        self._mark = body.get("next", self._mark)
        if body.get("events"):
            self._emit(Happened(body["events"]))

    def _look_at_failures(self, snapshot: Body) -> None:
        failed = int((snapshot.get("tasks") or {}).get("failed") or 0)
        now = self._clock()
        if "tasks" not in self._source.reads or not self._turnstile.open("failures", now):
            return
        if failed == self._failed:
            return
        self._failed = failed
        if "failures" in self._source.reads:
            groups = self._source.call("failures").get("groups") or []
        elif failed:
            rows: list[Body] = []
            after: str | None = None
            while len(rows) < _FAILED_ROWS:
                args = {"state": "failed", "after": after, "limit": api.PAGE_MAX}
                body = self._source.call("tasks", args)
                rows += body.get("tasks") or []
                after = body.get("next")
                if after is None:
                    break
            groups = group_failures(rows)
        else:
            groups = []
        self._emit(Groups(groups))
        end = self._clock()
        self._turnstile.passed("failures", end, end - now, _FAILURES_S)

    def _look_at_list(self) -> None:
        want, now = self._want, self._clock()
        if want.kind not in self._source.reads or not self._turnstile.open("list", now):
            return
        match want.kind:
            case "task":
                self._emit(Detail(want, self._source.call("task", {"task_id": want.task_id})))
            case "tasks":
                self._emit(self._tasks(want))
            case "workers" | "launches":
                self._emit(self._all(want))
        end = self._clock()
        if want == self._want:
            self._turnstile.passed("list", end, end - now, _LIST_S_MIN)

    def _all(self, want: Want) -> Rows:
        rows: list[Body] = []
        after: str | None = None
        while len(rows) < ROWS_MAX and not self._stopping:
            body = self._source.call(want.kind, {"after": after, "limit": api.PAGE_MAX})
            rows += body.get(want.kind) or []
            after = body.get("next")
            if after is None:
                return Rows(want, rows)
        return Rows(want, rows, after, f"the first {len(rows):,}")

    def _tasks(self, want: Want) -> Rows:
        """One page, or with a filter the first rows that match."""
        args: Body = {"state": want.state, "after": want.after}
        if not want.match:
            body = self._source.call("tasks", {**args, "limit": TASK_ROWS})
            return Rows(want, body.get("tasks") or [], body.get("next"))
        found: list[Body] = []
        searched = 0
        while searched < TASKS_SEARCHED_MAX and len(found) < TASK_ROWS and not self._stopping:
            body = self._source.call("tasks", {**args, "limit": api.PAGE_MAX})
            page = body.get("tasks") or []
            searched += len(page)
            found += [row for row in page if want.match in str(row.get("task_id"))]
            args["after"] = body.get("next")
            if args["after"] is None:
                return Rows(want, found)
        return Rows(want, found, args["after"], f"of the first {count(searched, 'task')}")
