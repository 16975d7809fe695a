"""The protocol: envelope and message types.

Rules
-----
* Everything a worker and a manager say to each other is one of the classes below; how they are
  checked and laid out on the wire is `validation.py`'s.
* Bodies (specs, results) pass as bytes. Nobody here looks into them.

Durations and ages are seconds; nothing in the protocol depends on a peer's wall clock (`ts` is
for people who read captures).
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from jobflow_worker.record import Record

VERSION: Final = 1
#: Whose key a worker by hand holds; no launch has this name.
HAND: Final = "hand"
MANAGER: Final = "manager"
WORKER: Final = "worker"

_WORKER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}-[0-9a-f]{16}")
_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Malformed(ValueError):
    """A frame, envelope or payload that breaks the protocol; its text names the rule."""


def is_worker_id(text: str) -> bool:
    """True for a minted identity: a label and 64 random bits. Also safe as a file name."""
    return _WORKER_ID.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """True for a word that may stand in identities, file names and batch job names."""
    return _LABEL.fullmatch(text) is not None


# --- items of lists -------------------------------------------------------------------------


class Held(NamedTuple):
    """An attempt by name: the fencing token."""

    task_id: str
    attempt: int


class Assignment(NamedTuple):
    """An attempt to run. `spec` is the encoded spec; None means no limit."""

    task_id: str
    attempt: int
    spec: bytes
    timeout_s: float | None
    memory_bytes: int | None


class ResultFile(NamedTuple):
    """A result too large for a message: a file in the session's results directory."""

    name: str
    size: int
    sha256: str


class Usage(NamedTuple):
    """What one attempt cost, measured on its node."""

    duration_s: float
    cpu_s: float
    max_rss_bytes: int


class Finished(NamedTuple):
    """An attempt that succeeded. Exactly one of `result` (encoded) and `file` is set."""

    task_id: str
    attempt: int
    result: bytes | None
    file: ResultFile | None
    usage: Usage
    output_tail: str


class Failed(NamedTuple):
    """An attempt that ended badly while its agent lived to tell.

    `cause` is one of FAILURE_CAUSES, `error` one line, `exit_signal` a name ("SIGSEGV").
    """

    task_id: str
    attempt: int
    cause: str
    error: str
    traceback: str
    exit_signal: str | None
    exit_code: int | None
    usage: Usage
    output_tail: str


class Returned(NamedTuple):
    """An attempt handed back with a cause of RETURN_CAUSES; `started` if it had begun."""

    task_id: str
    attempt: int
    cause: str
    started: bool


class Progress(NamedTuple):
    """The latest progress of a running attempt; `info` is encoded or None."""

    task_id: str
    attempt: int
    fraction: float
    info: bytes | None


class Verdict(NamedTuple):
    """The answer to the message with this counter: any of VERDICTS lets the sender forget it."""

    counter: int
    verdict: str


#: Charged to max_retries: exception, timeout, memory. Never retried: unencodable, nonretryable,
#: program (the child could not load it). Charged to max_losses: crash. Charged to nobody: canceled.
FAILURE_CAUSES: Final = (
    "exception",
    "timeout",
    "memory",
    "unencodable",
    "nonretryable",
    "program",
    "crash",
    "canceled",
)
RETURN_CAUSES: Final = ("draining", "walltime", "preempted", "behind", "revoked", "unfit")
VERDICTS: Final = ("accepted", "duplicate", "late", "refused")
REJECT_CODES: Final = ("version", "identity", "session", "launch", "program")
SHUTDOWN_REASONS: Final = ("done", "scale", "shutdown", "drain", "program", "detach")


# --- worker -> manager ------------------------------------------------------------------------


class Register(Record):
    """A worker introduces itself, and names the attempts that it already holds."""

    protocol_min: int
    protocol_max: int
    version: str
    python: str
    host: str
    pid: int
    slots: int
    transport: str
    program_hash: str
    floor: int
    launch_id: str | None = None
    batch_job_id: str | None = None
    held: tuple[Held, ...] = ()
    time_left_s: float | None = None


class Report(Record):
    """The whole truth about a worker, as of manager message `seen` of `epoch`.

    `same` set means: lists and progress are as in the last full report and left out. `brief` set:
    they are left out because they are long and the last full report is young; nothing follows from
    that. `gap` asks the manager to repeat what lies above `seen`. `floor` is the lowest
    unacknowledged counter.
    """

    epoch: int
    hb_seq: int
    seen: int
    floor: int
    credit: int
    running: tuple[Held, ...] = ()
    waiting: tuple[Held, ...] = ()
    settled: tuple[Held, ...] = ()
    progress: tuple[Progress, ...] = ()
    same: bool = False
    gap: bool = False
    leaving: str | None = None
    rss_bytes: int = 0
    load: float = 0.0
    time_left_s: float | None = None
    brief: bool = False


class Heartbeat(Record):
    """A report because it is time."""

    report: Report


class RequestWork(Record):
    """The same report, sent early because there is room or something changed."""

    report: Report


class TaskFinished(Record):
    """Successes; stays in the outbox until a verdict comes."""

    floor: int
    items: tuple[Finished, ...]


class TaskFailed(Record):
    """Failures; stays in the outbox until a verdict comes."""

    floor: int
    items: tuple[Failed, ...]


class TaskReturned(Record):
    """Attempts handed back; stays in the outbox until a verdict comes."""

    floor: int
    items: tuple[Returned, ...]


class ShutdownAck(Record):
    """The worker is leaving, its outbox empty unless `reason` says otherwise."""

    reason: str


# --- manager -> worker --------------------------------------------------------------------------
# Each carries `epoch`, a per-worker `seq`, and `base`: what lies at or below `base` needs no more
# attention. A worker whose `seen` reaches `base` has no gap and moves `seen` up to `seq`.


class Welcome(Record):
    """The worker is registered. `again` set: it is unknown here and must register first."""

    epoch: int
    seq: int
    base: int
    session: str
    heartbeat_s: float
    lease_s: float
    again: bool = False
    idle_timeout_s: float | None = None
    manager_timeout_s: float = 900.0


class Assign(Record):
    """Attempts to run, in order."""

    epoch: int
    seq: int
    base: int
    items: tuple[Assignment, ...]


class Ack(Record):
    """The answer to every report and every outcome message.

    `want_full`: the manager does not know the lists that a `same` report refers to.
    """

    epoch: int
    seq: int
    base: int
    hb_seq: int
    verdicts: tuple[Verdict, ...] = ()
    want_full: bool = False


class Cancel(Record):
    """Attempts to stop (running ones are killed), with a reason for the record."""

    epoch: int
    seq: int
    base: int
    items: tuple[Held, ...]
    reason: str


class Shutdown(Record):
    """Leave: after the running tasks, or `now`. What is longer than `grace_s` is handed back."""

    epoch: int
    seq: int
    base: int
    now: bool
    reason: str
    grace_s: float


class Reject(Record):
    """Final for this worker: a code of REJECT_CODES and a sentence for its user."""

    epoch: int
    seq: int
    base: int
    code: str
    sentence: str


FromWorker = (
    Register | Heartbeat | RequestWork | TaskFinished | TaskFailed | TaskReturned | ShutdownAck
)
FromManager = Welcome | Assign | Ack | Cancel | Shutdown | Reject
Message = FromWorker | FromManager
Outcome = TaskFinished | TaskFailed | TaskReturned


class Envelope(Record):
    """One message with its addresses. `counter` and the sender's id make its msg_id."""

    role: str
    sender: str
    recipient: str
    counter: int
    ts: float
    message: Message
    bad_items: int = 0
