"""Outcomes on their way: kept until a verdict, any verdict, comes.

Pure. A message gets its counter when it is packed and keeps it: sent again it is the same message.
`floor` is the lowest counter that still waits; the manager prunes below it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jobflow_worker import limits
from jobflow_worker.messages import (
    Failed,
    Finished,
    Held,
    Message,
    Outcome,
    Returned,
    TaskFailed,
    TaskFinished,
    TaskReturned,
    Verdict,
)
from jobflow_worker.record import replace

#: Body bytes in one outcome message; a frame holds several of them.
BODY_BYTES_MAX = limits.FRAME_BYTES_SPLIT // 2

Item = Finished | Failed | Returned


class Outgoing(NamedTuple):
    """A message with the counter that, after the worker's id, names it."""

    counter: int
    message: Message


class Outbox:
    """Collected outcomes, packed messages, and the counter of all of a worker's messages."""

    def __init__(self) -> None:
        self._counter = 0
        self._loose: list[Item] = []
        self.oldest_loose: float | None = None
        self.packed: dict[int, Outcome] = {}
        self.settled_set: set[Held] = set()
        #: By counter: the report that a message last went out with.
        self._sent_with: dict[int, int] = {}

    def next_counter(self) -> int:
        self._counter += 1
        return self._counter

    @property
    def floor(self) -> int:
        return next(iter(self.packed), self._counter + 1)

    @property
    def empty(self) -> bool:
        return not self._loose and not self.packed

    @property
    def loose(self) -> int:
        """Outcomes that no message carries yet."""
        return len(self._loose)

    def add(self, item: Item, now: float) -> None:
        self._loose.append(item)
        self.settled_set.add(Held(item.task_id, item.attempt))
        if self.oldest_loose is None:
            self.oldest_loose = now

    @property
    def size(self) -> int:
        """Attempts whose outcome is known here and not yet acknowledged."""
        return len(self.settled_set)

    def settled(self) -> list[Held]:
        """Every attempt whose outcome is known here and not yet acknowledged."""
        items: list[Item] = list(self._loose)
        for message in self.packed.values():
            items.extend(message.items)
        return [Held(one.task_id, one.attempt) for one in items]

    def pack(self) -> list[Outgoing]:
        """Put loose outcomes into messages; returns the new ones."""
        if not self._loose:
            return []
        fresh: list[Outgoing] = []
        for kind, make in (
            (Finished, TaskFinished),
            (Failed, TaskFailed),
            (Returned, TaskReturned),
        ):
            for items in _chunks([one for one in self._loose if isinstance(one, kind)]):
                counter = self.next_counter()
                message: Outcome = make(0, tuple(items))  # type: ignore[arg-type]
                self.packed[counter] = message
                fresh.append(Outgoing(counter, message))
        self._loose = []
        self.oldest_loose = None
        return fresh

    def waiting(self) -> list[Outgoing]:
        """Everything packed and not acknowledged, oldest first."""
        return [Outgoing(counter, message) for counter, message in self.packed.items()]

    def dated(self, messages: Iterable[Outgoing]) -> list[Outgoing]:
        """Outcome messages carry the floor of the moment they are sent."""
        return [
            Outgoing(counter, replace(message, floor=self.floor))
            if isinstance(message, TaskFinished | TaskFailed | TaskReturned)
            else Outgoing(counter, message)
            for counter, message in messages
        ]

    def sent(self, messages: Iterable[Outgoing], hb_seq: int) -> None:
        """These go out now, ahead of the report `hb_seq`."""
        for counter, message in messages:
            if isinstance(message, TaskFinished | TaskFailed | TaskReturned):
                self._sent_with[counter] = hb_seq

    def overdue(self, answered: int, *, all_of_them: bool) -> list[Outgoing]:
        """What must have been lost, on the way there or its verdict on the way back.

        A report that was answered had everything ahead of it judged. `all_of_them`: a heartbeat
        has passed since anything was sent, so nothing can still be on its way.
        """
        return [
            Outgoing(counter, message)
            for counter, message in self.packed.items()
            if all_of_them or self._sent_with.get(counter, 0) <= answered
        ]

    def on_verdicts(self, verdicts: Iterable[Verdict]) -> None:
        for verdict in verdicts:
            self._sent_with.pop(verdict.counter, None)
            message = self.packed.pop(verdict.counter, None)
            if message is not None:
                for item in message.items:
                    self.settled_set.discard(Held(item.task_id, item.attempt))


def _chunks(items: list[Item]) -> list[list[Item]]:
    """Cut by count and by bytes, so that each message fits a frame."""
    chunks: list[list[Item]] = []
    size = 0
    for item in items:
        weight = _weight(item)
        full = chunks and (
            len(chunks[-1]) >= limits.ITEMS_PER_MESSAGE_MAX or size + weight > BODY_BYTES_MAX
        )
        if not chunks or full:
            chunks.append([])
            size = 0
        chunks[-1].append(item)
        size += weight
    return chunks


def _weight(item: Item) -> int:
    if isinstance(item, Finished):
        return len(item.result or b"") + 4 * len(item.output_tail) + 200
    if isinstance(item, Failed):
        return 4 * (len(item.error) + len(item.traceback) + len(item.output_tail)) + 200
    return 200
