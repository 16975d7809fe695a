"""Workers on broken nodes: suspected, then taken out for a while, their failures not charged.

Pure. A node with a full scratch disk or a broken library fails every task within a second and so
eats the whole queue. It is told from a program that fails everywhere by one question: did another
host succeed meanwhile? The rules:

* A *streak* is different tasks in a row that failed fast on one worker. A success, or a failure
  that took its time, ends it.
* From SUSPECT_AFTER on, failures are not charged to the tasks while another host succeeds. They
  are still deliveries, which are bounded.
* At QUARANTINE_AFTER the worker gets no more tasks for QUARANTINE_S, unless it is the last host.
  `jobflowctl release WORKER` ends it early.
"""

from __future__ import annotations

from jobflow_worker.messages import Failed, Held
from jobflowd import outbound
from jobflowd.book import Book
from jobflowd.model import Worker, WorkerState

#: A task that fails within this did not get far: the node, or the input, refused it at once.
FAST_S = 2.0
#: Different tasks in a row before a worker's failures are no longer believed.
SUSPECT_AFTER = 3
#: Different tasks in a row before it is taken out (DESIGN.md section 7).
QUARANTINE_AFTER = 10
#: How long it stays out.
QUARANTINE_S = 600.0


def on_success(book: Book, worker: Worker) -> None:
    """The worker can do it: whatever failed before was the task's own fault."""
    worker.streak.clear()
    book.last_success[worker.host] = book.now


def on_failure(book: Book, worker: Worker, item: Failed, task_row: int) -> bool:
    """A failure arrived: is the task to be charged for it?"""
    if item.usage.duration_s > FAST_S or item.cause == "canceled":
        worker.streak.clear()
        return True
    if not worker.streak:
        worker.streak_since = book.now
    worker.streak[task_row] = None
    if len(worker.streak) < SUSPECT_AFTER or not _others_succeed(book, worker):
        return True
    if len(worker.streak) >= QUARANTINE_AFTER and worker.state is WorkerState.ONLINE:
        _quarantine(book, worker)
    return False


def _others_succeed(book: Book, worker: Worker) -> bool:
    """Another host with a connected worker has succeeded since the streak began."""
    return any(
        other.registered
        and other.state is WorkerState.ONLINE
        and other.host != worker.host
        and book.last_success.get(other.host, float("-inf")) >= worker.streak_since
        for other in book.workers.values()
    )


def _quarantine(book: Book, worker: Worker) -> None:
    worker.state = WorkerState.QUARANTINED
    worker.reason = (
        f"{len(worker.streak)} different tasks in a row failed within {FAST_S:g} s on "
        f"{worker.host} while other hosts succeeded"
    )
    book.deadlines.set(("quarantine", worker.worker_id), book.now + QUARANTINE_S)
    for task_id, one in list(worker.attempts.items()):
        if not one.running:
            del worker.attempts[task_id]
            book.record(one.task, one.attempt, worker.row, "unknown", "revoked")
            outbound.cancel(book, worker, Held(task_id, one.attempt), "revoked")
            book.enqueue(one.task, again=False)
    book.touch_worker(worker)
    book.story(
        "quarantined",
        worker.reason,
        worker=worker.worker_id,
        launch=worker.launch_id,
        level="warning",
    )


def end(book: Book, worker: Worker, why: str) -> None:
    """The worker may take tasks again, and is watched from the beginning."""
    if worker.state is not WorkerState.QUARANTINED:
        return
    worker.state = WorkerState.ONLINE
    worker.streak.clear()
    worker.reason = ""
    book.deadlines.drop(("quarantine", worker.worker_id))
    book.dirty[worker.worker_id] = worker
    book.touch_worker(worker)
    book.story("released", why, worker=worker.worker_id)
