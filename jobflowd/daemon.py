"""The daemon: wires everything together, and contains the loop.

One process, one thread. A pass of the loop waits, collects events from every source (operators
before workers), and gives them to one turn: look-ups, decision, commit, effects, in that order.
Nothing is visible to anybody before it is durable.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence

import psutil
import zmq

from jobflow_worker import __version__
from jobflow_worker.program import describe, program_hash
from jobflow_worker.reactor import Reactor
from jobflow_worker.sessionfiles import Beacon, write_beacon
from jobflowd import console, detach, logs, notify, queries, views
from jobflowd import events as ev
from jobflowd.admin import AdminServer, Request
from jobflowd.api import READS, socket_paths
from jobflowd.book import Settings
from jobflowd.census import Census
from jobflowd.config import StartConfig, terms
from jobflowd.coordinator import Coordinator
from jobflowd.dbfile import DiskFull, StoreBroken
from jobflowd.effects import Post
from jobflowd.generate import GeneratorProcess
from jobflowd.mailboxes import MailboxClient
from jobflowd.model import Changes, Snapshot
from jobflowd.performer import Carrier, Performer
from jobflowd.processes import LocalDesk
from jobflowd.reading import Reader
from jobflowd.recovery import Recovery
from jobflowd.sessiondir import Session, open_session
from jobflowd.store import Store
from jobflowd.telemetry import FilePublisher
from jobflowd.zmqserver import ZmqServer

_log = logs.get("jobflowd")

#: Frames of workers taken in one pass: bounds the turn, and so how long an operator waits.
FRAMES_PER_PASS = 256
#: Batches of new tasks in one pass, for the same reason.
BATCHES_PER_PASS = 4
#: How often the owner record is refreshed (RELIABILITY D12).
OWNER_S = 30.0
#: How long local workers may take to end after the run has.
WORKER_EXIT_S = 3.0


def run(config: StartConfig) -> int:
    """Run a session until its end; returns the exit code. What `jobflowd start` calls."""
    umask = os.umask(0o077)
    session = open_session(config)
    try:
        daemon = Daemon(session, umask)
        try:
            daemon.open()
            return daemon.loop()
        except StoreBroken as error:
            # No clean end: SQLite would let a later write succeed on pages that were never stored.
            _log.error("store_broken", text=str(error))
            detach.announce_failure(str(error), error.exit_code)
            sys.stderr.write(f"jobflowd: error: {error}\n")
            sys.stderr.flush()
            os._exit(error.exit_code)
        finally:
            daemon.close()
    finally:
        session.close()


class Daemon:
    """One session being served. `open`, `loop`, `close`."""

    def __init__(self, session: Session, umask: int) -> None:
        config = session.config
        self._session = session
        self._config = config
        self._paths = session.paths
        self._log_files = logs.start(
            session.log_path,
            level=config.log_level,
            form=config.log_format,
            console=not detach.detached(),
        )
        self._store = Store(session.db_path)
        self._reactor = Reactor()
        self._admin = AdminServer(*socket_paths(session.paths.root))
        self._generator: GeneratorProcess | None = GeneratorProcess(session.paths.root, umask=umask)
        self._zmq: ZmqServer | None = None
        self._mail: MailboxClient | None = None
        self._desk: LocalDesk | None = None
        if config.launcher == "multiprocess":
            self._desk = LocalDesk(
                session.paths.root,
                start_dir=session.record.cwd,
                slots=config.slots,
                mode=config.mode,
                umask=umask,
            )
        self._progress = console.Progress() if not detach.detached() else None
        self._telemetry: FilePublisher | None = None
        self._hash = session.program_hash
        self._pending: list[ev.Event] = []
        self._signals = 0
        self._exit_code: int | None = None
        self._beacon_n = 0
        self._beacon_at = self._owner_at = 0.0
        self._watchdog_s = notify.watchdog_interval_s()
        self._watchdog_at = 0.0
        self._announced = False
        self._transports_ready = False
        self._spools: list[str] = []

    # --- opening ----------------------------------------------------------------------------

    def open(self) -> None:
        """Open the store, bind, start helpers, and say that the daemon is ready."""
        session, config = self._session, self._config
        for warning in session.warnings:
            _log.warning("session", text=warning)
        self._store.open()
        snapshot = self._store.begin_epoch(
            "requeue" if config.recovery == "requeue" else "adopt", wall=time.time()
        )
        self._settings = self._make_settings(snapshot)
        self._epoch = int(snapshot.meta["epoch"])
        self._coordinator = Coordinator(self._settings, snapshot, self._epoch)
        self._reactor.watch_signals((signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT))
        self._admin.open()
        carriers = self._bind(snapshot)
        if config.telemetry_mode == "file":
            self._telemetry = FilePublisher(
                config.telemetry_file or session.paths.snapshot,
                config.telemetry_queue_size,
                config.telemetry_refresh,
                session=session.name,
                epoch=self._epoch,
            )
        assert self._generator is not None
        self._performer = Performer(
            self._store, carriers, self._admin, self._desk, self._generator.kill
        )
        self._reader = Reader(self._store, self._admin)
        self._recovery = Recovery(self._store, self._settings, self._paths.root)
        self._generator.start()
        self._pending.append(ev.ProgramChanged(self._hash))
        self._put_beacon("open")
        _log.info(
            "started",
            session=session.name,
            pid=os.getpid(),
            version=__version__,
            epoch=self._epoch,
            dir=self._paths.root,
            program=describe(session.program),
            endpoints=",".join(self._endpoints),
        )

    def _make_settings(self, snapshot: Snapshot) -> Settings:
        config, session = self._config, self._session
        uid = snapshot.meta.get("uid")
        if uid is None:
            uid = os.urandom(3).hex()
            self._store.commit(Changes(meta={"uid": uid}))
        local = config.launcher == "multiprocess"
        return Settings(
            session=session.name,
            program=describe(session.program),
            launcher=config.launcher,
            launch_prefix=f"jf-{uid}",
            workers=config.workers,
            slots=config.slots,
            terms={kind: _term(config, kind, session.network_fs) for kind in ("zmq", "fs")},
            worker_timeout_s=config.worker_timeout,
            max_losses=config.max_losses,
            max_deliveries=config.max_deliveries,
            retry_backoff_s=config.retry_backoff,
            task_timeout_s=config.task_timeout,
            task_memory=config.task_memory,
            max_inflight_per_worker=config.max_inflight_per_worker,
            grace_s=config.shutdown_grace_period,
            idle_timeout_s=config.worker_idle_timeout,
            manager_timeout_s=60.0 * config.worker_manager_timeout_minutes,
            launch_poll_s=min(5.0, config.launch_poll_interval)
            if local
            else config.launch_poll_interval,
            launch_stale_s=config.launch_stale_timeout,
            stay=config.stay,
            on_spec_change=config.on_spec_change,
        )

    def _bind(self, snapshot: Snapshot) -> dict[str, Carrier]:
        """Start the transports that the mode asks for; the port of before is kept if it is free."""
        config = self._config
        carriers: dict[str, Carrier] = {}
        self._endpoints: tuple[str, ...] = ()
        if config.mode in ("zmq", "auto"):
            port = config.port or int(snapshot.meta.get("port", 0))
            self._zmq = ZmqServer(config.bind_host, port)
            self._zmq.bind()
            self._store.commit(Changes(meta={"port": self._zmq.port}))
            hosts = [config.manager_host] if config.manager_host else _hosts(config.bind_host)
            self._endpoints = tuple(self._zmq.endpoints(hosts))
            carriers["zmq"] = Carrier(self._zmq.send, self._zmq.forget)
        # Mailboxes are served in every mode: any worker may leave its outbox in the spool.
        self._mail = MailboxClient(self._paths, self._settings.terms["fs"][0])
        self._mail.start()
        carriers["fs"] = Carrier(self._mail.post, self._mail.forget)
        return carriers

    # --- the loop ---------------------------------------------------------------------------

    def loop(self) -> int:
        """Serve until the run is over; returns the exit code."""
        while self._exit_code is None:
            self._pass()
        code = self._exit_code
        self._say_goodbye(code)
        return code

    def _pass(self) -> None:
        now = time.monotonic()
        self._reactor.watch(self._interest())
        ready = self._reactor.wait(now if self._pending else self._until(now))
        now = time.monotonic()
        events, self._pending = self._pending, []
        events += self._from_signals()
        reads = self._from_operators(ready, now, events)
        self._from_processes(ready, now, events)
        self._from_workers(ready, events)
        deadline = self._coordinator.next_deadline()
        if events or (deadline is not None and deadline <= now):
            self._turn(events)
        for request in reads:
            self._reader.answer(request, self._coordinator, self._census)
        self._keep_house(now)
        if self._coordinator.finished is not None and self._exit_code is None:
            self._exit_code = self._coordinator.finished

    def _interest(self) -> dict[object, int]:
        interest: dict[object, int] = {}
        interest.update(self._admin.interest())
        if self._zmq is not None:
            interest[self._zmq.socket] = zmq.POLLIN
        if self._mail is not None:
            interest[self._mail.fileno()] = zmq.POLLIN
        if self._desk is not None:
            interest[self._desk.wake_fd()] = zmq.POLLIN
        if self._generator is not None:
            interest[self._generator.fileno()] = zmq.POLLIN
        return interest

    def _until(self, now: float) -> float:
        times = [self._beacon_at, self._owner_at, self._admin.next_deadline(now)]
        optional = [
            self._coordinator.next_deadline(),
            self._recovery.retry_at,
            self._desk.next_deadline() if self._desk is not None else None,
            self._generator.next_deadline() if self._generator is not None else None,
            self._mail.next_deadline() if self._mail is not None else None,
            self._telemetry.next_at if self._telemetry is not None else None,
            self._watchdog_at if self._watchdog_s is not None else None,
        ]
        times += [at for at in optional if at is not None]
        return min(times)

    def _turn(self, events: Sequence[ev.Event]) -> None:
        """Look up, decide, commit, perform; and what to do if that is not possible."""
        now, wall = time.monotonic(), time.time()
        if self._recovery.degraded:
            self._recovery.keep(events)
            self._answer_while_degraded(events)
            return
        coordinator = self._coordinator
        try:
            facts = self._store.lookup(coordinator.questions(now, events))
            turn = coordinator.turn(now, wall, events, facts)
        except Exception as error:
            self._survive(events, error)
            return
        try:
            self._store.commit(turn.changes)
        except DiskFull as error:
            self._recovery.degrade(events, str(error))
            _log.error("disk_full", text=str(error))
            return
        for story in turn.changes.stories:
            _log.write(
                story.level,
                story.kind,
                task=story.task_id,
                worker=story.worker_id,
                launch=story.launch_id,
                text=story.text,
            )
        self._pending += self._performer.perform(turn.effects)
        while self._spools and self._mail is not None:
            self._mail.spool_done(self._spools.pop())

    def _survive(self, events: Sequence[ev.Event], error: Exception) -> None:
        """A bug of ours: keep the evidence, begin anew from the store, go on without the cause."""
        _log.exception("turn_failed", error=f"{type(error).__name__}: {error}")
        self._recovery.save(events, error)
        coordinator, turns, dropped = self._recovery.replay(events, self._coordinator)
        self._restart(coordinator)
        for effects in turns:
            self._pending += self._performer.perform(effects)
        if dropped or self._recovery.too_many:
            _log.error("gave_up", text="an event that cannot be refused broke the coordinator")
            self._exit_code = 70

    def _restart(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._epoch = coordinator.book.epoch
        self._put_beacon("open")

    def _answer_while_degraded(self, events: Sequence[ev.Event]) -> None:
        """Workers are answered, with nothing acknowledged; changing requests are refused."""
        effects = self._recovery.bare_answers(events, self._epoch)
        self._performer.perform([one for one in effects if isinstance(one, Post)])
        for event in events:
            if isinstance(event, ev.Asked):
                self._admin.refuse(
                    event.ticket,
                    "degraded",
                    f"The database cannot be written: {self._recovery.degraded}",
                    "Make room; the daemon tries again every second.",
                )

    # --- sources of events --------------------------------------------------------------------

    def _from_signals(self) -> list[ev.Event]:
        events: list[ev.Event] = []
        for number in self._reactor.signals():
            if number == signal.SIGHUP:
                self._log_files.reopen()
            elif number == signal.SIGQUIT:
                _log.info("stacks", text="SIGQUIT: nothing is stuck while this line is written")
            else:
                events.append(self._stop_by(signal.Signals(number)))
        return events

    def _stop_by(self, number: signal.Signals) -> ev.StopAsked:
        self._signals += 1
        detaching = number is signal.SIGTERM and self._config.on_sigterm == "detach"
        if self._signals == 1:
            notify.stopping(number.name)
            if not detaching:
                self._tell(
                    f"{number.name}: waiting up to {self._settings.grace_s:g} s for running tasks; "
                    "once more ends them now."
                )
            return ev.StopAsked(number.name, detach=detaching)
        self._exit_code = 128 + number
        return ev.StopAsked(f"second signal, {number.name}", now=True)

    def _from_operators(
        self, ready: dict[object, int], now: float, events: list[ev.Event]
    ) -> list[Request]:
        """Changing requests become events; reading ones are answered after the turn."""
        fds = [one for one in ready if isinstance(one, int)]
        reads = []
        for request in self._admin.service(fds, now):
            if request.cmd in READS:
                reads.append(request)
                continue
            _log.info("asked", cmd=request.cmd, args=request.args, pid=request.pid, uid=request.uid)
            args = self._expanded(request)
            events.append(ev.Asked(request.ticket, request.cmd, args))
        return reads

    def _expanded(self, request: Request) -> dict[str, object]:
        """`cancel --all` and `retry --failed` name their tasks here, page by page."""
        args = dict(request.args)
        if request.cmd == "cancel" and args.pop("all", False):
            args["task_ids"] = self._ids_in("queued", "assigned", "running")
        elif request.cmd == "retry" and args.pop("failed", False):
            args["task_ids"] = self._ids_in("failed")
        return args

    def _ids_in(self, *states: str) -> list[str]:
        found: list[str] = []
        for state in states:
            after: str | None = None
            while True:
                page, after = queries.task_page(self._store, after, 1000, state)
                found += [row["task_id"] for row in page]
                if after is None:
                    break
        return found

    def _from_processes(self, ready: dict[object, int], now: float, events: list[ev.Event]) -> None:
        desk, generator = self._desk, self._generator
        if desk is not None:
            due = desk.next_deadline()
            if desk.wake_fd() in ready or (due is not None and due <= now):
                desk.tick(now)
                events += desk.reap()
        if generator is not None:
            generator.tick(now)
            events += generator.receive(BATCHES_PER_PASS)
            if generator.pid is None:
                generator.close()
                self._generator = None

    def _from_workers(self, ready: dict[object, int], events: list[ev.Event]) -> None:
        complaints: list[str] = []
        if self._zmq is not None:
            received = self._zmq.receive(FRAMES_PER_PASS)
            complaints += received.complaints
            for envelope, key in received.items:
                self._note_program(envelope.message)
                events.append(
                    ev.Heard(envelope.sender, envelope.counter, "zmq", envelope.message, key)  # type: ignore[arg-type]
                )
            if received.read_at is not None and (events or self._lease_due()):
                events.append(ev.MailRead(received.read_at))
        if self._mail is not None:
            complaints += self._from_mailboxes(self._mail, events)
        for complaint in complaints:
            _log.repeated("bad_message", key=complaint[:40], text=complaint)

    def _from_mailboxes(self, client: MailboxClient, events: list[ev.Event]) -> list[str]:
        complaints: list[str] = []
        for mail in client.receive():
            complaints += mail.complaints
            for envelope in mail.envelopes:
                self._note_program(envelope.message)
                events.append(
                    ev.Heard(
                        envelope.sender,
                        envelope.counter,
                        "fs",
                        envelope.message,  # type: ignore[arg-type]
                        spooled=mail.spooled,
                    )
                )
            if mail.spooled:
                self._spools.append(mail.worker_id)
            if mail.read_at is not None:
                events.append(ev.MailRead(mail.read_at, mail.worker_id))
        if client.spools_read and not self._transports_ready:
            self._transports_ready = True
            events.append(ev.TransportsReady())
        return complaints

    def _lease_due(self) -> bool:
        deadline = self._coordinator.next_deadline()
        return deadline is not None and deadline <= time.monotonic()

    def _note_program(self, message: object) -> None:
        """A worker of another program text: has ours changed since we looked?"""
        theirs = getattr(message, "program_hash", None)
        if theirs is not None and theirs != self._hash:
            self._look_at_program()

    def _look_at_program(self) -> None:
        try:
            found = program_hash(self._session.program)
        except Exception as error:
            _log.repeated("program_unreadable", text=str(error))
            return
        if found != self._hash:
            self._hash = found
            self._pending.append(ev.ProgramChanged(found))

    # --- housekeeping -------------------------------------------------------------------------

    def _keep_house(self, now: float) -> None:
        if now >= self._beacon_at:
            self._look_at_program()
            self._put_beacon("open")
        if now >= self._owner_at:
            self._owner_at = now + OWNER_S
            self._session.refresh_owner()
        if self._watchdog_s is not None and now >= self._watchdog_at:
            self._watchdog_at = now + self._watchdog_s
            notify.watchdog()
        if self._recovery.retry_at is not None and now >= self._recovery.retry_at:
            self._try_to_recover()
        if self._telemetry is not None and self._telemetry.due(now):
            self._telemetry.offer(self._reader.snapshot(self._census()))
            self._telemetry.pump(now)
        if not self._announced and self._transports_ready:
            self._announced = True
            detach.announce_ready(
                self._session.name, self._paths.root, os.getpid(), self._session.log_path
            )
        if self._progress is not None and self._progress.due(now):
            self._progress.show(now, self._census())

    def _try_to_recover(self) -> None:
        found = self._recovery.try_again(self._coordinator)
        if found is None:
            return
        coordinator, events = found
        _log.info("disk_works_again", events=len(events))
        self._restart(coordinator)
        self._pending += events

    def _census(self) -> Census:
        return views.take_census(
            self._coordinator,
            started_at=self._session.started_at,
            degraded=self._recovery.degraded or "",
        )

    def _put_beacon(self, state: str) -> None:
        heartbeat_s = min(heartbeat for heartbeat, _ in self._settings.terms.values())
        self._beacon_n += 1
        self._beacon_at = time.monotonic() + heartbeat_s
        beacon = Beacon(
            self._epoch, state, self._endpoints, None, self._hash, heartbeat_s, self._beacon_n
        )
        try:
            write_beacon(self._paths.beacon, beacon)
        except OSError as error:
            _log.repeated("beacon_failed", text=str(error))

    def _tell(self, text: str) -> None:
        _log.info("tell", text=text)
        if self._progress is not None:
            self._progress.clear()

    # --- the end --------------------------------------------------------------------------------

    def _say_goodbye(self, code: int) -> None:
        book = self._coordinator.book
        detached = book.finishing == "detach"
        self._put_beacon("detached" if detached else "closed")
        census = self._census()
        words = {0: "done", 3: "failed", 4: "detached" if detached else "stopped"}
        state = words.get(code, "broken")
        counts = {name: getattr(census.tasks, name) for name in _COUNTED}
        try:
            self._session.write_ended(state, code, counts | {"total": census.tasks.total})
        except OSError as error:
            _log.warning("ended_not_written", text=str(error))
        if self._telemetry is not None:
            self._telemetry.close(self._reader.snapshot(census))
        _log.info("ended", code=code, state=state, **counts)
        if self._progress is not None:
            log = str(self._session.log_path)
            self._progress.say(console.summary(census, code, log, ran=book.completed))
            if book.generation_error is not None:
                self._progress.say(f"generate_tasks() failed: {book.generation_error}")

    def close(self) -> None:
        """Give everything back. Idempotent; also after a failed `open`."""
        if self._generator is not None:
            self._generator.close()
        if self._desk is not None:
            if getattr(self, "_coordinator", None) is None or (
                self._coordinator.book.finishing != "detach"
            ):
                self._wait_for_workers()
            self._desk.close()
        if self._zmq is not None:
            self._zmq.close(2.0)
        if self._mail is not None:
            self._mail.close()
        self._admin.close()
        self._store.close()
        self._reactor.close()
        self._log_files.close()

    def _wait_for_workers(self) -> None:
        """Local workers have said good-bye; see them out, so that nothing is left running."""
        assert self._desk is not None
        if self._exit_code is None:
            return
        open_launches = self._coordinator.launching.open_launches()
        for launch in open_launches:
            self._desk.cancel(launch.launch_id, launch.batch_job_id, self._signals > 1)
        give_up_at = time.monotonic() + WORKER_EXIT_S
        while self._desk.living() and time.monotonic() < give_up_at:
            self._reactor.watch({self._desk.wake_fd(): zmq.POLLIN})
            self._reactor.wait(time.monotonic() + 0.1)
            self._desk.reap()
        for launch_id in self._desk.living():
            self._desk.cancel(launch_id, None, True)


_COUNTED = ("queued", "assigned", "running", "succeeded", "failed", "canceled")


def _term(config: StartConfig, kind: str, network_fs: bool) -> tuple[float, float]:
    """Heartbeat and lease of a transport; a worker time-out of the user's is its lease."""
    heartbeat, lease = terms(config, kind, network_fs)
    if not config.is_default("worker_timeout"):
        lease = config.worker_timeout
    return heartbeat, lease


def _hosts(bind_host: str) -> list[str]:
    """The addresses under which this daemon can be reached, the likeliest first."""
    if bind_host not in ("0.0.0.0", "::", "*"):
        return [bind_host]
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family.name == "AF_INET"
    ]
    return sorted(dict.fromkeys(found), key=lambda one: one.startswith("127."))[:16]


if __name__ == "__main__":
    sys.exit("Use: jobflowd start")
