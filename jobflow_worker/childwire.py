"""What an agent and its warm child say to each other; only `slots.py` and `child.py` use it.

Rules
-----
* Agent to child: one attempt per packet of a SOCK_SEQPACKET socket, so that the agent can take
  back whole packets that the child did not take. A spec over SPEC_INLINE_BYTES_MAX is a file in
  the slot's folder, because a packet must fit into the socket's buffer.
* Child to agent: length-prefixed frames on a pipe, each written at once.
* A child needs nothing of the protocol with the manager, so that is not imported here.
* Both ends are one installation on one host: there are no versions here.
"""

from __future__ import annotations

import os
import struct
import zlib
from typing import TYPE_CHECKING, Any, Final

from jobflow_worker import limits
from jobflow_worker.body import decode_body, pack

if TYPE_CHECKING:
    from jobflow_worker.messages import Assignment

#: Specs up to this size travel in the packet: a third of Linux's default socket buffer.
SPEC_INLINE_BYTES_MAX: Final = 64 * limits.KIB
PACKET_BYTES_MAX: Final = SPEC_INLINE_BYTES_MAX + 4 * limits.KIB
#: An inline result, a traceback and an output tail fit into this many times over.
FRAME_BYTES_MAX: Final = limits.MIB

# Kinds of frames, the first item of each.
READY: Final = 0  # cpu_s
BROKEN: Final = 1  # sentence, traceback
FINISHED: Final = 2  # task_id, attempt, result, file, tail, duration_s, cpu_s, max_rss_bytes
FAILED: Final = 3  # task_id, attempt, cause, error, traceback, tail, and the same three
PROGRESS: Final = 4  # task_id, attempt, fraction, info: the first of an attempt

# Names in a slot's folder.
SETUP_FILE: Final = "setup"
OUTPUT_FILE: Final = "output"
PROGRESS_FILE: Final = "progress"

_LENGTH = struct.Struct("<I")
_RECORD = struct.Struct("<II")


class Corrupt(ValueError):
    """The stream from a child makes no sense any more."""


def packet(assignment: Assignment, spec_file: str | None) -> bytes:
    """One attempt for the child; its spec is inside unless it is in a file."""
    spec = assignment.spec if spec_file is None else None
    return pack((assignment.task_id, assignment.attempt, spec, spec_file, assignment.timeout_s))


def whose(data: bytes) -> tuple[str, int]:
    """The attempt in a packet."""
    task_id, attempt, *_ = decode_body(data)
    return task_id, attempt


def frame(*items: Any) -> bytes:
    """One frame for the agent: a kind and its fields. One thread at a time."""
    body = pack(items)
    return _LENGTH.pack(len(body)) + body


def take_frames(buffer: bytearray) -> list[list[Any]]:
    """The complete frames at the head of the buffer, which keeps the rest. Raises Corrupt."""
    frames: list[list[Any]] = []
    start, end = 0, len(buffer)
    while end - start >= 4:
        (size,) = _LENGTH.unpack_from(buffer, start)
        if size > FRAME_BYTES_MAX:
            raise Corrupt(f"a frame of {size} bytes")
        if end - start - 4 < size:
            break
        try:
            frames.append(decode_body(buffer[start + 4 : start + 4 + size]))
        except ValueError as error:
            raise Corrupt(str(error)) from None
        start += 4 + size
    del buffer[:start]
    return frames


def progress_record(task_id: str, attempt: int, fraction: float, info: bytes | None) -> bytes:
    """The latest progress as it stands in the progress file. One thread at a time."""
    body = pack((task_id, attempt, fraction, info))
    return _RECORD.pack(zlib.crc32(body), len(body)) + body


def read_progress(fd: int) -> list[Any] | None:
    """The record in the progress file; None if it is being written just now."""
    data = os.pread(fd, 16 * limits.KIB, 0)
    if len(data) < _RECORD.size:
        return None
    check, size = _RECORD.unpack_from(data)
    body = data[_RECORD.size : _RECORD.size + size]
    if len(body) != size or zlib.crc32(body) != check:
        return None
    record: list[Any] = decode_body(body)
    return record


def read_tail(fd: int, size: int) -> str:
    """The end of an output file of this size, as text that any terminal and codec can take."""
    offset = max(0, size - limits.OUTPUT_TAIL_BYTES_MAX)
    data = os.pread(fd, limits.OUTPUT_TAIL_BYTES_MAX, offset)
    if offset:
        # The cut may have gone through a character: drop the rest of it.
        cut = 0
        while cut < min(3, len(data)) and data[cut] & 0xC0 == 0x80:
            cut += 1
        data = data[cut:]
    return data.decode("utf-8", "backslashreplace")[-limits.OUTPUT_TAIL_BYTES_MAX :]


def plain(text: str, limit: int) -> str:
    """A text that can be encoded (no lone surrogates), with both ends kept within the limit."""
    if len(text) > limit:
        left_out = f"\n... {len(text) - limit} characters left out ...\n"
        head = (limit - len(left_out)) // 3
        tail = limit - len(left_out) - head
        text = text[:head] + left_out + text[-tail:]
    return text.encode("utf-8", "backslashreplace").decode("utf-8")[:limit]
