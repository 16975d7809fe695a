"""The story of one task in sentences: what it waits for, who has it, what is left of its budgets.

Pure: the coordinator's memory and the task's row in, values out. Every reason names who or what
the task waits for, and what to do where somebody can do something. Used by `inquiries.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from jobflowd import walltime
from jobflowd.book import Book
from jobflowd.coordinator import Coordinator
from jobflowd.model import (
    SOLO_SLOT,
    SOLO_WORKER,
    TASK_IN_FLIGHT,
    Task,
    TaskState,
    Worker,
    WorkerState,
)
from jobflowd.wording import count

Body = dict[str, Any]


def budgets(task: Task, book: Book) -> Body:
    """What is left of each budget before the task fails for good."""
    settings = book.settings
    return {
        "retries_left": max(0, task.max_retries - task.failures),
        "losses_left": max(0, settings.max_losses - task.losses),
        "deliveries_left": max(0, settings.max_deliveries - task.deliveries),
    }


def holder(book: Book, task: Task) -> Body | None:
    """The worker that has the task's current attempt, or had it before a restart."""
    worker = book.by_row.get(task.worker if task.worker is not None else -1)
    if worker is None or not (task.state in TASK_IN_FLIGHT or task.held):
        return None
    progress = worker.progress.get(task.task_id)
    return {
        "worker_id": worker.worker_id,
        "host": worker.host,
        "attempt": task.current,
        "heartbeat_age_s": max(0.0, book.now - worker.heard_at) if worker.registered else None,
        "lease_left_s": worker.lease_until - book.now if worker.registered else None,
        "progress": progress.fraction if progress is not None else None,
    }


def reasons(coordinator: Coordinator, task: Task, before: int) -> list[str]:
    """Why the task is where it is, the strongest reason first.

    `before`: how many ready tasks are delivered before it.
    """
    book = coordinator.book
    if task.state in TASK_IN_FLIGHT:
        return _with_worker(book, task)
    if task.state is TaskState.QUEUED:
        return _queued(coordinator, task, before)
    if task.state is TaskState.SUCCEEDED:
        return ["it has its result"]
    if task.state is TaskState.FAILED:
        return [_why_failed(task), "it waits for nobody: `jobflowctl retry` queues it again"]
    return ["an operator canceled it; `jobflowctl retry` queues it again"]


def _why_failed(task: Task) -> str:
    if task.failures > task.max_retries:
        tries = (
            "its only try" if task.failures == 1 else f"its {count(task.failures, 'try', 'tries')}"
        )
        return f"{tries} failed: {task.error or 'no reason was given'}"
    return f"it failed for good: {task.error or 'no reason was given'}"


def _with_worker(book: Book, task: Task) -> list[str]:
    worker = book.by_row.get(task.worker if task.worker is not None else -1)
    if worker is None:
        return ["it is with a worker that is not known any more"]
    who = f"worker {worker.worker_id} on {worker.host}"
    attempting = worker.attempts.get(task.task_id)
    found = []
    if task.state is TaskState.RUNNING:
        since = attempting.started_at if attempting is not None else task.started_at
        ran = f" for {max(0.0, book.wall - since):.0f} s" if since is not None else ""
        found.append(f"attempt {task.current} has run{ran} on {who}")
        limit = task.timeout_s or book.settings.task_timeout_s
        if limit is not None:
            found.append(f"its time limit is {limit:g} s")
    else:
        ahead = sum(1 for one in worker.attempts.values() if one.running)
        found.append(f"attempt {task.current} was given to {who}, which has not begun it")
        if ahead:
            found.append(f"that worker runs {count(ahead, 'other task')} first")
    if worker.line.gone_cause:
        found.append(f"that worker is gone ({worker.line.gone_cause}); its last mail is awaited")
    elif worker.registered:
        age = max(0.0, book.now - worker.heard_at)
        left = worker.lease_until - book.now
        found.append(f"the worker was heard {age:.0f} s ago, its lease ends in {left:.0f} s")
    return found


def _queued(coordinator: Coordinator, task: Task, before: int) -> list[str]:
    book = coordinator.book
    found = []
    if book.generation_error is not None:
        found.append(f"generate_tasks failed, so nothing new is started: {book.generation_error}")
    if book.finishing is not None:
        found.append(f"the run is ending ({book.finishing}): it is for the next start")
    if book.paused:
        found.append("an operator paused the session; `jobflowctl resume` goes on")
    if task.held:
        worker = book.by_row.get(task.worker if task.worker is not None else -1)
        who = f"{worker.worker_id} on {worker.host}" if worker is not None else "its worker"
        until = book.deadlines.get("hold")
        left = f" for up to {max(0.0, until - book.now):.0f} s" if until is not None else ""
        found.append(
            f"it is held{left} for {who}, which had attempt {task.current} before the restart"
        )
        return found
    if task.due is not None:
        wait = max(0.0, task.due - book.now)
        found.append(f"it waits {wait:.1f} s more before its next try, after: {task.error}")
    elif before:
        found.append(f"{count(before, 'ready task is', 'ready tasks are')} before it")
    found += _who_could_take_it(coordinator, task)
    if task.solo == SOLO_WORKER:
        found.append(
            "it was with workers that died: it goes alone to one that has nothing else to do"
        )
    elif task.solo == SOLO_SLOT:
        found.append("it was handed back unbegun: it goes to a free slot, never behind another")
    return found or ["nothing holds it: it goes to the next worker that asks"]


def _who_could_take_it(coordinator: Coordinator, task: Task) -> list[str]:
    book = coordinator.book
    connected = [worker for worker in book.workers.values() if worker.registered]
    if not connected:
        return _no_worker(coordinator)
    takers = [one for one in connected if one.state is WorkerState.ONLINE and one.shutdown is None]
    if not takers:
        words = ", ".join(f"{one.worker_id} is {_word(one)}" for one in connected[:3])
        return [f"no connected worker takes new tasks: {words}"]
    usual = walltime.usual_s(book)
    if not any(walltime.fits(book, one, task, usual) for one in takers):
        wish = task.time_request_s or usual or 0.0
        return [f"no worker has the {wish:.0f} s left that it needs; a fresh one may"]
    if all(worker.credit <= 0 for worker in takers):
        running = sum(len(worker.attempts) for worker in takers)
        busy = "the only worker is" if len(takers) == 1 else f"all {len(takers):,} workers are"
        return [f"{busy} busy, with {count(running, 'task')}"]
    return []


def _word(worker: Worker) -> str:
    return "leaving" if worker.shutdown is not None else worker.state.word


def _no_worker(coordinator: Coordinator) -> list[str]:
    launching = coordinator.launching
    if not launching.active:
        return ["no worker is connected; start one: jobflow-worker --session NAME"]
    if launching.breaker.open:
        return [
            f"no worker is connected and launching is paused: {launching.breaker.why}; "
            "`jobflowctl release launcher` tries again"
        ]
    coming = launching.open_launches()
    if not coming:
        wanted = coordinator.book.wanted
        hint = "; `jobflowctl scale N` brings some" if not wanted else ""
        return [f"no worker is connected, and {wanted:,} {_be(wanted)} wanted{hint}"]
    words: Counter[str] = Counter()
    for launch in coming:
        text = f"{launch.state.word} ({launch.reason})" if launch.reason else launch.state.word
        words[text] += 1
    listing = ", ".join(f"{number:,} {text}" for text, number in list(words.items())[:3])
    return [f"no worker is connected yet; launches: {listing}"]


def _be(number: int) -> str:
    return "is" if number == 1 else "are"


def accounts(task: Task, attempts: Sequence[Mapping[str, Any]]) -> Body:
    """To which budget the attempts that ended without success were charged.

    `uncharged`: of those that cost nothing, how many by cause. `before_retry`: charged before an
    operator's retry gave the task fresh budgets. The rest is what `budgets` was reduced by.
    """
    charged = Counter(str(one["charged"]) for one in attempts if one["charged"])
    free = [one for one in attempts if not one["charged"] and one["outcome"] != "succeeded"]
    now = task.failures + task.losses
    return {
        "retries": task.failures,
        "losses": task.losses,
        "before_retry": max(0, charged.total() - now),
        "uncharged": dict(Counter(_cause(one) for one in free)),
    }


def _cause(attempt: Mapping[str, Any]) -> str:
    """Why an attempt cost nothing, in few words."""
    outcome, cause = str(attempt["outcome"]), str(attempt["cause"])
    if outcome == "failed":
        # The program's own doing is not charged in these two cases only.
        return f"{cause} on a suspected worker or after the end"
    return cause or outcome


def tale(detail: Mapping[str, Any], account: Body, why: list[str]) -> str:
    """One sentence: state, attempts, and the first reason."""
    number = len(detail.get("attempts") or ())
    tries = count(number, "attempt") if number else "no attempt has ended"
    return f"{detail['task_id']} is {detail['state']}, {tries}{_charges(account)}: {why[0]}."


def _charges(account: Body) -> str:
    """In brackets, how many attempts were charged to what; nothing if none was and none not."""
    parts = [
        f"{account[key]:,} charged to {word}"
        for key, word in (("retries", "retries"), ("losses", "losses"))
        if account[key]
    ]
    if account["before_retry"]:
        parts.append(f"{account['before_retry']:,} before an operator's retry")
    free = account["uncharged"]
    if free:
        listing = ", ".join(cause if n == 1 else f"{cause} x {n:,}" for cause, n in free.items())
        parts.append(f"{sum(free.values()):,} not charged: {listing}")
    return f" ({'; '.join(parts)})" if parts else ""
