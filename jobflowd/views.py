"""What the coordinator shows of itself: a `Census` for status, listings and telemetry.

Pure. From memory only, so that it can be asked at any time, also while the disk is full.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, overload

from jobflowd import census
from jobflowd.book import Book
from jobflowd.coordinator import Coordinator
from jobflowd.forecast import Forecast
from jobflowd.model import LaunchRecord, LaunchState, TaskState, Worker, WorkerState
from jobflowd.wording import count

#: Throughput is a mean over this many seconds.
THROUGHPUT_S = 30.0

_View = TypeVar("_View")


def take_census(
    coordinator: Coordinator, *, started_at: float, degraded: str = ""
) -> census.Census:
    """One moment of the session. `degraded`: why the database cannot be written, if so."""
    book = coordinator.book
    counts = book.counts
    state, reason = _state(coordinator, degraded)
    rate = throughput(coordinator)
    expected = forecast(coordinator)
    online = [one for one in book.workers.values() if one.registered]
    return census.Census(
        session=book.settings.session,
        program=book.settings.program,
        state=state,
        state_reason=reason,
        started_at=started_at,
        tasks=census.TaskCounts(
            queued=counts[TaskState.QUEUED],
            assigned=counts[TaskState.ASSIGNED],
            running=counts[TaskState.RUNNING],
            succeeded=counts[TaskState.SUCCEEDED],
            failed=counts[TaskState.FAILED],
            canceled=counts[TaskState.CANCELED],
            held=len(book.held),
        ),
        workers=_Views(online, partial(_worker, book)),
        worker_counts=Counter(map(_worker_state, online)),
        workers_offline=len(book.workers) - len(online),
        launches=_Views(list(book.launches.values()), partial(_launch, book)),
        launch_counts=_launch_counts(book),
        target=book.wanted if coordinator.launching.active else len(online),
        throughput_per_s=rate,
        eta_s=_middle(expected),
        forecast=expected,
        launching=_launching(coordinator),
        warnings=tuple(book.warnings.values()),
    )


def _launching(coordinator: Coordinator) -> census.Launching:
    launching = coordinator.launching
    breaker = launching.breaker
    canary = launching.active and launching.canary
    return census.Launching(breaker.open, _why_paused(breaker.why, breaker.tail), canary)


def _why_paused(why: str, tail: str) -> str:
    return f"{why}\n{tail}" if tail else why


def _state(coordinator: Coordinator, degraded: str) -> tuple[str, str]:
    book = coordinator.book
    if degraded:
        return "degraded", degraded
    if book.generation_error is not None:
        return "draining", f"generate_tasks failed: {book.generation_error}"
    if book.finishing is not None:
        online = sum(1 for worker in book.workers.values() if worker.registered)
        if not online and book.generated and book.remaining == 0:
            return "done", "every task has its outcome"
        return "draining", f"{book.finishing}: {count(online, 'worker is', 'workers are')} leaving"
    if book.generated and book.remaining == 0:
        return "done", "every task has its outcome"
    if book.paused:
        return "paused", "by an operator; `jobflowctl resume` goes on"
    if not book.generated:
        return "generating", f"{count(book.total, 'task')} so far"
    if book.held:
        waiting = count(len(book.held), "task waits", "tasks wait")
        return "running", f"{waiting} for workers of before the restart"
    if not any(worker.registered for worker in book.workers.values()):
        return "running", _why_no_worker(coordinator)
    return "running", ""


def _why_no_worker(coordinator: Coordinator) -> str:
    launching = coordinator.launching
    if not launching.active:
        return "no worker is connected; start one: jobflow-worker --session NAME"
    if launching.breaker.open:
        return f"launching is paused: {launching.breaker.why}"
    coming = count(len(launching.open_launches()), "launch is", "launches are")
    return f"no worker is connected yet; {coming} coming"


def throughput(coordinator: Coordinator) -> float | None:
    """Tasks ended per second, lately; None before anything can be said."""
    book = coordinator.book
    recent = [one for one in book.samples if book.now - one[0] <= THROUGHPUT_S]
    if not recent or book.completed == 0:
        return None
    since, before = recent[0]
    span = book.now - since
    return (book.completed - before) / span if span >= 0.5 else None


def forecast(coordinator: Coordinator) -> Forecast:
    """When the run may end, as a range, or why that cannot be known."""
    book = coordinator.book
    held_back = ""
    if not book.generated:
        held_back = "generate_tasks() has not named all tasks yet"
    elif book.finishing is not None:
        held_back = "the run is ending with work left" if book.remaining else ""
    elif book.paused:
        held_back = "the run is paused"
    return book.pace.forecast(
        book.now, remaining=book.remaining, busy=book.busy_slots, held_back=held_back
    )


def _middle(expected: Forecast) -> float | None:
    """One number for who wants one: between the ends of the range, as ratios go."""
    if expected.low_s is None or expected.high_s is None:
        return None
    return math.sqrt(expected.low_s * expected.high_s)


class _Views(Sequence[_View]):
    """A list made as far as it is looked at: a count of 5,000 workers needs no view of any."""

    def __init__(self, shown: Sequence[Any], view: Callable[[Any], _View]) -> None:
        self._shown = shown
        self._view = view

    def __len__(self) -> int:
        return len(self._shown)

    @overload
    def __getitem__(self, index: int) -> _View: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[_View]: ...
    def __getitem__(self, index: int | slice) -> _View | Sequence[_View]:
        if isinstance(index, slice):
            return [self._view(one) for one in self._shown[index]]
        return self._view(self._shown[index])


def _worker_state(worker: Worker) -> str:
    if worker.state is WorkerState.ONLINE:
        return "busy" if worker.attempts else "idle"
    return worker.state.word


def _worker(book: Book, worker: Worker) -> census.WorkerView:
    return census.WorkerView(
        worker_id=worker.worker_id,
        state=_worker_state(worker),
        host=worker.host,
        pid=worker.pid,
        slots=worker.slots,
        transport=worker.transport,
        heartbeat_age_s=max(0.0, book.now - worker.heard_at),
        running=tuple(task_id for task_id, one in worker.attempts.items() if one.running),
        done=worker.done,
        failed=worker.failed,
        launch_id=worker.launch_id,
        batch_job_id=worker.batch_job_id,
        time_left_s=worker.time_left_s,
        rss_bytes=worker.rss_bytes,
        reason=worker.reason,
        progress={one.task_id: one.fraction for one in worker.progress.values()},
    )


def _launch(book: Book, launch: LaunchRecord) -> census.LaunchView:
    worker = book.by_row.get(launch.worker if launch.worker is not None else -1)
    return census.LaunchView(
        launch_id=launch.launch_id,
        system=launch.system,
        state=launch.state.word,
        batch_job_id=launch.batch_job_id,
        submitted_at=launch.submitted_at,
        worker_id=worker.worker_id if worker is not None else None,
        reason=launch.reason,
        script=launch.script,
        output=launch.output,
    )


def _launch_counts(book: Book) -> dict[str, int]:
    counts = {state.word: 0 for state in LaunchState}
    for one in book.launches.values():
        counts[one.state.word] += 1
    return counts
