"""The Unix-socket server of the daemon, driven by the daemon's own poll loop.

Rules
-----
* Never blocks and never raises for what a client does. A client that is slow, greedy or silent in
  the middle of a line is cut off; the loop and the other clients do not notice.
* Only the own user and root get an answer; the kernel says who it is (SO_PEERCRED).
* One request per client is in work at a time. While it is, or while its answer has not left, that
  client is not read: so memory is bounded by clients x (line + answer).
* When the process is out of descriptors, clients are accepted with those that are kept back; when
  these are used up, too, the listener rests for a moment, so that the loop does not spin.
* The socket is private from its first instant, and only a dead one is ever replaced. If the file
  vanishes (a logout removes /run/user/<uid>), the daemon listens anew: `service` looks after it.

Used by `daemon.py` alone. Times are monotonic seconds given by the caller.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobflowd import api
from jobflowd.places import check_private_directory, peer_of, socket_address
from jobflowd.rlimits import Reserve

POLLIN: Final = select.POLLIN
POLLOUT: Final = select.POLLOUT

CLIENTS_MAX: Final = 32
#: What may wait to be sent to one client; a larger answer is refused, pages are the way.
ANSWER_BYTES_MAX: Final = 16 * 1024 * 1024
#: A line that was begun must be complete within this time.
LINE_PATIENCE_S: Final = 5.0
#: An answer must make progress within this time.
WRITE_PATIENCE_S: Final = 10.0
#: A client without a request is let go after this time.
IDLE_PATIENCE_S: Final = 300.0
#: How often the socket file is checked for being there.
CHECK_S: Final = 5.0
_READ_BYTES: Final = 64 * 1024
_ACCEPTS_PER_CALL: Final = 16
#: Descriptors kept back for clients, and the pause when they are used up.
_RESERVED: Final = 8
_REST_S: Final = 0.1


class AlreadyServed(RuntimeError):
    """A live daemon listens on this socket."""


@dataclass(frozen=True, slots=True)
class Request:
    """A valid request of a client that is allowed to ask; `ticket` names its answer."""

    ticket: int
    cmd: str
    args: dict[str, Any]
    pid: int
    uid: int


@dataclass(slots=True)
class _Client:
    connection: socket.socket
    pid: int
    since: float
    uid: int
    inbox: bytearray
    outbox: bytearray
    ticket: int | None = None
    call_id: Any = None
    closing: bool = False

    @property
    def reading(self) -> bool:
        return self.ticket is None and not self.outbox and not self.closing

    @property
    def idle(self) -> bool:
        return self.reading and not self.inbox

    @property
    def line_waits(self) -> bool:
        return self.reading and b"\n" in self.inbox

    @property
    def deadline(self) -> float | None:
        """When its patience ends; None while the daemon owes it an answer."""
        if self.outbox:
            return self.since + WRITE_PATIENCE_S
        if self.ticket is not None:
            return None
        return self.since + (LINE_PATIENCE_S if self.inbox else IDLE_PATIENCE_S)


class AdminServer:
    """Listens at the first usable of the given paths; see the module's rules.

    `open` binds. `interest` says what to poll; `service` takes what is ready and returns valid
    requests; each gets exactly one `answer` or `refuse`. `trouble` is None, or why nobody can
    reach this daemon now (a warning for `status`).
    """

    def __init__(self, *paths: Path) -> None:
        self._paths = paths
        self.path: Path | None = None
        self.trouble: str | None = None
        self._listener: socket.socket | None = None
        self._inode: tuple[int, int] | None = None
        self._clients: dict[int, _Client] = {}
        self._by_ticket: dict[int, _Client] = {}
        self._tickets = 0
        self._now = 0.0
        self._check_at = 0.0
        self._reserve = Reserve(_RESERVED)
        self._rest_until: float | None = None

    def open(self) -> Path:
        """Bind and listen; returns the path. The caller owns the session's lock already.

        Raises `AlreadyServed` if a live daemon answers there, `NotOurs` (a PermissionError) if
        the directory is not private, OSError if none of the paths can be used.
        """
        refusal: OSError | None = None
        for path in self._paths:
            try:
                self._listener, self._inode = _listen(path)
            except OSError as error:
                refusal = refusal or error
                continue
            self.path = path
            self.trouble = None
            self._reserve.refill()
            return path
        raise refusal or FileNotFoundError("no path for the admin socket")

    def close(self) -> None:
        """Stop listening, let every client go, remove the socket file if it is still our own."""
        for client in list(self._clients.values()):
            self._drop(client)
        self._close_listener()
        self._reserve.close()

    # --- polling ----------------------------------------------------------------------------

    def sockets(self) -> list[int]:
        """Every descriptor to poll now."""
        return list(self.interest())

    def interest(self) -> dict[int, int]:
        """Descriptor -> POLLIN or POLLOUT. Clients that wait for an answer are not listed."""
        wanted: dict[int, int] = {}
        if self._listener is not None and self._rest_until is None:
            wanted[self._listener.fileno()] = POLLIN
        for fd, client in self._clients.items():
            if client.outbox:
                wanted[fd] = POLLOUT
            elif client.reading:
                wanted[fd] = POLLIN
        return wanted

    def next_deadline(self, now: float) -> float:
        """When `service` wants to be called, even if nothing is ready. At least every 5 s."""
        earliest = self._check_at
        if self._rest_until is not None:
            earliest = min(earliest, self._rest_until)
        for client in self._clients.values():
            if client.line_waits:
                return now
            if client.deadline is not None and client.deadline < earliest:
                earliest = client.deadline
        return earliest

    def service(self, ready: Iterable[int], now: float) -> list[Request]:
        """Read and write what is ready; returns the valid requests, at most one per client."""
        self._now = now
        if self._rest_until is not None and now >= self._rest_until:
            self._rest_until = None
        for fd in ready:
            if self._listener is not None and fd == self._listener.fileno():
                self._accept()
                continue
            client = self._clients.get(fd)
            if client is None:
                continue
            if client.outbox:
                self._flush(client)
            elif client.reading:
                self._read(client)
        requests: list[Request] = []
        for client in list(self._clients.values()):
            if client.line_waits:
                self._next_line(client, requests)
            if client.deadline is not None and client.deadline <= now:
                self._drop(client)
        self._reserve.refill()
        if now >= self._check_at:
            self._check_at = now + CHECK_S
            self._look_after_socket()
        return requests

    # --- answers ----------------------------------------------------------------------------

    def answer(self, ticket: int, body: Mapping[str, Any]) -> None:
        """Answer a request; a client that has left meanwhile is no error."""
        client = self._by_ticket.pop(ticket, None)
        if client is None:
            return
        try:
            line = api.encode_answer(client.call_id, body)
        except (TypeError, ValueError, RecursionError) as error:
            message = f"The answer cannot be written as JSON ({type(error).__name__})."
            line = api.encode_error(client.call_id, "internal", message, "The log has details.")
        if len(line) > ANSWER_BYTES_MAX:
            hint = "Ask for fewer rows with `limit`."
            message = f"The answer has {len(line)} bytes, more than {ANSWER_BYTES_MAX}."
            line = api.encode_error(client.call_id, "busy", message, hint)
        self._send(client, line)

    def refuse(self, ticket: int, code: str, message: str, hint: str = "") -> None:
        """Answer a request with an error of `api.ERROR_CODES`."""
        client = self._by_ticket.pop(ticket, None)
        if client is not None:
            self._send(client, api.encode_error(client.call_id, code, message, hint))

    # --- inside -----------------------------------------------------------------------------

    def _accept(self) -> None:
        if self._listener is None:
            return
        for _ in range(_ACCEPTS_PER_CALL):
            connection = self._accept_one(self._listener)
            if connection is None:
                return
            connection.setblocking(False)
            pid, uid = peer_of(connection)
            if uid not in (os.getuid(), 0):
                connection.close()
                continue
            if len(self._clients) >= CLIENTS_MAX and not self._make_room():
                with contextlib.suppress(OSError):
                    connection.send(api.encode_error(None, "busy", "Too many clients.", "Retry."))
                connection.close()
                continue
            client = _Client(connection, pid, self._now, uid, bytearray(), bytearray())
            self._clients[connection.fileno()] = client

    def _accept_one(self, listener: socket.socket) -> socket.socket | None:
        """The next client, if need be with a descriptor that was kept back; None if that fails."""
        while True:
            try:
                return listener.accept()[0]
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    return None  # Nobody is left, or whoever was there is gone.
                # Strangers on the other port may be quicker than we, so all are tried.
                if not self._reserve.give():
                    self._rest_until = self._now + _REST_S
                    return None

    def _make_room(self) -> bool:
        """Let the client go that has been idle the longest. False if all are at work."""
        idle = [client for client in self._clients.values() if client.idle]
        if not idle:
            return False
        self._drop(min(idle, key=lambda client: client.since))
        return True

    def _read(self, client: _Client) -> None:
        try:
            data = client.connection.recv(_READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        if not client.inbox:
            # The clock of a line starts with its first byte and is not moved by later ones.
            client.since = self._now
        client.inbox += data
        if len(client.inbox) > api.LINE_BYTES_MAX and b"\n" not in client.inbox:
            client.inbox.clear()
            client.closing = True
            hint = "A request line has at most 1 MiB."
            self._send(client, api.encode_error(None, "usage", "The line is too long.", hint))

    def _next_line(self, client: _Client, requests: list[Request]) -> None:
        """Take one line; only an invalid one may be followed by the next in the same call."""
        end = client.inbox.index(b"\n")
        line = bytes(client.inbox[:end])
        del client.inbox[: end + 1]
        client.since = self._now
        if not line.strip():
            return
        try:
            call = api.parse_call(line)
        except api.BadRequest as bad:
            self._send(client, api.encode_error(bad.call_id, bad.code, bad.message, bad.hint))
            return
        self._tickets += 1
        client.ticket = self._tickets
        client.call_id = call.call_id
        self._by_ticket[self._tickets] = client
        requests.append(Request(self._tickets, call.cmd, call.args, client.pid, client.uid))

    def _send(self, client: _Client, line: bytes) -> None:
        client.ticket = None
        client.since = self._now
        client.outbox += line
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        try:
            sent = client.connection.send(client.outbox)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            self._drop(client)
            return
        del client.outbox[:sent]
        client.since = self._now
        if client.closing and not client.outbox:
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client.connection.fileno(), None)
        if client.ticket is not None:
            self._by_ticket.pop(client.ticket, None)
        client.connection.close()

    def _look_after_socket(self) -> None:
        """Listen anew if the socket file has gone. Never fails; `trouble` says what is wrong."""
        if self.path is None or (self._listener is not None and self._file_is_ours()):
            return
        self._close_listener()
        try:
            self.open()
        except (OSError, AlreadyServed) as error:
            self.trouble = f"jobflowctl cannot reach this daemon: {error}"

    def _file_is_ours(self) -> bool:
        if self.path is None:
            return False
        try:
            info = os.lstat(self.path)
        except OSError:
            return False
        return (info.st_dev, info.st_ino) == self._inode

    def _close_listener(self) -> None:
        if self._listener is None:
            return
        # Unlink before closing, so that nobody can find a dead socket of ours.
        if self._file_is_ours() and self.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self.path)
        self._listener.close()
        self._listener = None


def _listen(path: Path) -> tuple[socket.socket, tuple[int, int]]:
    """A listening socket at `path` and the identity of its file."""
    _make_private_directory(path.parent)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.setblocking(False)
        with socket_address(path) as address:
            _remove_dead(path, address)
            before = os.umask(0o177)
            try:
                listener.bind(address)
            finally:
                os.umask(before)
        listener.listen(CLIENTS_MAX)
        info = os.lstat(path)
    except BaseException:
        listener.close()
        raise
    return listener, (info.st_dev, info.st_ino)


def _make_private_directory(directory: Path) -> None:
    before = os.umask(0o077)
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
    except FileExistsError:
        pass
    finally:
        os.umask(before)
    check_private_directory(directory)


def _remove_dead(path: Path, address: str) -> None:
    """Remove a socket that nobody listens on. Raises `AlreadyServed` if somebody does."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    probe.setblocking(False)
    try:
        probe.connect(address)
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        os.unlink(path)
        return
    except BlockingIOError:
        pass
    finally:
        probe.close()
    raise AlreadyServed(f"a live daemon listens on {path}")
