"""Where sessions and their admin sockets are, for daemon and client alike.

Published through `api.py`. Reads pointers and owner records, which `sessiondir.py` writes; writes
nothing itself. A Unix socket does not reach across hosts, so the socket lives on the daemon's own
host, in a directory that only its user can enter:

    $XDG_RUNTIME_DIR/jobflow/<hash>.sock     else     /tmp/jobflow-<uid>/<hash>.sock

`<hash>` stands for the real path of the session directory. A client looks in every place where a
daemon may have put it, because a service and a terminal often differ in XDG_RUNTIME_DIR.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import stat
import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from jobflow_worker.pointers import pointers_dir

#: What fits into sockaddr_un; a longer path goes through a descriptor of its directory.
_SOCKET_PATH_BYTES_MAX: Final = 107
_RECORD_BYTES_MAX: Final = 64 * 1024
_NAME_CHARS_MAX: Final = 128
_RETRY_S: Final = 0.02


class NotOurs(PermissionError):
    """A socket or its directory belongs to somebody else, or is open to others."""


class NoSuchSession(LookupError):
    """No session by that name or in that directory. `hint` says what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


@dataclass(frozen=True, slots=True)
class Ended:
    """The recorded end of a run: `code` is the exit code of the daemon, `ended_at` wall clock."""

    state: str
    code: int
    ended_at: float
    tasks: dict[str, int]


@dataclass(frozen=True, slots=True)
class SessionPlace:
    """A session as its records describe it; whether it lives is for its socket to say.

    `started_at` is wall-clock seconds or None. `host` is "" where no record names it.
    """

    session: str
    dir: Path
    host: str
    pid: int | None
    started_at: float | None

    @property
    def here(self) -> bool:
        """Does its daemon run on this host, as far as the records say?"""
        return self.host in ("", this_host())

    def answers(self) -> bool:
        """Does a daemon listen on its socket, on this host? A busy one counts."""
        for path in socket_paths(self.dir):
            try:
                connect_unix(path, timeout_s=0.2).close()
            except TimeoutError:
                return True
            except OSError:
                continue
            return True
        return False

    def ended(self) -> Ended | None:
        """How the run ended, if it has. A start removes the record of the end before it."""
        record = _read_record(self.dir / "ended.json")
        if record is None or type(record.get("code")) is not int:
            return None
        ended_at = _moment(record.get("ended_at"))
        if ended_at is None:
            return None
        tasks = record.get("tasks")
        counts = tasks if type(tasks) is dict else {}
        return Ended(
            state=str(record.get("state", "")),
            code=record["code"],
            ended_at=ended_at,
            tasks={str(key): one for key, one in counts.items() if type(one) is int},
        )


def this_host() -> str:
    """The name of this host, as owner records write it."""
    return os.uname().nodename


# --- sessions ---------------------------------------------------------------------------------


def is_session_name(text: str) -> bool:
    """Can this be a session's name (and so a file name), as opposed to a path?"""
    if not 1 <= len(text) <= _NAME_CHARS_MAX or text.startswith((".", "-")):
        return False
    return all(char.isalnum() or char in "._-" for char in text) and text.isascii()


def find_session(name_or_dir: str) -> SessionPlace:
    """The session with that name, or in that directory. Raises `NoSuchSession`.

    A name is looked up among the user's pointers first; anything with a slash is a directory.
    """
    if is_session_name(name_or_dir):
        place = _from_pointer(pointers_dir() / f"{name_or_dir}.json")
        if place is not None:
            return place
    directory = Path(name_or_dir).expanduser()
    if (directory / "session.json").is_file():
        return _from_directory(directory)
    if directory.is_dir() and "/" in name_or_dir:
        raise NoSuchSession(
            f"{name_or_dir} is not a session directory: it has no session.json.",
            "A session is <shared-dir>/<session-id>; `jobflowctl sessions` lists yours.",
        )
    raise NoSuchSession(
        f"There is no session {name_or_dir!r}.",
        "`jobflowctl sessions` lists yours; start one with: jobflowd start --program FILE.py",
    )


def list_sessions() -> list[SessionPlace]:
    """Every session that the user has a pointer to, oldest first. Damaged pointers are skipped."""
    try:
        files = sorted(pointers_dir().glob("*.json"))
    except OSError:
        return []
    places = [place for file in files if (place := _from_pointer(file)) is not None]
    return sorted(places, key=lambda place: (place.started_at or 0.0, place.session))


def _from_pointer(file: Path) -> SessionPlace | None:
    record = _read_record(file)
    if record is None or type(record.get("dir")) is not str or not record["dir"]:
        return None
    return _merged(str(record.get("session") or file.stem), Path(record["dir"]), record)


def _from_directory(directory: Path) -> SessionPlace:
    directory = directory.resolve()
    record = _read_record(directory / "session.json") or {}
    name = record.get("session") or record.get("session_id") or directory.name
    return _merged(str(name), directory, {})


def _merged(session: str, directory: Path, pointer: dict[str, Any]) -> SessionPlace:
    """The owner record in the directory is written at every start, so it wins over the pointer."""
    owner = _read_record(directory / "owner.json") or {}

    def pick(key: str, kind: type) -> Any:
        for record in (owner, pointer):
            if type(record.get(key)) is kind:
                return record[key]
        return None

    started = _moment(owner.get("started_at"))
    return SessionPlace(
        session=session,
        dir=directory,
        host=pick("host", str) or "",
        pid=pick("pid", int),
        started_at=_moment(pointer.get("started_at")) if started is None else started,
    )


def _read_record(file: Path) -> dict[str, Any] | None:
    """A small JSON object, or None for anything else."""
    try:
        with file.open("rb") as stream:
            value = json.loads(stream.read(_RECORD_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return None
    return value if type(value) is dict else None


def _moment(value: Any) -> float | None:
    """Seconds since the epoch, from a number or an ISO-8601 text."""
    if type(value) in (int, float):
        return float(value)
    if type(value) is str:
        from datetime import datetime, timezone

        with contextlib.suppress(ValueError):
            moment = datetime.fromisoformat(value.replace("Z", "+00:00"))
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=timezone.utc)
            return moment.timestamp()
    return None


# --- sockets ----------------------------------------------------------------------------------


def runtime_dirs(uid: int | None = None) -> list[Path]:
    """The directories that may hold a user's sockets, the preferred one first."""
    user = os.getuid() if uid is None else uid
    found: list[Path] = []
    own = os.environ.get("XDG_RUNTIME_DIR", "")
    if own.startswith("/") and user == os.getuid() and os.path.isdir(own):
        found.append(Path(own) / "jobflow")
    # Not TMPDIR: that differs between a service and a terminal, and they must meet.
    found.append(Path(f"/tmp/jobflow-{user}"))
    # Where a daemon with the variable may listen, seen from a client without it.
    usual = Path(f"/run/user/{user}")
    if usual.is_dir() and usual / "jobflow" not in found:
        found.append(usual / "jobflow")
    return found


def socket_paths(session_dir: Path) -> list[Path]:
    """Every place where a daemon of this session may listen, the preferred one first."""
    real = os.path.realpath(session_dir)
    name = hashlib.sha256(os.fsencode(real)).hexdigest()[:16] + ".sock"
    try:
        # For root, who may look after somebody else's session.
        uid = os.stat(real).st_uid
    except OSError:
        uid = os.getuid()
    return [directory / name for directory in runtime_dirs(uid)]


def socket_path(session_dir: Path) -> Path:
    """Where the daemon of this session listens: $XDG_RUNTIME_DIR/jobflow, else below /tmp."""
    return socket_paths(session_dir)[0]


def check_private_directory(directory: Path, *, owner: int | None = None) -> None:
    """Refuse a directory that others could have prepared or could enter.

    Raises `NotOurs` unless it is a real directory (no link), belongs to `owner` (default: this
    process's user) and has mode 0700; FileNotFoundError if it does not exist.
    """
    info = os.lstat(directory)
    uid = os.getuid() if owner is None else owner
    if not stat.S_ISDIR(info.st_mode):
        raise NotOurs(f"{directory} is not a directory but a link or a file")
    if info.st_uid != uid:
        raise NotOurs(f"{directory} belongs to user {info.st_uid}, not to user {uid}")
    if stat.S_IMODE(info.st_mode) & 0o077:
        raise NotOurs(f"{directory} is open to others (mode {stat.S_IMODE(info.st_mode):04o})")


class socket_address:
    """Context manager: an address for bind or connect, however long the path is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd = -1

    def __enter__(self) -> str:
        if len(os.fsencode(self._path)) <= _SOCKET_PATH_BYTES_MAX:
            return str(self._path)
        flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._fd = os.open(self._path.parent, flags)
        return f"/proc/self/fd/{self._fd}/{self._path.name}"

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            os.close(self._fd)


def peer_of(connection: socket.socket) -> tuple[int, int]:
    """(pid, uid) of the other end, as the kernel recorded them."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid, uid, _ = struct.unpack("3i", raw)
    return pid, uid


def connect_unix(path: Path, *, timeout_s: float) -> socket.socket:
    """Connect to a daemon of the same user (root: of the directory's owner).

    Raises FileNotFoundError or ConnectionRefusedError if nobody listens, TimeoutError if a
    daemon is there and too busy to accept, `NotOurs` if it is not one to be trusted.
    """
    owner = os.getuid() or os.lstat(path.parent).st_uid
    check_private_directory(path.parent, owner=owner)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout_s)
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                with socket_address(path) as address:
                    connection.connect(address)
                break
            except BlockingIOError:
                # The queue of the listener is full: somebody lives there and is busy.
                if time.monotonic() >= deadline:
                    raise TimeoutError(f"{path} does not accept") from None
                time.sleep(_RETRY_S)
        if peer_of(connection)[1] not in (owner, 0):
            raise NotOurs(f"{path} is answered by another user")
    except BaseException:
        connection.close()
        raise
    return connection
