"""The outbox: nothing leaves it but by a verdict, and a message keeps its name."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from jobflow_worker import limits
from jobflow_worker.codec import decode_frame, encode_frame
from jobflow_worker.messages import (
    WORKER,
    Envelope,
    Failed,
    Finished,
    Held,
    Returned,
    Usage,
    Verdict,
)
from jobflow_worker.outbox import Outbox

USAGE = Usage(0.1, 0.1, 1)


def finished(number: int, size: int = 1) -> Finished:
    return Finished(f"t{number}", 1, bytes(size), None, USAGE, "")


class OutboxMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox()
        self.number = 0
        self.waiting: dict[Held, int | None] = {}
        self.names: dict[int, frozenset[Held]] = {}

    def _note(self) -> None:
        for one in self.outbox.waiting():
            items = frozenset(Held(item.task_id, item.attempt) for item in one.message.items)
            assert self.names.setdefault(one.counter, items) == items
            for held in items:
                self.waiting[held] = one.counter

    @rule(kind=st.integers(0, 2))
    def an_outcome_comes(self, kind: int) -> None:
        self.number += 1
        name = f"t{self.number}"
        item = (
            finished(self.number),
            Failed(name, 1, "exception", "e", "", None, None, USAGE, ""),
            Returned(name, 1, "draining", False),
        )[kind]
        self.outbox.add(item, 1.0)
        self.waiting[Held(name, 1)] = None

    @rule()
    def it_is_packed(self) -> None:
        fresh = self.outbox.pack()
        assert all(one.counter not in self.names for one in fresh)
        assert self.outbox.loose == 0
        self._note()

    @rule()
    def other_messages_take_counters_too(self) -> None:
        self.outbox.next_counter()

    @rule(data=st.data(), verdict=st.sampled_from(["accepted", "duplicate", "late", "refused"]))
    def a_verdict_comes(self, data: st.DataObject, verdict: str) -> None:
        counter = data.draw(st.integers(0, max([*self.names, 1])))
        self.outbox.on_verdicts([Verdict(counter, verdict)])
        self.waiting = {held: one for held, one in self.waiting.items() if one != counter}

    @invariant()
    def nothing_is_forgotten(self) -> None:
        assert set(self.outbox.settled()) == set(self.waiting) == self.outbox.settled_set
        assert self.outbox.empty == (not self.waiting)

    @invariant()
    def the_floor_is_the_lowest_that_waits(self) -> None:
        packed = [one.counter for one in self.outbox.waiting()]
        assert self.outbox.floor == min(packed, default=self.outbox.floor)
        assert all(one.counter >= self.outbox.floor for one in self.outbox.waiting())
        assert packed == sorted(packed)


TestOutbox = OutboxMachine.TestCase


@given(st.lists(st.integers(0, limits.RESULT_INLINE_BYTES_MAX), max_size=60))
def test_every_message_fits_a_frame(sizes: list[int]) -> None:
    outbox = Outbox()
    for number, size in enumerate(sizes):
        outbox.add(finished(number, size), 0.0)
    for one in outbox.pack():
        frame = encode_frame([Envelope(WORKER, "w-" + "0" * 16, "", one.counter, 0.0, one.message)])
        assert len(frame) <= limits.FRAME_BYTES_MAX
        good, complaints = decode_frame(frame, sent_by=WORKER)
        assert (good[0].message, complaints) == (one.message, [])


def test_overdue_is_what_an_answered_report_should_have_brought_a_verdict_for() -> None:
    outbox = Outbox()
    outbox.add(finished(1), 0.0)
    (first,) = outbox.pack()
    outbox.sent([first], 1)
    assert outbox.overdue(0, all_of_them=False) == []
    outbox.add(finished(2), 0.0)
    (second,) = outbox.pack()
    outbox.sent([second], 2)
    assert outbox.overdue(1, all_of_them=False) == [first]
    assert outbox.overdue(1, all_of_them=True) == [first, second]
    outbox.on_verdicts([Verdict(first.counter, "accepted")])
    assert outbox.overdue(2, all_of_them=False) == [second]
