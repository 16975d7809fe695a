"""The session directory: its names, and how its files are written and read.

Rules
-----
* Every file name of a session is a property of `SessionPaths`; no other module spells one.
* Files are private from their first instant: 0600 in directories of 0700, whatever the umask.
  They are written under a temporary name in the same directory and renamed, so that a reader
  on another host sees the old file or the new one.
* Readers open anew each time and trust nothing: links are not followed, a FIFO cannot block
  them, only regular files of the own user within a size limit are read.

Used by the worker, the daemon and (read-only) the client. Imports nothing of ours but messages
and records.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from jobflow_worker.messages import is_label
from jobflow_worker.record import Record, as_dict

RECORD_VERSION: Final = 1
BEACON_VERSION: Final = 1
BEACON_STATES: Final = ("open", "closed", "detached")

#: A beacon is a page of JSON; a session record carries program args, which may be a long list.
_BEACON_BYTES_MAX: Final = 64 * 1024
_RECORD_BYTES_MAX: Final = 16 * 1024 * 1024
_ENDPOINTS_MAX: Final = 64
_ENDPOINT = re.compile(r"tcp://(\[[0-9A-Za-z:.%]+\]|[A-Za-z0-9._-]+):[1-9][0-9]{0,4}")

_OPEN_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_OPEN_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class SessionFileError(Exception):
    """A session file that cannot be used: what is wrong, why, and what to do.

    `exit_code` is that of SPEC.md: 78 for content, 77 for ownership and permissions.
    """

    exit_code = 78


class UnsafeFileError(SessionFileError):
    """A path that is a link, not a regular file, somebody else's, or too large."""

    exit_code = 77


class SessionPaths(Record):
    """All names inside one session directory."""

    root: Path

    @property
    def session_file(self) -> Path:
        """The session's identity, written at the first start (`SessionRecord`)."""
        return self.root / "session.json"

    @property
    def beacon(self) -> Path:
        """Replaced by the daemon every heartbeat (`Beacon`)."""
        return self.root / "beacon.json"

    @property
    def database(self) -> Path:
        return self.root / "manager.db"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def owner(self) -> Path:
        """Host, boot id and pid of the daemon that holds the lock."""
        return self.root / "owner.json"

    @property
    def keys(self) -> Path:
        return self.root / "keys"

    @property
    def mail(self) -> Path:
        return self.root / "mail"

    @property
    def mail_new(self) -> Path:
        """Registration entries of fs workers: the one directory the daemon lists."""
        return self.root / "mail" / "new"

    @property
    def mail_in(self) -> Path:
        """Worker to manager, one file each."""
        return self.root / "mail" / "in"

    @property
    def mail_out(self) -> Path:
        """Manager to worker, one file each."""
        return self.root / "mail" / "out"

    @property
    def spool(self) -> Path:
        """Outboxes of workers that left without reaching the manager."""
        return self.root / "spool"

    @property
    def quarantine(self) -> Path:
        """What was found among the mailboxes and is not of this session."""
        return self.root / "quarantine"

    @property
    def results(self) -> Path:
        return self.root / "results"

    @property
    def launches(self) -> Path:
        return self.root / "launches"

    @property
    def snapshot(self) -> Path:
        return self.root / "dashboard_snapshot.json"

    def launch_dir(self, launch_id: str) -> Path:
        """The script and output of one launch. Raises ValueError for what is not a plain name."""
        if not is_label(launch_id):
            raise ValueError(f"not a launch id: {launch_id[:80]!r}")
        return self.launches / launch_id

    def make(self) -> None:
        """Create the directory tree, every directory 0700; what exists is made private.

        Raises `UnsafeFileError` where a name is a link, no directory, or another user's; OSError
        where the file system refuses.
        """
        make_private_dir(self.root, parents=True)
        for one in (
            self.keys,
            self.mail,
            self.mail_new,
            self.mail_in,
            self.mail_out,
            self.spool,
            self.quarantine,
            self.results,
            self.launches,
        ):
            make_private_dir(one)


def make_private_dir(path: Path, *, parents: bool = False) -> None:
    """Create a directory 0700, or check and make private the one that is there.

    Missing parents are created 0700 too if `parents` is set; existing ones are left alone.
    """
    if parents:
        missing = []
        above = path.parent
        while not above.exists():
            missing.append(above)
            above = above.parent
        for one in reversed(missing):
            _mkdir(one)
    _mkdir(path)
    # O_NOFOLLOW and the descriptor: what is checked is what is changed.
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise UnsafeFileError(
                f"{path} is not a directory but a link or a file; remove it, or choose another "
                "--shared-dir"
            ) from None
        raise
    try:
        info = os.fstat(fd)
        if info.st_uid != os.geteuid():
            raise UnsafeFileError(
                f"{path} belongs to user {info.st_uid}, not to you; choose a --shared-dir of "
                "your own"
            )
        if stat.S_IMODE(info.st_mode) != 0o700:
            os.fchmod(fd, 0o700)
    finally:
        os.close(fd)


def _mkdir(path: Path) -> None:
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        pass


# --- private files ------------------------------------------------------------------------------


def write_private(path: Path, data: bytes, *, fsync: bool = True) -> None:
    """Put `data` in place of the file at `path`, at once and with mode 0600.

    With `fsync` the content and the name survive a power cut where the disk honours it; without
    (beacons, mailboxes: their next version comes in seconds) only a crash of this process.
    Raises OSError; a file that was there stays whole then.
    """
    temporary = path.parent / f".{path.name}.{os.urandom(6).hex()}"
    fd = os.open(temporary, _OPEN_NEW, 0o600)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if fsync:
                os.fsync(fd)
        finally:
            # Network file systems report a full disk or quota at close, so it comes before rename.
            os.close(fd)
        try:
            os.rename(temporary, path)
        except FileNotFoundError:
            # A file server whose answer was lost is asked again, and says that it is gone.
            if path.read_bytes() != data:
                raise
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass
        raise
    if fsync:
        _sync_directory(path.parent)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    except OSError as error:
        # Some network file systems have no fsync for directories; their rename is synchronous.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def read_private(path: Path | str, limit: int) -> bytes:
    """The content of a regular file of the own user, at most `limit` bytes long.

    Raises FileNotFoundError and other OSErrors as they come, `UnsafeFileError` for a link,
    anything but a regular file, another owner, or a larger file.
    """
    data = read_private_unless(path, limit, b"")
    return b"" if data is None else data


def read_private_unless(path: Path | str, limit: int, known: bytes) -> bytes | None:
    """As `read_private`; None if the content begins with `known` (not empty): nothing new.

    For files that are polled: one open and fstat, and of an unchanged file only its beginning.
    """
    try:
        fd = os.open(path, _OPEN_READ)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise UnsafeFileError(f"{path} is a link or a socket, not a file of ours") from None
        raise
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise UnsafeFileError(f"{path} is not a regular file")
        if info.st_uid != os.geteuid():
            raise UnsafeFileError(f"{path} belongs to user {info.st_uid}, not to you")
        if info.st_size > limit:
            raise UnsafeFileError(f"{path} has {info.st_size} bytes, more than {limit}")
        head = os.read(fd, len(known)) if known else b""
        if known and head == known:
            return None
        return head + _read_to_end(path, fd, limit - len(head))
    finally:
        os.close(fd)


def _read_to_end(path: Path | str, fd: int, limit: int) -> bytes:
    # fstat may be older than the content (network file systems), so the end is where read says.
    parts = []
    while data := os.read(fd, 65536):
        parts.append(data)
        limit -= len(data)
        if limit < 0:
            raise UnsafeFileError(f"{path} grew beyond its limit while it was read")
    return b"".join(parts)


# --- session.json and beacon.json ---------------------------------------------------------------


def _exact(kind: type[Record], data: Any) -> dict[str, Any]:
    """The fields of `kind`, all of them; unknown ones (of a newer writer) are left out."""
    if type(data) is not dict:
        raise ValueError("not a JSON object")
    missing = [name for name in kind.__match_args__ if name not in data]
    if missing:
        raise ValueError(f"{missing[0]!r} is missing")
    return {name: data[name] for name in kind.__match_args__}


def _require(condition: bool, sentence: str) -> None:
    if not condition:
        raise ValueError(sentence)


def _is_int(value: object, low: int = 0) -> bool:
    return type(value) is int and low <= value < 2**63


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and 0 <= value < 1e12  # type: ignore[operator]


class Beacon(Record):
    """What the daemon says of itself, in a file, every heartbeat.

    `epoch` counts the daemon's starts, `n` the beacons of this one: a worker sees that its
    manager lives when either moves. `heartbeat_s` is the interval of replacement.
    """

    epoch: int
    state: str
    endpoints: tuple[str, ...]
    server_public: str | None
    program_hash: str
    heartbeat_s: float
    n: int
    v: int = BEACON_VERSION

    def encode(self) -> bytes:
        return json.dumps(as_dict(self), ensure_ascii=True).encode() + b"\n"

    @classmethod
    def decode(cls, data: bytes) -> Beacon:
        """Raises ValueError for anything that `encode` would not write."""
        values = _exact(cls, _loads(data))
        _require(values["v"] == BEACON_VERSION, f"version {values['v']!r:.20} is not 1")
        _require(_is_int(values["epoch"]) and _is_int(values["n"]), "epoch or n is no count")
        _require(values["state"] in BEACON_STATES, "state is unknown")
        endpoints = values["endpoints"]
        _require(
            type(endpoints) is list
            and len(endpoints) <= _ENDPOINTS_MAX
            and all(is_endpoint(one) for one in endpoints),
            "endpoints are not a list of tcp://host:port",
        )
        key, digest = values["server_public"], values["program_hash"]
        _require(key is None or (type(key) is str and len(key) == 40), "server_public is no key")
        _require(type(digest) is str and len(digest) <= 255, "program_hash is no text")
        _require(_is_number(values["heartbeat_s"]), "heartbeat_s is no duration")
        _require(values["heartbeat_s"] > 0, "heartbeat_s is no duration")
        values["endpoints"] = tuple(endpoints)
        return cls(**values)


def is_endpoint(value: object) -> bool:
    """True for `tcp://host:port`, with brackets around an IPv6 address."""
    return type(value) is str and len(value) <= 300 and _ENDPOINT.fullmatch(value) is not None


def _loads(data: bytes) -> Any:
    """JSON from a file. Raises ValueError, also for nesting that would exhaust the stack."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def read_beacon(path: Path) -> Beacon | None:
    """The beacon as it is now, or None if there is none or it cannot be read.

    None is no evidence of a dead manager: a file server that restarts looks the same.
    """
    try:
        return Beacon.decode(read_private(path, _BEACON_BYTES_MAX))
    except (OSError, ValueError, UnsafeFileError):
        return None


def write_beacon(path: Path, beacon: Beacon) -> None:
    """Replace the beacon; not synced, since the next one comes in a heartbeat."""
    write_private(path, beacon.encode(), fsync=False)


class SessionRecord(Record):
    """session.json: what this session is, as of its first start.

    `program` is `ProgramRef.to_json()`, `settings` the flags of the first start, `created_at`
    wall-clock seconds, `version` that of the software which wrote it.
    """

    session: str
    program: Mapping[str, Any]
    program_args: Mapping[str, Any]
    cwd: str
    created_at: float
    version: str
    settings: Mapping[str, Any]
    v: int = RECORD_VERSION

    def save(self, path: Path) -> None:
        """Write it durably. Raises OSError."""
        text = json.dumps(as_dict(self), indent=2, ensure_ascii=True)
        write_private(path, text.encode() + b"\n")

    @classmethod
    def load(cls, path: Path) -> SessionRecord:
        """Raises `SessionFileError` with a sentence for the user, also if there is no file."""
        try:
            return cls._decode(read_private(path, _RECORD_BYTES_MAX))
        except FileNotFoundError:
            raise SessionFileError(
                f"{path} does not exist: {path.parent} is not a session directory. Name the "
                "session as `jobflowd start` printed it, or start it first"
            ) from None
        except OSError as error:
            raise SessionFileError(
                f"{path} cannot be read ({error.strerror}); check that this host sees the shared "
                "directory and that it is yours"
            ) from None
        except ValueError as error:
            raise SessionFileError(
                f"{path} is not a session record of this version ({error}); use the version of "
                "jobflowd that wrote it, or start anew with --fresh or another --session-id"
            ) from None

    @classmethod
    def _decode(cls, data: bytes) -> SessionRecord:
        values = _exact(cls, _loads(data))
        _require(values["v"] == RECORD_VERSION, f"version {values['v']!r:.20} is not 1")
        for name in ("session", "cwd", "version"):
            _require(type(values[name]) is str, f"{name} is no text")
        for name in ("program", "program_args", "settings"):
            _require(type(values[name]) is dict, f"{name} is no object")
        _require(is_label(values["session"]), "session is no plain name")
        _require(_is_number(values["created_at"]), "created_at is no time")
        return cls(**values)
