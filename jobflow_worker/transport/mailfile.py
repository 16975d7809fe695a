"""A mailbox file: its layout, and how to tell that it is whole, new, and of this session.

    magic 6 | version 1 | pace 1 | serial 8 | length 4 | CRC-32 4 | then frames: length 4, bytes
    and at the end of the file its seal: HMAC-SHA-256, 32 bytes, of its place and all the above

Rules
-----
* The checksum covers everything but itself. A file whose header and checksum do not agree with
  its content is torn: read again later, never half used.
* The seal is made with the session's mail key, for one directory and name. A whole file without
  the right one was put there by somebody or something else: forged, never read at all.
* The serial changes with every writing, so a reader knows an unchanged file by its header.
* The pace is the writer's hint for the reader: how soon to look again. It is never trusted for
  anything else.
* Frames are opaque here; only `framing.py` and the codec look into them.

Used by the fs transport and by the daemon's mailbox process, which must stay small.
"""

from __future__ import annotations

import errno
import hmac
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Final, NamedTuple

from jobflow_worker import limits
from jobflow_worker.record import Record
from jobflow_worker.sessionfiles import read_private_unless

_MAGIC: Final = b"JFMAIL"
_VERSION: Final = 1
_HEAD: Final = struct.Struct(">6sBBQI")
_CRC: Final = struct.Struct(">I")
_FRAME: Final = struct.Struct(">I")
HEADER_BYTES: Final = _HEAD.size + _CRC.size
SEAL_BYTES: Final = 32

#: Header and seal, and a length before each of at most a few hundred frames.
FILE_BYTES_MAX: Final = limits.MAILBOX_BYTES_MAX + 64 * limits.KIB

#: On NFS a file that was replaced between open and read is stale; its successor is there at once.
STALE_TRIES: Final = 3

#: Pace bits. FLOW: an answer is awaited now. BUSY: something runs, an outcome may come.
IDLE: Final = 0
FLOW: Final = 1
BUSY: Final = 2


class Torn(ValueError):
    """Not a whole mailbox file, for the reason given; it may be whole a moment later."""


class Forged(ValueError):
    """A whole mailbox file that nobody of this session wrote for this place."""


class Seal(Record, unshown=("key",)):
    """The session's mail key at work. A place is a directory and a name: `in/<worker id>`."""

    key: bytes

    def put(self, data: bytes, place: str) -> bytes:
        """The mailbox file's bytes, sealed for this place."""
        return data + self._mac(data, place)

    def open(self, sealed: bytes, place: str) -> bytes:
        """What was sealed. Raises `Torn`, and `Forged` for a whole file without the right seal."""
        data = sealed[:-SEAL_BYTES]
        try:
            check(data)
        except Torn:
            if _is_whole(sealed):
                raise Forged("it has no seal") from None
            raise
        if not hmac.compare_digest(sealed[-SEAL_BYTES:], self._mac(data, place)):
            raise Forged("its seal is not of this session and place")
        return data

    def _mac(self, data: bytes, place: str) -> bytes:
        mac = hmac.new(self.key, place.encode() + b"\0", "sha256")
        mac.update(data)
        return mac.digest()


class Mail(NamedTuple):
    """A whole mailbox: `header` is its fingerprint, `pace` the writer's hint."""

    header: bytes
    pace: int
    frames: list[bytes]


def pack(frames: Iterable[bytes], serial: int, pace: int) -> bytes:
    """The bytes of a mailbox file. `serial` must differ from that of the content before."""
    payload = b"".join(part for frame in frames for part in (_FRAME.pack(len(frame)), frame))
    head = _HEAD.pack(_MAGIC, _VERSION, pace, serial, len(payload))
    return head + _CRC.pack(zlib.crc32(payload, zlib.crc32(head))) + payload


def pace_of(data: bytes) -> int:
    """The pace of a mailbox file whose wholeness was checked."""
    return data[7]


def check(data: bytes) -> None:
    """Raises `Torn` unless `data` is a whole mailbox file."""
    if len(data) < HEADER_BYTES:
        raise Torn("shorter than its header")
    head = data[: _HEAD.size]
    magic, version, _, _, length = _HEAD.unpack(head)
    if magic != _MAGIC:
        raise Torn("not a mailbox file")
    if version != _VERSION:
        raise Torn(f"version {version} is not {_VERSION}")
    if length != len(data) - HEADER_BYTES:
        raise Torn("length and content disagree")
    (crc,) = _CRC.unpack_from(data, _HEAD.size)
    if crc != zlib.crc32(memoryview(data)[HEADER_BYTES:], zlib.crc32(head)):
        raise Torn("checksum and content disagree")


def _is_whole(data: bytes) -> bool:
    try:
        check(data)
    except Torn:
        return False
    return True


def unpack(data: bytes) -> Mail:
    """Raises `Torn` for anything that `pack` did not make."""
    check(data)
    frames = []
    at = HEADER_BYTES
    while at < len(data):
        if at + _FRAME.size > len(data):
            raise Torn("a frame is cut short")
        (size,) = _FRAME.unpack_from(data, at)
        at += _FRAME.size
        if at + size > len(data):
            raise Torn("a frame is cut short")
        frames.append(data[at : at + size])
        at += size
    return Mail(data[:HEADER_BYTES], pace_of(data), frames)


def read_if_new(path: Path | str, known: bytes) -> bytes | None:
    """The content of a mailbox file, or None if its header is still `known`.

    Neither checked for wholeness nor for its seal. Raises OSError and `UnsafeFileError`.
    """
    for _ in range(STALE_TRIES - 1):
        try:
            return read_private_unless(path, FILE_BYTES_MAX, known)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return read_private_unless(path, FILE_BYTES_MAX, known)
