"""What the agent and the pure session say to each other.

Pure data: `session.py` takes the events and returns the effects, `agent.py` makes the events and
carries the effects out. Slot events have a module of their own, `slotevents.py`.
"""

from __future__ import annotations

from jobflow_worker.messages import Assignment, FromManager, Held
from jobflow_worker.outbox import Outgoing
from jobflow_worker.record import Record
from jobflow_worker.slotevents import SlotEvent


class Leave(Record):
    """The node or the user wants the worker gone: a cause of RETURN_CAUSES."""

    cause: str


class BeaconSeen(Record):
    """The beacon was read: its epoch, state, n and endpoints; None if it could not be."""

    epoch: int
    n: int
    state: str
    endpoints: tuple[str, ...]


class NoBeacon(Record):
    """The beacon could not be read."""


Event = FromManager | SlotEvent | Leave | BeaconSeen | NoBeacon


class Send(Record):
    """Messages that are new or due again; `Session.everything` is the whole mailbox."""

    fresh: tuple[Outgoing, ...]


class Feed(Record):
    slot: int
    items: tuple[Assignment, ...]


class Recall(Record):
    """Take back what the slot has not begun; the answer is an `Unstarted`."""

    slot: int


class Kill(Record):
    """Stop this attempt, running or not; the answer is a `Settled` or an `Unstarted`."""

    slot: int
    held: Held


class ReadBeacon(Record):
    """Read the beacon file; the answer is a `BeaconSeen` or `NoBeacon`."""


class Reconnect(Record):
    """The manager may be at these endpoints now."""

    endpoints: tuple[str, ...]


class Spool(Record):
    """Leave the outbox in the session directory for the manager to find."""


class Exit(Record):
    """The worker is through. `reason` is a sentence for its log."""

    code: int
    reason: str


Effect = Send | Feed | Recall | Kill | ReadBeacon | Reconnect | Spool | Exit


class Identity(Record):
    """What a Register says, as known at process start."""

    version: str
    python: str
    host: str
    pid: int
    slots: int
    program_hash: str
    launch_id: str | None = None
    batch_job_id: str | None = None
