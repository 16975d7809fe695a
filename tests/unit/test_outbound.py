"""What a worker is told: differences on zmq, the whole desired state in a mailbox, one builder."""

from __future__ import annotations

from typing import Any

import pytest

from jobflow_worker.messages import Ack, Cancel, Held, Shutdown, Welcome
from jobflowd import outbound
from jobflowd.book import Book, Settings
from jobflowd.effects import Deliver
from jobflowd.model import Facts, Snapshot, Task, TaskState, Worker


@pytest.fixture
def book() -> Book:
    made = Book(Settings("s", "p"), Snapshot({}, {}, [], 0, [], [], 1, 1, 1, 1), 3)
    made.begin(10.0, 1e9, Facts())
    return made


def seat(book: Book, transport: str = "zmq") -> Worker:
    worker = Worker(1, "w-" + "0" * 16, transport, "h", 1, 1, registered=True)
    book.know(worker)
    worker.line.welcome_seq = outbound.next_seq(worker)
    return worker


def give(book: Book, worker: Worker, *names: str) -> None:
    seq = outbound.next_seq(worker)
    for number, name in enumerate(names):
        book.counts[TaskState.QUEUED] += 1
        book.assign(worker, Task(number, name, TaskState.QUEUED, 0, number), seq)


def kinds(book: Book, worker: Worker) -> list[type[Any]]:
    post = outbound.compose(book, worker)
    return [type(one) for one in post.messages] if post is not None else []


def test_on_zmq_a_post_is_what_was_not_posted_yet(book: Book) -> None:
    worker = seat(book)
    give(book, worker, "a", "b")
    assert kinds(book, worker) == [Welcome, Deliver]
    assert kinds(book, worker) == []
    give(book, worker, "c")
    outbound.cancel(book, worker, Held("a", 1), "canceled")
    assert kinds(book, worker) == [Deliver, Cancel]


@pytest.mark.parametrize("transport", ["zmq", "fs"])
def test_messages_are_chained_from_the_mark(book: Book, transport: str) -> None:
    worker = seat(book, transport)
    worker.line.welcomed = True
    give(book, worker, "a")
    outbound.cancel(book, worker, Held("z", 1), "unwanted")
    outbound.shut_down(book, worker, "drain", now=False)
    worker.line.repair = True
    worker.seen = worker.line.welcome_seq
    post = outbound.compose(book, worker)
    assert post is not None
    bases = [one.base for one in post.messages]
    assert bases == [worker.seen, *[one.seq for one in post.messages][:-1]]
    assert [type(one) for one in post.messages] == [Deliver, Cancel, Shutdown, Ack]


def test_a_mailbox_holds_everything_above_seen_each_time(book: Book) -> None:
    worker = seat(book, "fs")
    give(book, worker, "a")
    assert kinds(book, worker) == [Welcome, Deliver, Ack]
    assert kinds(book, worker) == [Welcome, Deliver, Ack]
    worker.seen = worker.seq
    worker.line.welcomed = True
    assert kinds(book, worker) == [Ack]


def test_a_repair_repeats_every_verdict_above_the_floor(book: Book) -> None:
    worker = seat(book)
    worker.line.welcomed = True
    worker.verdicts = {4: "accepted", 5: "late"}
    worker.line.fresh_verdicts = {5: "late"}
    worker.line.repair = True
    post = outbound.compose(book, worker)
    assert post is not None
    (ack,) = post.messages
    assert isinstance(ack, Ack)
    assert [tuple(one) for one in ack.verdicts] == [(4, "accepted"), (5, "late")]


def test_asking_to_leave_twice_changes_nothing_but_now_is_more(book: Book) -> None:
    worker = seat(book)
    outbound.shut_down(book, worker, "drain", now=False)
    first = worker.line.shutdown_seq
    outbound.shut_down(book, worker, "scale", now=False)
    assert (worker.shutdown, worker.line.shutdown_seq) == ("drain", first)
    outbound.shut_down(book, worker, "shutdown", now=True)
    assert worker.line.shutdown_seq > first
