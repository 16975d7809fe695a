"""Hostile bytes, a fixed number of them; `fuzz.py` takes as many as one likes (T10, T11, T14)."""

from __future__ import annotations

import contextlib
import resource
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobflow_worker import limits
from jobflow_worker.codec import decode_frame
from jobflow_worker.messages import WORKER

TARGETS = fuzz.targets()
COUNT = 4_000

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner),
    max_leaves=20,
)


@pytest.mark.parametrize("target", TARGETS, ids=lambda one: one.name)
def test_spoiled_input_is_answered_or_refused(target: fuzz.Target) -> None:
    assert fuzz.run(target, seed=1, count=COUNT) == COUNT


@pytest.mark.parametrize("target", TARGETS, ids=lambda one: one.name)
@given(data=st.binary(max_size=400))
@settings(max_examples=100)
def test_noise_is_answered_or_refused(target: fuzz.Target, data: bytes) -> None:
    fuzz.check(target, data)


@given(
    places=st.dictionaries(
        st.sampled_from(("v", "msg_id", "ts", "src", "dst", "type", "payload", "role", "id")),
        json_like,
        max_size=4,
    )
)
@settings(max_examples=300)
def test_any_value_in_any_place_of_an_envelope(places: dict[str, object]) -> None:
    """A map where a text belongs once ended the loop: it cannot be looked up in a table."""
    import msgpack

    good = {
        "v": 1,
        "msg_id": "w-0123456789abcdef:1",
        "ts": 1.0,
        "src": {"role": "worker", "id": "w-0123456789abcdef"},
        "dst": {"role": "manager", "id": ""},
        "type": "Heartbeat",
        "payload": {"epoch": 1, "hb_seq": 1, "seen": 0, "floor": 0, "credit": 1},
    }
    for name, value in places.items():
        for target in (good, good["src"], good["dst"], good["payload"]):
            if isinstance(target, dict) and name in target:
                target[name] = value
    with contextlib.suppress(ValueError, OverflowError):
        decode_frame(msgpack.packb([good]), sent_by=WORKER)


def test_a_findings_input_is_shown() -> None:
    broken = fuzz.Target("broken", lambda data: {}[data], (b"x",))
    with pytest.raises(fuzz.Finding, match=r"broken: KeyError.*\ninput 78"):
        fuzz.run(broken, seed=1, count=1)


# --- bombs ------------------------------------------------------------------------------------

MIB = limits.MIB
WIDE = 10_000
BOMBS = {
    "empty maps": (b"\xdc" + WIDE.to_bytes(2, "big") + b"\x80" * WIDE) * 419,
    "empty lists": (b"\xdc" + WIDE.to_bytes(2, "big") + b"\x90" * WIDE) * 419,
    "short texts": (b"\xdc" + WIDE.to_bytes(2, "big") + b"\xa2ab" * WIDE) * 139,
    "negative numbers": (b"\xdc" + WIDE.to_bytes(2, "big") + b"\xd0\x85" * WIDE) * 209,
    "deep": b"\x91" * (4 * MIB - 100),
    "deep maps": b"\x81\xa1a" * 1_300_000,
    "claims of length": b"\xdd\xff\xff\xff\xff" * 800_000,
    "one long text": b"\xdb\x00\x3f\xff\x00" + b"a" * 0x3FFF00,
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_within_bounds(name: str) -> None:
    """Each in a process of its own, whose peak of memory says what it cost."""
    body = BOMBS[name]
    data = b"\xdc" + (419).to_bytes(2, "big") + body if "deep" not in name else body
    assert len(data) <= limits.FRAME_BYTES_MAX, "or the size limit refuses it"
    code = textwrap.dedent(
        """
        import resource, sys
        from jobflow_worker.codec import decode_frame
        data = sys.stdin.buffer.read()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        good, complaints = decode_frame(data, sent_by="worker")
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert not good and len(complaints) <= 256 and all(len(c) < 300 for c in complaints)
        sys.stdout.write(str(after - before))
        """
    )
    begun = time.monotonic()
    found = subprocess.run(
        [sys.executable, "-c", code],
        input=data,
        capture_output=True,
        cwd=Path(__file__).parents[2],
        timeout=60,
        check=True,
    )
    assert int(found.stdout) / 1024 < 120, "MiB for one frame"
    assert time.monotonic() - begun < 20


def test_many_bombs_leave_nothing_behind() -> None:
    data = b"\xdc" + (419).to_bytes(2, "big") + BOMBS["empty maps"]
    for _ in range(3):
        decode_frame(data, sent_by=WORKER)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(30):
        decode_frame(data, sent_by=WORKER)
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert (after - before) / 1024 < 32
