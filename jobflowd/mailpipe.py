"""What the daemon and its mailbox process say to each other over their socket pair.

    length 4 | kind 1 | at 8 | length of the id 2 | id | data

Both ends are this software in the same version on one host, so there are no versions here; the
data of workers inside is checked where it is decoded. Used by `mailboxes.py` and `mailchild.py`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final, NamedTuple

_HEAD: Final = struct.Struct(">IBdH")

# --- daemon -> process ---
POST: Final = 1
FORGET: Final = 2
SPOOL_DONE: Final = 3
HEARTBEAT: Final = 4

# --- process -> daemon ---
#: The new content of a mailbox, read at `at`.
MAIL: Final = 11
#: Lines `id time`: mailboxes that were read at that time without anything new in them.
SAME: Final = 12
#: The new content of a spool file.
SPOOL: Final = 13
#: A mailbox's files are removed, as asked; the answer to FORGET.
GONE: Final = 14
#: A spool file is removed, as asked; the answer to SPOOL_DONE.
SPOOL_GONE: Final = 15
#: A sentence about a file (of the worker, if there is an id).
COMPLAINT: Final = 16
#: Every mailbox and spool that was there at the start has been handed over.
LISTED: Final = 17

#: What is not of this session: a sentence if something new was found, and in `at` how many lie in
#: quarantine, or could not be moved there.
FOREIGN: Final = 18


class Note(NamedTuple):
    """One message; `at` is monotonic seconds, which all processes of a host share."""

    kind: int
    worker_id: str = ""
    data: bytes = b""
    at: float = 0.0

    def encode(self) -> bytes:
        name = self.worker_id.encode()
        size = _HEAD.size + len(name) + len(self.data)
        return _HEAD.pack(size, self.kind, self.at, len(name)) + name + self.data


class Decoder:
    """Collects bytes and gives whole notes."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[Note]:
        """The notes that are whole now, in order. To be exhausted before the next call."""
        self._buffer += data
        start = 0
        while len(self._buffer) - start >= _HEAD.size:
            size, kind, at, name_size = _HEAD.unpack_from(self._buffer, start)
            if len(self._buffer) - start < size:
                break
            middle = start + _HEAD.size + name_size
            name = self._buffer[start + _HEAD.size : middle].decode()
            yield Note(kind, name, bytes(self._buffer[middle : start + size]), at)
            start += size
        del self._buffer[:start]
