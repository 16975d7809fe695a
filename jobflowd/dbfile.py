"""The database file: make the one connection to it, check that it is ours, migrate it, copy it.

Rule: nothing opens the database file except the one connection made here, not even this process a
second time: closing any other descriptor of it would silently drop SQLite's lock. Used by
`store.py` only, which publishes the errors.

What can go wrong is told in three kinds, because the daemon does three different things:

    StoreError              a sentence for the user and an exit code
    ├── DiskFull            rolled back; try again when there is room (degraded mode)
    ├── StoreBroken         the disk failed: leave at once, because the next try could succeed on
    │                       pages that never reached the disk
    └── ChangesRefused      the database's own rules say no: a bug of ours
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
from importlib import resources
from typing import Final
from urllib.parse import quote

from jobflowd.lockless import DOTFILE, has_no_locks, left_behind, make_way

#: "jobf": how `file` and this module tell our database from another program's.
APPLICATION_ID: Final = 0x6A6F6266
#: Where there is no file at all; for tests and the simulator.
MEMORY: Final = ":memory:"
#: How long a second opener waits for the first to let go, in seconds.
PATIENCE_S: Final = 5.0
#: SQLite's page cache in KiB. It fills up as tasks come and then stays, so it is what our memory
#: grows by; the kernel holds the rest, and four times as much made no run faster.
CACHE_KIB: Final = 4_096
#: The write-ahead log is cut back to this many bytes after a burst.
WAL_BYTES_KEPT: Final = 64 * 1024 * 1024
#: Upserts need it. RHEL 8, the oldest that we meet, has 3.26.
SQLITE_MIN: Final = (3, 24, 0)
_STRICT_SINCE: Final = (3, 37, 0)
_VACUUM_INTO_SINCE: Final = (3, 27, 0)
#: Enough to run into a full disk or quota, and free in no time.
_PROBE_BYTES: Final = 64 * 1024

EXIT_BUG: Final = 70
EXIT_IO: Final = 74
EXIT_BUSY: Final = 75
EXIT_PERMISSION: Final = 77
EXIT_CONFIG: Final = 78

# SQLite's result codes; the sqlite3 module names them only from Python 3.11 on.
_PERM, _BUSY, _READONLY, _IOERR, _CORRUPT, _FULL = 3, 5, 8, 10, 11, 13
_CANTOPEN, _PROTOCOL, _NOTADB = 14, 15, 26
_IOERR_WRITE, _IOERR_FSYNC, _IOERR_LOCK = 778, 1034, 3850
#: Also the plain code: before Python 3.11 the text alone tells.
_WRITE_FAILED: Final = (_IOERR, _IOERR_WRITE, _IOERR_FSYNC)
_CODE_OF_TEXT: Final = (
    ("database is locked", _BUSY),
    ("readonly database", _READONLY),
    ("disk I/O error", _IOERR),
    ("malformed", _CORRUPT),
    ("disk is full", _FULL),
    ("unable to open", _CANTOPEN),
    ("not a database", _NOTADB),
)
_DISK_FAILED: Final = (_PERM, _READONLY, _IOERR, _CORRUPT, _CANTOPEN, _PROTOCOL, _NOTADB)


class StoreError(Exception):
    """What went wrong with the database, why, and what to do; `exit_code` as in the manual."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code


class DiskFull(StoreError):
    """No space or quota left. The transaction was rolled back and may be tried again."""

    def __init__(self, sentence: str, exit_code: int = EXIT_IO) -> None:
        super().__init__(sentence, exit_code)


class ReadOnly(DiskFull):
    """The file system has made itself read-only, as after an error. It is tried again like a full
    disk, for ten minutes: somebody may be at it."""


class StoreBroken(StoreError):
    """The disk or the lock failed. Exit at once and without closing the store."""

    def __init__(self, sentence: str, exit_code: int = EXIT_IO) -> None:
        super().__init__(sentence, exit_code)


class ChangesRefused(StoreError):
    """The changes contradict the database: a bug. They were rolled back as a whole."""

    def __init__(self, sentence: str, exit_code: int = EXIT_BUG) -> None:
        super().__init__(sentence, exit_code)


# --- errors in plain words --------------------------------------------------------------------


def result_code(error: sqlite3.Error) -> int:
    """SQLite's code, the extended one where Python tells it; 1 if there is none to be had."""
    code = getattr(error, "sqlite_errorcode", None)
    if isinstance(code, int):
        return code
    text = str(error)
    return next((number for part, number in _CODE_OF_TEXT if part in text), 1)


def opening_error(path: str, error: sqlite3.Error) -> StoreError:
    """Why the database cannot be opened."""
    code = result_code(error)
    primary = code & 0xFF
    if primary == _BUSY:
        return StoreError(
            f"The database {path} is in use by another process, most likely another jobflowd of"
            " this session. Stop that one first (jobflowctl shutdown), or start this one with"
            " another --session-id.",
            EXIT_BUSY,
        )
    if primary == _FULL:
        return DiskFull(_no_space(path))
    if primary in (_READONLY, _CANTOPEN):
        return _not_writable(path, str(error))
    if "malformed database schema" in str(error) and sqlite3.sqlite_version_info < _STRICT_SINCE:
        return StoreError(
            f"The database {path} was made with a newer SQLite than this Python has"
            f" ({sqlite3.sqlite_version}). Start jobflowd with the Python that made it.",
            EXIT_CONFIG,
        )
    if primary in (_CORRUPT, _NOTADB):
        return damaged(path, str(error))
    if code == _IOERR_LOCK:
        return StoreError(
            f"The file system of {path} does not support file locks ({error}). Put the database"
            " on another one with --db-path.",
            EXIT_IO,
        )
    return StoreError(
        f"The database {path} cannot be opened: {error}. Check the file system it is on, or name"
        " another place with --db-path.",
        EXIT_IO,
    )


def running_error(path: str, error: sqlite3.Error) -> StoreError:
    """Why an open database failed: decides between trying again, leaving, and a bug."""
    code = result_code(error)
    primary = code & 0xFF
    if primary == _FULL:
        return DiskFull(_no_space(path))
    if primary == _READONLY or code in _WRITE_FAILED:
        # An exceeded quota comes as a plain write error, and so does EROFS: the directory is asked.
        why = write_error(os.path.dirname(path))
        if why in (errno.ENOSPC, errno.EDQUOT):
            return DiskFull(_no_space(path))
        if why == errno.EROFS:
            return ReadOnly(
                f"The file system of {path} has become read-only. What was acknowledged is safe."
                " Make it writable again, or move the session directory and start jobflowd there."
            )
    if primary == _BUSY:
        return StoreBroken(
            f"Another process has taken the database {path}. This daemon stops, so that the two"
            " do not harm each other.",
            EXIT_BUSY,
        )
    if primary in _DISK_FAILED:
        return StoreBroken(
            f"The disk failed under the database {path}: {error}. What was acknowledged is safe."
            " Check the file system and start jobflowd again.",
        )
    # Constraints, types, SQL: it is not the disk that says no.
    return ChangesRefused(f"The database {path} refuses a statement: {error}. This is a bug.")


def damaged(path: str, detail: str) -> StoreError:
    """The file is there and is no sound database."""
    return StoreError(
        f"The database {path} is damaged, or is no database at all ({detail}). Move it away and"
        " start from a backup, or begin anew with --fresh.",
        EXIT_IO,
    )


def _no_space(path: str) -> str:
    return (
        f"There is no space (or quota) left for the database {path}. Make room on that file"
        " system, or put the database elsewhere with --db-path."
    )


def _not_writable(path: str, detail: str) -> StoreError:
    return StoreError(
        f"The database {path} cannot be written: {detail}. Give yourself write permission on the"
        " file and its directory, or name another place with --db-path.",
        EXIT_PERMISSION,
    )


def write_error(directory: str) -> int | None:
    """The errno with which a small file cannot be written there, None if it can."""
    probe = os.path.join(directory, f".jobflow-probe-{os.getpid()}")
    try:
        handle = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(handle, bytes(_PROBE_BYTES))
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        return error.errno
    finally:
        with contextlib.suppress(OSError):
            os.unlink(probe)
    return None


# --- opening ----------------------------------------------------------------------------------


def connect(path: str, patience_s: float = PATIENCE_S, *, vfs: str = "") -> sqlite3.Connection:
    """The connection to the database at the absolute `path`: locked, checked, up to date.

    A file that is not there is created with mode 0600. Raises `StoreError`: 74 for an I/O error,
    a full disk or a damaged file, 75 if another process has it, 77 if it may not be written, 78
    if it is from a newer version or another program.
    """
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        raise StoreError(
            f"This Python has SQLite {sqlite3.sqlite_version}, which is too old. Use a Python with"
            f" SQLite {'.'.join(map(str, SQLITE_MIN))} or newer.",
            EXIT_CONFIG,
        )
    if path != MEMORY:
        _prepare(path)
    name = path if path == MEMORY else f"file:{quote(os.fsencode(path))}?mode=rw{vfs}"
    db: sqlite3.Connection | None = None
    try:
        db = sqlite3.connect(
            name, uri=True, timeout=patience_s, isolation_level=None, cached_statements=256
        )
        _set_up(db, path)
    except sqlite3.Error as error:
        if db is not None:
            db.close()
        if not vfs and result_code(error) & 0xFF in (_BUSY, _IOERR) and has_no_locks(path):
            make_way(path)
            return connect(path, patience_s, vfs=DOTFILE)
        if vfs and result_code(error) & 0xFF == _BUSY:
            raise StoreError(left_behind(path), EXIT_BUSY) from error
        raise opening_error(path, error) from error
    except BaseException:
        if db is not None:
            db.close()
        raise
    return db


def _prepare(path: str) -> None:
    """Look at the place without opening what is there; create the file with its final mode."""
    directory = os.path.dirname(path)
    if not os.path.isdir(directory):
        raise StoreError(
            f"The directory {directory} for the database does not exist. Create it, or name"
            " another place with --db-path.",
            EXIT_CONFIG,
        )
    if not os.access(directory, os.W_OK | os.X_OK):
        raise _not_writable(path, "its directory is not writable")
    if os.path.isdir(path):
        raise StoreError(
            f"{path} is a directory. Name a file with --db-path.",
            EXIT_CONFIG,
        )
    if os.path.exists(path):
        if not os.access(path, os.R_OK | os.W_OK):
            raise _not_writable(path, "the file is not readable and writable for you")
        return
    try:
        # O_EXCL: the file was not there, so this close cannot drop anybody's lock.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(_no_space(path)) from error
        raise _not_writable(path, error.strerror or "refused") from error


def _set_up(db: sqlite3.Connection, path: str) -> None:
    """Settings, lock, identity, health, migrations; the order matters."""
    # Before the first access: then SQLite keeps its lock and needs no shared memory, which
    # network file systems do not have.
    db.execute("PRAGMA locking_mode = EXCLUSIVE")
    # Before anything is written: a database of someone else is left as it is.
    version = _identify(db, path)
    (mode,) = db.execute("PRAGMA journal_mode = WAL").fetchone()
    if path != MEMORY and mode != "wal":
        raise StoreError(
            f"SQLite cannot keep a write-ahead log for {path} (it says {mode!r}). Put the database"
            " on another file system with --db-path.",
            EXIT_IO,
        )
    db.execute("PRAGMA synchronous = FULL")
    db.execute("PRAGMA foreign_keys = ON")
    db.execute("PRAGMA trusted_schema = OFF")
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_KEPT}")
    db.execute("PRAGMA wal_autocheckpoint = 1000")
    db.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    # Once a statement's journal was a file, SQLite writes it for every later statement: thirty
    # times as many writes. In memory it also needs no directory for temporary files.
    db.execute("PRAGMA temp_store = MEMORY")
    db.execute("BEGIN IMMEDIATE")
    db.execute("COMMIT")
    problems = [str(text) for (text,) in db.execute("PRAGMA quick_check (3)") if text != "ok"]
    if problems:
        raise damaged(path, "; ".join(problems))
    _migrate(db, path, version)


def _identify(db: sqlite3.Connection, path: str) -> int:
    """The schema version of our database, 0 for an empty file. Raises for anybody else's."""
    (owner,) = db.execute("PRAGMA application_id").fetchone()
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if owner == APPLICATION_ID:
        newest = max(migrations())
        if version > newest:
            raise StoreError(
                f"The database {path} was written by a newer jobflowd (schema {version}; this one"
                f" knows {newest}). Use that version, or another --session-id.",
                EXIT_CONFIG,
            )
        return int(version)
    empty = db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone() is None
    if owner == 0 and version == 0 and empty:
        return 0
    raise StoreError(
        f"The database {path} belongs to another program. Name another file with --db-path.",
        EXIT_CONFIG,
    )


# --- migrations and copies ----------------------------------------------------------------------


def migrations() -> dict[int, str]:
    """SQL text by schema version: the files of `jobflowd/schema`, named 001_what.sql."""
    found = {
        int(entry.name[:3]): entry.read_text(encoding="utf-8")
        for entry in resources.files("jobflowd.schema").iterdir()
        if entry.name.endswith(".sql")
    }
    return dict(sorted(found.items()))


def dialect(sql: str, sqlite: tuple[int, int, int]) -> str:
    """The text as a SQLite of that version takes it: without STRICT before 3.37."""
    return sql if sqlite >= _STRICT_SINCE else re.sub(r",? STRICT;", ";", sql)


def _migrate(db: sqlite3.Connection, path: str, version: int) -> None:
    """Run the steps above `version`, each in one transaction with its version number."""
    steps = {number: sql for number, sql in migrations().items() if number > version}
    if steps and version > 0 and path != MEMORY:
        copy(db, f"{path}.v{version}.backup")
    for number, sql in steps.items():
        try:
            db.executescript(
                f"BEGIN IMMEDIATE;\n{dialect(sql, sqlite3.sqlite_version_info)}\n"
                f"PRAGMA user_version = {number};\nCOMMIT;"
            )
        except BaseException:
            if db.in_transaction:
                db.execute("ROLLBACK")
            raise


def copy(db: sqlite3.Connection, target: str) -> None:
    """Write a complete copy of the database to `target`: temporary file, fsync, rename.

    Blocks for about 3 s per GB. Raises `sqlite3.Error` or `OSError`; the temporary file is gone
    then.
    """
    part = f"{target}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part)
    # An empty file is all that VACUUM INTO accepts; this one has its final mode already.
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        if sqlite3.sqlite_version_info >= _VACUUM_INTO_SINCE:
            db.execute("VACUUM INTO ?", (part,))
        else:
            _copy_pages(db, part)
        _sync(part)
        os.replace(part, target)
        _sync(os.path.dirname(target))
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise


def _copy_pages(db: sqlite3.Connection, part: str) -> None:
    """The same for a SQLite without VACUUM INTO."""
    other = sqlite3.connect(part, isolation_level=None)
    try:
        db.backup(other)
    finally:
        other.close()


def _sync(path: str) -> None:
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
