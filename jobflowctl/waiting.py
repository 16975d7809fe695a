"""Waiting for the end of a run, by asking for its status again and again.

Rule: a daemon that is gone is no end; its recorded end is. Between the two there may be a restart
(systemd, a rebooted login node), so a vanished daemon gets some patience.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from jobflowctl import errors
from jobflowctl.client import Client
from jobflowctl.text import duration, iso
from jobflowd import api

#: How long a daemon may be gone without a recorded end: a service restarts within this.
GONE_PATIENCE_S: Final = 30.0
#: A finished run says goodbye to its workers, then ends; with --stay it never does.
DONE_PATIENCE_S: Final = 10.0
_POLL_S_MIN: Final = 0.1
_POLL_S_MAX: Final = 2.0


class TimedOut(errors.CtlError):
    """The run goes on, the patience does not."""

    exit_code = errors.EXIT_TIMEOUT


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run ended; `code` is 0, 3 or 4, `daemon_code` what the daemon itself returned.

    `ended_at` is wall-clock seconds. Both are None while the daemon stays.
    """

    session: str
    state: str
    code: int
    daemon_code: int | None
    ended_at: float | None
    tasks: dict[str, int]

    def body(self) -> dict[str, Any]:
        """The JSON body of `wait`."""
        return {
            "session": self.session,
            "state": self.state,
            "code": self.code,
            "daemon_code": self.daemon_code,
            "ended_at": iso(self.ended_at),
            "tasks": self.tasks,
        }


def recorded(place: api.SessionPlace) -> Outcome | None:
    """The recorded end of a session's latest run, if there is one."""
    ended = place.ended()
    if ended is None:
        return None
    # A run that ended for a reason of its own (65, 74, ...) is one that stopped with work left.
    code = ended.code if ended.code in (0, 3, 4) else errors.EXIT_WORK_LEFT
    return Outcome(place.session, ended.state, code, ended.code, ended.ended_at, ended.tasks)


def wait_for_end(
    place: api.SessionPlace,
    *,
    timeout_s: float | None = None,
    gone_patience_s: float = GONE_PATIENCE_S,
    done_patience_s: float = DONE_PATIENCE_S,
    on_status: Callable[[dict[str, Any]], None] = lambda body: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Outcome:
    """Return when the run has ended; an ended one returns at once.

    `on_status` sees every status on the way. Raises `TimedOut` (124) after `timeout_s`, and
    `NoSession` (5) if the daemon never answered or stays gone without a recorded end.
    """
    ended = recorded(place)
    if ended is not None:
        # Whoever may answer now only answers questions about it.
        return ended
    deadline = None if timeout_s is None else clock() + timeout_s
    seen = False
    gone_at = done_at = None
    pause = _POLL_S_MIN
    with Client(place) as client:
        while True:
            try:
                body = client.call("status")
            except errors.DaemonBusy:
                pass
            except errors.NoSession:
                outcome = recorded(place)
                if outcome is not None:
                    return outcome
                gone_at = clock() if gone_at is None else gone_at
                if not seen or clock() - gone_at >= gone_patience_s:
                    raise
            else:
                seen, gone_at = True, None
                on_status(body)
                if body.get("state") == "done":
                    done_at = clock() if done_at is None else done_at
                    if clock() - done_at >= done_patience_s:
                        return _stayed(place, body)
                else:
                    done_at = None
            if deadline is not None and clock() >= deadline:
                raise TimedOut(
                    f"Session {place.session} still runs after {duration(timeout_s)}.",
                    f"See how far it is: jobflowctl -s {place.session} status",
                )
            left = pause if deadline is None else min(pause, max(0.0, deadline - clock()))
            sleep(left)
            # A run that is about to end is asked often, a long one rarely.
            pause = _POLL_S_MIN if done_at is not None else min(pause * 1.5, _POLL_S_MAX)


def follow(
    client: Client,
    cmd: str,
    args: Mapping[str, Any],
    tell: Callable[[str], None],
    *,
    patience_s: float = GONE_PATIENCE_S,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any] | None:
    """The answer of a daemon that may be restarted meanwhile; None when nobody answers any more.

    That is so when the run has ended, or after `patience_s` without a daemon. `tell` gets words.
    """
    gone_at: float | None = None
    while True:
        try:
            return client.call(cmd, args)
        except errors.DaemonBusy:
            continue
        except errors.NoSession as error:
            if recorded(client.place) is not None:
                tell(error.message)
                return None
            if gone_at is None:
                gone_at = clock()
                tell(f"{error.message} Waiting for another one.")
            elif clock() - gone_at >= patience_s:
                tell(error.message)
                return None
        sleep(_POLL_S_MIN)


def _stayed(place: api.SessionPlace, body: dict[str, Any]) -> Outcome:
    tasks = {str(key): int(value) for key, value in (body.get("tasks") or {}).items()}
    code = errors.EXIT_TASKS_FAILED if tasks.get("failed") else 0
    return Outcome(place.session, "done", code, None, None, tasks)
