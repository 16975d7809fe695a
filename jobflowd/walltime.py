"""Whether a task still fits into what a worker's time limit leaves it.

Pure. A task's own `time_request` decides; where the program says nothing, what tasks usually take
does, but never against a fresh worker: an estimate must not stop a run. A task that asks for more
than a fresh worker of ours has would wait for ever, and is failed with that sentence.
"""

from __future__ import annotations

from typing import Final

from jobflowd import outbound, outcomes
from jobflowd.book import Book
from jobflowd.model import Task, Worker

#: Fewer observed durations are no basis for a guess.
SAMPLES_MIN: Final = 5
#: A worker that began an attempt this soon after it came gave it its whole life.
FRESH_S: Final = 60.0


def room_s(book: Book, worker: Worker) -> float | None:
    """Seconds until the worker is warned of its end; None if nothing limits it."""
    left = worker.time_left_s
    return None if left is None else max(0.0, left - book.settings.warning_s)


def usual_s(book: Book) -> float | None:
    """What a task usually takes, by those that succeeded lately."""
    seen = sorted(book.durations)
    return seen[len(seen) // 2] if len(seen) >= SAMPLES_MIN else None


def fits(book: Book, worker: Worker, task: Task, usual: float | None) -> bool:
    """Can this task end before the worker does, as far as anybody can say?"""
    left = room_s(book, worker)
    if left is None:
        return True
    if task.time_request_s is not None:
        return task.time_request_s <= left
    return usual is None or usual <= left or is_fresh(book, worker)


def is_fresh(book: Book, worker: Worker) -> bool:
    """The worker has not begun anything: its whole life is ahead."""
    return (
        worker.done == 0
        and worker.failed == 0
        and not worker.attempts
        and book.wall - worker.registered_at <= FRESH_S
    )


def misfit(book: Book, worker: Worker, task: Task) -> bool:
    """The worker cannot take this task. Returns True if the task was ended for it."""
    if not is_fresh(book, worker):
        return False
    request, left = task.time_request_s, worker.time_left_s
    if request is None or left is None or worker.launch_id not in book.launches:
        return False
    outcomes.fail(
        book,
        task,
        f"it asks for {request:g} s, and a new worker is warned of its end after "
        f"{room_s(book, worker):g} s: ask for less, or give workers a longer time limit",
    )
    return True


def make_room(book: Book, worker: Worker) -> None:
    """Nothing that waits fits this worker. If it is idle and has lived its time, it leaves at once,
    and a new one comes in its place."""
    if not worker.attempts and worker.shutdown is None and not is_fresh(book, worker):
        outbound.shut_down(book, worker, "walltime", now=False)
