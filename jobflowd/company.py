"""Whether what came may wait for more, so that one turn and one commit serve it all.

Pure. A turn for few tasks costs nearly as much as one for many, and a hundred workers that tell of
ten tasks each would wake a login node, and its disk, a hundred times a second. So news that nobody
waits for is kept for a moment: heartbeats, and successes of workers that have enough to go on with.
Whatever else comes, or is due, takes all of it along at once, in the order in which it came: what
was kept had merely been on its way a little longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from jobflow_worker.messages import Heartbeat, Report, RequestWork, TaskFinished
from jobflowd import events as ev
from jobflowd.book import Book
from jobflowd.model import Worker

#: The longest that news waits; workers with short tasks hold more than ten times that ahead.
WAIT_S = 0.02
#: News of so many outcomes, or so many events, is company enough.
OUTCOMES_ENOUGH = 256
EVENTS_ENOUGH = 64


class Company:
    """Events that wait for others. `until`: how long (monotonic), None if there are none."""

    def __init__(self) -> None:
        self._waiting: list[ev.Event] = []
        self.until: float | None = None

    def join(
        self, events: Iterable[ev.Event], book: Book, now: float, *, due: bool
    ) -> list[ev.Event]:
        """What a turn is to be made of now; nothing if all of it can wait. `due`: there will be a
        turn in any case."""
        self._waiting += events
        if self._waiting and self.until is None:
            self.until = now + WAIT_S
        over = due or (self.until is not None and now >= self.until)
        enough = len(self._waiting) >= EVENTS_ENOUGH
        if not over and not enough and can_wait(book, self._waiting):
            return []
        told, self._waiting, self.until = self._waiting, [], None
        return told


def can_wait(book: Book, events: Iterable[ev.Event]) -> bool:
    """True if nobody needs an answer to these at once, nor are they work enough for a turn."""
    done: Counter[str] = Counter()
    wanted: dict[str, int] = {}
    for event in events:
        if isinstance(event, ev.MailRead):
            continue
        if not isinstance(event, ev.Heard) or event.spooled:
            return False
        worker, message = book.workers.get(event.worker_id), event.message
        if worker is None or not worker.registered:
            return False
        if isinstance(message, TaskFinished):
            done[event.worker_id] += len(message.items)
        elif not isinstance(message, Heartbeat | RequestWork) or _urgent(book, message.report):
            return False
        elif isinstance(message, RequestWork):
            wanted[event.worker_id] = message.report.credit
    if done.total() >= OUTCOMES_ENOUGH:
        return False
    return all(
        _has_enough(book.workers[one], done[one], wanted.get(one, 0)) for one in {*done, *wanted}
    )


def _urgent(book: Book, report: Report) -> bool:
    """The worker does not know its manager, missed something, or is about to go."""
    return report.epoch != book.epoch or report.gap or report.leaving is not None


def _has_enough(worker: Worker, done: int, wanted: int) -> bool:
    """More than its slots run, and at least a quarter of what it wants to hold."""
    left = len(worker.attempts) - done
    return left > worker.slots and 3 * left >= wanted
