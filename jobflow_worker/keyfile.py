"""Key files: what they hold, and how a worker reads its own.

    {"v": 1, "session": ..., "holder": ..., "server_public": ..., "client_public": ...,
     "client_secret": ...}

Rules
-----
* A key file is used only if nobody else could have read or written it: a regular file with one
  name, of this user, with no bit for group or others. Anything else ends the worker with 77.
* Mailboxes have one key per session: a spool must be readable after its launch is over, and
  `--mode fs` has no launch keys.
* Secrets are never part of a sentence, of a `repr`, of an argument list or of an environment.

The daemon writes them (`jobflowd/keys.py`). Imports no zmq: keys are text here, 40 characters of
Z85.
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

from jobflow_worker.messages import HAND, is_label
from jobflow_worker.record import Record, as_dict
from jobflow_worker.sessionfiles import Beacon, SessionFileError, SessionPaths

KEY_FILE_VERSION: Final = 1
_SERVER: Final = "server"
_MAIL: Final = "mail"
#: A key file is a few lines.
_BYTES_MAX: Final = 8 * 1024
_Z85: Final = re.compile(r"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")
_OPEN: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class KeyFileError(SessionFileError):
    """A key file that is missing, damaged, for another manager, or known to others."""

    exit_code = 77


class DamagedKeyError(KeyFileError):
    """Its content is not a key file's."""


class CurveKeys(Record, unshown=("secret",)):
    """A worker's pair and the manager's pinned public key, each 40 bytes of Z85."""

    server_public: bytes
    public: bytes
    secret: bytes


class KeyFile(Record, unshown=("client_secret",)):
    """One client's keys. `holder` is the launch that they were made for, or `HAND`."""

    session: str
    holder: str
    server_public: str
    client_public: str
    client_secret: str
    v: int = KEY_FILE_VERSION

    def encode(self) -> bytes:
        return json.dumps(as_dict(self), indent=1).encode() + b"\n"

    def curve(self) -> CurveKeys:
        """For the socket."""
        return CurveKeys(
            self.server_public.encode(), self.client_public.encode(), self.client_secret.encode()
        )


class ServerKeyFile(Record, unshown=("server_secret",)):
    """The manager's own pair."""

    session: str
    server_public: str
    server_secret: str
    v: int = KEY_FILE_VERSION

    def encode(self) -> bytes:
        return json.dumps(as_dict(self), indent=1).encode() + b"\n"


class MailKeyFile(Record, unshown=("mail_secret",)):
    """What mailbox files are sealed with, by the manager and all workers: 40 characters."""

    session: str
    mail_secret: str
    v: int = KEY_FILE_VERSION

    def encode(self) -> bytes:
        return json.dumps(as_dict(self), indent=1).encode() + b"\n"


def key_path(paths: SessionPaths, holder: str) -> Path:
    """Where the keys of a launch, or of `HAND`, are. Raises ValueError for no plain name."""
    if not is_label(holder) or holder in (_SERVER, _MAIL):
        raise ValueError(f"not a launch id: {holder[:80]!r}")
    return paths.keys / f"{holder}.key"


def server_key_path(paths: SessionPaths) -> Path:
    """Where the manager keeps its own pair."""
    return paths.keys / f"{_SERVER}.key"


def mail_key_path(paths: SessionPaths) -> Path:
    """Where the key of all mailboxes is."""
    return paths.keys / f"{_MAIL}.key"


def read_key_file(path: Path) -> KeyFile:
    """A client's key file. Raises `KeyFileError`, FileNotFoundError and other OSErrors."""
    values = _read(path, ("session", "holder", "server_public", "client_public", "client_secret"))
    return KeyFile(
        session=values["session"],
        holder=values["holder"],
        server_public=values["server_public"],
        client_public=values["client_public"],
        client_secret=values["client_secret"],
    )


def read_server_key(path: Path) -> ServerKeyFile:
    """The manager's key file. Raises as `read_key_file` does."""
    values = _read(path, ("session", "server_public", "server_secret"))
    return ServerKeyFile(values["session"], values["server_public"], values["server_secret"])


def read_mail_key(path: Path) -> MailKeyFile:
    """The mailboxes' key file. Raises as `read_key_file` does."""
    values = _read(path, ("session", "mail_secret"))
    return MailKeyFile(values["session"], values["mail_secret"])


def _read(path: Path, names: tuple[str, ...]) -> dict[str, str]:
    try:
        value = json.loads(_bytes(path))
    except (ValueError, RecursionError):
        raise DamagedKeyError(f"{path} is not a key file: it is no JSON") from None
    if type(value) is not dict or value.get("v") != KEY_FILE_VERSION:
        raise DamagedKeyError(f"{path} is not a key file of version {KEY_FILE_VERSION}")
    return {name: _field(path, value, name) for name in names}


def _field(path: Path, value: Mapping[str, Any], name: str) -> str:
    one = value.get(name)
    good = type(one) is str and (
        is_label(one) if name in ("session", "holder") else _Z85.fullmatch(one) is not None
    )
    if not good:
        raise DamagedKeyError(f"{path} is not a key file: {name} is missing or malformed")
    return str(one)


def _bytes(path: Path) -> bytes:
    try:
        fd = os.open(path, _OPEN)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):
            raise KeyFileError(f"{path} is a link or a socket, not a key file") from None
        raise
    try:
        _check(path, os.fstat(fd))
        return os.read(fd, _BYTES_MAX)
    finally:
        os.close(fd)


def _check(path: Path, info: os.stat_result) -> None:
    """Refuse what others own, wrote, or could read. POSIX ACLs show in the group bits."""
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1 or info.st_size >= _BYTES_MAX:
        raise KeyFileError(f"{path} is not a key file but a link, a device or something large")
    if info.st_uid != os.geteuid():
        raise KeyFileError(f"{path} belongs to user {info.st_uid} and not to you")
    if info.st_mode & 0o077:
        raise KeyFileError(
            f"{path} is open to others (mode {stat.S_IMODE(info.st_mode):04o}), so its keys may be "
            f"known. Stop the manager, remove {path.parent}/*.key and start it again: it makes new "
            "ones"
        )


def worker_keys(
    paths: SessionPaths | None, beacon: Beacon, launch_id: str | None, key_file: Path | None
) -> CurveKeys | None:
    """The keys that a worker talks to this manager with; None if the manager uses none.

    `key_file` is what the user named; by default the launch's own, or the one for workers by
    hand. The beacon, which only the session's owner can write, says which manager to expect.
    Raises `KeyFileError`.
    """
    if paths is not None and beacon.server_public is None:
        return None
    if key_file is None:
        if paths is None:
            raise KeyFileError("no key file is named: give --key-file")
        key_file = key_path(paths, launch_id or HAND)
        if launch_id and not os.path.lexists(key_file) and _by_hand(paths, launch_id):
            key_file = key_path(paths, HAND)
    try:
        keys = read_key_file(key_file)
    except FileNotFoundError:
        raise KeyFileError(
            f"{key_file} does not exist: this launch is over for the manager, or the manager has "
            "been shut down, and its keys are withdrawn"
        ) from None
    except OSError as error:
        raise KeyFileError(f"{key_file} cannot be read: {error.strerror}") from None
    if beacon.server_public is not None and keys.server_public != beacon.server_public:
        raise KeyFileError(f"{key_file} is for another manager than the one that serves now")
    return keys.curve()


def _by_hand(paths: SessionPaths, launch_id: str) -> bool:
    """True for a launch id that the manager never had: somebody's own name for a worker."""
    return not os.path.lexists(paths.launch_dir(launch_id))
