"""What a task that still runs has printed, if its worker is on this host.

A worker sends an attempt's output with its outcome. Until then it is in a file of the worker's
own, which the slot's process has as its standard output; on this host, /proc says where.

Rule: only looked at, never guessed. With several slots nobody outside the worker knows whose file
is whose, and then there is none. Not one message is sent for it.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

#: The folder of a worker, and its slots' files in there: see `jobflow_worker.agent` and `slots`.
_FOLDER: Final = "jobflow-worker-"
_FILE: Final = "output"


def output_files(pid: int, proc: Path = Path("/proc")) -> list[Path]:
    """The files that the slots of the worker with this pid print into; [] if none can be seen."""
    found = []
    for child in _children(pid, proc):
        try:
            target = Path(os.readlink(proc / str(child) / "fd" / "1"))
        except OSError:
            continue
        if target.name == _FILE and any(part.startswith(_FOLDER) for part in target.parts):
            found.append(target)
    return sorted(set(found))


def _children(pid: int, proc: Path) -> list[int]:
    try:
        threads = os.listdir(proc / str(pid) / "task")
        texts = [(proc / str(pid) / "task" / one / "children").read_text() for one in threads]
    except OSError:
        return []
    return [int(word) for text in texts for word in text.split()]
