"""What the kernel allows the daemon: more descriptors than attackers easily use up, and no cores.

Rules
-----
* Descriptors: the soft limit is raised, so that a thousand connections, half of them a stranger's,
  leave room for the daemon's own files. libzmq closes a connection that says nothing in 5 s.
* Some descriptors are kept back for operators (`Reserve`). That helps while strangers hold all the
  others and no more of them wait: libzmq's thread shares the table, and would be quicker than we.
* Core dumps are off for the daemon: its memory holds the session's keys.
* Neither is meant for the user's own programs: `give_back` restores both for a worker.

Only `daemon.py`, `processes.py`, `opening.py` and `admin.py` use this.
"""

from __future__ import annotations

import os
import resource
from typing import Final

#: More than any pool needs, and little enough for programs that walk over all of them.
FILES_MAX: Final = 65_536

#: With fewer, strangers who connect in mass can use all of them up at times.
FILES_LOW: Final = 4_096

_original: dict[int, tuple[int, int]] = {}


def protect() -> None:
    """Raise the limit of open files and switch core dumps off, for this process."""
    for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE):
        _original.setdefault(kind, resource.getrlimit(kind))
    soft, hard = _original[resource.RLIMIT_NOFILE]
    wanted = FILES_MAX if hard == resource.RLIM_INFINITY else min(hard, FILES_MAX)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, _original[resource.RLIMIT_CORE][1]))


def notices() -> tuple[str, ...]:
    """A warning if this process may not open as many files as an attack can take."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES_LOW:
        return ()
    return (
        f"only {soft} files may be open here (ulimit -Hn): strangers who connect in mass can keep "
        f"new workers out while they do; ask for a hard limit of {FILES_LOW} or more",
    )


class Reserve:
    """Descriptors that are kept back, so that the last free ones are not a stranger's."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._held: list[int] = []

    def refill(self) -> None:
        """Take back what was given, as far as there are descriptors. Never raises."""
        while len(self._held) < self._count:
            try:
                self._held.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:
                return

    def give(self) -> bool:
        """Free one for whoever opens something next. False if none is left."""
        if not self._held:
            return False
        os.close(self._held.pop())
        return True

    def close(self) -> None:
        """Free them all; idempotent."""
        while self.give():
            pass


def give_back(pid: int) -> None:
    """Let a child that was just started have what the user had. Never raises."""
    for kind, limits in _original.items():
        try:
            resource.prlimit(pid, kind, limits)
        except (OSError, ValueError):
            continue  # It has ended already.
