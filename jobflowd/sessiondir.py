"""Opening a session: its name, its directory, its owner, its identity.

Rules
-----
* First everything is judged by reading, then anything is written: a refused start leaves nothing
  behind and changes nothing that is there.
* A session's identity is program file, class and arguments. The same identity goes on, another is
  refused with the ways out, `--fresh` archives what was there.
* Nothing but the owner (`ownership.py`) writes into the directory.

Used by `daemon.py`. Refusals are `SessionError`, `ConfigError`, `ProgramError` or
`SessionFileError`, all with an `exit_code`; an OSError does not come out of here.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from jobflow_worker import __version__
from jobflow_worker.program import ProgramRef, program_hash, resolve_program
from jobflow_worker.record import replace
from jobflow_worker.sessionfiles import (
    SessionFileError,
    SessionPaths,
    SessionRecord,
    make_private_dir,
    write_private,
)
from jobflowd import config as configuration
from jobflowd.api import state_dir
from jobflowd.config import StartConfig
from jobflowd.filesystems import filesystem_of
from jobflowd.makingway import take
from jobflowd.ownership import Ownership, SessionError
from jobflowd.sessionplace import (
    EXIT_CONFLICT,
    check_place,
    check_pointer,
    ended_file,
    has_record,
    judge_program,
    pointed_directory,
    worded,
    write_pointer,
)
from jobflowd.settings import SESSION_ID

__all__ = [
    "Session",
    "SessionError",
    "default_name",
    "ended_file",
    "known_database",
    "open_session",
]

EXIT_USAGE: Final = 2

#: Less room than this and a start would only fail later, in the middle of something.
FREE_BYTES_MIN: Final = 1024 * 1024
_NAME_CHARS_MAX: Final = 40


class Identity(NamedTuple):
    """What makes two starts the same session."""

    path: str
    class_name: str
    args: str

    def describe(self) -> str:
        """`/data/conv.py:Conv with {"n": 1}`, for sentences."""
        program = f"{self.path}:{self.class_name}" if self.class_name else self.path
        args = self.args if len(self.args) <= 200 else self.args[:200] + "..."
        return f"{program} with {args}"


@dataclasses.dataclass(slots=True)
class Session:
    """An open session, owned by this process until `close`.

    `config` is final: resolved, and with what was recorded if the start named no program.
    `resumed`: there was a record of the same identity. `archived`: where `--fresh` put the old
    one. `warnings`: sentences for the log and the terminal.
    """

    name: str
    paths: SessionPaths
    config: StartConfig
    record: SessionRecord
    program: ProgramRef
    program_hash: str
    db_path: Path
    filesystem: str
    network_fs: bool
    started_at: float
    resumed: bool
    archived: Path | None
    warnings: tuple[str, ...]
    ownership: Ownership

    @property
    def log_path(self) -> Path:
        """Always `<db-path>.log`."""
        return self.db_path.with_name(self.db_path.name + ".log")

    @property
    def program_args(self) -> dict[str, Any]:
        return dict(self.record.program_args)

    def refresh_owner(self) -> bool:
        """Every 30 s and before each launch: see `Ownership.refresh`, which may raise."""
        return self.ownership.refresh()

    def write_ended(self, state: str, code: int, tasks: Mapping[str, int]) -> None:
        """Record how the run ended, for `jobflowctl wait` and later questions. Raises OSError."""
        ended = {"state": state, "code": code, "ended_at": time.time(), "tasks": dict(tasks)}
        write_private(ended_file(self.paths), json.dumps(ended).encode() + b"\n")

    def close(self) -> None:
        """Give the session up. Idempotent, never raises."""
        self.ownership.release()


def open_session(
    config: StartConfig,
    *,
    cwd: Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Session:
    """Open or create the session of this start and become its owner.

    `cwd` is where the start was typed (default: here). `say` gets a line before a long wait.
    Raises what the module's docstring lists. The caller closes the session.
    """
    os.umask(0o077)
    plan = _plan(config, Path.cwd() if cwd is None else cwd)
    try:
        return _enter(plan, say)
    except OSError as error:
        raise worded(error, plan.paths.root) from None


# --- judging, without a trace -----------------------------------------------------------------


@dataclasses.dataclass(slots=True)
class _Plan:
    """What a start is going to do, decided from what can be read."""

    name: str
    paths: SessionPaths
    config: StartConfig
    program: ProgramRef
    args: dict[str, Any]
    text_hash: str
    old: SessionRecord | None
    db_path: Path
    filesystem: str
    network_fs: bool
    warnings: list[str]


def foresee(config: StartConfig) -> _Plan:
    """What a start typed here and now would do; refuses what it would refuse, leaves no trace."""
    return _plan(config, Path.cwd())


def _plan(config: StartConfig, cwd: Path) -> _Plan:
    program = None if config.program is None else resolve_program(config.program, cwd)
    name = config.session_id or (default_name(program) if program else None)
    if name is None:
        raise SessionError(
            "no program is named; give --program FILE.py, or --session-id NAME to go on with a "
            "session that has one",
            EXIT_USAGE,
        )
    paths = SessionPaths(_directory(config, name, by_name=program is None))
    warnings = check_place(paths.root)
    old = _old_record(paths, config.fresh)
    if program is None:
        if old is None:
            raise SessionError(
                f"there is no session {name} in {paths.root.parent}, so its program is not known; "
                f"give --program FILE.py to begin it, or --shared-dir if it lives elsewhere",
                EXIT_USAGE,
            )
        program = _recorded_program(paths, old)
        config = configuration.with_recorded(config, old.settings)
        if config.is_default("program_args"):
            config = dataclasses.replace(config, program_args=dict(old.program_args))
    args = dict(config.program_args)
    if old is not None and not config.fresh:
        try:
            _check_identity(name, old, program, args)
        except SessionError:
            if not _is_empty(known_database(paths, old)):
                raise
            # The first try named no task: whoever mends its arguments has nothing to lose.
            config = dataclasses.replace(config, fresh=True)
            warnings.append(f"session {name} had no task yet; it begins anew as this start says")
    check_pointer(name, paths.root)
    filesystem, network_fs = filesystem_of(paths.root)
    config, db_path = _database(config, paths, old)
    config = configuration.resolve(config, network_fs)
    configuration.check_relations(config, network_fs)
    return _Plan(
        name=name,
        paths=paths,
        config=config,
        program=program,
        args=args,
        text_hash=program_hash(program),
        old=old,
        db_path=db_path,
        filesystem=filesystem,
        network_fs=network_fs,
        warnings=[*warnings, *_volatile(filesystem, paths.root), *judge_program(program.path)],
    )


def default_name(program: ProgramRef) -> str:
    """The program's stem, with what a session name cannot contain replaced by dashes."""
    path = Path(program.path)
    stem = path.parent.name if path.stem == "__init__" else path.stem
    name = re.sub(r"[^A-Za-z0-9._-]", "-", stem).lstrip("._-")[:_NAME_CHARS_MAX]
    return name or "session"


def _directory(config: StartConfig, name: str, *, by_name: bool) -> Path:
    if not SESSION_ID.fullmatch(name):
        raise SessionError(f"{name!r} is not a session name", EXIT_USAGE)
    if config.shared_dir is not None:
        return config.shared_dir / name
    if by_name:
        pointed = pointed_directory(name)
        if pointed is not None:
            return pointed
    try:
        return state_dir() / "sessions" / name
    except RuntimeError:
        raise SessionError(
            "there is no home directory to keep the session in; give --shared-dir", EXIT_USAGE
        ) from None


def _old_record(paths: SessionPaths, fresh: bool) -> SessionRecord | None:
    """The session's record, if there is one; a damaged one stops everything but `--fresh`."""
    if not has_record(paths):
        return None
    try:
        return SessionRecord.load(paths.session_file)
    except SessionFileError:
        if fresh:
            return None
        raise


def _recorded_program(paths: SessionPaths, old: SessionRecord) -> ProgramRef:
    try:
        return ProgramRef.from_json(old.program)
    except ValueError as error:
        raise SessionFileError(
            f"{paths.session_file}: {error}; name the program with --program and add --fresh"
        ) from None


def _check_identity(
    name: str, old: SessionRecord, program: ProgramRef, args: Mapping[str, Any]
) -> None:
    then, now = _identity(old.program, old.program_args), _identity(program.to_json(), args)
    if then == now:
        return
    raise SessionError(
        f"session {name} belongs to {then.describe()}, and this start names {now.describe()}; "
        "give it a session of its own with another --session-id, or archive the old one with "
        "--fresh",
        EXIT_CONFLICT,
    )


def _identity(program: Mapping[str, Any], args: Mapping[str, Any]) -> Identity:
    text = json.dumps(args, sort_keys=True)
    return Identity(str(program.get("path")), str(program.get("class_name")), text)


def _database(
    config: StartConfig, paths: SessionPaths, old: SessionRecord | None
) -> tuple[StartConfig, Path]:
    """The database's path, which stays what it was; a second one would split the session."""
    known = known_database(paths, old)
    if config.db_path is None and (known == paths.database or config.fresh):
        return config, paths.database
    if config.db_path is None:
        origins = {**config.origins, "db_path": configuration.SESSION}
        return dataclasses.replace(config, db_path=known, origins=origins), known
    if old is not None and not config.fresh and config.db_path != known:
        raise SessionError(
            f"this session's database is {known}, and this start names {config.db_path}; leave "
            "--db-path away, or begin anew with --fresh or another --session-id",
            EXIT_CONFLICT,
        )
    return config, config.db_path


def _is_empty(path: Path) -> bool:
    """Whether this is a database of ours, in which no task was ever recorded."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
            return database.execute("SELECT 1 FROM tasks LIMIT 1").fetchone() is None
    except (sqlite3.Error, ValueError):
        return False


def _volatile(filesystem: str, root: Path) -> list[str]:
    if filesystem in ("tmpfs", "ramfs"):
        return [f"{root} is kept in memory ({filesystem}) and will not survive a reboot"]
    return []


# --- entering ---------------------------------------------------------------------------------


def _enter(plan: _Plan, say: Callable[[str], None]) -> Session:
    paths, config = plan.paths, plan.config
    existed = os.path.lexists(paths.root)
    make_private_dir(paths.root, parents=True)
    try:
        _check_room(paths.root)
        ownership = take(paths, name=plan.name, takeover=config.takeover, say=say)
    except BaseException:
        # Only if it is empty: another start may have begun in it meanwhile.
        if not existed:
            with contextlib.suppress(OSError):
                os.rmdir(paths.root)
        raise
    try:
        # What was judged may have changed while nobody owned it.
        old = _old_record(paths, config.fresh)
        if old is not None and not config.fresh:
            _check_identity(plan.name, old, plan.program, plan.args)
        started_at = ownership.owner.started_at
        archived = None
        database = known_database(paths, old)
        if config.fresh and (has_record(paths) or os.path.lexists(database)):
            archived = _archive(paths, database, started_at)
            old = None
        paths.make()
        if not plan.db_path.parent.exists():
            make_private_dir(plan.db_path.parent, parents=True)
        record = _write_record(plan, old, started_at)
        plan.warnings += write_pointer(plan.name, paths.root, started_at)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(ended_file(paths))
    except BaseException:
        # What this start made, and what never became a session, goes away while it is ours.
        if not existed and not has_record(paths):
            shutil.rmtree(paths.root, ignore_errors=True)
        ownership.release()
        raise
    return Session(
        name=plan.name,
        paths=paths,
        config=config,
        record=record,
        program=plan.program,
        program_hash=plan.text_hash,
        db_path=plan.db_path,
        filesystem=plan.filesystem,
        network_fs=plan.network_fs,
        started_at=started_at,
        resumed=old is not None,
        archived=archived,
        warnings=tuple(plan.warnings),
        ownership=ownership,
    )


def _check_room(root: Path) -> None:
    about = os.statvfs(root)
    # Some network file systems know no numbers and say 0 of 0.
    if about.f_blocks and about.f_bavail * about.f_frsize < FREE_BYTES_MIN:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _write_record(plan: _Plan, old: SessionRecord | None, now: float) -> SessionRecord:
    settings = configuration.recordable(plan.config)
    if old is None:
        record = SessionRecord(
            session=plan.name,
            program=plan.program.to_json(),
            program_args=plan.args,
            cwd=plan.program.cwd,
            created_at=now,
            version=__version__,
            settings=settings,
        )
    else:
        record = replace(
            old,
            program=plan.program.to_json(),
            cwd=plan.program.cwd,
            version=__version__,
            settings=settings,
        )
    if record != old:
        record.save(plan.paths.session_file)
    return record


def known_database(paths: SessionPaths, old: SessionRecord | None) -> Path:
    """Where the database of a session with this record is."""
    recorded = old.settings.get("db_path") if old is not None else None
    return Path(recorded) if isinstance(recorded, str) else paths.database


def _archive(paths: SessionPaths, database: Path, now: float) -> Path:
    """Move what belongs to the old run out of the way; returns where it went.

    The record goes last: until then a crash leaves a session that can be started again.
    """
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    make_private_dir(paths.root / "archive")
    place = paths.root / "archive" / stamp
    count = 1
    while True:
        try:
            place.mkdir(mode=0o700)
            break
        except FileExistsError:
            count += 1
            place = place.with_name(f"{stamp}-{count}")
    # A database elsewhere may be on another file system, so it stays where it is, renamed.
    inside = database.parent == paths.root
    base = place / database.name if inside else database.with_name(f"{database.name}.{place.name}")
    tail = len(database.name)
    for one in sorted(database.parent.glob(f"{database.name}*")):
        if one.name[tail:] in ("", "-wal", "-shm") or one.name[tail:].startswith(".log"):
            os.rename(one, base.with_name(base.name + one.name[tail:]))
    for one in (
        paths.beacon,
        paths.mail,
        paths.spool,
        paths.results,
        paths.launches,
        paths.snapshot,
        ended_file(paths),
        paths.session_file,
    ):
        with contextlib.suppress(FileNotFoundError):
            os.rename(one, place / one.name)
    return place
