"""What slots tell the session: a small frozen vocabulary.

Rule: pure data, no behaviour. `slots.py` makes these, the pure `session.py` consumes them. `slot`
is the slot's number in its worker, from 0.
"""

from __future__ import annotations

from typing import NamedTuple

from jobflow_worker.messages import Failed, Finished, Held, Progress
from jobflow_worker.record import Record


class SlotReady(Record):
    """The slot's child has loaded the program and takes attempts; again after each restart."""

    slot: int


class Settled(NamedTuple):
    """The running attempt has its outcome. The slot no longer holds it.

    The one event of which a run has millions: a tuple is made in a third of the time.
    """

    slot: int
    outcome: Finished | Failed


class Unstarted(Record):
    """Attempts that were fed and certainly never began, in their order. No longer held."""

    slot: int
    attempts: tuple[Held, ...]


class Moved(Record):
    """The latest progress of the running attempt."""

    slot: int
    progress: Progress


class SlotBroken(Record):
    """The slot cannot load the program and will not try again.

    `error` is one line, `traceback` what Python said, if anything. What was fed and never began
    was told in an `Unstarted` before.
    """

    slot: int
    error: str
    traceback: str = ""


SlotEvent = SlotReady | Settled | Unstarted | Moved | SlotBroken
