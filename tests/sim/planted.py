"""Known bugs, planted one at a time: the simulator's own test.

Each replaces a function of the product, or of the simulated shell, by a wrong one while it is
planted; the product knows nothing of this. `find` says at which seed it is found.

Two are not here, since they are harmless: an outcome that comes again and is not answered again
(its verdict is repeated with the repair that the lost answer's gap asks for), and a worker that
ignores gaps of seq (nearly every post answers a report, so what was lost is seen to be missing
before anything later comes).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from jobflow_worker.outbox import Outbox, Outgoing
from jobflow_worker.record import replace
from jobflow_worker.session import Session
from jobflowd import outcomes, pool, quarantine, reports, schedule
from jobflowd.book import Book
from jobflowd.coordinator import Coordinator
from jobflowd.events import StopAsked
from jobflowd.launching import Launching
from jobflowd.model import TASK_IN_FLIGHT, TASK_TERMINAL, LaunchState, TaskState
from jobflowd.pool import Breaker, TokenBucket
from jobflowd.recovery import Recovery
from jobflowd.schedule import _Room
from jobflowd.window import Window
from tests.sim.manager import Crash, SimManager
from tests.sim.run import run_seed

SEEDS = 2000
#: Where to begin for what one history in some thousands shows: here a worker that was lost and
#: lives, whose failure of the lost attempt comes before the task has ended.
FIRST = {"refund_twice": 13_000}
_on_report = reports.on_report

Plant = tuple[Any, str, Any]


def _nothing(*_: Any, **__: Any) -> None:
    return None


def _perform_before_commit(self: Any, changes: Any, effects: Any) -> None:
    self._perform(effects)
    if self._crash_point():
        raise Crash
    self.commit(changes)


def _no_dedup(book: Any, worker: Any, counter: int, message: Any) -> None:
    verdict = outcomes.apply_items(book, worker, message)
    worker.verdicts[counter] = verdict
    book.turn.changes.processed.append((worker.row, counter, verdict))
    worker.line.fresh_verdicts[counter] = verdict
    outcomes.raise_floor(book, worker, message.floor)
    book.dirty[worker.worker_id] = worker


def _believe_brief_reports(book: Any, worker: Any, report: Any) -> None:
    _on_report(book, worker, replace(report, brief=False))


def _lease_by_wall_clock() -> list[Plant]:
    renew, expire = reports.renew, Coordinator._expire
    heard: dict[int, float] = {}

    def bad_renew(book: Any, worker: Any) -> None:
        heard[id(worker)] = book.wall
        renew(book, worker)

    def bad_expire(self: Any) -> None:
        book = self.book
        for worker in list(book.workers.values()):
            lease_s = book.settings.terms[worker.transport][1]
            if worker.registered and book.wall - heard.get(id(worker), book.wall) > lease_s:
                reports.lose(book, worker, "worker lost: its lease expired")
        expire(self)

    return [(reports, "renew", bad_renew), (Coordinator, "_expire", bad_expire)]


def _expire_before_mail(book: Any, worker: Any) -> None:
    if worker.registered and worker.lease_until <= book.now:
        reports.lose(book, worker, worker.line.gone_cause or "worker lost: its lease expired")
    elif worker.registered:
        book.deadlines.set(("lease", worker.worker_id), worker.lease_until)


def _forget_in_flight(self: SimManager) -> None:
    begin = self.store.begin_epoch
    with patch.object(self.store, "begin_epoch", lambda _, wall: begin("requeue", wall=wall)):
        _START(self)


def _no_fencing(book: Any, worker: Any, task: Any, attempt: int) -> str:
    if task is None:
        return "never"
    return "current" if task.state in TASK_IN_FLIGHT or task.held else "open"


def _late_failure_counts(book: Any, worker: Any, item: Any) -> str:
    task = book.find(item.task_id)
    late = outcomes.standing(book, worker, task, item.attempt) == "open"
    if late and task.state not in TASK_TERMINAL:
        outcomes._withdraw(book, task, "failed elsewhere")
        task.failures += 1
        outcomes.again(book, task, item.error)
        return "accepted"
    return _FAILED(book, worker, item)


def _charge_known_causes(book: Any, worker: Any, cause: str, *, charge: bool) -> None:
    _GIVE_UP(book, worker, cause, charge=True)


def _launch_again_on_timeout(self: Any, event: Any) -> None:
    launch = self.book.launches.get(event.launch_id)
    if launch is not None and launch.state in (LaunchState.PLANNED, LaunchState.STALE):
        self.book.move_launch(launch, LaunchState.FAILED, event.reason)


def _reuse_attempt_numbers(self: Any, worker: Any, task: Any, seq: int) -> Any:
    task.issued = 0
    return _ASSIGN(self, worker, task, seq)


def _resend_under_new_ids(self: Outbox) -> list[Outgoing]:
    self.packed = {self.next_counter(): message for message in self.packed.values()}
    return _WAITING(self)


def _drop_on_any_ack(self: Outbox, verdicts: Any) -> None:
    self.packed.clear()
    self.settled_set.clear()
    self._loose.clear()


def _credit_not_from_seen(book: Any, worker: Any, report: Any) -> None:
    _REPEAT(book, worker, report)
    worker.credit = report.credit


def _never_repair(book: Any, worker: Any, report: Any) -> None:
    _REPEAT(book, worker, report)
    worker.line.repair = False


def _resurrect(book: Any, worker: Any, held: Any, *, running: bool) -> bool:
    task = book.find(held.task_id)
    if task is not None and task.state in (TaskState.FAILED, TaskState.CANCELED):
        book.enqueue(task)
        return False
    return _CLAIM(book, worker, held, running=running)


def _forget_the_tail(self: Any, page: Any, limit: int, assigned: Any) -> None:
    _ABSORB(self, page, limit, assigned)
    self._tail = None


def _leave_with_everything(book: Any, worker: Any, reason: str) -> None:
    with patch.object(outcomes, "give_up", _nothing):
        _LEAVE(book, worker, reason)


def _ignore_spools(self: Any, event: Any) -> None:
    if not event.spooled:
        _HEARD(self, event)


def _accept_old_reports(book: Any, worker: Any, report: Any) -> None:
    worker.hb_seq = min(worker.hb_seq, report.hb_seq - 1)
    _ON_REPORT(book, worker, report)


def _new_row_for_old_worker(self: Any, event: Any, asked: Any) -> None:
    _ASK(self, event, asked)
    asked.workers.clear()


def _refund_twice(book: Any, task: Any, attempt: int) -> None:
    with patch.object(Book, "record", _nothing):
        _REFUND(book, task, attempt)


def _shutdown_said_once(book: Any, worker_id: str, *rest: Any, **words: Any) -> None:
    known = book.workers.get(worker_id)
    seq = known.line.shutdown_seq if known is not None else 0
    _REGISTER(book, worker_id, *rest, **words)
    if seq:
        book.workers[worker_id].line.shutdown_seq = seq


def _charge_broken_nodes(book: Any, worker: Any, item: Any, task_row: int) -> bool:
    _ON_FAILURE(book, worker, item, task_row)
    return True


def _no_end_of_the_list(self: Any, error: str | None, detail: str, *, ours: bool = False) -> None:
    _GENERATION_ENDED(self, None, detail, ours=ours)


def _forget_the_end(self: Any, before: Any) -> list[Any]:
    return [one for one in _OPENING(self, before) if not isinstance(one, StopAsked)]


def _view_of_no_pause(self: Any) -> Any:
    before = self.book.paused
    self.book.paused = False
    try:
        return _VIEW(self)
    finally:
        self.book.paused = before


def _ask_again_at_once(self: Any, reason: str) -> None:
    _ON_QUERY_FAILED(self, reason)
    self.book.deadlines.set("query", self.book.now + 1.0)


def _hurry_without_end(self: Any) -> None:
    if self.active:
        self.book.deadlines.set("query", self.book.now + 0.1)


def _first_alone(worker: Any) -> bool:
    return _MAY_TAKE(worker) and not worker.worker_id.startswith(("w2", "w3"))


def _seen_goes_back(self: Any, message: Any) -> None:
    if not message.again and message.epoch == self.epoch and message.seq <= self.seen:
        self.seen = 0
    _WELCOME(self, message)


_START = SimManager.start
_VIEW = Launching._view
_OPENING = Recovery._opening
_ON_QUERY_FAILED = Launching.on_query_failed
_MAY_TAKE = schedule._may_take
_FAILED = outcomes._failed
_GIVE_UP = outcomes.give_up
_ASSIGN = Book.assign
_WAITING = Outbox.waiting
_REPEAT = reports._repeat_unseen
_CLAIM = outcomes.claim
_ABSORB = Window.absorb
_LEAVE = reports.leave
_HEARD = Coordinator._heard
_ON_REPORT = reports.on_report
_ASK = Coordinator._ask_about
_REFUND = outcomes._refund
_REGISTER = reports.on_register
_ON_FAILURE = quarantine.on_failure
_GENERATION_ENDED = Coordinator._generation_ended
_WELCOME = Session._on_welcome

PLANTS: dict[str, Callable[[], list[Plant]]] = {
    "perform_before_commit": lambda: [(SimManager, "_commit_and_perform", _perform_before_commit)],
    "no_dedup": lambda: [(outcomes, "on_outcome", _no_dedup)],
    "lease_by_wall_clock": _lease_by_wall_clock,
    "expire_before_mail_is_read": lambda: [(reports, "expire", _expire_before_mail)],
    "gap_is_ignored": lambda: [(reports, "refresh_leases", _nothing)],
    "forget_in_flight_at_boot": lambda: [(SimManager, "start", _forget_in_flight)],
    "no_fencing_by_attempt": lambda: [(outcomes, "standing", _no_fencing)],
    "accept_late_failure": lambda: [(outcomes, "_failed", _late_failure_counts)],
    "charge_known_causes": lambda: [(outcomes, "give_up", _charge_known_causes)],
    "charge_nothing": lambda: [(outcomes, "_charge", _nothing)],
    "refund_twice": lambda: [(outcomes, "_refund", _refund_twice)],
    "launch_again_on_timeout": lambda: [(Launching, "on_submit_failed", _launch_again_on_timeout)],
    "stale_launches_do_not_count": lambda: [(pool, "COMING", pool.COMING - {LaunchState.STALE})],
    "reuse_attempt_numbers": lambda: [(Book, "assign", _reuse_attempt_numbers)],
    "resend_under_new_ids": lambda: [(Outbox, "waiting", _resend_under_new_ids)],
    "drop_results_on_any_ack": lambda: [(Outbox, "on_verdicts", _drop_on_any_ack)],
    "send_each_result_once": lambda: [
        (Outbox, "overdue", lambda *_, **__: []),
        (Outbox, "waiting", lambda _: []),
    ],
    "floor_is_too_high": lambda: [(Outbox, "floor", property(lambda one: one._counter + 1))],
    "seen_goes_back": lambda: [(Session, "_on_welcome", _seen_goes_back)],
    "credit_is_not_counted_from_seen": lambda: [(reports, "_repeat_unseen", _credit_not_from_seen)],
    "never_repair": lambda: [(reports, "_repeat_unseen", _never_repair)],
    "brief_reports_are_the_truth": lambda: [(reports, "on_report", _believe_brief_reports)],
    "old_reports_count": lambda: [(reports, "on_report", _accept_old_reports)],
    "hold_never_ends": lambda: [(Coordinator, "_hold_ended", _nothing)],
    "solo_is_ignored": lambda: [
        (_Room, "suits", lambda *_: True),
        (_Room, "company", _nothing),
    ],
    "terminal_task_is_resurrected": lambda: [(outcomes, "claim", _resurrect)],
    "window_forgets_the_disk": lambda: [(Window, "absorb", _forget_the_tail)],
    "delayed_for_ever": lambda: [(Coordinator, "_due", _nothing)],
    "left_with_its_tasks": lambda: [(reports, "leave", _leave_with_everything)],
    "spools_are_ignored": lambda: [(Coordinator, "_heard", _ignore_spools)],
    "old_worker_gets_a_new_row": lambda: [(Coordinator, "_ask_about", _new_row_for_old_worker)],
    "quarantined_workers_get_tasks": lambda: [
        (schedule, "_may_take", lambda one: one.registered and one.credit > 0)
    ],
    "broken_nodes_are_charged": lambda: [(quarantine, "on_failure", _charge_broken_nodes)],
    "a_failed_generator_has_ended": lambda: [
        (Coordinator, "_generation_ended", _no_end_of_the_list)
    ],
    "other_texts_are_welcome": lambda: [
        (Coordinator, "_program_changed", _nothing),
    ],
    "a_pause_does_not_stop_submitting": lambda: [(Launching, "_view", _view_of_no_pause)],
    "launches_beyond_the_work": lambda: [(pool, "_useful_workers", lambda view: view.wanted)],
    "submits_without_a_pace": lambda: [(TokenBucket, "take", lambda _self, _now, wanted: wanted)],
    "refusals_do_not_pause": lambda: [(Breaker, "_failed", _nothing)],
    "a_failed_query_is_asked_again_at_once": lambda: [
        (Launching, "on_query_failed", _ask_again_at_once)
    ],
    "hurry_without_end": lambda: [(Launching, "_hurry", _hurry_without_end)],
    "only_the_first_worker_gets_tasks": lambda: [(schedule, "_may_take", _first_alone)],
    "a_full_disk_forgets_the_end": lambda: [(Recovery, "_opening", _forget_the_end)],
    "shutdown_is_said_once": lambda: [(reports, "on_register", _shutdown_said_once)],
}


@contextmanager
def planted(name: str) -> Iterator[None]:
    """While this lasts, the bug is there."""
    with ExitStack() as stack:
        for owner, attribute, wrong in PLANTS[name]():
            stack.enter_context(patch.object(owner, attribute, wrong))
        yield


def find(name: str, seeds: int = SEEDS) -> tuple[int | None, str]:
    """The first of so many seeds that finds the bug, and how it showed; None if none does."""
    with planted(name):
        first = FIRST.get(name, 0)
        for seed in range(first, first + seeds):
            error = run_seed(seed).error
            if error is not None:
                return seed, error
    return None, "not found"


def table(only: str | None = None) -> int:
    """Print bug -> seed; 1 if one was not found."""
    missed = 0
    for name in PLANTS if only is None else [only]:
        began = time.perf_counter()
        seed, how = find(name)
        missed += seed is None
        seconds = time.perf_counter() - began
        sys.stdout.write(f"{name:34} {'-' if seed is None else seed:>5} {seconds:6.1f} s  ")
        sys.stdout.write(f"{how.splitlines()[0][:90]}\n")
        sys.stdout.flush()
    sys.stdout.write(f"{len(PLANTS) - missed} of {len(PLANTS)} found\n" if only is None else "")
    return 1 if missed else 0
