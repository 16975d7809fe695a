"""Where a session may be: its directory judged from outside, its name's pointer, its errors.

Rules
-----
* Checks only read. A directory that others could have prepared or could replace is refused.
* The pointer `<state>/pointers/<session-id>.json` makes a session findable by name from any
  directory and login node; `places.py` reads it for the clients.

Used by `sessiondir.py` alone, which decides what happens in the directory.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Final

from jobflow_worker.sessionfiles import (
    SessionPaths,
    UnsafeFileError,
    make_private_dir,
    read_private,
    write_private,
)
from jobflowd.api import pointers_dir, this_host
from jobflowd.ownership import EXIT_IO, SessionError

EXIT_PERMISSION: Final = 77
EXIT_CONFLICT: Final = 78

_POINTER_BYTES_MAX: Final = 64 * 1024

#: What a start may find in a directory that was begun and never got its session.json.
_BEGUN: Final = frozenset(
    ("lock", "owner.json", "keys", "mail", "spool", "results", "launches", "archive", "beacon.json")
)


def ended_file(paths: SessionPaths) -> Path:
    """`{state, code, ended_at, tasks}` of the last run; absent while one goes on."""
    return paths.root / "ended.json"


def has_record(paths: SessionPaths) -> bool:
    """Whether the directory is a session, however damaged."""
    try:
        return os.path.lexists(paths.session_file)
    except OSError:
        return False


# --- the directory ---------------------------------------------------------------------------


def check_place(root: Path) -> list[str]:
    """Refuse a directory that is not ours, or that others could replace; returns warnings."""
    try:
        about = os.lstat(root)
    except FileNotFoundError:
        about = None
    except NotADirectoryError:
        raise SessionError(
            f"{root} cannot be a directory, because a part of its path is a file; give another "
            "--shared-dir",
            EXIT_PERMISSION,
        ) from None
    except OSError as error:
        raise worded(error, root) from None
    if about is not None:
        _check_leaf(root, about)
    return _check_parents(root)


def _check_leaf(root: Path, about: os.stat_result) -> None:
    if not stat.S_ISDIR(about.st_mode):
        what = "a link" if stat.S_ISLNK(about.st_mode) else "a file"
        raise SessionError(
            f"{root} is {what} and not a directory; remove it, or give another --session-id or "
            "--shared-dir",
            EXIT_PERMISSION,
        )
    if about.st_uid != os.geteuid():
        raise SessionError(
            f"{root} belongs to user {about.st_uid} and not to you; give a --shared-dir of your "
            "own",
            EXIT_PERMISSION,
        )
    if about.st_mode & 0o022:
        raise SessionError(
            f"{root} can be written by others (mode {stat.S_IMODE(about.st_mode):04o}), so its "
            f"content proves nothing; look through it, then: chmod 700 {root}",
            EXIT_PERMISSION,
        )
    try:
        names = set(os.listdir(root))
    except OSError as error:
        raise worded(error, root) from None
    strange = {one for one in names - _BEGUN if not one.startswith((".owner.", ".session.json."))}
    if "session.json" not in names and strange:
        raise SessionError(
            f"{root} is not empty and not a session (it has {min(strange)!r}); give another "
            "--session-id or --shared-dir",
            EXIT_CONFLICT,
        )


def _check_parents(root: Path) -> list[str]:
    """Whoever may rename a parent may put another session in our place."""
    warnings: list[str] = []
    for parent in (Path(os.path.realpath(root.parent)), *Path(os.path.realpath(root)).parents):
        try:
            about = os.stat(parent)
        except OSError:
            continue
        if about.st_mode & stat.S_ISVTX:
            continue
        if about.st_mode & stat.S_IWOTH:
            raise SessionError(
                f"{parent} can be written by everybody, who could replace the session in it; give "
                f"another --shared-dir, or: chmod o-w {parent}",
                EXIT_PERMISSION,
            )
        if about.st_uid not in (0, os.geteuid()):
            warnings.append(
                f"{parent} belongs to user {about.st_uid}, who could replace the session in it"
            )
    return list(dict.fromkeys(warnings))


def judge_program(path: str) -> list[str]:
    """Warnings if others could change the program's text, which runs as this user everywhere."""
    warnings: list[str] = []
    real = Path(os.path.realpath(path))
    for one in (real, *real.parents):
        try:
            about = os.stat(one)
        except OSError:
            continue
        sticky = one != real and about.st_mode & stat.S_ISVTX
        if about.st_uid not in (0, os.geteuid()):
            warnings.append(
                f"{one} belongs to user {about.st_uid}, who can change what the program does as you"
            )
        elif about.st_mode & stat.S_IWOTH and not sticky:
            warnings.append(
                f"{one} can be written by everybody, who can change what the program does as you; "
                f"chmod o-w {one}"
            )
    return warnings


# --- the pointer by name ----------------------------------------------------------------------


def _pointer_file(name: str) -> Path | None:
    try:
        return pointers_dir() / f"{name}.json"
    except RuntimeError:
        return None


def pointed_directory(name: str) -> Path | None:
    """Where the pointer of this name leads, if there is a session."""
    pointer = _pointer_file(name)
    if pointer is None:
        return None
    try:
        directory = Path(json.loads(read_private(pointer, _POINTER_BYTES_MAX))["dir"])
        return directory if has_record(SessionPaths(directory)) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError, UnsafeFileError):
        return None


def check_pointer(name: str, root: Path) -> None:
    """Refuse a name that leads to another session. Raises `SessionError` (78)."""
    other = pointed_directory(name)
    if other is None or os.path.realpath(other) == os.path.realpath(root):
        return
    raise SessionError(
        f"the name {name} belongs to the session in {other}; go on with that one by --shared-dir "
        f"{other.parent}, or give this one another --session-id",
        EXIT_CONFLICT,
    )


def write_pointer(name: str, root: Path, started_at: float) -> list[str]:
    """Leave the name for jobflowctl; a home that cannot be written costs only that.

    Returns warnings.
    """
    pointer = _pointer_file(name)
    value = {
        "session": name,
        "dir": str(root),
        "host": this_host(),
        "pid": os.getpid(),
        "started_at": started_at,
    }
    try:
        if pointer is None:
            raise FileNotFoundError(errno.ENOENT, "there is no home directory")
        make_private_dir(pointer.parent, parents=True)
        write_private(pointer, json.dumps(value).encode() + b"\n", fsync=False)
    except (OSError, UnsafeFileError) as error:
        return [
            f"the session cannot be found by its name ({error}); use jobflowctl --session {root}"
        ]
    return []


# --- errors in words -------------------------------------------------------------------------


def worded(error: OSError, root: Path) -> SessionError:
    """What the file system refused, as a sentence with the way out."""
    where = error.filename if isinstance(error.filename, str) else str(root)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        what = "no space is left" if error.errno == errno.ENOSPC else "your quota is used up"
        return SessionError(
            f"{where} cannot be written: {what} there; make room, or give another --shared-dir",
            EXIT_IO,
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return SessionError(
            f"{where} cannot be used: {error.strerror}; give a --shared-dir that you can write to",
            EXIT_PERMISSION,
        )
    return SessionError(
        f"{where} cannot be used: {error.strerror or error}; check the file system, or give "
        "another --shared-dir",
        EXIT_IO,
    )
