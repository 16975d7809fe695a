"""The layout of mailbox files, the cutting of frames, and what session files refuse."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflow_worker import limits
from jobflow_worker.codec import decode_frame
from jobflow_worker.messages import (
    MANAGER,
    WORKER,
    Ack,
    Assign,
    Assignment,
    Envelope,
    Finished,
    Heartbeat,
    Held,
    Report,
    RequestWork,
    ShutdownAck,
    TaskFinished,
    Usage,
)
from jobflow_worker.sessionfiles import Beacon
from jobflow_worker.transport import mailfile
from jobflow_worker.transport.framing import (
    fit_mailbox,
    from_manager,
    pace_of_worker,
    to_frames,
)
from jobflowd import mailpipe

ID = "w-0123456789abcdef"
OTHER = "w-fedcba9876543210"
USAGE = Usage(1.0, 1.0, 1000)


def report(hb_seq: int = 1, running: tuple[Held, ...] = (), same: bool = False) -> Envelope:
    body = Report(1, hb_seq, seen=0, floor=0, credit=1, running=running, same=same)
    return Envelope(WORKER, ID, "", hb_seq, 0.0, Heartbeat(body))


def outcome(counter: int, size: int = 10, items: int = 1) -> Envelope:
    done = tuple(Finished(f"t{counter}-{n}", 1, b"x" * size, None, USAGE, "") for n in range(items))
    return Envelope(WORKER, ID, "", counter, 0.0, TaskFinished(floor=0, items=done))


def counters(frames: list[bytes], sent_by: str = WORKER) -> list[int]:
    found = []
    for frame in frames:
        envelopes, complaints = decode_frame(frame, sent_by=sent_by)
        assert complaints == []
        found += [one.counter for one in envelopes]
    return found


# --- mailbox files --------------------------------------------------------------------------


@given(
    st.lists(st.binary(max_size=200), max_size=8),
    st.integers(0, 2**64 - 1),
    st.integers(0, 255),
)
def test_a_mailbox_file_comes_back_whole(frames: list[bytes], serial: int, pace: int) -> None:
    data = mailfile.pack(frames, serial, pace)
    mail = mailfile.unpack(data)
    assert mail.frames == frames
    assert mail.pace == mailfile.pace_of(data) == pace
    assert mail.header == data[: mailfile.HEADER_BYTES]


@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    whole = mailfile.pack([b"first", b"second"], 7, mailfile.FLOW)
    at = data.draw(st.integers(0, len(whole) - 1))
    flip = data.draw(st.integers(1, 255))
    broken = whole[:at] + bytes((whole[at] ^ flip,)) + whole[at + 1 :]
    with pytest.raises(mailfile.Torn):
        mailfile.unpack(broken)


@given(st.binary(max_size=300))
def test_any_bytes_are_judged_and_nothing_else_is_raised(data: bytes) -> None:
    whole = mailfile.pack([b"content"], 1, 0)
    for one in (data, whole + data if data else b"", whole[: len(data) % len(whole)]):
        with pytest.raises(mailfile.Torn):
            mailfile.unpack(one)


def test_same_frames_written_again_have_another_header() -> None:
    first = mailfile.unpack(mailfile.pack([b"same"], 1, 0)).header
    assert mailfile.unpack(mailfile.pack([b"same"], 2, 0)).header != first


# --- frames ---------------------------------------------------------------------------------


def test_many_envelopes_are_cut_by_number() -> None:
    frames, complaints = to_frames([report(n) for n in range(1, 601)])
    assert complaints == []
    assert len(frames) == 3
    assert counters(frames) == list(range(1, 601))


def test_large_envelopes_are_cut_by_size_and_keep_their_order() -> None:
    envelopes = [outcome(n, size=60_000, items=8) for n in range(1, 12)]
    frames, complaints = to_frames(envelopes)
    assert complaints == []
    assert max(map(len, frames)) <= limits.FRAME_BYTES_SPLIT
    assert counters(frames) == list(range(1, 12))


def test_an_oversized_envelope_is_never_sent_but_named() -> None:
    frames, complaints = to_frames([outcome(1), outcome(2, 60_000, 100), outcome(3)])
    assert counters(frames) == [1, 3]
    assert len(complaints) == 1
    assert "TaskFinished number 2" in complaints[0]


def test_nothing_to_send_is_no_frame() -> None:
    assert to_frames([]) == ([], [])


def test_a_full_outbox_keeps_the_report_and_the_oldest_outcomes() -> None:
    outbox = [outcome(n, size=60_000, items=10) for n in range(1, 12)]
    farewell = Envelope(WORKER, ID, "", 50, 0.0, ShutdownAck("done"))
    frames, complaints, full = fit_mailbox([*outbox, report(99), farewell])
    assert full
    assert complaints == []
    assert sum(map(len, frames)) <= limits.MAILBOX_BYTES_MAX
    kept = counters(frames)
    assert kept[0] == 99
    assert kept[1:] == list(range(1, len(kept)))
    assert len(kept) > 3


def test_a_small_outbox_keeps_its_order() -> None:
    frames, _, full = fit_mailbox([outcome(1), report(2), outcome(3)])
    assert not full
    assert counters(frames) == [1, 2, 3]


def test_pace_follows_what_the_worker_says() -> None:
    running = (Held("t", 1),)
    assert pace_of_worker([report()], mailfile.BUSY) == mailfile.IDLE
    assert pace_of_worker([report(running=running)], mailfile.IDLE) == mailfile.BUSY
    assert pace_of_worker([report(same=True)], mailfile.BUSY) == mailfile.BUSY
    assert pace_of_worker([report(same=True)], mailfile.IDLE) == mailfile.IDLE
    assert pace_of_worker([outcome(1), report()], 0) & mailfile.FLOW
    asking = Envelope(WORKER, ID, "", 1, 0.0, RequestWork(Report(1, 1, 0, 0, 1)))
    assert pace_of_worker([asking], 0) == mailfile.FLOW


def test_a_worker_takes_what_is_for_it_or_for_nobody() -> None:
    ack = Ack(epoch=1, seq=1, base=0, hb_seq=1)
    frames, _ = to_frames(
        [Envelope(MANAGER, MANAGER, to, 1, 0.0, ack) for to in (ID, OTHER, "", ID)]
    )
    good, complaints = from_manager([*frames, b"\xc1garbage"], ID)
    assert [one.recipient for one in good] == [ID, "", ID]
    assert complaints[0] == "a message for another worker"
    assert len(complaints) == 2


def test_specs_fit_into_frames() -> None:
    spec = b"s" * limits.SPEC_BYTES_MAX
    items = (Assignment("t", 1, spec, None, None),)
    envelopes = [
        Envelope(MANAGER, MANAGER, ID, n, 0.0, Assign(1, n, 0, items)) for n in range(1, 6)
    ]
    frames, complaints = to_frames(envelopes)
    assert complaints == []
    assert counters(frames, MANAGER) == [1, 2, 3, 4, 5]


# --- the pipe to the mailbox process -----------------------------------------------------------


@given(
    st.lists(
        st.builds(
            mailpipe.Note,
            st.integers(1, 255),
            st.sampled_from(["", ID, OTHER]),
            st.binary(max_size=300),
            st.floats(0, 1e9),
        ),
        max_size=6,
    ),
    st.integers(1, 50),
)
def test_notes_survive_any_cutting(notes: list[mailpipe.Note], step: int) -> None:
    stream = b"".join(one.encode() for one in notes)
    decoder = mailpipe.Decoder()
    found: list[mailpipe.Note] = []
    for at in range(0, len(stream), step):
        found += decoder.feed(stream[at : at + step])
    assert found == notes


# --- the beacon -------------------------------------------------------------------------------

BEACON = Beacon(
    epoch=3,
    state="open",
    endpoints=("tcp://login1:4000", "tcp://[fe80::1%eth0]:1", "tcp://10.0.0.1:65535"),
    server_public=None,
    program_hash="abc",
    heartbeat_s=10.0,
    n=17,
)


def test_a_beacon_comes_back() -> None:
    assert Beacon.decode(BEACON.encode()) == BEACON


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("v", 2),
        ("epoch", -1),
        ("epoch", True),
        ("n", 1.5),
        ("state", "ajar"),
        ("state", []),
        ("endpoints", "tcp://a:1"),
        ("endpoints", ["tcp://*:4000"]),
        ("endpoints", ["ipc:///tmp/x"]),
        ("endpoints", ["tcp://a:0"]),
        ("endpoints", ["tcp://a:1"] * 65),
        ("server_public", "short"),
        ("program_hash", 5),
        ("heartbeat_s", 0),
        ("heartbeat_s", "10"),
        ("heartbeat_s", float("nan")),
    ],
)
def test_a_wrong_beacon_is_refused(field: str, value: object) -> None:
    values = json.loads(BEACON.encode()) | {field: value}
    with pytest.raises(ValueError, match=r"\w"):
        Beacon.decode(json.dumps(values).encode())


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"{}", b"\xff", b"[" * 100_000])
def test_no_beacon_at_all_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Beacon.decode(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_no_beacon(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Beacon.decode(data)
