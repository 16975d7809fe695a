"""What operators ask for: scale, pause, cancel, retry, drain, the end of the run.

Pure. Every request is answered by exactly one `Reply`, after the commit of its turn, saying what
was changed. Asking for what is already so changes nothing and is no error.
"""

from __future__ import annotations

from typing import Any

from jobflow_worker.messages import Held
from jobflowd import outbound, quarantine
from jobflowd.book import Book
from jobflowd.effects import Reply
from jobflowd.events import Asked, StopAsked
from jobflowd.launching import Launching
from jobflowd.model import (
    SOLO_NO,
    TASK_IN_FLIGHT,
    TASK_TERMINAL,
    Task,
    TaskState,
    WorkerState,
)
from jobflowd.wording import count

#: After `shutdown --now` and a second signal: workers get this long to hand back.
NOW_GRACE_S = 5.0
#: Tasks changed in one request that get a line of history each.
STORIES_MAX = 100


def on_asked(book: Book, launching: Launching, event: Asked) -> None:
    """Carry out one request of the admin socket."""
    handlers = {
        "scale": _scale,
        "shutdown": _shutdown,
        "pause": _pause,
        "resume": _resume,
        "drain": _drain,
        "cancel": _cancel,
        "retry": _retry,
        "release": _release,
    }
    body = handlers[event.cmd](book, launching, event.args)
    if isinstance(body, tuple):
        book.effect(Reply(event.ticket, error=body))
    else:
        book.effect(Reply(event.ticket, body))


Body = dict[str, Any]
Error = tuple[str, str, str]


def _scale(book: Book, launching: Launching, args: Body) -> Body | Error:
    if not launching.active:
        return (
            "conflict",
            "This session has no launcher, so it cannot start or stop workers.",
            "Start workers by hand: jobflow-worker --session NAME",
        )
    wanted, before = int(args["workers"]), book.wanted
    book.wanted = wanted
    book.meta("wanted", wanted)
    if args.get("now"):
        surplus = [
            worker
            for worker in book.workers.values()
            if worker.registered and worker.launch_id in book.launches
        ]
        surplus.sort(key=lambda one: (len(one.attempts) > 0, -one.row))
        for worker in surplus[: max(0, len(surplus) - wanted)]:
            outbound.shut_down(book, worker, "scale", now=True)
    launching.step(changed=True)
    book.story("scaled", f"from {before:,} to {count(wanted, 'worker')}")
    return {
        "message": f"The pool's target is now {count(wanted, 'worker')} (it was {before:,}).",
        "workers": {"before": before, "target": wanted},
    }


def _pause(book: Book, _: Launching, __: Body) -> Body:
    before, book.paused = book.paused, True
    book.meta("paused", 1)
    text = "was paused already" if before else "is paused: what runs goes on, nothing new starts"
    return {"message": f"The session {text}.", "paused": True}


def _resume(book: Book, _: Launching, __: Body) -> Body:
    before, book.paused = book.paused, False
    book.meta("paused", 0)
    text = "is running again" if before else "was not paused"
    return {"message": f"The session {text}.", "paused": False}


def _release(book: Book, launching: Launching, args: Body) -> Body | Error:
    what = str(args.get("what", "launcher"))
    worker = book.workers.get(what)
    if worker is not None and worker.state is WorkerState.QUARANTINED:
        quarantine.end(book, worker, "by the operator")
        return {"message": f"Worker {what} may take tasks again.", "released": what}
    if what != "launcher":
        return ("not_found", f"There is no quarantined worker {what}.", "See: jobflowctl workers")
    was = launching.breaker.open
    launching.breaker.release()
    text = "Launching goes on." if was else "Launching was not paused."
    return {"message": text, "released": "launcher"}


def _drain(book: Book, _: Launching, args: Body) -> Body | Error:
    worker = book.workers.get(str(args["worker"]))
    if worker is None or not worker.registered:
        return (
            "not_found",
            f"No worker {args['worker']} is connected.",
            "List the workers with: jobflowctl workers",
        )
    outbound.shut_down(book, worker, "drain", now=False)
    left = len(worker.attempts)
    after = f"after its {count(left, 'attempt')}" if left else "now: it has nothing to do"
    return {
        "message": f"{worker.worker_id} leaves {after}.",
        "worker_id": worker.worker_id,
    }


def _cancel(book: Book, _: Launching, args: Body) -> Body:
    canceled: list[str] = []
    unchanged: list[str] = []
    unknown: list[str] = []
    for task_id in args["task_ids"]:
        task = book.find(task_id)
        if task is None:
            unknown.append(task_id)
        elif task.state in TASK_TERMINAL:
            unchanged.append(task_id)
        else:
            _cancel_task(book, task)
            canceled.append(task_id)
    _tell_of_each(book, "task_canceled", "tasks_canceled", canceled)
    text = f"{count(len(canceled), 'task')} canceled"
    if unchanged:
        text += f", {len(unchanged)} had ended already"
    if unknown:
        text += f", {len(unknown)} unknown"
    return {
        "message": f"{text}.",
        "canceled": canceled,
        "unchanged": unchanged,
        "unknown": unknown,
    }


def _cancel_task(book: Book, task: Task) -> None:
    worker = book.by_row.get(task.worker if task.worker is not None else -1)
    if task.state in TASK_IN_FLIGHT and worker is not None:
        attempting = worker.attempts.pop(task.task_id, None)
        if attempting is not None:
            outbound.cancel(book, worker, Held(task.task_id, attempting.attempt), "canceled")
            book.record(
                task,
                attempting.attempt,
                worker.row,
                "canceled",
                "canceled",
                started_at=attempting.started_at,
            )
    elif task.held and task.worker is not None:
        book.record(task, task.current, task.worker, "canceled", "canceled")
    task.error = "canceled by the operator"
    book.move_task(task, TaskState.CANCELED)


def _retry(book: Book, _: Launching, args: Body) -> Body:
    queued: list[str] = []
    unchanged: list[str] = []
    unknown: list[str] = []
    for task_id in args["task_ids"]:
        task = book.find(task_id)
        if task is None:
            unknown.append(task_id)
        elif task.state in (TaskState.FAILED, TaskState.CANCELED):
            task.failures = task.losses = task.deliveries = task.walltimes = 0
            task.solo = SOLO_NO
            task.error = task.finished_at = None
            task.late_until = task.issued
            book.enqueue(task)
            queued.append(task_id)
        else:
            unchanged.append(task_id)
    _tell_of_each(book, "task_retried", "tasks_retried", queued)
    text = f"{count(len(queued), 'task')} queued again"
    note = ""
    if queued and book.finishing is not None:
        note = " for the next start, since this run is ending"
    text += note
    if unchanged:
        text += f", {len(unchanged)} had not failed"
    if unknown:
        text += f", {len(unknown)} unknown"
    return {
        "message": f"{text}.",
        "queued": queued,
        "unchanged": unchanged,
        "unknown": unknown,
        "note": note,
    }


def _tell_of_each(book: Book, kind: str, kind_of_many: str, task_ids: list[str]) -> None:
    """A line of history for each task; one for all of them where they would push out the rest."""
    if len(task_ids) > STORIES_MAX:
        listing = f"{task_ids[0]} to {task_ids[-1]}"
        book.story(kind_of_many, f"{count(len(task_ids), 'task')} by the operator: {listing}")
        return
    for task_id in task_ids:
        book.story(kind, "by the operator", task=task_id)


# --- the end of the run -----------------------------------------------------------------------


def _shutdown(book: Book, launching: Launching, args: Body) -> Body:
    now = bool(args.get("now"))
    begin_finish(book, launching, "shutdown", now=now)
    online = sum(1 for worker in book.workers.values() if worker.registered)
    leave = count(online, "worker leaves", "workers leave")
    how = "now, handing back what is running" if now else "after what is running"
    remain = count(book.remaining, "task remains", "tasks remain")
    return {
        "message": f"Shutting down: {leave} {how}; {remain}.",
        "workers": online,
        "remaining": book.remaining,
    }


def on_stop(book: Book, launching: Launching, event: StopAsked) -> None:
    """A signal."""
    book.story("stop", event.why)
    if event.detach and book.finishing is None:
        book.finishing = "detach"
        return
    begin_finish(book, launching, "shutdown", now=event.now)


def begin_finish(book: Book, launching: Launching, reason: str, *, now: bool) -> None:
    """Ask every worker to leave, take back what is still coming, and start the grace."""
    if book.finishing is not None and (book.finishing_now or not now):
        return
    if book.finishing == "detach":
        return
    book.finishing = reason
    book.finishing_now = book.finishing_now or now
    book.story("finishing", reason if not now else f"{reason}, at once")
    for worker in book.workers.values():
        if worker.registered:
            outbound.shut_down(book, worker, reason, now=now)
    launching.cancel_coming()
    grace = NOW_GRACE_S if now else book.settings.grace_s
    book.deadlines.set("grace", book.now + grace)


def exit_code(book: Book) -> int:
    """What the run came to: SPEC.md, exit codes."""
    if book.generation_error is not None:
        return 65
    if book.remaining or not book.generated:
        return 4
    return 3 if book.counts[TaskState.FAILED] else 0
