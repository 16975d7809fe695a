"""The worker's loop: session, reactor, slots and transport, wired together.

Rules
-----
* The agent never runs user code, so its heartbeats never stop.
* All decisions are the pure session's; here its effects are carried out and its events made.
* It says what it does on stderr, a line per event: a launched worker's stderr is its log file.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jobflow_worker import collector, limits, processes
from jobflow_worker.keyfile import CurveKeys, KeyFileError, worker_keys
from jobflow_worker.messages import WORKER, Envelope, FromManager
from jobflow_worker.outbox import Outgoing
from jobflow_worker.programref import ProgramRef
from jobflow_worker.reactor import Reactor
from jobflow_worker.record import Record
from jobflow_worker.session import JOB_SIGNALS, Session
from jobflow_worker.sessionfiles import Beacon, SessionPaths, read_beacon
from jobflow_worker.slotevents import Settled, Unstarted
from jobflow_worker.slots import ChildSetup, Slot, close_all
from jobflow_worker.transport.auto import open_link
from jobflow_worker.transport.base import Link
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

#: What each signal means to a worker.
SIGNALS = {
    signal.SIGTERM: "preempted",
    signal.SIGINT: "draining",
    signal.SIGHUP: "draining",
    signal.SIGUSR1: "walltime",
    signal.SIGUSR2: "walltime",
}
#: How much later than its child an agent may get the signal that its whole job is sent.
SHARED_FATE_S = 0.3
#: How often the agent measures itself for its reports.
MEASURE_S = 5.0
#: A manager that refuses our key is asked after this often, through its beacon.
REFUSAL_LOOK_S = 1.0
#: Without a beacon to ask, a refusal is believed when it has lasted this long.
REFUSAL_PATIENCE_S = 60.0
#: A child that ends on being told needs this long at most; then it is killed.
CLOSE_GRACE_S = 1.0


class Options(Record):
    """What the command line and the session directory say. `paths` None: no session directory.

    `end_at`: when the batch job's time limit ends it (wall clock), if that is known.
    """

    worker_id: str
    identity: Identity
    mode: str
    program: ProgramRef
    program_args: dict[str, Any]
    cwd: str
    beacon: Beacon
    paths: SessionPaths | None = None
    manager_timeout_s: float = 900.0
    umask: int | None = None
    end_at: float | None = None
    keys: CurveKeys | None = None
    key_file: Path | None = None


def _was_signalled(event: Event) -> bool:
    return isinstance(event, Settled) and (
        getattr(event.outcome, "exit_signal", None) in JOB_SIGNALS
    )


class Agent:
    """One worker process."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._session = Session(options.identity, manager_timeout_s=options.manager_timeout_s)
        self._reactor = Reactor(zmq_sockets=options.mode != "fs")
        self._scratch = _scratch_directory()
        results = options.paths.results if options.paths is not None else self._scratch
        setup = ChildSetup(
            program=options.program,
            args=options.program_args,
            cwd=options.cwd,
            results_dir=results,
            scratch_dir=self._scratch,
            worker_id=options.worker_id,
            label=f"task of {options.worker_id}",
            umask=options.umask,
        )
        self._slots = [Slot(number, setup) for number in range(options.identity.slots)]
        self._link: Link | None = None
        self._exit: Exit | None = None
        self._measured_at = float("-inf")
        self._server_public = options.beacon.server_public
        self._refused_since: float | None = None
        self._refused_by: Beacon | None = None
        self._refusal_look_at = float("inf")

    def run(self) -> int:
        """Work until there is a reason to leave; returns the exit code."""
        options = self._options
        processes.become_subreaper()
        collector.calm()
        self._reactor.watch_signals(SIGNALS)
        self._say(f"worker {options.worker_id} pid {os.getpid()} on {options.identity.host}")
        try:
            for slot in self._slots:
                slot.start()
            self._link = open_link(
                options.mode,
                options.paths,
                options.beacon,
                options.worker_id,
                time.monotonic,
                options.keys,
            )
            _import_for_the_end()
            while self._exit is None:
                self._pass()
        finally:
            self._close()
        self._say(self._exit.reason)
        return self._exit.code

    def _pass(self) -> None:
        """One pass of the loop: wait, take events in, carry effects out."""
        assert self._link is not None
        session, link = self._session, self._link
        if (rest_s := session.work.rest_s()) > 0:
            # Not even for the manager: what it sends meanwhile can wait for as long.
            self._reactor.watch({})
            self._reactor.wait(time.monotonic() + rest_s)
        interest = dict.fromkeys(link.sockets(), select.POLLIN)
        interest.update(
            (slot.fileno(), select.POLLIN) for slot in self._slots if slot.fileno() >= 0
        )
        self._reactor.watch(interest)
        ready = self._reactor.wait(self._until(time.monotonic()))
        events: list[Event] = [
            Leave(SIGNALS[signal.Signals(number)]) for number in self._reactor.signals()
        ]
        now = time.monotonic()
        for slot in self._slots:
            if slot.fileno() in ready:
                events.extend(slot.drain())
            due = slot.next_check(now)
            if due is not None and due <= now:
                events.extend(slot.check(now))
        if session.leaving is None and any(_was_signalled(event) for event in events):
            events = [*self._own_signal(), *events]
        poll_at = link.next_poll(now)
        if any(one in ready for one in link.sockets()) or (poll_at is not None and poll_at <= now):
            events.extend(self._receive())
        self._mind_refusal(now)
        self._measure(now)
        session.transport = link.kind
        session.full = link.full
        session.time_left_s = self._time_left()
        while True:
            more: list[Event] = []
            for effect in session.handle(now, events):
                more.extend(self._perform(effect))
            if not more:
                break
            events = more

    def _own_signal(self) -> list[Event]:
        """A child was ended by a signal that batch systems send to whole jobs: was ours sent, too?

        It may come a moment after the child's, so it is waited for.
        """
        self._reactor.watch({})
        self._reactor.wait(time.monotonic() + SHARED_FATE_S)
        return [Leave(SIGNALS[signal.Signals(number)]) for number in self._reactor.signals()]

    def _time_left(self) -> float | None:
        end_at = self._options.end_at
        return None if end_at is None else max(0.0, end_at - time.time())

    def _until(self, now: float) -> float | None:
        assert self._link is not None
        times = [
            self._session.next_deadline(),
            self._link.next_poll(now),
            self._refusal_look_at if self._link.refused else None,
        ]
        times.extend(slot.next_check(now) for slot in self._slots)
        return min((at for at in times if at is not None), default=None)

    def _receive(self) -> list[FromManager]:
        assert self._link is not None
        inbox = self._link.receive()
        for note in self._link.notes:
            self._say(note)
        self._link.notes.clear()
        for complaint in inbox.complaints:
            self._say(f"ignored a message of the manager: {complaint}")
        return [one.message for one in inbox.envelopes]  # type: ignore[misc]

    # --- keys -----------------------------------------------------------------------------------

    def _mind_refusal(self, now: float) -> None:
        """Leave once it is certain that the manager itself refuses this worker's key.

        Whoever listens on a dead manager's port can say so, too. So it counts only if the beacon,
        which nobody else can write, has moved meanwhile and still names that address and key.
        """
        assert self._link is not None
        if not self._link.refused:
            self._refused_since = self._refused_by = None
            self._refusal_look_at = float("inf")
            return
        if self._refused_since is None:
            self._refused_since = self._refusal_look_at = now
        if now < self._refusal_look_at:
            return
        self._refusal_look_at = now + REFUSAL_LOOK_S
        if self._options.paths is None:
            if now - self._refused_since >= REFUSAL_PATIENCE_S:
                self._leave_refused()
            return
        beacon = read_beacon(self._options.paths.beacon)
        if beacon is None:
            return
        self._follow_key(beacon)
        before = self._refused_by
        if before is None or _address(beacon) != _address(before):
            self._refused_by = beacon
            self._link.reconnect(beacon.endpoints)
        elif beacon.n > before.n:
            self._leave_refused()

    def _leave_refused(self) -> None:
        """Nobody takes the outcomes by this way; the session directory may still."""
        if not self._session.outbox.empty:
            self._session.outbox.pack()
            self._spool()
        reason = "the manager refuses this worker's key: its launch is over for the manager"
        self._exit = Exit(77, reason)

    def _follow_key(self, beacon: Beacon) -> None:
        """Take other keys if the manager has another one now. The next `reconnect` uses them."""
        assert self._link is not None
        options = self._options
        if beacon.server_public == self._server_public or options.paths is None:
            return
        try:
            keys = worker_keys(options.paths, beacon, options.identity.launch_id, options.key_file)
        except KeyFileError as error:
            self._say(f"the manager has another key now, and {error}")
            return
        self._server_public = beacon.server_public
        self._say(
            "the manager encrypts with another key now"
            if keys is not None
            else "the manager does not encrypt any more: it was started with --insecure-plaintext"
        )
        self._link.rekey(keys)

    # --- effects --------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> Sequence[Event]:
        """Carry one effect out; returns the events that it brings at once."""
        match effect:
            case Send(fresh):
                assert self._link is not None
                self._link.send(self._sealed(fresh), self._everything)
            case Feed(slot, items):
                self._slots[slot].feed(items)
            case Recall(slot):
                return [Unstarted(slot, self._slots[slot].recall())]
            case Kill(slot, held):
                self._slots[slot].kill(held.task_id, held.attempt, "canceled")
                return self._slots[slot].check(time.monotonic())
            case ReadBeacon():
                return [self._read_beacon()]
            case Reconnect(endpoints):
                assert self._link is not None
                self._link.reconnect(endpoints)
            case Spool():
                self._spool()
            case Exit():
                self._exit = effect
        return ()

    def _sealed(self, outgoing: Sequence[Outgoing]) -> list[Envelope]:
        ts = time.time()
        return [
            Envelope(WORKER, self._options.worker_id, "", one.counter, ts, one.message)
            for one in outgoing
        ]

    def _everything(self) -> list[Envelope]:
        return self._sealed(self._session.everything())

    def _read_beacon(self) -> BeaconSeen | NoBeacon:
        if self._options.paths is None:
            return NoBeacon()
        beacon = read_beacon(self._options.paths.beacon)
        if beacon is None:
            return NoBeacon()
        self._follow_key(beacon)
        return BeaconSeen(beacon.epoch, beacon.n, beacon.state, beacon.endpoints)

    def _spool(self) -> None:
        if self._options.paths is None:
            self._say("outcomes are lost: there is no session directory to leave them in")
            return
        from jobflow_worker.transport.fs import write_spool

        try:
            write_spool(
                self._options.paths,
                self._options.worker_id,
                self._sealed(self._session.outbox.waiting()),
            )
        except OSError as error:
            self._say(f"outcomes could not be spooled: {error}")

    # --- around ---------------------------------------------------------------------------------

    def _measure(self, now: float) -> None:
        if now - self._measured_at < MEASURE_S:
            return
        self._measured_at = now
        self._session.rss_bytes = processes.tree_memory(os.getpid(), 1 << 62)
        self._session.load = os.getloadavg()[0]

    def _close(self) -> None:
        close_all(self._slots, CLOSE_GRACE_S)
        if self._link is not None:
            self._link.close(limits.REGISTER_RETRY_S)
        self._reactor.close()
        import shutil

        shutil.rmtree(self._scratch, ignore_errors=True)

    def _say(self, text: str) -> None:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        # A peer's words may end here: they must not speak to the terminal, nor forge a line.
        words = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        sys.stderr.write(f"{stamp} {words}\n")
        sys.stderr.flush()


def _import_for_the_end() -> None:
    """What is used late, loaded while the manager is being connected to and the child starts.

    Not before, because it is not needed for that; and not when it is used, because outcomes must
    not be lost for a file server that serves modules no more.
    """
    import shutil  # noqa: F401

    import jobflow_worker.transport.fs  # noqa: F401


def _scratch_directory() -> Path:
    """A new private directory where `tempfile` would make it, without all that this imports."""
    name = f"jobflow-worker-{os.urandom(8).hex()}"
    named = (os.environ.get(one) for one in ("TMPDIR", "TEMP", "TMP"))
    problem: OSError | None = None
    for folder in (*named, "/tmp", "/var/tmp"):
        if folder:
            made = Path(os.path.abspath(folder), name)
            try:
                made.mkdir(mode=0o700)
            except OSError as error:
                problem = problem or error
            else:
                return made
    assert problem is not None
    raise problem


def _address(beacon: Beacon) -> tuple[object, ...]:
    """Who serves where: what a refusal is about."""
    return (beacon.epoch, beacon.state, beacon.endpoints, beacon.server_public)
