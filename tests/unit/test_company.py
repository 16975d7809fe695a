"""News that nobody waits for is kept for a moment; whatever else comes takes it along at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from jobflow_worker.messages import (
    Finished,
    FromWorker,
    Heartbeat,
    Report,
    RequestWork,
    ShutdownAck,
    TaskFinished,
    TaskReturned,
    Usage,
)
from jobflow_worker.record import replace
from jobflowd import events as ev
from jobflowd.book import Book, Settings
from jobflowd.company import EVENTS_ENOUGH, OUTCOMES_ENOUGH, WAIT_S, Company
from jobflowd.model import Attempting, Snapshot, Task, TaskState, Worker

NOW = 1000.0
EPOCH = 3
REPORT = Report(EPOCH, 1, 1, 1, 10)


def room(slots: int = 1, held: int = 20) -> Book:
    """A book with one worker, w, that holds so many attempts."""
    book = Book(Settings("s", "p"), Snapshot({}, {}, [], 0, [], [], 1, 1, 1, 1), EPOCH)
    worker = Worker(1, "w", "zmq", "h", 1, slots, registered=True)
    for n in range(held):
        task = Task(n + 1, f"t{n}", TaskState.ASSIGNED, 0, n)
        worker.attempts[task.task_id] = Attempting(task, 1, 1, NOW)
    book.know(worker)
    return book


def heard(message: FromWorker, worker: str = "w") -> ev.Heard:
    return ev.Heard(worker, 1, "zmq", message)


def done(count: int) -> ev.Heard:
    item = Finished("t", 1, b"", None, Usage(0.01, 0.01, 1), "")
    return heard(TaskFinished(1, (item,) * count))


def wants(credit: int) -> ev.Heard:
    return heard(RequestWork(replace(REPORT, credit=credit)))


def kept(events: Sequence[ev.Event], book: Book | None = None) -> bool:
    return not Company().join(events, book or room(), NOW, due=False)


def test_successes_of_a_worker_with_enough_to_do_wait_but_not_long() -> None:
    company, book, events = Company(), room(), [done(10), wants(10)]
    assert company.join(events, book, NOW, due=False) == []
    assert company.until == NOW + WAIT_S
    assert company.join([], book, NOW + 0.9 * WAIT_S, due=False) == []
    assert company.join([], book, NOW + WAIT_S, due=False) == events
    assert company.until is None
    assert company.join([], book, NOW + 9.0, due=False) == []


def test_the_wait_is_that_of_the_first_and_all_go_in_the_order_in_which_they_came() -> None:
    company, book = Company(), room()
    first, second, third = done(2), heard(Heartbeat(REPORT)), done(1)
    company.join([first], book, NOW, due=False)
    company.join([second], book, NOW + 0.9 * WAIT_S, due=False)
    told = company.join([third], book, NOW + WAIT_S, due=False)
    assert told == [first, second, third]


def test_what_is_due_takes_all_of_it_along() -> None:
    company, book, event = Company(), room(), done(1)
    company.join([event], book, NOW, due=False)
    assert company.join([], book, NOW, due=True) == [event]
    assert company.join([], book, NOW, due=True) == []


@pytest.mark.parametrize(
    "urgent",
    [
        heard(RequestWork(replace(REPORT, epoch=EPOCH - 1))),
        heard(RequestWork(replace(REPORT, gap=True))),
        heard(Heartbeat(replace(REPORT, leaving="walltime"))),
        heard(ShutdownAck("idle")),
        heard(TaskReturned(1, ())),
        heard(Heartbeat(REPORT), worker="stranger"),
        dataclasses.replace(done(1), spooled=True),
        ev.Generated(()),
        ev.Asked(1, "pause", {}),
    ],
)
def test_what_somebody_waits_for_takes_the_others_along(urgent: ev.Event) -> None:
    company, book, patient = Company(), room(), done(1)
    company.join([patient], book, NOW, due=False)
    assert company.join([urgent], book, NOW, due=False) == [patient, urgent]


@pytest.mark.parametrize(
    ("slots", "held", "finished", "wanted", "waits"),
    [
        (1, 20, 10, 10, True),
        (1, 20, 15, 15, True),
        (1, 20, 15, 16, False),  # Less than a quarter is left.
        (1, 2, 1, 0, False),  # The slot has nothing behind what it runs.
        (4, 8, 3, 3, True),
        (4, 8, 4, 4, False),
        (1, 1, 1, 1, False),  # The last of its tasks, or the only one on an idle system.
    ],
)
def test_a_worker_waits_as_long_as_it_has_enough_to_go_on_with(
    slots: int, held: int, finished: int, wanted: int, waits: bool
) -> None:
    assert kept([done(finished), wants(wanted)], room(slots, held)) is waits


def test_an_idle_worker_that_asks_is_served_at_once_and_its_heartbeat_is_not() -> None:
    assert not kept([wants(1)], room(held=0))
    assert kept([heard(Heartbeat(REPORT))], room(held=0))


def test_enough_of_them_are_company_by_themselves() -> None:
    book = room(held=10 * OUTCOMES_ENOUGH)
    assert kept([done(OUTCOMES_ENOUGH - 1)], book)
    assert not kept([done(OUTCOMES_ENOUGH - 1), done(1)], book)
    beats: list[ev.Event] = [heard(Heartbeat(REPORT))] * EVENTS_ENOUGH
    assert kept(beats[1:])
    assert not kept(beats)


def test_that_mail_was_read_hurries_nobody_and_is_told_in_its_place() -> None:
    company, book, events = Company(), room(), [done(1), ev.MailRead(NOW)]
    assert company.join(events, book, NOW, due=False) == []
    assert company.join([ev.GenerationEnded()], book, NOW, due=False)[:2] == events
