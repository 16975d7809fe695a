"""The worker's pure state machine: (now, events) in, effects out.

Rules
-----
* No clock, no I/O, no randomness. The agent (`agent.py`) owns sockets, slots and files.
* Everything that matters stays in the outbox until a verdict comes; everything else is a report,
  and a report is the whole truth.
* A message of the manager is handled if its seq is above `seen`; `seen` moves only without a gap.
* The manager is silent only when neither its messages nor its beacon moved on this clock.
"""

from __future__ import annotations

from collections.abc import Iterable

from jobflow_worker import limits
from jobflow_worker.messages import (
    Ack,
    Assign,
    Assignment,
    Cancel,
    Finished,
    FromManager,
    Held,
    Progress,
    Reject,
    Report,
    Returned,
    Shutdown,
    ShutdownAck,
    Welcome,
)
from jobflow_worker.outbox import Outbox, Outgoing
from jobflow_worker.reporter import Listening, Reporter
from jobflow_worker.slotevents import Moved, Settled, SlotBroken, SlotReady, Unstarted
from jobflow_worker.vocabulary import (
    BeaconSeen,
    Effect,
    Event,
    Exit,
    Feed,
    Identity,
    Kill,
    Leave,
    NoBeacon,
    ReadBeacon,
    Recall,
    Reconnect,
    Send,
    Spool,
)
from jobflow_worker.workload import Workload

#: Outcomes wait this long for company while there is still work to do.
FLUSH_S = 0.1
#: Unacknowledged outcomes above this: no more work is asked for.
SETTLED_MAX = 2000
#: A leaving worker waits this long for its last verdicts before it spools them.
FAREWELL_S = 15.0
#: Why a worker leaves when its whole batch job was signalled, and what reaches its tasks then.
SHARED_FATES = ("preempted", "walltime")
JOB_SIGNALS = ("SIGTERM", "SIGUSR1", "SIGUSR2", "SIGINT", "SIGHUP", "SIGXCPU")
#: A report because of a gap or a wish goes out at most this often while another is unanswered.
RESEND_S = 1.0
#: A task that runs for so long without a report is reported as running: the manager then knows
#: whom to blame should this worker die.
BEGUN_S = 1.0


class Session:
    """One worker's side of the conversation."""

    def __init__(self, identity: Identity, *, manager_timeout_s: float = 900.0) -> None:
        self.identity = identity
        self.transport = "zmq"
        self.work = Workload(identity.slots)
        self.outbox = Outbox()
        self.reporter = Reporter(self.outbox, self.work)
        self.rss_bytes = 0
        self.load = 0.0
        self.time_left_s: float | None = None
        self.epoch: int | None = None
        self.seen = 0
        self.full = False
        self.leaving: str | None = None
        self.exited = False
        self._effects: list[Effect] = []
        self._now = 0.0
        self._handled: set[int] = set()
        self._gap = False
        self._heartbeat_s = 10.0
        self._idle_timeout_s: float | None = None
        self._manager_timeout_s = manager_timeout_s
        self._listening = Listening()
        self._register_at: float | None = None
        self._register_pause_s = limits.REGISTER_RETRY_S
        self._welcomed = False
        self._progress: dict[Held, Progress] = {}
        self._progress_news = False
        self._doomed: dict[Held, str] = {}
        self._idle_since: float | None = None
        self._leave_code = 0
        self._kill_at: float | None = None
        self._farewell_at: float | None = None
        self._farewell: Outgoing | None = None
        self._goodbye = ""

    # --- entrance -----------------------------------------------------------------------------

    def handle(self, now: float, events: Iterable[Event]) -> list[Effect]:
        """The only entrance: take events in, then do what is due."""
        self._now = now
        self._effects = []
        self._listening.begin(now)
        for event in events:
            if not self.exited:
                self._take(event)
        if not self.exited:
            self._step()
        return self._effects

    def everything(self) -> list[Outgoing]:
        """The whole mailbox: all unacknowledged outcomes and the latest report or Register."""
        latest = [self.reporter.latest] if self.reporter.latest is not None else []
        farewell = [self._farewell] if self._farewell is not None else []
        return self.outbox.dated(self.outbox.waiting()) + latest + farewell

    def next_deadline(self) -> float | None:
        """When `handle` should be called even if nothing happens."""
        times: list[float | None] = [self._register_at, self._kill_at, self._farewell_at]
        if self._welcomed:
            times.append(self.reporter.sent_at + self._heartbeat_s)
            times.append(self.work.stuck_at(self._patience_s()))
            if self.outbox.oldest_loose is not None:
                times.append(self.outbox.oldest_loose + FLUSH_S)
            if self._progress_news:
                times.append(self.reporter.sent_at + limits.PROGRESS_INTERVAL_S)
            if self._gap:
                times.append(self.reporter.sent_at + RESEND_S)
            begun = self.work.began_after(self.reporter.sent_at)
            if begun is not None:
                times.append(begun + BEGUN_S)
        if self._idle_since is not None and self._idle_timeout_s is not None:
            times.append(self._idle_since + self._idle_timeout_s)
        return min((at for at in times if at is not None), default=None)

    def _take(self, event: Event) -> None:
        match event:
            case SlotReady(slot):
                self.work.slots[slot].ready = True
                if self._register_at is None and not self._welcomed:
                    self._register_at = self._now
            case Settled():
                self._settled(event)
            case Unstarted(slot, attempts):
                self._unstarted(slot, attempts)
            case Moved(_, progress):
                self._progress[Held(progress.task_id, progress.attempt)] = progress
                self._progress_news = True
            case SlotBroken(slot, error):
                self._slot_broken(slot, error)
            case Leave(cause):
                self._leave(cause, at_once=True)
            case BeaconSeen():
                self._on_beacon(event)
            case NoBeacon():
                pass
            case _:
                self._from_manager(event)

    # --- the manager --------------------------------------------------------------------------

    def _from_manager(self, message: FromManager) -> None:
        self._listening.heard(self._now)
        if isinstance(message, Reject):
            self._spool()
            self._exit(78, message.sentence)
            return
        if isinstance(message, Welcome):
            self._on_welcome(message)
            return
        if self.epoch is None or message.epoch < self.epoch:
            return
        if message.epoch > self.epoch:
            self._register_again()
            return
        new = message.seq > self.seen and message.seq not in self._handled
        if new and isinstance(message, Assign):
            for item in message.items:
                self._on_assigned(item)
        elif new and isinstance(message, Cancel):
            for held in message.items:
                self._doom(held, "canceled")
        elif new and isinstance(message, Shutdown):
            self._on_shutdown(message)
        self._advance(message.seq, message.base)
        if isinstance(message, Ack):
            self._on_ack(message)

    def _advance(self, seq: int, base: int) -> None:
        if base <= self.seen:
            self.seen = max(self.seen, seq)
            self._handled = {one for one in self._handled if one > self.seen}
            self._gap = bool(self._handled)
        elif seq > self.seen:
            self._handled.add(seq)
            self._gap = True

    def _on_welcome(self, message: Welcome) -> None:
        if message.again:
            if self.epoch is None or message.epoch >= self.epoch:
                self._register_again()
            return
        if self.epoch is not None and message.epoch < self.epoch:
            return
        if message.epoch == self.epoch and message.seq <= self.seen:
            return  # An old one: `seen` never goes back.
        if message.epoch != self.epoch:
            self._handled = set()
        self.epoch = message.epoch
        self.seen = message.seq
        self._gap = False
        self._welcomed = True
        self._register_at = None
        self._register_pause_s = limits.REGISTER_RETRY_S
        self._heartbeat_s = max(0.05, message.heartbeat_s)
        self._idle_timeout_s = message.idle_timeout_s
        self._manager_timeout_s = message.manager_timeout_s
        self.reporter.forget()
        self._resend()

    def _register_again(self) -> None:
        if self._welcomed or self._register_at is None:
            self._welcomed = False
            self._register_at = self._now

    def _on_ack(self, message: Ack) -> None:
        self.reporter.on_ack(self._now, message)
        self.outbox.on_verdicts(message.verdicts)
        if message.want_full:
            self._gap = True

    def _on_assigned(self, item: Assignment) -> None:
        held = Held(item.task_id, item.attempt)
        if held in self.work or held in self.outbox.settled_set:
            return
        if self.leaving is not None:
            self._return(held, self.leaving, started=False)
            return
        self.work.add(item, self._now)

    def _on_shutdown(self, message: Shutdown) -> None:
        self._goodbye = self._goodbye or message.reason
        self._leave("draining", at_once=message.now, grace_s=message.grace_s)

    def _on_beacon(self, seen: BeaconSeen) -> None:
        moved, restarted = self._listening.on_beacon(self._now, seen)
        if moved and seen.state == "open":
            self._effects.append(Reconnect(seen.endpoints))
            if self.epoch is not None and seen.epoch > self.epoch:
                self._register_again()
            if restarted and self._register_at is not None:
                self._register_at = self._now
                self._register_pause_s = limits.REGISTER_RETRY_S
        elif seen.state == "closed" and self._unanswered():
            self._leave("draining", at_once=True)

    # --- slots --------------------------------------------------------------------------------

    def _settled(self, event: Settled) -> None:
        outcome = event.outcome
        held = Held(outcome.task_id, outcome.attempt)
        if self.work.take_out(held, self._now) is None:
            return
        self._progress.pop(held, None)
        doom = self._doomed.pop(held, None)
        if isinstance(outcome, Finished):
            self.work.took(outcome.usage.duration_s)
        elif doom is not None and outcome.cause == "canceled":
            self.reporter.credit = 0  # What room was told of was this attempt's: tell it anew.
            if doom != "canceled":
                self._return(held, doom, started=True)
            return
        elif self.leaving in SHARED_FATES and outcome.exit_signal in JOB_SIGNALS:
            # A batch system signals every process of the job: the task did not crash.
            self._return(held, self.leaving, started=True)
            return
        self.outbox.add(outcome, self._now)

    def _unstarted(self, slot: int, attempts: tuple[Held, ...]) -> None:
        self.work.recalled(slot, attempts, self._now)
        for held in attempts:
            doom = self._doomed.pop(held, None)
            if doom is None and self.leaving is not None:
                doom = self.leaving
            dropped = doom is not None and self.work.take_out(held, self._now) is not None
            if dropped and doom is not None and doom != "canceled":
                self._return(held, doom, started=False)

    def _slot_broken(self, slot: int, error: str) -> None:
        pipeline = self.work.slots[slot]
        pipeline.ready, pipeline.broken = False, True
        self._goodbye = f"the program cannot be loaded: {error}"[: limits.WORD_CHARS_MAX]
        if self.work.usable_slots:
            return
        if not self._welcomed:
            self._exit(78, f"The program cannot be loaded here: {error}")
            return
        self._leave_code = 78
        self._leave("unfit", at_once=True)

    def _doom(self, held: Held, why: str) -> None:
        """Stop an attempt: hand it back for `why`, or drop it ("canceled")."""
        if held not in self.work:
            return
        slot = self.work.slot_of(held)
        if slot is None:
            self.work.take_out(held, self._now)
            if why != "canceled":
                self._return(held, why, started=False)
        elif held not in self._doomed:
            self._doomed[held] = why
            self._effects.append(Kill(slot, held))

    def _return(self, held: Held, cause: str, *, started: bool) -> None:
        self.outbox.add(Returned(held.task_id, held.attempt, cause, started), self._now)

    # --- what is due --------------------------------------------------------------------------

    def _step(self) -> None:
        self._unstick()
        if self.leaving is None:
            for slot, items in self.work.feed(self._now, self._patience_s()):
                self._effects.append(Feed(slot, items))
        self._mind_idleness()
        self._mind_silence()
        if self.leaving is not None:
            self._step_out()
        if self.exited:
            return
        if self._register_at is not None and self._now >= self._register_at:
            self._send_register()
        elif self._welcomed:
            self._send_what_is_due()

    def _patience_s(self) -> float:
        return max(limits.WAIT_BEHIND_S_MIN, 3 * self.reporter.round_trip_s)

    def _unstick(self) -> None:
        recall, late = self.work.stuck(self._now, self._patience_s())
        for slot in recall:
            self.work.slots[slot].recalling = True
            self._effects.append(Recall(slot))
        for held in late:
            self._doom(held, "behind")

    def _mind_idleness(self) -> None:
        limit_s = self._idle_timeout_s
        busy = len(self.work) > 0 or not self.outbox.empty or not self._welcomed
        if busy or self.leaving is not None:
            self._idle_since = None
        elif self._idle_since is None:
            self._idle_since = self._now
        elif limit_s is not None and self._now - self._idle_since >= limit_s:
            self._goodbye = "idle"
            self._leave("draining", at_once=False)

    def _unanswered(self) -> bool:
        """The last two reports (or the Register) brought no answer."""
        if not self._welcomed:
            return True
        return (
            self.reporter.hb_seq - self.reporter.answered >= 2
            or self._listening.quiet_s(self._now) > 2 * self._heartbeat_s
        )

    def _mind_silence(self) -> None:
        if not self._unanswered():
            return
        if self._listening.wants_beacon(self._now, self._heartbeat_s):
            self._effects.append(ReadBeacon())
        quiet_s = self._listening.quiet_s(self._now)
        if quiet_s >= self._manager_timeout_s and self.leaving is None:
            self._leave("draining", at_once=False)

    def _send_what_is_due(self) -> None:
        now = self._now
        held = len(self.work)
        starving = self.work.idle_slots > 0 and not self.work.waiting
        loose, oldest = self.outbox.loose, self.outbox.oldest_loose
        flush = loose > 0 and (
            held == 0
            or starving
            or loose >= limits.ITEMS_PER_MESSAGE_MAX // 2
            or loose >= held
            or (oldest is not None and now - oldest >= FLUSH_S)
        )
        credit = self._credit()
        # More room than idle slots is no news: what the manager knows of it will do.
        wish = starving and self.reporter.credit < min(credit, self.work.idle_slots)
        beat = now - self.reporter.sent_at >= self._heartbeat_s
        since = now - self.reporter.sent_at
        news = self._progress_news and since >= limits.PROGRESS_INTERVAL_S
        gap = self._gap and since >= RESEND_S
        begun = self.work.began_after(self.reporter.sent_at)
        begun_long_ago = begun is not None and now >= begun + BEGUN_S
        if not (flush or wish or beat or news or gap or begun_long_ago):
            return
        overdue = self.outbox.overdue(self.reporter.answered, all_of_them=beat)
        fresh = overdue + self.outbox.pack()
        self._report_with(fresh, credit, beat=beat and not (flush or wish))

    def _credit(self) -> int:
        if self.leaving is not None or self.full or self.outbox.size > SETTLED_MAX:
            return 0
        capacity = self.work.usable_slots + self.work.ahead(self.reporter.round_trip_s)
        capacity = min(capacity, limits.ATTEMPTS_PER_WORKER_MAX)
        return max(0, capacity - len(self.work))

    def _report_with(self, fresh: list[Outgoing], credit: int, *, beat: bool) -> None:
        report = Report(
            self.epoch or 0,
            0,
            self.seen,
            0,
            credit,
            progress=tuple(self._progress.values()),
            gap=self._gap,
            leaving=self.leaving,
            rss_bytes=self.rss_bytes,
            load=self.load,
            time_left_s=self.time_left_s,
        )
        self._progress_news = False
        latest = self.reporter.report(self._now, report, beat=beat)
        self.outbox.sent(fresh, self.reporter.hb_seq)
        self._effects.append(Send((*self.outbox.dated(fresh), latest)))

    def _resend(self) -> None:
        """After a Welcome: everything the manager may not know, at once."""
        self.outbox.pack()
        self._report_with(self.outbox.waiting(), self._credit(), beat=False)

    def _send_register(self) -> None:
        self._register_at = self._now + self._register_pause_s
        # No longer than a heartbeat: a restarted manager waits a lease and a heartbeat for us.
        most = max(limits.REGISTER_RETRY_S, min(limits.REGISTER_RETRY_S_MAX, self._heartbeat_s))
        self._register_pause_s = min(most, 2 * self._register_pause_s)
        self._effects.append(Send((self.reporter.register(self.identity, self.transport),)))

    # --- leaving ------------------------------------------------------------------------------

    def _leave(self, cause: str, *, at_once: bool, grace_s: float | None = None) -> None:
        """Start nothing more, hand back what waits; what runs may finish unless `at_once`."""
        if self.leaving is None:
            self.leaving = cause
            for held in self.work.behind():
                self._doom(held, cause)
            if grace_s is not None and not at_once:
                self._kill_at = self._now + grace_s
        if at_once:
            self._kill_at = self._now
            if self._farewell_at is None:
                self._farewell_at = self._now + FAREWELL_S

    def _step_out(self) -> None:
        if self._kill_at is not None and self._now >= self._kill_at:
            self._kill_at = None
            for held in self.work.running():
                self._doom(held, self.leaving or "draining")
        late = self._farewell_at is not None and self._now >= self._farewell_at
        if len(self.work) and not late:
            return
        for held in self.work.running():
            # Its child cannot be ended; it goes with this worker, or with its node.
            self.work.take_out(held, self._now)
            self._return(held, self.leaving or "draining", started=True)
        if self._farewell_at is None:
            self._farewell_at = self._now + FAREWELL_S
        if self.outbox.empty:
            if self._welcomed:
                self._farewell = Outgoing(self.outbox.next_counter(), ShutdownAck(self._why()))
                self._effects.append(Send((self._farewell,)))
            self._exit(self._leave_code, f"left: {self._why()}")
        elif late:
            self._spool()
            self._exit(self._leave_code, "left without an answer; outcomes are in the spool")

    def _spool(self) -> None:
        self.outbox.pack()
        if self.outbox.packed:
            self._effects.append(Spool())

    def _why(self) -> str:
        return self._goodbye or self.leaving or "draining"

    def _exit(self, code: int, reason: str) -> None:
        self.exited = True
        self._effects.append(Exit(code, reason))
