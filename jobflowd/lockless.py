"""File systems without POSIX locks: how SQLite's database is kept there all the same.

Rule: who may run a session is decided by `ownership.py`, with flock or with the owner record; what
SQLite locks is a second wall behind it. Where there are no locks at all, SQLite's `unix-dotfile`
makes a directory beside the database instead. A daemon that was killed leaves it behind, so it is
removed at the next start, but only beside an owner record: there the record has already said that
nobody else is at work.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import Final

from jobflow_worker.sessionfiles import SessionPaths

#: For the URI of the database.
DOTFILE: Final = "&vfs=unix-dotfile"


def has_no_locks(path: str) -> bool:
    """Whether the file system of the database at `path` refuses POSIX locks.

    Asked with a file of its own: the database must not be opened, and nobody else can hold a lock
    on this one, so any refusal means that there are none. False if the file cannot be made.
    """
    probe = os.path.join(os.path.dirname(path), f".jobflow-locks-{os.getpid()}")
    try:
        handle = os.open(probe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
        with contextlib.suppress(OSError):
            os.unlink(probe)
    return False


def make_way(path: str) -> None:
    """Remove the lock that a killed daemon of this session has left."""
    if SessionPaths(Path(path).parent).owner.exists():
        with contextlib.suppress(OSError):
            os.rmdir(f"{path}.lock")


def left_behind(path: str) -> str:
    """What to tell who meets a lock that may be a killed daemon's, or a living one's."""
    return (
        f"The database {path} is locked by the directory {path}.lock, since its file system has no"
        " file locks. If no other jobflowd uses it, one was killed: remove that directory."
    )
