"""`watch` without a full screen: one clear line per interval, or with --json one snapshot.

From the daemon, or from a telemetry file. Ends when the run has ended or the reader of stdout is
gone. A file's freshness is judged by its `seq` moving on our own monotonic clock, never by its
mtime: clocks of file servers differ.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from jobflowctl import errors
from jobflowctl.client import Client
from jobflowctl.output import Output
from jobflowctl.text import duration
from jobflowctl.waiting import GONE_PATIENCE_S, recorded
from jobflowd import api

#: A daemon that says nothing for this long is worth a word.
STALE_S: Final = 10.0
_SNAPSHOT_BYTES_MAX: Final = 16 * 1024 * 1024

Clock = Callable[[], float]
Sleep = Callable[[float], None]


def watch_session(
    place: api.SessionPlace,
    output: Output,
    *,
    interval_s: float,
    once: bool = False,
    gone_patience_s: float = GONE_PATIENCE_S,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
) -> int:
    """Show the run until it ends; returns the exit code of `watch` (0: it ended, or was shown).

    Raises `NoSession` if the daemon does not run, or vanished without a recorded end.
    """
    cmd = "snapshot" if output.mode == "json" else "status"
    seen = False
    silent_since: float | None = None
    with Client(place) as client:
        while not output.closed:
            try:
                body = client.call(cmd, timeout_s=max(STALE_S, interval_s))
            except (errors.NoSession, errors.DaemonBusy) as error:
                outcome = recorded(place) if isinstance(error, errors.NoSession) else None
                if seen and outcome is not None:
                    output.data("wait", outcome.body())
                    return 0
                silent_since = clock() if silent_since is None else silent_since
                gone = clock() - silent_since
                if not seen or once or (outcome is None and gone >= gone_patience_s):
                    raise
                output.say(f"no answer from the daemon for {duration(gone)}")
            else:
                seen, silent_since = True, None
                _show(output, body)
            if once:
                return 0
            sleep(interval_s)
    return 0


def watch_file(
    file: Path,
    output: Output,
    *,
    interval_s: float,
    stale_s: float = STALE_S,
    once: bool = False,
    clock: Clock = time.monotonic,
    sleep: Sleep = time.sleep,
    wall: Clock = time.time,
) -> int:
    """Show snapshots of a telemetry file as they come, until the daemon's last one.

    Raises `NoSession` if there is no such file, `UsageError` if it is not a snapshot.
    """
    last_seq: Any = None
    moved_at = clock()
    complained = False
    for body in _snapshots(file, output, interval_s, sleep):
        if body.get("seq") != last_seq or once:
            last_seq, moved_at, complained = body.get("seq"), clock(), False
            output.session = str(body.get("session", ""))
            _show(output, body)
            if body.get("final") or body.get("state") == "done":
                return 0
            if once:
                _say_age(file, output, stale_s, wall())
                return 0
        elif clock() - moved_at >= stale_s and not complained:
            complained = True
            output.say(
                f"{file} has not changed for {duration(clock() - moved_at)}: "
                "the daemon is busy or gone, or its file system hangs"
            )
    return 0


def _say_age(file: Path, output: Output, stale_s: float, now: float) -> None:
    """One look cannot see whether a file moves; its age tells. `now` is wall-clock time."""
    try:
        age = now - file.stat().st_mtime
    except OSError:
        return
    if age >= stale_s:
        output.say(f"{file} was written {duration(age)} ago: the daemon is busy or gone")


def _snapshots(
    file: Path, output: Output, interval_s: float, sleep: Sleep
) -> Iterator[dict[str, Any]]:
    while not output.closed:
        yield read_snapshot(file)
        sleep(interval_s)


def read_snapshot(file: Path) -> dict[str, Any]:
    """One snapshot. The daemon replaces the file in one step, so it is never half written."""
    try:
        with file.open("rb") as stream:
            value = json.loads(stream.read(_SNAPSHOT_BYTES_MAX))
    except FileNotFoundError:
        raise errors.NoSession(
            f"There is no telemetry file {file}.",
            "Start the daemon with --telemetry-mode file, or name its --telemetry-file.",
        ) from None
    except OSError as error:
        raise errors.NoSession(f"{file} cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or value.get("schema") != api.schema("snapshot"):
        raise errors.UsageError(
            f"{file} is not a telemetry snapshot of a jobflowd.",
            "Its default name is dashboard_snapshot.json, in the session directory.",
        )
    return value


def _show(output: Output, body: dict[str, Any]) -> None:
    if output.mode == "json":
        output.line("watch", {key: one for key, one in body.items() if key != "schema"}, "")
        return
    from jobflowctl.statusscreen import status_line

    output.line("watch", body, status_line(body, output.style()))
