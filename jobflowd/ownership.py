"""Who runs a session: the lock, and the record for hosts that the lock does not reach.

Rules
-----
* `flock` on the session's lock file is the truth on one host. It is held for life on a descriptor
  that no executed child inherits; a process forked without exec would keep it, so do not.
* Locks of a shared file system may be local to each host, so `owner.json` is the truth between
  hosts: {uuid, host, boot_id, pid, started_at, beat}. The owner moves `beat` every 30 s and stops
  when the record is no longer its own. Another host's record is taken only if its beat stood still
  for `FOREIGN_WAIT_S` of our own monotonic time, or with `--takeover`.

Used by `sessiondir.py`; every refusal is a `SessionError`.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Final

from jobflow_worker.sessionfiles import SessionPaths, UnsafeFileError, read_private, write_private
from jobflowd.api import this_host

EXIT_IO: Final = 74
EXIT_OWNED: Final = 75

#: The owner's beat, and how long it must stand still before another host may take the session:
#: ten beats, so that a file server's restart is not a death.
BEAT_S: Final = 30.0
FOREIGN_WAIT_S: Final = 300.0
_POLL_S: Final = 5.0
_OWNER_BYTES_MAX: Final = 64 * 1024
_LOCK_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class SessionError(Exception):
    """A session that cannot be used: `sentence` says what, why and what to do."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True)
class Owner:
    """owner.json. `started_at` is wall-clock seconds; `beat` only ever moves on.

    `pid_start` is the process's start in clock ticks since boot: a pid alone may be used again.
    """

    uuid: str
    host: str
    boot_id: str
    pid: int
    pid_start: int
    started_at: float
    beat: int

    def encode(self) -> bytes:
        return json.dumps(asdict(self)).encode() + b"\n"


def read_owner(path: Path) -> Owner | None:
    """The record, or None if there is none or nobody could have meant it as one."""
    try:
        value = json.loads(read_private(path, _OWNER_BYTES_MAX))
        names = [field.name for field in fields(Owner)]
        owner = Owner(**{name: value[name] for name in names})
    except (OSError, ValueError, TypeError, KeyError, RecursionError, UnsafeFileError):
        return None
    words = (owner.uuid, owner.host, owner.boot_id)
    numbers = (owner.pid, owner.pid_start, owner.beat)
    good = all(type(word) is str for word in words) and all(type(n) is int for n in numbers)
    return owner if good and type(owner.started_at) in (int, float) else None


def this_process(now: float) -> Owner:
    """A new record for this process; `now` is wall-clock seconds."""
    pid = os.getpid()
    return Owner(secrets.token_hex(16), this_host(), boot_id(), pid, pid_start(pid) or 0, now, 0)


def boot_id() -> str:
    """What tells one boot of this host from the next; "" where the kernel does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def pid_start(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None if there is no such process."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The command's name stands in brackets and may itself contain blanks and brackets.
        after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
        return int(after_name[19]) if after_name[0] not in (b"Z", b"X") else None
    return None


def is_gone(owner: Owner) -> bool:
    """Whether an owner of this same host certainly does not run any more."""
    if owner.boot_id and boot_id() and owner.boot_id != boot_id():
        return True
    start = pid_start(owner.pid)
    return start is None or (owner.pid_start != 0 and start != owner.pid_start)


# --- taking -----------------------------------------------------------------------------------


class Ownership:
    """This process's hold on a session, from `take` to `release`."""

    __slots__ = ("_lock_fd", "_paths", "_root_id", "owner")

    def __init__(self, paths: SessionPaths, lock_fd: int, owner: Owner) -> None:
        self._paths = paths
        self._lock_fd = lock_fd
        self._root_id = _identity(paths.root)
        self.owner = owner

    def refresh(self) -> bool:
        """Move the beat; to be called every `BEAT_S` and before each launch.

        True if it moved, False if the file system gave no answer, which proves nothing. Raises
        `SessionError`: 75 if the session is another's now, 74 if its directory is not the same.
        """
        root = self._paths.root
        try:
            data = read_private(self._paths.owner, _OWNER_BYTES_MAX)
            same_directory = _identity(root) == self._root_id
        except FileNotFoundError:
            data, same_directory = b"", os.path.isdir(root)
        except OSError:
            return False
        if not same_directory:
            raise SessionError(
                f"{root} was moved, replaced or deleted under its daemon; put it back and start "
                "again",
                EXIT_IO,
            )
        if self.owner.uuid.encode() not in data:
            raise SessionError(
                f"{root} was taken over by another daemon ({_who(read_owner(self._paths.owner))}),"
                " so this one stops; its tasks go on there",
                EXIT_OWNED,
            )
        moved = replace(self.owner, beat=self.owner.beat + 1)
        try:
            write_private(self._paths.owner, moved.encode(), fsync=False)
        except OSError:
            return False
        self.owner = moved
        return True

    def release(self) -> None:
        """Give the session up: remove our record, then the lock. Never raises."""
        if self._lock_fd < 0:
            return
        current = read_owner(self._paths.owner)
        if current is not None and current.uuid == self.owner.uuid:
            with contextlib.suppress(OSError):
                os.unlink(self._paths.owner)
        os.close(self._lock_fd)
        self._lock_fd = -1


def _identity(root: Path) -> tuple[int, int]:
    about = os.stat(root)
    return about.st_dev, about.st_ino


def take(
    paths: SessionPaths,
    *,
    name: str,
    takeover: bool = False,
    say: Callable[[str], None] = lambda text: None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    wait_s: float = FOREIGN_WAIT_S,
) -> Ownership:
    """Become the owner of an existing session directory.

    `say` gets one line before a wait. Raises `SessionError` (75) naming the owner, OSError where
    the file system refuses.
    """
    lock_fd = _lock(paths, name)
    try:
        while True:
            seen = read_owner(paths.owner)
            if seen is not None and not takeover:
                _judge(paths, name, seen, say, clock, sleep, wait_s)
            mine = this_process(time.time())
            if _replace_record(paths, seen, mine):
                return Ownership(paths, lock_fd, mine)
            if takeover:
                # Somebody else did the same at this moment; from here on the rules decide.
                takeover = False
    except BaseException:
        os.close(lock_fd)
        raise


def _lock(paths: SessionPaths, name: str) -> int:
    fd = os.open(paths.lock, _LOCK_FLAGS, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise _owned(name, read_owner(paths.owner)) from None
    except OSError:
        # A file system without locks: the owner record alone decides.
        pass
    return fd


def _judge(
    paths: SessionPaths,
    name: str,
    seen: Owner,
    say: Callable[[str], None],
    clock: Callable[[], float],
    sleep: Callable[[float], None],
    wait_s: float,
) -> None:
    """Return if the recorded owner is gone; raise if it lives."""
    if seen.host == this_host():
        if not is_gone(seen):
            raise _owned(name, seen)
        return
    say(
        f"session {name} was run by {_who(seen)} and not ended there; waiting up to "
        f"{wait_s / 60:.0f} minutes for a sign of life (--takeover if you know that it is gone)"
    )
    until = clock() + wait_s
    while clock() < until:
        sleep(min(_POLL_S, wait_s))
        current = read_owner(paths.owner)
        if current is None:
            return
        if (current.uuid, current.beat) != (seen.uuid, seen.beat):
            raise _owned(name, current)


def _replace_record(paths: SessionPaths, seen: Owner | None, mine: Owner) -> bool:
    """Put our record where `seen` was; False if somebody else was faster."""
    aside = paths.root / f".owner.{mine.uuid}.old"
    new = paths.root / f".owner.{mine.uuid}.new"
    if os.path.lexists(paths.owner):
        try:
            # Only one of several challengers gets to rename it.
            os.rename(paths.owner, aside)
        except FileNotFoundError:
            # A file server repeats a request whose answer was lost: then ours came through.
            if not os.path.lexists(aside):
                return False
        moved = read_owner(aside)
        changed = moved is not None and (
            seen is None or (moved.uuid, moved.beat) != (seen.uuid, seen.beat)
        )
        if changed:
            with contextlib.suppress(FileExistsError):
                os.link(aside, paths.owner)
            os.unlink(aside)
            return False
    write_private(new, mine.encode())
    try:
        os.link(new, paths.owner)
    except FileExistsError:
        # As above: two names of one file mean that it is ours that is there.
        if os.stat(new).st_nlink != 2:
            return False
    finally:
        os.unlink(new)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(aside)
    return True


def _owned(name: str, owner: Owner | None) -> SessionError:
    stop = f"jobflowctl -s {name} shutdown"
    if owner is not None and owner.host != this_host():
        stop = f"ssh {owner.host} {stop}"
    return SessionError(
        f"session {name} is already run by {_who(owner)}; stop it with: {stop}", EXIT_OWNED
    )


def _who(owner: Owner | None) -> str:
    if owner is None:
        return "another daemon"
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(owner.started_at))
    return f"pid {owner.pid} on {owner.host} since {since}"
