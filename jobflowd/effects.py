"""What the coordinator may ask of the world: its whole output vocabulary.

Performed by the daemon after the commit of the same turn, never before.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jobflow_worker.messages import FromManager
from jobflowd.model import Changes


class Delivery(NamedTuple):
    """An attempt to send; the shell adds the spec of `row` from the store."""

    row: int
    task_id: str
    attempt: int
    timeout_s: float | None
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Deliver:
    """An Assign whose specs the shell fills in."""

    epoch: int
    seq: int
    base: int
    items: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class Post:
    """Messages to one worker, in order. On the fs transport they are the whole desired state and
    replace what was posted before."""

    worker_id: str
    transport: str
    messages: tuple[FromManager | Deliver, ...]


@dataclass(frozen=True, slots=True)
class Forget:
    """The worker is gone and everything of it is taken in: drop its address or mailbox."""

    worker_id: str
    transport: str


@dataclass(frozen=True, slots=True)
class Submit:
    """Bring a worker, on none of the `exclude` hosts. The launch is PLANNED on disk already."""

    launch_id: str
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class CancelLaunch:
    """Take a batch job or local process away; idempotent."""

    launch_id: str
    batch_job_id: str | None
    now: bool = False


@dataclass(frozen=True, slots=True)
class QueryLaunches:
    """One status query for all of these (launch_id, batch_job_id)."""

    launches: tuple[tuple[str, str | None], ...]


@dataclass(frozen=True, slots=True)
class StopGenerator:
    """The definitions are no use: end the generator child."""


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to an operator: `body`, or an error of api.py's codes."""

    ticket: int
    body: dict[str, Any] = field(default_factory=dict)
    error: tuple[str, str, str] | None = None


Effect = Post | Forget | Submit | CancelLaunch | QueryLaunches | StopGenerator | Reply


@dataclass(slots=True)
class Turn:
    """What one turn decided: made durable first, then performed, in this order."""

    changes: Changes = field(default_factory=Changes)
    effects: list[Effect] = field(default_factory=list)
