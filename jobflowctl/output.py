"""The one way out of jobflowctl: data to stdout, talk to stderr. Nothing else prints.

Three modes behind one interface: `human` draws the screens, `json` prints one object a line with
its schema name, `quiet` prints only what a script would pick out (ids, a state) and no talk.

A reader that goes away (`| head`) is no error: the rest is dropped silently, exit code 0, because
what was asked was answered.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TextIO

from jobflowctl.errors import CtlError
from jobflowctl.text import safe, safe_lines
from jobflowd import api

MODES: Final = ("human", "json", "quiet")
COLOURS: Final = ("auto", "always", "never")

#: In quiet mode: the list and the field of it that is printed, a line each.
_QUIET_ROWS: Final = {
    "tasks": ("tasks", "task_id"),
    "workers": ("workers", "worker_id"),
    "launches": ("launches", "launch_id"),
    "sessions": ("sessions", "session"),
    "failures": ("groups", "group"),
}


class Output:
    """Where verbs put their answers. `session` is for the commands that screens propose."""

    def __init__(
        self,
        mode: str = "human",
        *,
        colour: str = "auto",
        stdout: TextIO | None = None,
        stderr: TextIO | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.mode = mode
        self.session = ""
        self._colour = colour
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr
        self._wall = wall
        self._closed = False
        for stream in (self._stdout, self._stderr):
            # A terminal of another encoding gets escapes instead of a crash.
            with contextlib.suppress(AttributeError, ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]

    # --- data -------------------------------------------------------------------------------

    def data(self, verb: str, body: Mapping[str, Any]) -> None:
        """The answer of a verb, in this output's mode."""
        if self.mode == "json":
            self._object(verb, body)
        elif self.mode == "quiet":
            self._lines(_quiet(verb, body))
        else:
            from jobflowctl import screens

            screen = screens.SCREENS.get(verb, screens.done)
            self._lines(screen(body, self.style()))

    def line(self, verb: str, body: Mapping[str, Any], text: str) -> None:
        """One item of a stream: the object in json mode, else the (safe) text."""
        if self.mode == "json":
            self._object(verb, body)
        else:
            self._lines([text])

    def style(self) -> Any:
        """How screens are drawn on this stdout (a `style.Style`)."""
        from jobflowctl.style import Style

        terminal = _is_terminal(self._stdout)
        return Style(
            columns=shutil.get_terminal_size().columns if terminal else None,
            colour=_wants_colour(self._colour, terminal),
            unicode="utf" in (getattr(self._stdout, "encoding", None) or "").lower(),
            wall=self._wall(),
            session=self.session,
        )

    def _object(self, verb: str, body: Mapping[str, Any]) -> None:
        text = json.dumps({"schema": api.schema(verb), **body}, default=str)
        self._write(text.replace("\x7f", "\\u007f") + "\n")

    def _lines(self, lines: Sequence[str]) -> None:
        self._write("".join(f"{line}\n" for line in lines))

    def _write(self, text: str) -> None:
        if self._closed or not text:
            return
        try:
            self._stdout.write(text)
            self._stdout.flush()
        except BrokenPipeError:
            self._closed = True
            # Or the interpreter complains when it flushes at exit.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stdout.fileno())

    @property
    def terminal(self) -> bool:
        """Somebody looks at stdout."""
        return _is_terminal(self._stdout)

    @property
    def closed(self) -> bool:
        """The reader of stdout has gone: a stream may stop."""
        return self._closed

    # --- talk -------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A remark for the person: to stderr, never in quiet mode."""
        if self.mode != "quiet":
            self._talk(safe_lines(text))

    def fail(self, error: CtlError) -> None:
        """What went wrong and what to do: to stderr, in every mode."""
        lines = safe_lines(error.message) or ["failed"]
        lines[0] = f"jobflowctl: {lines[0]}"
        self._talk([*lines, *safe_lines(error.hint)])

    def ask(self, question: str) -> bool:
        """Yes or no. Without a terminal at both ends nobody is asked, and it is yes."""
        if not (_is_terminal(sys.stdin) and _is_terminal(self._stderr)):
            return True
        self._stderr.write(f"{safe(question)} [y/N] ")
        self._stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def _talk(self, lines: Sequence[str]) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._stderr.write("".join(f"{line}\n" for line in lines))
            self._stderr.flush()


def _quiet(verb: str, body: Mapping[str, Any]) -> list[str]:
    if verb in _QUIET_ROWS:
        rows, field = _QUIET_ROWS[verb]
        return [safe(row.get(field, "")) for row in body.get(rows) or []]
    if verb in ("status", "task", "snapshot", "wait"):
        return [safe(body.get("state", ""))]
    return []


def _is_terminal(stream: Any) -> bool:
    try:
        return bool(stream.isatty())
    except (AttributeError, ValueError, OSError):
        return False


def _wants_colour(wish: str, terminal: bool) -> bool:
    if wish != "auto":
        return wish == "always"
    # NO_COLOR counts when it is set to anything (no-color.org).
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    return terminal and not plain
