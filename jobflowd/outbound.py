"""What one worker should be told now: the desired state and its differences.

Pure. Every message to a worker has a `seq` and a `base`. A post holds all messages above a mark,
in order of seq, each based on the one before it, the first on the mark. On zmq the mark is what
was posted before, so a post is a difference; for a repair, and always in a mailbox, the mark is
what the worker has *seen*, so the same builder gives the whole desired state. A worker that has
seen the mark has no gap.
"""

from __future__ import annotations

from jobflow_worker import limits
from jobflow_worker.messages import Ack, Cancel, FromManager, Held, Shutdown, Verdict, Welcome
from jobflow_worker.record import replace
from jobflowd.book import Book
from jobflowd.effects import Deliver, Delivery, Post
from jobflowd.model import Attempting, Worker, WorkerState

#: Spec bytes in one Deliver; a frame must hold it together with the rest of the post.
DELIVER_BYTES_MAX = limits.FRAME_BYTES_SPLIT


def next_seq(worker: Worker) -> int:
    worker.seq += 1
    return worker.seq


def cancel(book: Book, worker: Worker, held: Held, reason: str) -> None:
    """Ask the worker to stop an attempt, until its reports no longer list it."""
    worker.cancels[held] = reason
    worker.line.cancel_seqs[held] = next_seq(worker)
    book.dirty[worker.worker_id] = worker


def shut_down(book: Book, worker: Worker, reason: str, *, now: bool) -> None:
    """Ask the worker to leave; asking again for the same changes nothing."""
    if worker.shutdown is not None and (worker.shutdown_now or not now):
        return
    worker.shutdown = reason
    worker.shutdown_now = now
    worker.line.shutdown_seq = next_seq(worker)
    if worker.state is WorkerState.ONLINE:
        worker.state = WorkerState.DRAINING
        book.touch_worker(worker)
    book.dirty[worker.worker_id] = worker


def compose(book: Book, worker: Worker) -> Post | None:
    """The post for a worker that something changed for, None if there is nothing to say."""
    line = worker.line
    whole = line.repair or worker.transport == "fs"
    mark = worker.seen if whole else line.posted
    if line.repair:
        # Its time begins anew, or each report until it is seen would bring one more.
        for attempting in worker.attempts.values():
            if attempting.seq > mark:
                attempting.sent_at = book.now
    numbered = _above(book, worker, mark)
    verdicts = worker.verdicts if whole else line.fresh_verdicts
    if line.answer or verdicts or whole:
        seq = next_seq(worker)
        items = tuple(Verdict(counter, verdict) for counter, verdict in verdicts.items())
        ack = Ack(book.epoch, seq, 0, worker.hb_seq, items, line.want_full)
        numbered.append((seq, ack))
    line.repair = line.answer = line.want_full = False
    line.fresh_verdicts = {}
    if not numbered:
        return None
    messages: list[FromManager | Deliver] = []
    base = mark
    for seq, message in sorted(numbered, key=lambda one: one[0]):
        messages.append(replace(message, base=base))
        base = seq
    line.posted = base
    return Post(worker.worker_id, worker.transport, tuple(messages))


def _above(book: Book, worker: Worker, mark: int) -> list[tuple[int, FromManager | Deliver]]:
    """Every standing message whose seq is above the mark, with that seq."""
    line = worker.line
    numbered: list[tuple[int, FromManager | Deliver]] = []
    if not line.welcomed and line.welcome_seq > mark:
        numbered.append((line.welcome_seq, _welcome(book, worker, line.welcome_seq)))
    groups: dict[int, list[Attempting]] = {}
    for attempting in worker.attempts.values():
        if attempting.seq > mark:
            groups.setdefault(attempting.seq, []).append(attempting)
    for seq, group in groups.items():
        items = tuple(_delivery(book, one) for one in group)
        numbered.append((seq, Deliver(book.epoch, seq, 0, items)))
    cancels: dict[tuple[int, str], list[Held]] = {}
    for held, reason in worker.cancels.items():
        if line.cancel_seqs[held] > mark:
            cancels.setdefault((line.cancel_seqs[held], reason), []).append(held)
    for (seq, reason), helds in cancels.items():
        numbered.append((seq, Cancel(book.epoch, seq, 0, tuple(helds), reason)))
    if worker.shutdown is not None and line.shutdown_seq > mark:
        seq = line.shutdown_seq
        leave = Shutdown(
            book.epoch, seq, 0, worker.shutdown_now, worker.shutdown, book.settings.grace_s
        )
        numbered.append((seq, leave))
    return numbered


def _delivery(book: Book, attempting: Attempting) -> Delivery:
    task = attempting.task
    settings = book.settings
    return Delivery(
        task.row,
        task.task_id,
        attempting.attempt,
        task.timeout_s if task.timeout_s is not None else settings.task_timeout_s,
        task.memory_bytes if task.memory_bytes is not None else settings.task_memory,
    )


def _welcome(book: Book, worker: Worker, seq: int) -> Welcome:
    heartbeat_s, lease_s = book.settings.terms[worker.transport]
    return Welcome(
        book.epoch,
        seq,
        0,
        book.settings.session,
        heartbeat_s,
        lease_s,
        idle_timeout_s=book.settings.idle_timeout_s,
        manager_timeout_s=book.settings.manager_timeout_s,
    )


def stranger(book: Book) -> Welcome:
    """The answer to a worker that is not registered here: register, please."""
    heartbeat_s, lease_s = book.settings.terms["zmq"]
    return Welcome(book.epoch, 0, 0, book.settings.session, heartbeat_s, lease_s, again=True)
