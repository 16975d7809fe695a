"""Bodies: specs and results in msgpack, encoded once in the child that made them.

All of the codec that a task's process needs: no messages and no checks, since what is decoded here
was checked when it was made. Frames are `codec.py`'s; no third module imports msgpack.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgpack

from jobflow_worker import limits

#: Made once: a new one comes with a quarter of a megabyte of its own.
_packer = msgpack.Packer(use_bin_type=True)


class Unencodable(TypeError):
    """A value that msgpack cannot carry; the text names the place and the type."""


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


def pack(value: Any) -> bytes:
    """Encode what our own code made of plain types, unchecked. One thread at a time."""
    packed: bytes = _packer.pack(value)
    return packed


def decode_body(body: bytes | bytearray) -> Any:
    """What was encoded, tuples as lists. Bodies were checked when they were made."""
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
