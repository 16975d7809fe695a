"""What can happen to the coordinator: its whole input vocabulary.

Frozen values; ids and times come in with the event. Made at the edge, consumed by
`Coordinator.turn`. Imports nothing that can do I/O.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jobflow_worker.messages import FromWorker
from jobflowd.model import Definition, LaunchState


@dataclass(frozen=True, slots=True)
class Heard:
    """A valid message of a worker. `peer` is what its connection proved: the launch whose key it
    holds, HAND, or None for nothing (plaintext, mailboxes). `spooled`: found in a spool file, its
    worker may be gone."""

    worker_id: str
    counter: int
    transport: str
    message: FromWorker
    peer: str | None = None
    spooled: bool = False


@dataclass(frozen=True, slots=True)
class MailRead:
    """All mail that had arrived by `at` has been handed over: of every zmq worker, or, with
    `worker_id`, of that mailbox."""

    at: float
    worker_id: str | None = None


@dataclass(frozen=True, slots=True)
class TransportsReady:
    """Transports are bound and spools are read: the hold of a restart begins."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The generator yielded these definitions, in order."""

    definitions: tuple[Definition, ...]


@dataclass(frozen=True, slots=True)
class GenerationEnded:
    """The generator is through (`error` None) or failed; `error` is one line, `detail` the rest."""

    error: str | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Submitted:
    """The launcher took a launch."""

    launch_id: str
    batch_job_id: str
    script: str | None = None
    output: str | None = None


@dataclass(frozen=True, slots=True)
class SubmitFailed:
    """The launcher refused it, in the site's own words. `unknown`: a time-out, fate unresolved;
    `limited`: the site has enough of our jobs for now."""

    launch_id: str
    reason: str
    unknown: bool = False
    limited: bool = False


@dataclass(frozen=True, slots=True)
class LaunchSeen:
    """The batch system's (or the process table's) opinion of a launch; `tail` is the end of its
    output when it is over, `time_left_s` what its time limit leaves to its job. `blameless`: the
    site itself ended it (a failed node, preemption, its time limit)."""

    launch_id: str
    state: LaunchState
    batch_job_id: str | None = None
    reason: str = ""
    tail: str = ""
    time_left_s: float | None = None
    blameless: bool = False


@dataclass(frozen=True, slots=True)
class QueryAnswered:
    """A status query was answered well; its `LaunchSeen` events came before this one. `absent`
    are launches that it was about and that are certainly not in the answer."""

    absent: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class QueryFailed:
    """A status query brought no evidence; the reason in the system's words."""

    reason: str


@dataclass(frozen=True, slots=True)
class ProgramChanged:
    """The program's text is now this; workers of another text are replaced."""

    program_hash: str


@dataclass(frozen=True, slots=True)
class Asked:
    """A changing request of an operator, validated by api.py; `ticket` names the reply."""

    ticket: int
    cmd: str
    args: dict[str, Any]


@dataclass(frozen=True, slots=True)
class StopAsked:
    """A signal: end the run gracefully, at once (`now`), or leave the workers (`detach`)."""

    why: str
    now: bool = False
    detach: bool = False


Event = (
    Heard
    | MailRead
    | TransportsReady
    | Generated
    | GenerationEnded
    | Submitted
    | SubmitFailed
    | LaunchSeen
    | QueryAnswered
    | QueryFailed
    | ProgramChanged
    | Asked
    | StopAsked
)
