"""How attempts end: results, failures, hand-backs, losses, and what each is charged to.

Pure. The rules (DESIGN.md section 7):

* An attempt counts only for the worker it was issued to. It is *current* if the task points at it.
* First valid success wins while the task is not terminal, also from an attempt given up earlier.
* A late failure of an attempt that is not current is only noted; its charge moves.
* Each attempt is charged at most once: to `max_retries` (the program's fault), to `max_losses`
  (lost for no known cause while running), or to nobody.
"""

from __future__ import annotations

from jobflow_worker.messages import (
    Failed,
    Finished,
    Held,
    Outcome,
    Returned,
    TaskFailed,
    TaskFinished,
)
from jobflowd import outbound, quarantine
from jobflowd.book import Book
from jobflowd.model import (
    SOLO_NO,
    SOLO_SLOT,
    SOLO_WORKER,
    TASK_IN_FLIGHT,
    TASK_TERMINAL,
    Attempting,
    AttemptRow,
    ResultRow,
    Task,
    TaskState,
    Worker,
    WorkerState,
)
from jobflowd.wording import count

#: Failures that another try cannot cure.
FINAL_CAUSES = ("unencodable", "nonretryable")
#: An attempt that began so soon after its worker came had the worker's whole life.
WHOLE_LIFE_S = 60.0
#: Given-up attempts whose real outcome may still come.
OPEN_OUTCOMES = ("lost", "unknown")


def judged(worker: Worker, counter: int) -> str | None:
    """The verdict of a message that was applied before: it gets the same again."""
    return worker.verdicts.get(counter) or ("duplicate" if counter < worker.floor else None)


def on_outcome(book: Book, worker: Worker, counter: int, message: Outcome) -> None:
    """Apply an outcome message once, whatever happens to it on the way, and owe a verdict."""
    verdict = judged(worker, counter)
    if verdict is None:
        verdict = apply_items(book, worker, message)
        worker.verdicts[counter] = verdict
        book.turn.changes.processed.append((worker.row, counter, verdict))
    worker.line.fresh_verdicts[counter] = verdict
    raise_floor(book, worker, message.floor)
    book.dirty[worker.worker_id] = worker


def raise_floor(book: Book, worker: Worker, floor: int) -> None:
    """Below its floor the worker waits for no verdict: those rows are pruned."""
    if floor <= worker.floor:
        return
    worker.floor = floor
    old = [counter for counter in worker.verdicts if counter < floor]
    if old:
        for counter in old:
            del worker.verdicts[counter]
        book.turn.changes.floors[worker.row] = floor


def apply_items(book: Book, worker: Worker, message: Outcome) -> str:
    """Apply each item by itself; the message's verdict is the best of its items'."""
    if isinstance(message, TaskFinished):
        verdicts = {_finished(book, worker, item) for item in message.items}
    elif isinstance(message, TaskFailed):
        verdicts = {_failed(book, worker, item) for item in message.items}
    else:
        verdicts = {_returned(book, worker, item) for item in message.items}
    for verdict in ("accepted", "late", "refused"):
        if verdict in verdicts:
            return verdict
    return "refused"


# --- whose attempt is it ----------------------------------------------------------------------


def current(worker: Worker, task: Task | None, attempt: int) -> bool:
    """True if this attempt, at this worker, is the one that the task points at."""
    return (
        task is not None
        and task.current == attempt
        and task.worker == worker.row
        and (task.state in TASK_IN_FLIGHT or task.held)
    )


def standing(book: Book, worker: Worker, task: Task | None, attempt: int) -> str:
    """What an attempt, as named by this worker, is to its task.

    "current"; "open": given up, its real outcome may still come; "closed": its outcome is recorded,
    or the operator retried the task since, perhaps with a mended program;
    "never": it was not given to this worker, or was handed back before it began.
    """
    if task is None:
        return "never"
    if current(worker, task, attempt):
        return "current"
    past = book.facts.attempts.get((task.task_id, attempt))
    if past is None or past.worker != worker.row:
        return "never"
    still = past.outcome in OPEN_OUTCOMES and attempt > task.late_until
    return "open" if still else "closed"


def _take(book: Book, worker: Worker, task: Task) -> Attempting | None:
    """The worker no longer has this task."""
    return worker.attempts.pop(task.task_id, None)


def _withdraw(book: Book, task: Task, reason: str) -> None:
    """Whoever else has the task is told to stop it; that attempt is charged to nobody.

    It stays open: should this be too late, its success is as good as any other. Of a held attempt
    nobody can be told yet; its worker is, when it comes back and lists it.
    """
    if task.held and task.worker is not None:
        book.record(task, task.current, task.worker, "unknown", reason)
        return
    other = book.by_row.get(task.worker if task.worker is not None else -1)
    attempting = other.attempts.pop(task.task_id, None) if other is not None else None
    if other is None or attempting is None:
        return
    outbound.cancel(book, other, Held(task.task_id, attempting.attempt), reason)
    if attempting.running:
        task.deliveries += 1
    book.record(
        task,
        attempting.attempt,
        other.row,
        "unknown",
        reason,
        started_at=attempting.started_at,
    )


# --- what workers report ----------------------------------------------------------------------


def _finished(book: Book, worker: Worker, item: Finished) -> str:
    task = book.find(item.task_id)
    kind = standing(book, worker, task, item.attempt)
    if task is None or kind == "never":
        return _refused(book, worker, item.task_id, item.attempt)
    if kind == "closed":
        return "late"
    if task.state in TASK_TERMINAL:
        if task.state is not TaskState.SUCCEEDED:
            book.story(
                "late_success",
                f"attempt {item.attempt} succeeded after the task was {task.state.word}",
                task=task.task_id,
                worker=worker.worker_id,
            )
        return "late"
    if kind == "current":
        _take(book, worker, task)
    else:
        _withdraw(book, task, "superseded")
        _refund(book, task, item.attempt)
    task.deliveries += 1
    if task.error is not None:
        task.error = None
        book.touch(task)
    book.durations.append(item.usage.duration_s)
    started_at = book.wall - item.usage.duration_s
    task.started_at = started_at
    book.move_task(task, TaskState.SUCCEEDED)
    worker.done += 1
    quarantine.on_success(book, worker)
    changes = book.turn.changes
    file = item.file
    changes.results.append(
        ResultRow(task.row, item.attempt, item.result, *(file if file else (None, None, None)))
    )
    row = AttemptRow(
        task.row,
        item.attempt,
        worker.row,
        started_at,
        book.wall,
        "succeeded",
        "",
        "",
        None,
        None,
        *item.usage,
        "",
        "",
        item.output_tail,
    )
    book.write_attempt(task, row)
    return "accepted"


def _failed(book: Book, worker: Worker, item: Failed) -> str:
    task = book.find(item.task_id)
    kind = standing(book, worker, task, item.attempt)
    if task is None or kind == "never":
        return _refused(book, worker, item.task_id, item.attempt)
    if kind == "closed":
        return "late"
    is_current = kind == "current"
    budget = _budget_of(item.cause)
    if task.state in TASK_TERMINAL:
        budget = ""
    elif not is_current:
        # Queued or assigned anew: noted, with the charge where it belongs.
        _refund(book, task, item.attempt)
        if worker.state is WorkerState.QUARANTINED and item.usage.duration_s <= quarantine.FAST_S:
            budget = ""
        _charge(task, budget)
        book.touch(task)
    else:
        _take(book, worker, task)
        task.deliveries += 1
        task.error = item.error
        worker.failed += 1
        if not quarantine.on_failure(book, worker, item, task.row):
            budget = ""
        _charge(task, budget)
    row = AttemptRow(
        task.row,
        item.attempt,
        worker.row,
        book.wall - item.usage.duration_s,
        book.wall,
        "canceled" if item.cause == "canceled" else "failed",
        item.cause,
        budget,
        item.exit_signal,
        item.exit_code,
        *item.usage,
        error=item.error,
        traceback=item.traceback,
        output_tail=item.output_tail,
    )
    book.write_attempt(task, row)
    if not is_current:
        waits = task.state is TaskState.QUEUED and not task.held
        if waits and budget and _used_up(book, task):
            # Nobody has it, and another attempt would be one too many. A held one's survivor may
            # still succeed, and so may one that is out.
            fail(book, task, item.error)
        return "late"
    book.story(
        "attempt_failed",
        f"attempt {item.attempt}: {item.cause}: {item.error}",
        task=task.task_id,
        worker=worker.worker_id,
    )
    if item.cause in FINAL_CAUSES:
        fail(book, task, item.error)
    else:
        again(book, task, item.error)
    return "accepted"


def _had_whole_life(worker: Worker, started_at: float | None) -> bool:
    """The attempt began with its worker, so that more time is nowhere to be had."""
    return started_at is not None and started_at - worker.registered_at <= WHOLE_LIFE_S


def _returned(book: Book, worker: Worker, item: Returned) -> str:
    task = book.find(item.task_id)
    if task is None:
        return _refused(book, worker, item.task_id, item.attempt)
    if not current(worker, task, item.attempt):
        return "late"
    attempting = _take(book, worker, task)
    if not item.started:
        # It consumed its number and nothing else, leaves no row, and goes to a free slot next.
        if item.cause == "behind":
            task.solo = max(task.solo, SOLO_SLOT)
        book.enqueue(task, again=False)
        return "accepted"
    task.deliveries += 1
    started_at = attempting.started_at if attempting is not None else None
    if item.cause == "walltime" and _had_whole_life(worker, started_at):
        task.walltimes += 1
    book.record(task, item.attempt, worker.row, "returned", item.cause, started_at=started_at)
    if task.walltimes >= 2:
        fail(book, task, "it used up a worker's whole walltime twice: it does not fit")
    else:
        again(book, task, f"returned by its worker: {item.cause}")
    return "accepted"


def _refused(book: Book, worker: Worker, task_id: str, attempt: int) -> str:
    book.story(
        "refused",
        f"an outcome for attempt {attempt}, which this worker was never given",
        task=task_id,
        worker=worker.worker_id,
        level="warning",
    )
    return "refused"


# --- budgets ----------------------------------------------------------------------------------


def _budget_of(cause: str) -> str:
    if cause == "crash":
        return "losses"
    return "" if cause == "canceled" else "retries"


def _charge(task: Task, budget: str, amount: int = 1) -> None:
    if budget == "losses":
        task.losses = max(0, task.losses + amount)
    elif budget == "retries":
        task.failures = max(0, task.failures + amount)


def _refund(book: Book, task: Task, attempt: int) -> None:
    """A real outcome of a given-up attempt came: what it was charged as lost is given back."""
    past = book.facts.attempts.get((task.task_id, attempt))
    if past is not None and past.charged:
        _charge(task, past.charged, -1)
        book.touch(task)
        book.record(task, attempt, past.worker, "unknown", "it was not lost after all")


def _used_up(book: Book, task: Task) -> bool:
    return task.failures > task.max_retries or task.losses > book.settings.max_losses


def fail(book: Book, task: Task, error: str) -> None:
    """The task ends FAILED, with its evidence in its attempts."""
    task.error = error
    book.move_task(task, TaskState.FAILED)
    book.story("task_failed", error, task=task.task_id, level="warning")


def again(book: Book, task: Task, error: str) -> None:
    """Queue the task for another attempt with back-off, or end it if a budget is used up."""
    settings = book.settings
    if task.failures > task.max_retries:
        fail(book, task, error)
    elif task.losses > settings.max_losses:
        fail(book, task, f"lost {count(task.losses, 'time')} while running; last: {error}")
    elif task.deliveries >= settings.max_deliveries:
        fail(
            book,
            task,
            f"delivered {count(task.deliveries, 'time')} without an outcome; last: {error}",
        )
    else:
        tries = task.failures + task.losses
        delay = 0.0
        if tries:
            delay = min(settings.retry_backoff_max_s, settings.retry_backoff_s * 2 ** (tries - 1))
        task.error = error
        book.enqueue(task, delay_s=delay)


# --- losses -----------------------------------------------------------------------------------


def give_up(book: Book, worker: Worker, cause: str, *, charge: bool) -> None:
    """A worker is gone with everything it had.

    Only what certainly ran is charged, and only if the cause is not known to be nobody's fault. If
    anything waited, the last report cannot say which one ran: nobody is charged. Among several that
    ran, one did it: each is charged, but none loses its last try by that. Whom this spares is next
    delivered alone; and what is lost alone is charged even if no report said that it ran, so that
    a task that kills faster than workers report does not go on for ever.
    """
    attempts = list(worker.attempts.values())
    worker.attempts.clear()
    alone = len(attempts) == 1
    certain = all(one.running for one in attempts) or (alone and attempts[0].task.solo != SOLO_NO)
    for one in attempts:
        task = one.task
        last_try = task.losses >= book.settings.max_losses
        charged = "losses" if charge and certain and (alone or not last_try) else ""
        started = certain or one.running
        if charge and (not certain or last_try):
            task.solo = SOLO_WORKER
        if started:
            task.deliveries += 1
        _charge(task, charged)
        if charged:
            worker.charged.append(Held(task.task_id, one.attempt))
        book.record(
            task,
            one.attempt,
            worker.row,
            "lost" if started else "unknown",
            cause,
            charged=charged,
            started_at=one.started_at,
            error=cause,
        )
        if started:
            again(book, task, f"worker lost: {cause}")
        else:
            book.enqueue(task, again=False)


def give_back(book: Book, worker: Worker, cause: str) -> None:
    """The site says, after its worker was lost, that it ended the worker's job itself.

    What was charged for the loss is given back, unless the task has ended since, or the attempt's
    own outcome has moved the charge.
    """
    charged, worker.charged = worker.charged, []
    for held in charged:
        task = book.find(held.task_id)
        past = book.facts.attempts.get(held)
        if task is None or past is None or not past.charged or task.state in TASK_TERMINAL:
            continue
        if past.outcome != "lost":
            continue
        _charge(task, past.charged, -1)
        book.touch(task)
        book.record(task, held.attempt, worker.row, "lost", cause, error=cause)
        book.story(
            "charge_returned",
            f"attempt {held.attempt}: {cause}",
            task=task.task_id,
            worker=worker.worker_id,
        )


def release_held(book: Book, task: Task, cause: str) -> None:
    """No survivor claimed the attempt: it is queued again, charged to nobody."""
    if task.worker is not None and task.current:
        book.record(task, task.current, task.worker, "unknown", cause)
    if _used_up(book, task):
        # By a late failure, which was only noted since this attempt might still have succeeded.
        again(book, task, cause)
    else:
        book.enqueue(task, again=False)


def claim(book: Book, worker: Worker, held: Held, *, running: bool) -> bool:
    """A worker reports an attempt that memory does not count as its own. False: unwanted."""
    task = book.find(held.task_id)
    if task is None or task.state in TASK_TERMINAL:
        return False
    if standing(book, worker, task, held.attempt) not in ("current", "open"):
        return False
    if task.state in TASK_IN_FLIGHT:
        other = book.by_row.get(task.worker if task.worker is not None else -1)
        newer = other.attempts.get(task.task_id) if other is not None else None
        if newer is None or newer.running or held.attempt > newer.attempt:
            return False
        _withdraw(book, task, "revoked")
        book.move_task(task, TaskState.QUEUED)
    elif held.attempt != task.current:
        _withdraw(book, task, "revoked")
    _refund(book, task, held.attempt)
    book.move_task(task, TaskState.ASSIGNED)
    task.current = held.attempt
    task.worker = worker.row
    worker.attempts[task.task_id] = Attempting(task, held.attempt, 0, book.now)
    worker.line.solo = worker.line.solo or task.solo != SOLO_NO
    if running:
        mark_running(book, worker, worker.attempts[task.task_id])
    book.story(
        "taken_back",
        f"attempt {held.attempt} survived with its worker",
        task=task.task_id,
        worker=worker.worker_id,
    )
    return True


def mark_running(book: Book, worker: Worker, attempting: Attempting) -> None:
    """The worker says that the attempt has begun."""
    attempting.running = True
    task = attempting.task
    if attempting.started_at is None:
        attempting.started_at = task.started_at = book.wall
    if task.state is TaskState.ASSIGNED:
        book.move_task(task, TaskState.RUNNING)
