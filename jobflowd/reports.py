"""Workers arrive, report, fall silent and leave.

Pure. A report is the whole truth about its worker: what it says is compared with what memory says,
and every difference is repaired here. So any lost message costs at most one heartbeat.
"""

from __future__ import annotations

from jobflow_worker import limits
from jobflow_worker.messages import HAND, Held, Register, Reject, Report
from jobflowd import outbound, outcomes
from jobflowd.book import Book
from jobflowd.effects import CancelLaunch, Forget, Post
from jobflowd.model import (
    LAUNCH_OVER,
    Attempting,
    LaunchState,
    Worker,
    WorkerState,
)
from jobflowd.wording import count

#: Reports that a worker must miss after the batch system called its job over.
DOUBT_HEARTBEATS = 3
#: How the story of a worker ends that was silent for too long: counted by `metrics.py`.
LEASE_EXPIRED = "its lease expired"
#: Launchers whose jobs may run again by themselves.
BATCH_LAUNCHERS = ("slurm", "lsf", "sge")


def is_proven(book: Book, peer: str | None, launch_id: str | None) -> bool:
    """May the holder of this key speak for a worker of this launch? A transport without keys
    proves nothing and is believed; the key for workers by hand is good for no launch of ours."""
    return peer in (None, launch_id) or (peer == HAND and launch_id not in book.launches)


def on_foreign_key(book: Book, worker: Worker, peer: str | None) -> None:
    """Somebody with another launch's key uses this worker's name: nothing of it counts."""
    book.story(
        "foreign_key",
        f"a client with the key of {peer} spoke in this worker's name and was not heard",
        worker=worker.worker_id,
        launch=worker.launch_id,
        level="warning",
    )


def on_register(
    book: Book, worker_id: str, transport: str, message: Register, peer: str | None = None
) -> None:
    """A worker introduces itself; repeated or after a restart of either side, too."""
    refusal = _refusal(book, message, peer)
    if refusal is not None:
        code, sentence = refusal
        book.story("rejected", sentence, worker=worker_id, launch=message.launch_id)
        # What else it sent must not get it an invitation: in a mailbox that would replace this.
        book.strangers.pop(worker_id, None)
        reject = Reject(book.epoch, 0, 0, code, sentence)
        book.effect(Post(worker_id, transport, (reject,)))
        return
    worker = book.workers.get(worker_id)
    if worker is None:
        worker = Worker(book.next_worker_row, worker_id, transport, "", 0, 1)
        book.next_worker_row += 1
        book.know(worker)
    new = not worker.registered
    worker.registered = True
    if worker.shutdown:
        worker.state = WorkerState.DRAINING
    elif worker.state is not WorkerState.QUARANTINED:
        worker.state = WorkerState.ONLINE
    worker.transport, worker.host, worker.pid = transport, message.host, message.pid
    worker.slots, worker.program_hash = message.slots, message.program_hash
    worker.version, worker.batch_job_id = message.version, message.batch_job_id
    worker.time_left_s = message.time_left_s
    worker.ended_at = None
    if new:
        worker.registered_at = book.wall
        worker.launch_id = message.launch_id
    worker.credit = 0
    worker.line.welcomed = worker.line.confirmed = False
    worker.line.gone_cause = ""
    worker.line.gone_charge = True
    worker.line.welcome_seq = outbound.next_seq(worker)
    worker.line.posted = worker.line.welcome_seq - 1
    if worker.shutdown is not None:
        # The Welcome passes over what was posted before it.
        worker.line.shutdown_seq = outbound.next_seq(worker)
    renew(book, worker)
    outcomes.raise_floor(book, worker, message.floor)
    book.touch_worker(worker)
    book.dirty[worker_id] = worker
    if new:
        book.story(
            "worker_online",
            f"{message.host} pid {message.pid}, {count(message.slots, 'slot')}, {transport}",
            worker=worker_id,
            launch=message.launch_id,
        )
        _bring_launch(book, worker)
    for held in message.held:
        if not _has(worker, held) and not outcomes.claim(book, worker, held, running=False):
            outbound.cancel(book, worker, held, "unwanted")
    if worker.program_hash != book.program_hash and book.program_hash:
        outbound.shut_down(book, worker, "program", now=False)
    if book.finishing is not None:
        outbound.shut_down(book, worker, book.finishing, now=book.finishing_now)


def _refusal(book: Book, message: Register, peer: str | None) -> tuple[str, str] | None:
    if not is_proven(book, peer, message.launch_id):
        return (
            "launch",
            f"This worker names the launch {message.launch_id} and has the key of {peer}. Start "
            "it with its own launch's key file, or without a launch id.",
        )
    if message.protocol_max < limits.PROTOCOL_MIN or message.protocol_min > limits.PROTOCOL_MAX:
        return (
            "version",
            f"This worker (jobflowd {message.version}) speaks protocol {message.protocol_min} to "
            f"{message.protocol_max}, the manager {limits.PROTOCOL_MIN} to {limits.PROTOCOL_MAX}. "
            "Install the same jobflowd version for both.",
        )
    changed = book.program_hash and message.program_hash != book.program_hash
    if changed and not message.held:
        return (
            "program",
            "The program's text on this node is not the one that the manager runs. Check that "
            "both see the same file, or restart the manager after an edit.",
        )
    return None


def _bring_launch(book: Book, worker: Worker) -> None:
    """A registered worker is what a launch was for, and the best evidence of it."""
    launch = book.launches.get(worker.launch_id or "")
    if launch is None:
        return
    if launch.state is LaunchState.CANCELED or launch.cancel_asked:
        outbound.shut_down(book, worker, "scale", now=False)
    launch.worker = worker.row
    launch.registered = True
    launch.ended_at = None
    if worker.batch_job_id and not launch.batch_job_id:
        launch.batch_job_id = worker.batch_job_id
    book.move_launch(launch, LaunchState.ONLINE)


def renew(book: Book, worker: Worker) -> None:
    """The worker was heard: its lease runs anew.

    Not if its process is known to be dead: then these are its last words.
    """
    if worker.line.gone_cause:
        return
    lease_s = max(book.settings.terms[worker.transport][1], 0.0)
    worker.heard_at = book.now
    worker.line.doubt = ""
    worker.lease_until = book.now + lease_s
    book.deadlines.set(("lease", worker.worker_id), worker.lease_until)


def refresh_leases(book: Book) -> None:
    """The daemon itself was away: silence during that time proves nothing."""
    for worker in book.workers.values():
        if worker.registered:
            renew(book, worker)


# --- reports ----------------------------------------------------------------------------------


def on_report(book: Book, worker: Worker, report: Report) -> None:
    """Compare a report with memory and repair every difference."""
    if report.hb_seq <= worker.hb_seq:
        return  # Older than what is known: it renews nothing.
    renew(book, worker)
    worker.hb_seq = report.hb_seq
    worker.line.answer = True
    worker.line.welcomed = True
    book.dirty[worker.worker_id] = worker
    worker.seen = max(worker.seen, min(report.seen, worker.seq))
    outcomes.raise_floor(book, worker, report.floor)
    worker.rss_bytes = report.rss_bytes
    if report.time_left_s is not None:
        worker.time_left_s = report.time_left_s  # A worker that knows none leaves the site's word.
    if not report.same and not report.brief:
        worker.report = report
        worker.progress = {one.task_id: one for one in report.progress}
    if worker.report is None:
        worker.line.want_full = True
        return
    if not report.brief:
        _reconcile(book, worker, worker.report)
    if report.leaving is not None and not worker.leaving:
        worker.leaving = True
        worker.reason = report.leaving
        if worker.state is WorkerState.ONLINE:
            worker.state = WorkerState.DRAINING
        book.touch_worker(worker)
        book.story("worker_leaving", report.leaving, worker=worker.worker_id)
    _repeat_unseen(book, worker, report)


def _has(worker: Worker, held: Held) -> bool:
    attempting = worker.attempts.get(held.task_id)
    return attempting is not None and attempting.attempt == held.attempt


def _reconcile(book: Book, worker: Worker, report: Report) -> None:
    listed = set(report.settled)
    for held in report.running:
        listed.add(held)
        attempting = worker.attempts.get(held.task_id)
        if attempting is not None and attempting.attempt == held.attempt:
            if not attempting.running:
                outcomes.mark_running(book, worker, attempting)
        else:
            _strange(book, worker, held, running=True)
    for held in report.waiting:
        listed.add(held)
        if not _has(worker, held):
            _strange(book, worker, held, running=False)
    for held in [held for held in worker.cancels if held not in listed]:
        if worker.line.cancel_seqs[held] <= worker.seen:
            del worker.cancels[held], worker.line.cancel_seqs[held]
    for task_id, attempting in worker.attempts.items():
        if attempting.seq <= worker.seen and Held(task_id, attempting.attempt) not in listed:
            # The worker saw it and does not have it: it goes out once more.
            attempting.seq = outbound.next_seq(worker)
            attempting.sent_at = book.now
    if not worker.line.confirmed:
        worker.line.confirmed = True
        _release_unclaimed(book, worker)


def _strange(book: Book, worker: Worker, held: Held, *, running: bool) -> None:
    """The worker holds an attempt that memory does not count as its own."""
    if held in worker.cancels:
        if worker.line.cancel_seqs[held] <= worker.seen:
            outbound.cancel(book, worker, held, worker.cancels[held])
        return
    if not outcomes.claim(book, worker, held, running=running):
        outbound.cancel(book, worker, held, "unwanted")


def _release_unclaimed(book: Book, worker: Worker) -> None:
    """A survivor's first full report is the truth: what it does not list, it does not have.

    Outcomes that are still in its outbox are listed as settled, and come by themselves.
    """
    report = worker.report
    settled = set(report.settled) if report is not None else set()
    for task in [task for task in book.held.values() if task.worker == worker.row]:
        if Held(task.task_id, task.current) not in settled:
            outcomes.release_held(book, task, "manager restart")


def _repeat_unseen(book: Book, worker: Worker, report: Report) -> None:
    """Count the credit from `seen`, and repair if something was lost on the way."""
    unseen: list[Attempting] = [one for one in worker.attempts.values() if one.seq > worker.seen]
    # What was taken back unseen may be there all the same until the worker has seen that.
    doomed = [held for held, seq in worker.line.cancel_seqs.items() if seq > worker.seen]
    if doomed:
        told = {*report.running, *report.waiting, *report.settled}
        doomed = [held for held in doomed if held not in told]
    worker.credit = max(0, report.credit - len(unseen) - len(doomed))
    if worker.credit:
        book.asking[worker.worker_id] = worker
    behind = worker.line.posted > worker.seen
    if not behind:
        return
    patience = book.settings.terms[worker.transport][0] / 4
    aged = any(one.sent_at + patience <= book.now for one in unseen)
    standing = any(seq > worker.seen for seq in worker.line.cancel_seqs.values())
    if worker.line.shutdown_seq > worker.seen or standing or aged or report.gap:
        worker.line.repair = True


# --- the end of a worker ----------------------------------------------------------------------


def expire(book: Book, worker: Worker) -> None:
    """The lease fell due. The worker is lost only if its mail has been read since."""
    if not worker.registered:
        return
    read_at = worker.read_at if worker.transport == "fs" else book.mail_read_at
    if worker.lease_until > book.now or read_at < worker.lease_until:
        # Looked at again right after the next drain; a short step keeps the loop from spinning.
        book.deadlines.set(("lease", worker.worker_id), max(worker.lease_until, book.now + 0.05))
        return
    if worker.line.doubt and not worker.line.gone_cause:
        worker.line.gone_cause = worker.line.doubt
        worker.line.gone_charge = worker.line.doubt_charge
    lose(book, worker, worker.line.gone_cause or f"worker lost: {LEASE_EXPIRED}")


def doubt(book: Book, worker: Worker, cause: str, *, charge: bool) -> None:
    """The batch system says that its job is over. A worker that goes on reporting is believed; one
    that misses as many reports as half of the shortest lease has is lost, for that cause."""
    line = worker.line
    if not worker.registered or line.gone_cause:
        return
    if not line.doubt:
        heartbeat_s = book.settings.terms[worker.transport][0]
        worker.lease_until = min(worker.lease_until, book.now + DOUBT_HEARTBEATS * heartbeat_s)
        book.deadlines.set(("lease", worker.worker_id), worker.lease_until)
    line.doubt, line.doubt_charge = cause, charge


def gone(book: Book, worker: Worker, cause: str, *, charge: bool) -> None:
    """Its process is certainly dead: it is lost as soon as its last mail is read.

    `charge` False: the cause is known to be nobody's fault (walltime, preemption, our cancel).
    """
    if worker.registered and not worker.line.gone_cause:
        worker.line.gone_cause = cause
        worker.line.gone_charge = charge
        worker.lease_until = book.now
        book.deadlines.set(("lease", worker.worker_id), book.now)


def lose(book: Book, worker: Worker, cause: str) -> None:
    """Take a silent or dead worker out, with everything it had."""
    charge = worker.line.gone_charge and worker.shutdown is None and not worker.leaving
    outcomes.give_up(book, worker, cause, charge=charge)
    level = "warning" if worker.line.gone_charge else "info"
    book.story("worker_lost", cause, worker=worker.worker_id, launch=worker.launch_id, level=level)
    launch = book.launches.get(worker.launch_id or "")
    if (
        launch is not None
        and launch.state is LaunchState.ONLINE
        and launch.worker in (None, worker.row)
    ):
        # Its place is refilled; what is left of it is taken away.
        launch.cancel_asked = True
        book.move_launch(launch, LaunchState.STALE, cause)
        book.effect(CancelLaunch(launch.launch_id, launch.batch_job_id))
    _offline(book, worker, cause)


def leave(book: Book, worker: Worker, reason: str) -> None:
    """The worker said good-bye: what it still had is queued again, charged to nobody."""
    outcomes.give_up(book, worker, f"worker left: {reason}", charge=False)
    book.story("worker_left", reason, worker=worker.worker_id, launch=worker.launch_id)
    launch = book.launches.get(worker.launch_id or "")
    if (
        launch is not None
        and launch.state not in LAUNCH_OVER
        and launch.worker in (None, worker.row)
    ):
        # A job that was preempted may have been queued again: only the batch system knows.
        unsure = reason == "preempted" and book.settings.launcher in BATCH_LAUNCHERS
        book.move_launch(launch, LaunchState.STALE if unsure else LaunchState.ENDED, reason)
    _offline(book, worker, reason)


def _offline(book: Book, worker: Worker, reason: str) -> None:
    worker.registered = False
    worker.state = WorkerState.OFFLINE
    worker.reason = reason
    worker.ended_at = book.wall
    worker.credit = 0
    worker.report = None
    worker.progress = {}
    worker.cancels = {}
    worker.line.cancel_seqs = {}
    worker.line.repair = worker.line.answer = False
    book.deadlines.drop(("lease", worker.worker_id))
    book.dirty.pop(worker.worker_id, None)
    book.touch_worker(worker)
    book.effect(Forget(worker.worker_id, worker.transport))
