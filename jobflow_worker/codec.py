"""msgpack in and out, with limits before decoding: the only codec.

Two uses: frames (lists of envelopes between worker and manager) and bodies (specs and results,
encoded once in the child that made them). No other module imports msgpack.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack

from jobflow_worker import limits
from jobflow_worker.messages import Envelope, Malformed
from jobflow_worker.validation import from_wire, to_wire


class Unencodable(TypeError):
    """A value that msgpack cannot carry; the text names the place and the type."""


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


def encode_body(value: Any) -> bytes:
    """Encode a spec or a result, exactly as it will be read back.

    Tuples become lists; everything else that would change on the way (non-text keys, sets,
    arrays, integers over 64 bits) raises `Unencodable` naming its place.
    """
    try:
        body: bytes = msgpack.packb(value, use_bin_type=True)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise Unencodable(_find_fault(value)) from None
    fault = _bad_key(value)
    if fault:
        raise Unencodable(fault)
    return body


def decode_body(body: bytes) -> Any:
    """What `encode_body` was given, tuples as lists. Bodies were checked when they were made."""
    return msgpack.unpackb(body, raw=False, strict_map_key=True)


def _bad_key(value: Any, place: str = "value", depth: int = 0) -> str | None:
    """The first map key that would not come back, or nesting beyond the limit."""
    if depth > limits.NESTING_MAX:
        return f"{place} is nested more than {limits.NESTING_MAX} deep"
    if type(value) is dict:
        for key, inner in value.items():
            if type(key) is not str:
                return f"{place} has the key {key!r:.60}, which is not a text"
            if type(inner) in (dict, list, tuple):
                fault = _bad_key(inner, f"{place}[{key!r:.60}]", depth + 1)
                if fault:
                    return fault
    elif type(value) in (list, tuple):
        for index, inner in enumerate(value):
            if type(inner) in (dict, list, tuple):
                fault = _bad_key(inner, f"{place}[{index}]", depth + 1)
                if fault:
                    return fault
    return None


def _find_fault(value: Any, place: str = "value", depth: int = 0) -> str:
    """Name the innermost part that msgpack refuses."""
    if depth > limits.NESTING_MAX:
        return f"{place} is nested more than {limits.NESTING_MAX} deep"
    parts: Iterable[tuple[str, Any]] = ()
    if isinstance(value, dict):
        for key in value:
            if type(key) is not str:
                return f"{place} has the key {key!r:.60}, which is not a text"
        parts = ((f"{place}[{key!r:.60}]", inner) for key, inner in value.items())
    elif isinstance(value, list | tuple):
        parts = ((f"{place}[{index}]", inner) for index, inner in enumerate(value))
    for where, inner in parts:
        try:
            msgpack.packb(inner, use_bin_type=True)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return _find_fault(inner, where, depth + 1)
    if isinstance(value, int):
        return f"{place} is an integer beyond 64 bits"
    return f"{place} is of type {type(value).__module__}.{type(value).__qualname__}"
