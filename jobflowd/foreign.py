"""The quarantine: what lies among the mailboxes and is not of this session.

Rules
-----
* Nothing foreign is read, followed, opened or removed: it is renamed into the session's quarantine
  directory, under a name without surprises, or left where it is if that is refused.
* The quarantine is bounded: when it is full, further finds stay where they are.
* Each find is told of once, and how many there are stands in `status` until they are removed.

Used by the mailbox process only: whoever asks a file server may hang in it.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Final

#: Entries in the quarantine directory, and finds left in place that are remembered.
FOREIGN_MAX: Final = 100
_NAME_CHARS_MAX: Final = 80
_STRANGE: Final = re.compile(r"[^A-Za-z0-9._-]")


class Quarantine:
    """Takes finds in and counts them."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._inside = 0
        self._left: set[str] = set()
        self.recount()

    @property
    def count(self) -> int:
        """How many finds lie in the directory, or were left where they are."""
        return self._inside + len(self._left)

    def recount(self) -> None:
        """Look what the user has removed. Keeps the last count where that is not possible."""
        try:
            self._inside = len(os.listdir(self._directory))
        except OSError:
            return
        self._left = {path for path in self._left if os.path.lexists(path)}

    def take(self, path: Path, why: str) -> str | None:
        """Move a find aside; a sentence for the log, or None if it was told of before."""
        found = os.fspath(path)
        if found in self._left:
            return None
        if self._inside >= FOREIGN_MAX:
            return self._leave(found, why, f"the quarantine is full ({FOREIGN_MAX} entries)")
        plain = _STRANGE.sub("_", f"{path.parent.name}-{path.name}")[:_NAME_CHARS_MAX]
        target = self._directory / f"{os.urandom(4).hex()}-{plain}"
        try:
            os.rename(path, target)
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._leave(found, why, str(error.strerror))
        self._inside += 1
        return f"a foreign file was moved to {target}: {why}"

    def _leave(self, found: str, why: str, reason: str) -> str | None:
        if len(self._left) >= FOREIGN_MAX:
            return None
        self._left.add(found)
        return f"a foreign file is ignored and stays where it is, {found} ({reason}): {why}"


def entry_trouble(path: Path) -> str | None:
    """Why a registration entry is not one of ours; None if it is, or is gone.

    Raises OSError where the file server does not answer.
    """
    try:
        info = os.lstat(path)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(info.st_mode):
        return "it is not a regular file"
    if info.st_uid != os.geteuid():
        return f"it belongs to user {info.st_uid}"
    return None
