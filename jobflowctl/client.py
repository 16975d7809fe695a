"""Finding a session and talking to its daemon: connect, call, close.

Rule: everything that can go wrong comes out as a `CtlError` with a sentence and an exit code.
Blocking, with a time-out on every wait. Imports of ours: `jobflowd.api` only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final

from jobflowctl.errors import CtlError, DaemonBusy, NoSession, NotAllowed, Refused, UsageError
from jobflowctl.text import duration
from jobflowd import api

if TYPE_CHECKING:
    import socket

#: A healthy daemon answers within milliseconds; a turn on a slow disk may take seconds.
CALL_TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 5.0
#: More than the daemon ever sends: a bound against somebody who is not the daemon.
_ANSWER_BYTES_MAX: Final = 64 * 1024 * 1024
#: What an ended session is opened for: questions, and what makes it go on.
_ASKED_OF_ENDED: Final = (api.READS - {"ping"}) | {"retry", "cancel"}
_START: Final = "jobflowd start --program FILE.py"


class DaemonGone(NoSession):
    """The connection broke before the answer came."""


def choose_session(name_or_dir: str | None) -> api.SessionPlace:
    """The session of `-s`, else of JOBFLOW_SESSION, else the only live one of the user.

    Raises `NoSession` if there is none, `UsageError` listing them if there are several.
    """
    name = name_or_dir or os.environ.get("JOBFLOW_SESSION")
    if name:
        try:
            return api.find_session(name)
        except api.NoSuchSession as error:
            raise NoSession(error.message, error.hint) from None
    places = api.list_sessions()
    live = [place for place in places if place.ended() is None and place.here and place.answers()]
    if len(live) == 1:
        return live[0]
    if live:
        listing = "\n".join(f"  -s {place.session}    {place.dir}" for place in live)
        raise UsageError(
            f"{len(live)} sessions run here; say which one:\n{listing}",
            "Or set JOBFLOW_SESSION.",
        )
    elsewhere = [place for place in places if not place.here and place.ended() is None]
    if elsewhere:
        where = ", ".join(f"{place.session} on {place.host}" for place in elsewhere[-3:])
        raise NoSession(
            f"No session of yours runs on {api.this_host()}; elsewhere: {where}.",
            f"Ask there: ssh {elsewhere[-1].host} jobflowctl status",
        )
    if places:
        raise NoSession(
            f"No session of yours runs now; the last one was {places[-1].session}.",
            f"Ask about it: jobflowctl -s {places[-1].session} status\n"
            f"Go on with it: jobflowd start --session-id {places[-1].session}",
        )
    raise NoSession("No session of yours runs now.", f"Start one: {_START}")


def not_running(place: api.SessionPlace, wall: float) -> NoSession:
    """Why nobody answers for this session, and how to start it."""
    ended = place.ended()
    again = f"Go on with it: jobflowd start --session-id {place.session}"
    if ended is not None:
        ago = duration(max(0.0, wall - ended.ended_at))
        counts = ended.tasks
        done = f"{counts.get('succeeded', 0)} succeeded, {counts.get('failed', 0)} failed"
        what = f"{ended.state or 'with code ' + str(ended.code)}, {done}"
        return NoSession(f"Session {place.session} ended {ago} ago: {what}.", again)
    if not place.here:
        who = f" (pid {place.pid})" if place.pid else ""
        return NoSession(
            f"Session {place.session} runs on {place.host}{who}, not on {api.this_host()}.",
            f"Ask there: ssh {place.host} jobflowctl -s {place.session} status",
        )
    return NoSession(f"The daemon of session {place.session} does not run.", again)


class Client:
    """One connection to one daemon; made at the first call and anew after a break.

    Times are of the monotonic clock. Not for two threads at once.
    """

    def __init__(
        self,
        place: api.SessionPlace,
        *,
        opens: Callable[[str], None] | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """`opens`: an ended session is opened for questions, and this is told of it."""
        self.place = place
        self._opens = opens
        self._wall = wall
        self._connection: socket.socket | None = None
        self._buffer = b""
        self._next_id = 0

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Idempotent."""
        if self._connection is not None:
            self._connection.close()
        self._connection = None
        self._buffer = b""

    def open_no_more(self) -> None:
        """From now on an ended session stays closed: who follows a run leaves with it."""
        self._opens = None

    def connect(self) -> None:
        """Connect now. Raises `NoSession`, `DaemonBusy` or `NotAllowed`."""
        if self._connection is not None:
            return
        if not self._found():
            raise not_running(self.place, self._wall())

    def _found(self) -> bool:
        """Connect to the daemon, if there is one."""
        distrust: OSError | None = None
        for path in api.socket_paths(self.place.dir):
            try:
                self._connection = api.connect_unix(path, timeout_s=CONNECT_TIMEOUT_S)
                return True
            except TimeoutError:
                raise self._busy(CONNECT_TIMEOUT_S) from None
            except (FileNotFoundError, ConnectionRefusedError):
                continue
            except OSError as error:
                # The right socket may still be in the next place.
                distrust = distrust or error
        if isinstance(distrust, PermissionError):
            raise NotAllowed(
                f"The admin socket cannot be trusted or used: {distrust}.",
                "Remove what does not belong there, or ask its owner to.",
            )
        return False

    def _open_ended(self, cmd: str) -> None:
        """If the run has ended on this host, let a daemon answer questions about it."""
        if self._opens is None or cmd not in _ASKED_OF_ENDED or self._connection is not None:
            return
        if self.place.ended() is None or not self.place.here or self._found():
            return
        from jobflowctl.opening import open_ended

        try:
            open_ended(self.place, self._opens, self._found)
        except NoSession as error:
            ended = not_running(self.place, self._wall())
            raise NoSession(f"{ended.message}\n{error.message}", ended.hint) from None

    def call(
        self, cmd: str, args: Mapping[str, Any] | None = None, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> dict[str, Any]:
        """Ask one thing and return the body of the answer.

        A read is repeated once if the connection breaks (the daemon lets idle clients go), what
        changes things never is. Raises `Refused` with the daemon's words, `DaemonGone`,
        `DaemonBusy`, `NoSession` or `NotAllowed`.
        """
        kept = self._connection is not None
        try:
            return self._ask(cmd, args, timeout_s)
        except DaemonGone:
            if not (kept and cmd in api.READS):
                raise
        return self._ask(cmd, args, timeout_s)

    def pages(self, cmd: str, args: Mapping[str, Any], rows: str) -> Iterator[list[dict[str, Any]]]:
        """Every page of a paged read, as lists of rows, until there is no next one."""
        after: str | None = args.get("after")
        while True:
            body = self.call(cmd, {**args, "after": after, "limit": api.PAGE_MAX})
            page = body.get(rows) or []
            yield page
            following = body.get("next")
            if not page or following is None or following == after:
                return
            after = following

    def _ask(self, cmd: str, args: Mapping[str, Any] | None, timeout_s: float) -> dict[str, Any]:
        self._open_ended(cmd)
        self.connect()
        self._next_id += 1
        try:
            line = api.encode_call(self._next_id, cmd, args)
        except api.BadRequest as error:
            raise UsageError(error.message, error.hint) from None
        deadline = time.monotonic() + timeout_s
        try:
            self._send(line, deadline)
            while True:
                answer = self._receive(deadline)
                # An error without an id is about the connection itself.
                if answer.get("id") in (self._next_id, None):
                    return _body(answer)
        except TimeoutError:
            self.close()
            raise self._busy(timeout_s) from None
        except (OSError, ValueError) as error:
            self.close()
            raise self._gone(cmd, error) from None

    def _send(self, line: bytes, deadline: float) -> None:
        assert self._connection is not None
        self._connection.settimeout(_left(deadline))
        self._connection.sendall(line)

    def _receive(self, deadline: float) -> dict[str, Any]:
        assert self._connection is not None
        parts = [self._buffer]
        size = len(self._buffer)
        while b"\n" not in parts[-1]:
            self._connection.settimeout(_left(deadline))
            data = self._connection.recv(1024 * 1024)
            if not data:
                raise ConnectionResetError("it hung up")
            size += len(data)
            if size > _ANSWER_BYTES_MAX:
                raise ValueError("its answer has no end")
            parts.append(data)
        line, _, self._buffer = b"".join(parts).partition(b"\n")
        answer = json.loads(line)
        if type(answer) is not dict:
            raise ValueError("its answer is not of this protocol")
        return answer

    def _busy(self, timeout_s: float) -> DaemonBusy:
        who = f" (pid {self.place.pid})" if self.place.pid else ""
        return DaemonBusy(
            f"The daemon of session {self.place.session}{who} is busy: "
            f"no answer within {duration(timeout_s)}.",
            f"Try again; if it stays so, look at its log in {self.place.dir}.",
        )

    def _gone(self, cmd: str, error: Exception) -> CtlError:
        message = f"The daemon of session {self.place.session} left before it answered ({error})."
        if cmd in api.READS:
            return DaemonGone(message, "Try again, or see: jobflowctl sessions")
        return DaemonGone(message, f"It is not known whether `{cmd}` was done: look at the status.")


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _body(answer: dict[str, Any]) -> dict[str, Any]:
    error = answer.get("error")
    if isinstance(error, dict):
        code, message, hint = (str(error.get(key) or "") for key in ("code", "message", "hint"))
        if code == "usage" and (message == "Unknown command." or " has no argument " in message):
            # This client asks only what its own version knows.
            message += " The daemon is of another version than this jobflowctl."
            hint = "Use the jobflowctl that was installed with it, or start the daemon anew."
            code = "version"
        raise Refused(code, message, hint)
    return {key: value for key, value in answer.items() if key not in ("id", "ok")}
