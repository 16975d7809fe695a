"""What `jobflowd start` shows in the foreground: a progress line, and a summary at the end.

An output module. On a terminal the line is rewritten in place; elsewhere a line is printed every
10 % or every minute. stderr only: stdout stays free.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from jobflowd import detach
from jobflowd.census import Census
from jobflowd.logs import sanitised
from jobflowd.wording import count

#: A terminal's line is rewritten at most this often, a plain one printed at least this often.
REWRITE_S = 0.5
#: Without a terminal it is looked this often whether there is something new to print.
LOOK_S = 2.0
REPEAT_S = 60.0
#: Failed tasks named in the summary, and the length of their lines.
FAILURES_SHOWN = 5
ERROR_CHARS = 200


class Progress:
    """Lines about the run, for the person who typed `start`."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr
        #: The line is rewritten in place, so that nobody else may write to the terminal.
        self.live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._looked_at = self._shown_at = float("-inf")
        self._tenth = -1
        self._state = ""
        self._width = 0

    def due(self, now: float) -> bool:
        """True if a census taken now might be shown."""
        return now - self._looked_at >= (REWRITE_S if self.live else LOOK_S)

    def show(self, now: float, census: Census) -> None:
        """Show the census if it says something new."""
        self._looked_at = now
        tasks = census.tasks
        ended = tasks.succeeded + tasks.failed + tasks.canceled
        tenth = 10 * ended // tasks.total if tasks.total else 0
        news = (tenth, census.state) != (self._tenth, self._state)
        if self.live:
            self._shown_at = now
            self._rewrite(line(census))
        elif news or now - self._shown_at >= REPEAT_S:
            self._shown_at = now
            self._write(line(census) + "\n")
        self._tenth, self._state = tenth, census.state

    def say(self, text: str) -> None:
        """A line of its own, above the progress line."""
        self.clear()
        self._write(text + "\n")

    def clear(self) -> None:
        """Take the progress line away."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _rewrite(self, text: str) -> None:
        text = text[: max(20, _columns() - 1)]
        self._write("\r" + text.ljust(self._width))
        self._width = len(text)

    def _write(self, text: str) -> None:
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            pass  # The terminal is gone; the run is not.


def say_waiting(text: str) -> None:
    """Why a start takes long: to systemd, to a detaching parent, or to this terminal."""
    detach.announce_waiting(text)
    if not detach.detached():
        sys.stderr.write(f"{text}\n")


def counts(census: Census) -> dict[str, int]:
    """The tasks by state, as `ended.json` and the log have them."""
    tasks = census.tasks
    names = ("total", "queued", "assigned", "running", "succeeded", "failed", "canceled")
    return {name: getattr(tasks, name) for name in names}


def line(census: Census) -> str:
    """The run in one line."""
    tasks = census.tasks
    ended = tasks.succeeded + tasks.failed + tasks.canceled
    share = f" ({100 * ended // tasks.total} %)" if tasks.total else ""
    parts = [f"{ended}/{count(tasks.total, 'task')}{share}", count(len(census.workers), "worker")]
    if tasks.failed:
        parts.append(f"{tasks.failed} failed")
    if census.throughput_per_s:
        parts.append(f"{census.throughput_per_s:.1f}/s")
    low, high = census.forecast.low_s, census.forecast.high_s
    if low is not None and high is not None:
        left, most = duration(low), duration(high)
        parts.append(f"{left} to {most} left" if left != most else f"about {left} left")
    if census.state != "running" or census.state_reason:
        parts.append(f"{census.state}: {census.state_reason}".rstrip(": ").splitlines()[0])
    return ", ".join(parts)


def greeting(session: str, log: str) -> str:
    """What a person at a terminal needs to know while it runs."""
    return (
        f"Session {session}. From another terminal: jobflowctl -s {session} status\n"
        f"Ctrl-C ends the run gracefully. The log is {log}"
    )


def summary(
    census: Census,
    code: int,
    log: str,
    *,
    ran: int,
    failures: Sequence[tuple[str, str]] = (),
) -> str:
    """What the run came to, and what to type next.

    `ran`: tasks that ended in this start. `failures`: id and error of some that failed.
    """
    tasks = census.tasks
    took = duration(max(0.0, time.time() - census.started_at))
    done = "already complete: " if code == 0 and tasks.total and not ran else ""
    head = f"{census.session}: {done}{tasks.succeeded} succeeded, {tasks.failed} failed"
    if tasks.canceled:
        head += f", {tasks.canceled} canceled"
    left = tasks.queued + tasks.assigned + tasks.running
    if left:
        head += f", {left} left"
    head += f" of {count(tasks.total, 'task')} in {took}."
    lines = [head]
    if tasks.total == 0 and code == 0:
        lines.append("generate_tasks() named no task, so there was nothing to do.")
    for task_id, error in failures:
        lines.append(sanitised(f"  {task_id}: {error.partition(chr(10))[0]}"[:ERROR_CHARS]))
    if tasks.failed > len(failures) > 0:
        lines.append(f"  and {tasks.failed - len(failures)} more")
    if tasks.failed:
        lines.append(f"See why: jobflowctl -s {shlex.quote(census.session)} failures")
        lines.append(f"The log is {log}")
    if code == 65:
        lines.append(f"The traceback, if there is one, is in the log: {log}")
        lines.append("Mend the program and start it again; what has succeeded is kept.")
    if code == 4:
        lines.append(f"Go on with: jobflowd start --session-id {census.session}")
    return "\n".join(lines)


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _columns() -> int:
    try:
        # Some terminals do not know their width and say 0.
        return os.get_terminal_size(sys.stderr.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
