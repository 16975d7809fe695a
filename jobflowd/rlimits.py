"""What the kernel allows the daemon: more descriptors than attackers easily use up, and no cores.

Rules
-----
* Descriptors: the soft limit is raised, so that a thousand connections, half of them a stranger's,
  leave room for the daemon's own files. libzmq closes a connection that says nothing in 5 s.
* Core dumps are off for the daemon: its memory holds the session's keys.
* Neither is meant for the user's own programs: `give_back` restores both for a worker.

Only `daemon.py` and `processes.py` use this.
"""

from __future__ import annotations

import resource
from typing import Final

#: More than any pool needs, and little enough for programs that walk over all of them.
FILES_MAX: Final = 65_536

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


def give_back(pid: int) -> None:
    """Let a child that was just started have what the user had. Never raises."""
    for kind, limits in _original.items():
        try:
            resource.prlimit(pid, kind, limits)
        except (OSError, ValueError):
            continue  # It has ended already.
