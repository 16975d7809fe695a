"""Processes of this host as an agent needs them: groups, descendants, memory, orphans.

Rules
-----
* Linux only, straight from /proc: sampling runs twice a second per slot, and a look at every
  process of a busy node would cost the agent more than all its other work.
* Nothing here waits for a process that it was not told to wait for.
"""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, value, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl: {os.strerror(code)}")


def become_subreaper(on: bool = True) -> None:
    """Adopt orphaned descendants, so that those of a dead child can be found and ended.

    Whoever calls this must call `reap_adopted` now and then. Raises OSError.
    """
    _prctl(_PR_SET_CHILD_SUBREAPER, int(on))


def die_with_parent(parent: int) -> None:
    """Be killed when the parent (its pid) ends; ends this process if it already has."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def children_of(pid: int) -> list[int]:
    """The living and unreaped children of a process; empty if it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                found += map(int, file.read().split())
    except FileNotFoundError:
        if os.path.exists(f"/proc/{pid}/task") and not found:
            return _children_by_search(pid)
    except OSError:
        pass
    return found


def _children_by_search(pid: int) -> list[int]:
    """The same for kernels without the `children` files."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_bytes()
            except OSError:
                continue
            # The command name may hold anything, but only it is in parentheses.
            if int(stat.rpartition(b")")[2].split()[1]) == pid:
                found.append(int(name))
    return found


def descendants(pid: int) -> Iterator[int]:
    """All processes below this one, parents first."""
    waiting = children_of(pid)
    seen = set(waiting)
    while waiting:
        one = waiting.pop(0)
        yield one
        fresh = [child for child in children_of(one) if child not in seen]
        seen.update(fresh)
        waiting += fresh


def signal_group(leader: int, number: int) -> None:
    """Signal a process group and its leader. Gone is fine.

    The leader must not be reaped yet: until then nobody else can get its number.
    """
    for send in (os.killpg, os.kill):
        try:
            send(leader, number)
        except (ProcessLookupError, PermissionError):
            pass


def tree_memory(pid: int, limit: int) -> int:
    """Bytes that a process and its descendants use together.

    Resident pages are added up; only if that passes the limit are shared pages counted
    properly (PSS), because that takes a walk through every mapping.
    """
    pids = [pid, *descendants(pid)]
    total = sum(map(_resident, pids))
    if total > limit and len(pids) > 1:
        total = sum(map(_proportional, pids))
    return total


def _resident(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _proportional(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return _resident(pid)


def kill_tagged(tag: bytes) -> list[int]:
    """Kill the descendants of this process whose environment holds `tag` (NAME=value).

    These are what a dead child left behind and this process adopted (`become_subreaper`).
    Returns the killed children of this process itself: they are the caller's to reap.
    """
    me = os.getpid()
    killed: set[int] = set()
    own: set[int] = set()
    quiet = 0
    # What was forked before its parent was killed shows in the next pass; a process that changed
    # parents while we read may be missed by one pass, not by two.
    while quiet < 2:
        own.update(children_of(me))
        fresh = [pid for pid in descendants(me) if pid not in killed and _kill_if(pid, tag)]
        killed.update(fresh)
        quiet = 0 if fresh else quiet + 1
    return sorted(killed & own)


def _kill_if(pid: int, tag: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            if tag not in file.read().split(b"\0"):
                return False
        os.kill(pid, signal.SIGKILL)
    except OSError:
        return False
    return True


def reap(pids: Collection[int]) -> list[int]:
    """Reap those of these children that have ended; returns the ones that have not.

    A negative number is a process group: all children of this process in it.
    """
    left = []
    for pid in pids:
        try:
            while os.waitpid(pid, os.WNOHANG) != (0, 0):
                pass
        except ChildProcessError:
            continue
        left.append(pid)
    return left


def reap_adopted(own: Collection[int]) -> int:
    """Reap ended orphans that this process adopted; returns how many.

    `own`: pids that the caller started and waits for itself; their statuses are left alone.
    """
    adopted = [pid for pid in children_of(os.getpid()) if pid not in own]
    return len(adopted) - len(reap(adopted))


class OomWatch:
    """Whether the kernel's out-of-memory killer has struck in this process's cgroup since.

    One is shared by all slots of a worker, so that each kill explains one death.
    """

    def __init__(self) -> None:
        self._file = _oom_file()
        self._seen = self._count()

    def rose(self) -> bool:
        """True once for every rise of the kernel's counter."""
        count = self._count()
        if count <= self._seen:
            return False
        self._seen = count
        return True

    def _count(self) -> int:
        if self._file is None:
            return 0
        try:
            for line in self._file.read_text().splitlines():
                name, _, number = line.partition(" ")
                if name == "oom_kill":
                    return int(number)
        except (OSError, ValueError):
            pass
        return 0


def _oom_file() -> Path | None:
    """The file with the counter: version 2 of cgroups, or version 1's memory controller."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    root = Path("/sys/fs/cgroup")
    for line in lines:
        _, controllers, path = line.split(":", 2)
        inside = path.lstrip("/")
        if controllers == "":
            candidate = root / inside / "memory.events"
        elif "memory" in controllers.split(","):
            candidate = root / "memory" / inside / "memory.oom_control"
        else:
            continue
        if candidate.exists():
            return candidate
    return None
