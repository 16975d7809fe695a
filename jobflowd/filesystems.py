"""What kind of file system a path is on, from the kernel's own table.

Rule: reads /proc/self/mountinfo only, so that the question itself cannot hang on a file server.
Used by `sessiondir.py` and whoever words advice about a place.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

#: Where another host may write what this one reads, with a delay. FUSE is counted in whole: most
#: of what clusters mount by it is a network file system, and the longer terms cost little.
_NETWORK: Final = frozenset(
    (
        "9p",
        "acfs",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "gpfs",
        "lustre",
        "ncpfs",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb3",
        "smbfs",
        "virtiofs",
        "wekafs",
    )
)
_OCTAL: Final = re.compile(r"\\([0-7]{3})")
_TABLE: Final = Path("/proc/self/mountinfo")


def filesystem_of(path: Path, table: Path = _TABLE) -> tuple[str, bool]:
    """(type, whether it is a network file system) of `path` or of its nearest existing parent.

    ("unknown", False) where there is no such table.
    """
    real = os.path.realpath(path)
    try:
        lines = table.read_text("utf-8", "surrogateescape").splitlines()
    except OSError:
        return "unknown", False
    best, kind = "", "unknown"
    for line in lines:
        mount_point, mounted = _mount(line)
        # A later mount on the same point hides the earlier one.
        if mount_point and _is_under(real, mount_point) and len(mount_point) >= len(best):
            best, kind = mount_point, mounted
    return kind, is_network(kind)


def is_network(kind: str) -> bool:
    """Whether a file-system type, as the kernel names it, is served by another host."""
    return kind in _NETWORK or kind.startswith("fuse.")


def _mount(line: str) -> tuple[str, str]:
    """Mount point and type of one line; optional fields end at a lone dash."""
    left, _, right = line.partition(" - ")
    fields = left.split(" ")
    if len(fields) < 5 or not right:
        return "", ""
    # The kernel escapes blanks, tabs, line breaks and backslashes only.
    point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4])
    return point, right.split(" ")[0]


def _is_under(path: str, mount_point: str) -> bool:
    return path == mount_point or path.startswith(mount_point.rstrip("/") + "/")
