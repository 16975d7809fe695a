"""From envelopes to frames of bounded size, and back with complaints.

Rules
-----
* What is sent never exceeds what a receiver takes: libzmq drops a larger frame in silence and
  the connection with it. A single envelope above the limit is left out and complained about.
* Nobody but this module decides where a frame ends.

Used by both transports on both sides.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobflow_worker import limits
from jobflow_worker.codec import decode_frame, encode_frame
from jobflow_worker.messages import (
    MANAGER,
    Envelope,
    Heartbeat,
    Register,
    RequestWork,
    TaskFailed,
    TaskFinished,
    TaskReturned,
)
from jobflow_worker.transport import mailfile


def to_frames(envelopes: Sequence[Envelope]) -> tuple[list[bytes], list[str]]:
    """Frames in order, and a complaint for each envelope that is too large to be sent."""
    frames: list[bytes] = []
    complaints: list[str] = []
    step = limits.ENVELOPES_PER_FRAME_MAX
    todo = [envelopes[at : at + step] for at in range(0, len(envelopes), step)]
    todo.reverse()
    while todo:
        batch = todo.pop()
        frame = encode_frame(batch)
        if len(frame) > limits.FRAME_BYTES_SPLIT and len(batch) > 1:
            middle = len(batch) // 2
            todo.append(batch[middle:])
            todo.append(batch[:middle])
        elif len(frame) > limits.FRAME_BYTES_MAX:
            complaints.append(
                f"{type(batch[0].message).__name__} number {batch[0].counter} has {len(frame)} "
                f"bytes, more than {limits.FRAME_BYTES_MAX}, and was not sent"
            )
        else:
            frames.append(frame)
    return frames, complaints


def from_manager(frames: Iterable[bytes], worker_id: str) -> tuple[list[Envelope], list[str]]:
    """The valid envelopes for this worker (or for one without a name), and complaints."""
    good: list[Envelope] = []
    complaints: list[str] = []
    for frame in frames:
        envelopes, bad = decode_frame(frame, sent_by=MANAGER)
        complaints += bad
        for one in envelopes:
            if one.recipient in (worker_id, ""):
                good.append(one)
            else:
                complaints.append("a message for another worker")
    return good, complaints


def is_outcome(envelope: Envelope) -> bool:
    """True for what must stay in the outbox until a verdict comes."""
    return isinstance(envelope.message, TaskFinished | TaskFailed | TaskReturned)


def pace_of_worker(envelopes: Iterable[Envelope], before: int) -> int:
    """The pace hint for a worker's mailbox; `before` is that of its last content."""
    pace = mailfile.IDLE
    for one in envelopes:
        message = one.message
        if isinstance(message, Heartbeat | RequestWork):
            report = message.report
            if report.same:
                pace |= before & mailfile.BUSY
            elif report.running or report.waiting:
                pace |= mailfile.BUSY
            if isinstance(message, RequestWork):
                pace |= mailfile.FLOW
        elif isinstance(message, Register):
            pace |= mailfile.FLOW
        else:
            pace |= mailfile.FLOW | mailfile.BUSY
    return pace


def fit_mailbox(envelopes: Sequence[Envelope]) -> tuple[list[bytes], list[str], bool]:
    """Frames for a worker's mailbox, complaints, and whether something had to wait.

    Reports always fit and go first when outcomes must wait; a farewell waits with the outcomes.
    """
    frames, complaints = to_frames(envelopes)
    if sum(map(len, frames)) <= limits.MAILBOX_BYTES_MAX:
        return frames, complaints, False
    reports = [
        one for one in envelopes if isinstance(one.message, Register | Heartbeat | RequestWork)
    ]
    frames, complaints = to_frames(reports)
    room = limits.MAILBOX_BYTES_MAX - sum(map(len, frames))
    more, bad = to_frames([one for one in envelopes if is_outcome(one)])
    for frame in more:
        room -= len(frame)
        if room < 0:
            break
        frames.append(frame)
    return frames, complaints + bad, True
