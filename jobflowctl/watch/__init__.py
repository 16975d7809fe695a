"""`jobflowctl watch`: the full-screen view where there is a terminal and Textual, else lines.

Rooms: `plain` (lines), `source` (where bodies come from), `feed` (a thread that asks), `drawing`
and `overview` (pure: bodies in, words and colours out), `rows` (a list of which only the visible
part costs), `dialogs`, `app`. Only the last three import Textual, and only when a person looks.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

from jobflowctl.output import Output
from jobflowctl.watch.plain import STALE_S, read_snapshot, watch_file, watch_session
from jobflowd import api

__all__ = [
    "can_draw",
    "follow_file",
    "follow_session",
    "has_textual",
    "read_snapshot",
    "watch_file",
    "watch_session",
]


def has_textual() -> bool:
    """Whether the extra `dashboard` is installed."""
    return importlib.util.find_spec("textual") is not None


def can_draw() -> bool:
    """Whether there is a terminal at all ends that can be drawn on."""
    # Textual draws on stderr.
    terminals = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    return terminals and os.environ.get("TERM", "dumb") != "dumb"


def _full_screen(output: Output, *, once: bool, plain: bool) -> bool:
    if once or plain or output.mode != "human" or not can_draw():
        return False
    if has_textual():
        return True
    output.say("for a full-screen view: pip install 'jobflowd[dashboard]'")
    return False


def follow_session(
    place: api.SessionPlace,
    output: Output,
    *,
    interval_s: float,
    once: bool = False,
    plain: bool = False,
    read_only: bool = False,
) -> int:
    """`watch` of a session: full screen if that is possible and wanted, else lines."""
    if not _full_screen(output, once=once, plain=plain):
        return watch_session(place, output, interval_s=interval_s, once=once)
    from jobflowctl.watch.app import Dashboard
    from jobflowctl.watch.source import LiveSource

    Dashboard(LiveSource(place), interval_s=interval_s, read_only=read_only).run()
    return 0


def follow_file(
    file: Path,
    output: Output,
    *,
    interval_s: float,
    stale_s: float = STALE_S,
    once: bool = False,
    plain: bool = False,
) -> int:
    """`watch` of a telemetry file: no daemon is asked, so nothing can be changed."""
    if not _full_screen(output, once=once, plain=plain):
        return watch_file(file, output, interval_s=interval_s, stale_s=stale_s, once=once)
    from jobflowctl.watch.app import Dashboard
    from jobflowctl.watch.source import FileSource

    read_snapshot(file)
    source = FileSource(file, stale_s=stale_s)
    Dashboard(source, interval_s=interval_s, read_only=True).run()
    return 0
