"""Which ready task goes to which worker.

Pure. Workers ask (their `credit`); the queue is shared out in rounds so that near its end every
worker gets its part, and a large credit cannot drain it for one. Of very many workers a turn serves
some, and the next turn others. A task that was handed back goes to a free slot only, with nothing
prefetched behind it; one that is suspected of killing workers goes to a worker that has nothing
else.
"""

from __future__ import annotations

from collections.abc import Sequence

from jobflow_worker import limits
from jobflowd import outbound, walltime
from jobflowd.book import Book
from jobflowd.model import SOLO_NO, SOLO_SLOT, SOLO_WORKER, Task, Worker, WorkerState

#: Unseen spec bytes that a mailbox may hold: half of it stays free for the rest.
MAILBOX_SPEC_BYTES_MAX = limits.MAILBOX_BYTES_MAX // 2
#: Tasks that did not fit a worker's time, after which it is not offered more in this turn.
MISFITS_MAX = 100
#: What one turn hands out, in tasks: bounds the turn, and so how long an operator waits.
WORK_PER_TURN = 1_000
#: What one more worker costs: its report and its post are as much work as so many tasks.
POST_WORK = 60
#: Tasks that a worker gets at once where others wait: enough to be worth their post.
PIECE = 32


def assign_ready(book: Book) -> None:
    """Hand out ready tasks until there are none, no worker has room, or it is enough for one turn:
    then the next turn is due at once, after whoever else wants something of the daemon."""
    if book.paused or book.finishing is not None or book.generation_error is not None:
        return
    if not len(book.ready):
        return
    for worker_id in [key for key, one in book.asking.items() if one.credit <= 0]:
        del book.asking[worker_id]
    asking = [worker for worker in book.asking.values() if _may_take(worker)]
    # Who has nothing goes first; then those that get a post in this turn anyway.
    asking.sort(key=lambda one: (bool(one.attempts), one.worker_id not in book.dirty))
    misfits: list[_Room] = []
    start = 0
    while start < len(asking):
        # What waits on disk counts, or many workers would get their tasks in crumbs.
        piece = max(1, min(PIECE, book.ready_count // len(asking)))
        some = _enough(asking[start:], piece)
        start += len(some)
        others = len(some) < len(asking)
        rooms = [_Room(book, one, piece if others else WORK_PER_TURN) for one in some]
        taken = _share_out(book, rooms)
        more = others or any(room.left > 0 and not room.full for room in rooms)
        if taken and more:
            for one in some:
                book.asking[one.worker_id] = book.asking.pop(one.worker_id)
            if len(book.ready) or not book.ready.complete:
                book.deadlines.set("ready", book.now)
            return  # What did not fit somebody may fit another, who is asked in the next turn.
        misfits += [room for room in rooms if room.misfits]
    for room in misfits:
        walltime.make_room(book, room.worker)


def _enough(asking: Sequence[Worker], piece: int) -> Sequence[Worker]:
    """The first of these workers that together are work enough for a turn."""
    work = 0
    for number, worker in enumerate(asking, 1):
        work += POST_WORK + min(worker.credit, piece)
        if work >= WORK_PER_TURN:
            return asking[:number]
    return asking


def _share_out(book: Book, rooms: Sequence[_Room]) -> int:
    """Rounds over these workers; returns how many tasks they took."""
    # Who has most time goes first: what it cannot take, nobody can. Of those, who has nothing: a
    # task that must be alone is not to wait for a busy worker while another is idle.
    asking = [room for room in rooms if room.left > 0]
    asking.sort(key=lambda one: (one.time_left, not one.worker.attempts), reverse=True)
    taken, aside = 0, list[Task]()
    while asking and len(book.ready) and taken < WORK_PER_TURN:
        share = max(1, min(len(book.ready), WORK_PER_TURN - taken) // len(asking))
        for room in asking:
            _fill(book, room, share, aside)
        taken = sum(room.taken for room in rooms)
        if len(aside) > limits.ITEMS_PER_MESSAGE_MAX:
            break
        asking = [room for room in asking if room.left > 0 and not room.full]
    for task in aside:
        book.ready.offer(task)
    return taken


class _Room:
    """What one worker can still take in this turn, `most` tasks; one seq for all of it."""

    def __init__(self, book: Book, worker: Worker, most: int) -> None:
        self.worker = worker
        held = book.settings.max_inflight_per_worker or limits.ATTEMPTS_PER_WORKER_MAX
        free = min(worker.credit, held - len(worker.attempts))
        self.left = min(free, most, limits.ITEMS_PER_MESSAGE_MAX)
        self.company()
        self.bytes_left = outbound.DELIVER_BYTES_MAX
        if worker.transport == "fs":
            unseen = sum(
                one.task.spec_bytes for one in worker.attempts.values() if one.seq > worker.seen
            )
            self.bytes_left = min(self.bytes_left, MAILBOX_SPEC_BYTES_MAX - unseen)
        self.seq = 0
        self.taken = 0
        self.misfits = 0
        self.full = self.bytes_left <= 0
        left = walltime.room_s(book, worker)
        self.time_left = float("inf") if left is None else left
        self.usual = None if left is None else walltime.usual_s(book)

    def company(self) -> None:
        """A worker with a solo task takes no more than that allows."""
        worker = self.worker
        if not worker.line.solo:
            return
        most = max((one.task.solo for one in worker.attempts.values()), default=SOLO_NO)
        worker.line.solo = most != SOLO_NO
        if most == SOLO_WORKER:
            self.left = 0
        elif most == SOLO_SLOT:
            self.left = min(self.left, worker.slots - len(worker.attempts))

    def suits(self, task: Task) -> bool:
        """True if the task can have the solitude that it needs here."""
        if task.solo == SOLO_WORKER:
            return not self.worker.attempts
        return task.solo == SOLO_NO or len(self.worker.attempts) < self.worker.slots


def _may_take(worker: Worker) -> bool:
    return (
        worker.registered
        and worker.credit > 0
        and worker.state is WorkerState.ONLINE
        and worker.shutdown is None
        and not worker.line.gone_cause
    )


def _fill(book: Book, room: _Room, share: int, aside: list[Task]) -> None:
    worker = room.worker
    for _ in range(share):
        if room.left <= 0:
            return
        task = book.ready.pop()
        if task is None:
            return
        if not room.suits(task):
            # Nothing else for this worker, so that it empties and can take it.
            aside.append(task)
            room.full = True
            return
        if not walltime.fits(book, worker, task, room.usual):
            if not walltime.misfit(book, worker, task):
                aside.append(task)
                room.misfits += 1
            room.full = len(aside) >= MISFITS_MAX
            if room.full:
                return
            continue
        if task.spec_bytes > room.bytes_left and room.seq:
            book.ready.offer(task)
            room.full = True
            return
        if not room.seq:
            room.seq = outbound.next_seq(worker)
            book.dirty[worker.worker_id] = worker
        book.assign(worker, task, room.seq)
        room.bytes_left -= task.spec_bytes
        room.left -= 1
        room.taken += 1
        worker.credit -= 1
        if task.solo:
            worker.line.solo = True
            room.company()
            return
    if room.bytes_left <= 0:
        room.full = True
