"""Pieces of logs for `jobflowctl logs`: bounded, from where the reader was, over rotations.

Rule: a place is `<inode>:<offset>`. If the file is another one by now, reading goes on at its
beginning. Only plain files are opened, and no link is followed. Never more than asked for is read.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any, Final

#: What a first look shows: the end of the file.
TAIL_BYTES: Final = 16 * 1024


class NoLog(LookupError):
    """There is no such log (yet): the sentence says why."""


def read_piece(path: Path, after: str | None, most: int) -> dict[str, Any]:
    """The next piece of a log: `text`, `next`, and whether this was the end so far.

    Raises `NoLog` if there is no file, or none that may be read.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        handle = os.open(path, flags)
    except FileNotFoundError:
        raise NoLog(f"there is no file {path}") from None
    except OSError as error:
        raise NoLog(f"{path} cannot be read: {error.strerror}") from None
    with os.fdopen(handle, "rb") as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise NoLog(f"{path} is not a plain file")
        start = _start(about, after)
        file.seek(start)
        data = file.read(most if after is not None else min(most, TAIL_BYTES))
    if after is None and start > 0:
        # The first line was cut in its middle.
        head = data.find(b"\n") + 1
        data, start = data[head:], start + head
    data = _whole_characters(data)
    end = start + len(data)
    return {
        "file": str(path),
        "text": data.decode("utf-8", "replace"),
        "next": f"{about.st_ino}:{end}",
        "end": end >= about.st_size,
    }


def _start(about: os.stat_result, after: str | None) -> int:
    if after is None:
        return max(0, about.st_size - TAIL_BYTES)
    inode, offset = (int(part) for part in after.split(":"))
    # Another file, or one that was emptied: from its beginning.
    return offset if inode == about.st_ino and offset <= about.st_size else 0


def _whole_characters(data: bytes) -> bytes:
    """Without a last character of which only a part has been written or read."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte < 0x80:
            return data
        if byte >= 0xC0:
            size = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return data[:-back] if size > back else data
    return data
