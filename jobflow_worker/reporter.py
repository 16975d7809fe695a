"""Builds a worker's reports: the whole truth, or "the same as last time".

Pure. Also keeps what only reports tell: whether the manager answers, and how fast.
"""

from __future__ import annotations

from jobflow_worker import limits
from jobflow_worker.messages import Ack, Heartbeat, Register, Report, RequestWork
from jobflow_worker.outbox import Outbox, Outgoing
from jobflow_worker.record import replace
from jobflow_worker.vocabulary import BeaconSeen, Identity
from jobflow_worker.workload import Workload

#: The weight of a new round trip in the running mean.
TRIP_WEIGHT = 0.2
#: What a round trip is taken for before the first was measured.
TRIP_GUESS_S = 0.005
#: Lists of more than this many attempts are long ...
BRIEF_ITEMS = 32
#: ... and are told at most once in this many seconds, and with every heartbeat: a difference that
#: only they can show is mended that much later, and neither side spends its time on them.
BRIEF_S = 1.0


class Reporter:
    """The latest report (or Register) and what is known from the answers to them."""

    def __init__(self, outbox: Outbox, work: Workload) -> None:
        self._outbox = outbox
        self._work = work
        self.latest: Outgoing | None = None
        self.hb_seq = 0
        self.answered = 0
        self.sent_at = float("-inf")
        self.credit = -1
        self.round_trip_s = TRIP_GUESS_S
        self._full: Report | None = None
        self._full_acked = False
        self._full_at = float("-inf")

    def forget(self) -> None:
        """The manager knows nothing of earlier reports: the next one is a full one."""
        self._full = None
        self.credit = -1

    def on_ack(self, now: float, ack: Ack) -> None:
        """Learn from an answer."""
        beat = self.latest is not None and isinstance(self.latest.message, Heartbeat)
        # Nobody hurries to fetch the answer to a mere heartbeat, so its trip tells nothing.
        if ack.hb_seq == self.hb_seq > self.answered and not beat:
            self.round_trip_s += TRIP_WEIGHT * (now - self.sent_at - self.round_trip_s)
        self.answered = max(self.answered, min(ack.hb_seq, self.hb_seq))
        if self._full is not None and ack.hb_seq >= self._full.hb_seq:
            self._full_acked = True
        if ack.want_full:
            self.forget()

    def report(self, now: float, report: Report, *, beat: bool) -> Outgoing:
        """Complete and remember a report; `beat`: it is sent because it is time."""
        self.hb_seq += 1
        self.credit = report.credit
        self.sent_at = now
        report = replace(report, hb_seq=self.hb_seq, floor=self._outbox.floor)
        if beat or report.gap or report.leaving is not None or not self._may_be_brief(now):
            report = self._with_lists(now, report)
        else:
            report = replace(report, progress=(), brief=True)
        message = Heartbeat(report) if beat else RequestWork(report)
        self.latest = Outgoing(self._outbox.next_counter(), message)
        return self.latest

    def _may_be_brief(self, now: float) -> bool:
        long = len(self._work) + self._outbox.size > BRIEF_ITEMS
        return long and self._full is not None and now - self._full_at < BRIEF_S

    def _with_lists(self, now: float, report: Report) -> Report:
        report = replace(
            report,
            running=tuple(self._work.running()),
            waiting=tuple(self._work.behind()),
            settled=tuple(self._outbox.settled()),
        )
        if self._full is not None and self._full_acked and _same_lists(self._full, report):
            return replace(report, running=(), waiting=(), settled=(), progress=(), same=True)
        self._full, self._full_at = report, now
        self._full_acked = False
        return report

    def register(self, identity: Identity, transport: str) -> Outgoing:
        """Introduce the worker, with what it holds."""
        message = Register(
            limits.PROTOCOL_MIN,
            limits.PROTOCOL_MAX,
            identity.version,
            identity.python,
            identity.host,
            identity.pid,
            identity.slots,
            transport,
            identity.program_hash,
            self._outbox.floor,
            identity.launch_id,
            identity.batch_job_id,
            (*self._work.running(), *self._work.behind()),
        )
        self.latest = Outgoing(self._outbox.next_counter(), message)
        return self.latest


class Listening:
    """How long neither a message of the manager came nor its beacon moved."""

    def __init__(self) -> None:
        self._heard_at: float | None = None
        self._asked_at = float("-inf")
        self._beacon: tuple[int, int] | None = None

    def begin(self, now: float) -> None:
        """Silence is counted from the first moment."""
        if self._heard_at is None:
            self._heard_at = now

    def heard(self, now: float) -> None:
        self._heard_at = now

    def quiet_s(self, now: float) -> float:
        return now - (self._heard_at if self._heard_at is not None else now)

    def wants_beacon(self, now: float, heartbeat_s: float) -> bool:
        """True if it is time to look at the beacon; asking counts as looking."""
        pause_s = min(heartbeat_s, 2.0) if self._beacon is None else heartbeat_s / 2
        if now - self._asked_at < pause_s or self.quiet_s(now) <= 1.0:
            return False
        self._asked_at = now
        return True

    def on_beacon(self, now: float, seen: BeaconSeen) -> tuple[bool, bool]:
        """Has it moved, and is it another life of the manager? An open one that moves is heard."""
        before, self._beacon = self._beacon, (seen.epoch, seen.n)
        moved = before != self._beacon
        if moved and seen.state == "open":
            self._heard_at = now
        return moved, before is not None and seen.epoch > before[0]


def _same_lists(one: Report, other: Report) -> bool:
    return (
        one.running == other.running
        and one.waiting == other.waiting
        and one.settled == other.settled
        and one.progress == other.progress
    )
