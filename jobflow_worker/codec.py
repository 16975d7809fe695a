"""msgpack in and out, with limits before decoding: the only codec.

Two uses: frames (lists of envelopes between worker and manager), which are decoded here, and bodies
(specs and results), which are `body.py`'s and whose names are here, too.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack

from jobflow_worker import limits
from jobflow_worker.body import Unencodable, decode_body, encode_body
from jobflow_worker.messages import Envelope, Malformed
from jobflow_worker.validation import from_wire, to_wire

__all__ = ["Unencodable", "decode_body", "decode_frame", "encode_body", "encode_frame"]


def _no_extension(code: int, data: bytes) -> Any:
    raise Malformed("extension types are not part of the protocol")


def _unpack(data: bytes, size_max: int) -> Any:
    """Decode untrusted bytes. Lengths are checked by msgpack before anything is allocated."""
    if len(data) > size_max:
        raise Malformed(f"{len(data)} bytes, more than {size_max}")
    left = limits.CONTAINERS_PER_FRAME_MAX

    def count(items: Any) -> Any:
        # An empty map is one byte on the wire and seventy in memory.
        nonlocal left
        left -= 1
        if left < 0:
            raise Malformed(f"more than {limits.CONTAINERS_PER_FRAME_MAX} lists and maps")
        return items

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made: dict[str, Any] = dict(count(pairs))
        if len(made) != len(pairs):
            raise Malformed("a map has a key twice")
        return made

    try:
        return msgpack.unpackb(
            data,
            raw=False,
            strict_map_key=True,
            max_array_len=10_000,
            max_map_len=1_000,
            max_str_len=limits.MIB,
            max_bin_len=limits.MIB,
            max_ext_len=0,
            ext_hook=_no_extension,
            list_hook=count,
            object_pairs_hook=unique,
        )
    except Malformed:
        raise
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        # StackError, ExtraData, FormatError and UnicodeDecodeError are all ValueErrors.
        raise Malformed(f"not msgpack: {type(error).__name__}") from None


def encode_frame(envelopes: Iterable[Envelope]) -> bytes:
    """One frame for one peer."""
    frame: bytes = msgpack.packb([to_wire(one) for one in envelopes], use_bin_type=True)
    return frame


def decode_frame(frame: bytes, *, sent_by: str) -> tuple[list[Envelope], list[str]]:
    """The valid envelopes of a frame, and a complaint for each invalid one. Never raises.

    A frame that cannot be decoded at all gives no envelope and one complaint.
    """
    try:
        maps = _unpack(frame, limits.FRAME_BYTES_MAX)
        if type(maps) is not list or len(maps) > limits.ENVELOPES_PER_FRAME_MAX:
            raise Malformed(f"a frame is a list of at most {limits.ENVELOPES_PER_FRAME_MAX}")
    except Malformed as error:
        return [], [str(error)]
    good: list[Envelope] = []
    complaints: list[str] = []
    for one in maps:
        try:
            envelope = from_wire(one, sent_by=sent_by)
        except Malformed as error:
            complaints.append(str(error))
            continue
        good.append(envelope)
        if envelope.bad_items:
            complaints.append(f"{envelope.bad_items} invalid items in a message")
    return good, complaints
