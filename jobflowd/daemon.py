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
from contextlib import ExitStack

from jobflow_worker import __version__, collector
from jobflow_worker.messages import Register
from jobflow_worker.program import ProgramError, describe, program_hash
from jobflow_worker.reactor import Reactor
from jobflow_worker.sessionfiles import Beacon, write_beacon
from jobflowd import console, detach, logs, notify, queries, rlimits, views
from jobflowd import events as ev
from jobflowd.admin import AdminServer, Request
from jobflowd.api import socket_paths
from jobflowd.census import Census
from jobflowd.config import StartConfig
from jobflowd.coordinator import Coordinator
from jobflowd.dbfile import DiskFull, StoreBroken
from jobflowd.effects import Submit
from jobflowd.generate import GeneratorProcess
from jobflowd.inquiries import Inquiries
from jobflowd.metrics import Metrics
from jobflowd.model import LAUNCH_OVER, Changes, TaskState
from jobflowd.opening import lost_epoch, make_settings, open_desk, open_telemetry, open_transports
from jobflowd.performer import Performer
from jobflowd.reading import Reader
from jobflowd.recovery import Recovery
from jobflowd.sessiondir import Session, SessionError, open_session
from jobflowd.sessionplace import worded
from jobflowd.sources import Sources
from jobflowd.store import Store

_log = logs.get("jobflowd")

Stored = tuple[dict[TaskState, int], str | None]
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
#: How often the owner record is refreshed (RELIABILITY D12).
OWNER_S = 30.0
#: How long local workers may take to end after the run has.
WORKER_EXIT_S = 3.0
#: A detached start waits this long for the first tasks, so that it can tell of a broken program.
GENERATE_PATIENCE_S = 3.0
#: What `ended.json` and the log say of a run's end.
END_WORDS = {0: "done", 3: "failed", 4: "stopped", 130: "stopped", 143: "stopped"}


def run(config: StartConfig, *, generate: bool = True) -> int:
    """Run a session until its end; returns the exit code. What `jobflowd start` calls.

    `generate` False: a list of tasks that is complete is not asked of the program again.
    """
    umask = os.umask(0o077)
    rlimits.protect()
    session = open_session(config, say=console.say_waiting)
    with ExitStack() as stack:
        stack.callback(session.close)
        progress = None if detach.in_background() else console.Progress()
        log_files = logs.start(
            session.log_path,
            level=config.log_level,
            form=config.log_format,
            console=progress is not None,
            say=progress.say if progress is not None and progress.live else None,
        )
        stack.callback(log_files.close)
        try:
            collector.calm()
            return Daemon(session, umask, stack, log_files, progress, generate=generate).loop()
        except (StoreBroken, SessionError) as error:
            # No clean end: SQLite would let a later write succeed on pages that were never stored,
            # and a database that is another daemon's by now is not ours to check in.
            log_files.mute()
            _log.error("stopped_at_once", text=str(error))
            detach.announce_failure(str(error), error.exit_code)
            sys.stderr.write(f"jobflowd: error: {error}\n")
            sys.stderr.flush()
            os._exit(error.exit_code)
        except Exception as error:
            # The command words it for the terminal.
            log_files.mute()
            _log.exception("died", error=f"{type(error).__name__}: {error}")
            if isinstance(error, OSError):
                raise worded(error, session.paths.root) from error
            raise


class Daemon:
    """One session being served. Opened by its constructor's `stack`, closed by unwinding it."""

    def __init__(
        self,
        session: Session,
        umask: int,
        stack: ExitStack,
        log_files: logs.Logging,
        progress: console.Progress | None,
        *,
        generate: bool = True,
    ) -> None:
        self._session = session
        self._config = session.config
        self._log_files = log_files
        self._progress = progress
        self._hash = session.program_hash
        self._pending: list[ev.Event] = [ev.ProgramChanged(self._hash)]
        self._signals = 0
        self._exit_code: int | None = None
        self._beacon_n = 0
        self._beacon_at = self._owner_at = self._watchdog_at = 0.0
        self._watchdog_s = notify.watchdog_interval_s()
        self._announced = False
        self._opened_at = time.monotonic()
        self._open(umask, stack, generate)

    def _open(self, umask: int, stack: ExitStack, generate: bool) -> None:
        """Open the store, bind, and start helpers, each with its end on the stack."""
        session, config = self._session, self._config
        for warning in session.warnings:
            _log.warning("session", text=warning)
        self._reactor = stack.enter_context(Reactor())
        self._reactor.watch_signals(SIGNALS)
        store = self._store = Store(session.db_path)
        stack.callback(store.close)
        store.open()
        ahead = lost_epoch(session, int(store.load().meta.get("epoch", 0)))
        if ahead is not None:
            # Workers heed nobody of an earlier epoch than the one they know.
            store.commit(Changes(meta={"epoch": ahead}))
        plain = config.recovery == "requeue"
        snapshot = store.begin_epoch("requeue" if plain else "adopt", wall=time.time())
        self._settings = settings = make_settings(session, store, snapshot.meta)
        self._epoch = int(snapshot.meta["epoch"])
        self._coordinator = Coordinator(settings, snapshot, self._epoch)
        admin = AdminServer(*socket_paths(session.paths.root))
        stack.callback(admin.close)
        admin.open()
        transports = open_transports(
            session, store, settings, snapshot.meta, [one.launch_id for one in snapshot.launches]
        )
        self._endpoints, self._keys = transports.endpoints, transports.keys
        for warning in transports.warnings:
            _log.warning("transport", text=warning)
        desk = open_desk(session, umask, settings.launch_prefix)
        generator = None
        if generate or not snapshot.meta.get("generated"):
            generator = GeneratorProcess(session.paths.root, umask=umask)
        self._sources = Sources(store, admin, transports, desk, generator, self._note_program)
        stack.callback(self._sources.close)
        self._performer = Performer(
            store,
            transports.carriers(),
            self._sources.bulk,
            desk,
            self._sources.stop_generator,
            transports.keys,
        )
        self._admin = admin
        self._metrics = Metrics(config.metrics_file, getattr(desk, "times", None))
        inquiries = Inquiries(store, session.paths, session.log_path, self._metrics)
        self._reader = Reader(store, admin, inquiries, transports.notices)
        self._recovery = Recovery(store, settings, session.paths.root)
        self._telemetry = open_telemetry(session, self._epoch)
        if generator is None:
            self._pending.append(ev.GenerationEnded())
        else:
            generator.start()
        self._put_beacon("open")
        if self._progress is not None and self._progress.live:
            self._progress.say(console.greeting(session.name, str(session.log_path)))
        _log.info(
            "started",
            session=session.name,
            pid=os.getpid(),
            version=__version__,
            epoch=self._epoch,
            dir=session.paths.root,
            program=describe(session.program),
            endpoints=",".join(self._endpoints),
        )

    # --- the loop ---------------------------------------------------------------------------

    def loop(self) -> int:
        """Serve until the run is over; returns the exit code."""
        while self._exit_code is None:
            self._pass()
        self._say_goodbye(self._exit_code)
        return self._exit_code

    def _pass(self) -> None:
        sources = self._sources
        self._reactor.watch(sources.interest())
        now = time.monotonic()
        ready = self._reactor.wait(now if self._pending else self._until(now))
        now = time.monotonic()
        events, self._pending = self._pending, []
        events += self._from_signals()
        for request in sources.operators(ready, now, events):
            self._answer(request)
        sources.processes(ready, now, events)
        deadline = self._coordinator.next_deadline()
        due = deadline is not None and deadline <= now
        events = sources.workers(events, self._coordinator.book, now, expiring=due)
        if events or due:
            self._turn(events)
        self._keep_house(now)
        self._metrics.lag_s = time.monotonic() - now
        if self._exit_code is None and not self._recovery.degraded:
            self._exit_code = self._coordinator.finished

    def _until(self, now: float) -> float:
        times = [
            self._beacon_at,
            self._owner_at,
            self._sources.next_deadline(now),
            None if self._recovery.degraded else self._coordinator.next_deadline(),
            self._recovery.retry_at,
            self._telemetry.next_at if self._telemetry is not None else None,
            self._metrics.next_at,
            self._watchdog_at if self._watchdog_s is not None else None,
        ]
        if self._progress is not None and self._coordinator.book.in_flight:
            times.append(now + console.REWRITE_S)
        return min(at for at in times if at is not None)

    def _turn(self, events: Sequence[ev.Event]) -> None:
        """Look up, decide, commit, perform; and what to do if that is not possible."""
        if self._recovery.degraded:
            # Nothing is decided; what nobody repeats is kept.
            self._recovery.keep(events)
            self._answer_degraded(events)
            return
        now, coordinator = time.monotonic(), self._coordinator
        stored = coordinator.book.counts.copy(), coordinator.book.finishing
        try:
            facts = self._store.lookup(coordinator.questions(now, events))
            turn = coordinator.turn(now, time.time(), events, facts)
        except StoreBroken:
            raise
        except DiskFull as error:
            self._degrade(events, error, stored)
            return
        except Exception as error:
            self._survive(events, error)
            return
        try:
            began = time.monotonic()
            self._store.commit(turn.changes)
        except DiskFull as error:
            self._degrade(events, error, stored)
            return
        self._metrics.committed(turn.changes, time.monotonic() - began)
        for story in turn.changes.stories:
            _log.write(
                story.level,
                story.kind,
                task=story.task_id,
                worker=story.worker_id,
                launch=story.launch_id,
                text=story.text,
            )
        if any(isinstance(effect, Submit) for effect in turn.effects):
            # A session that was taken over must not grow workers here.
            self._session.refresh_owner()
        self._pending += self._performer.perform(turn.effects)
        self._withdraw_keys(turn.changes)
        self._sources.done_with_spools()

    def _answer(self, request: Request) -> None:
        """A reading request; a question never ends a daemon, unless the disk has failed."""
        try:
            self._reader.answer(request, self._coordinator, self._census)
        except StoreBroken:
            raise
        except Exception as error:
            _log.exception("question_failed", cmd=request.cmd, args=request.args)
            self._admin.refuse(request.ticket, "internal", f"{type(error).__name__}: {error}")

    def _withdraw_keys(self, changes: Changes) -> None:
        """Of launches that are over, durably; after the last messages to their workers."""
        if self._keys is not None:
            for launch in changes.launches.values():
                if launch.state in LAUNCH_OVER:
                    self._keys.revoke(launch.launch_id)

    # --- when a turn is not possible --------------------------------------------------------

    def _survive(self, events: Sequence[ev.Event], error: Exception) -> None:
        """A bug of ours: keep the evidence, begin anew from the store, go on without the cause."""
        _log.exception("turn_failed", error=f"{type(error).__name__}: {error}")
        self._recovery.save(events, error)
        coordinator, turns, lost = self._recovery.replay(events, self._coordinator)
        self._restart(coordinator)
        for effects in turns:
            self._pending += self._performer.perform(effects)
        if lost or self._recovery.too_many:
            _log.error("gave_up", text="the coordinator failed; its evidence is in bug-*.txt")
            self._exit_code = 70

    def _restart(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self._epoch = coordinator.book.epoch
        self._put_beacon("open")

    def _degrade(self, events: Sequence[ev.Event], error: DiskFull, stored: Stored) -> None:
        """There is no room for what these events bring: what is `stored` is what counts."""
        self._coordinator.book.counts, self._coordinator.book.finishing = stored
        _log.error("disk_full", text=str(error))
        self._recovery.degrade(events, str(error))
        # A list of a million inputs would otherwise pile up in memory.
        self._sources.pause_generator(True)
        self._answer_degraded(events)

    def _answer_degraded(self, events: Sequence[ev.Event]) -> None:
        """Workers are answered, with nothing acknowledged; changing requests are refused."""
        self._performer.perform(self._recovery.bare_answers(events, self._epoch))
        for event in events:
            if isinstance(event, ev.Asked):
                self._sources.bulk.refuse(
                    event.ticket,
                    "degraded",
                    f"The database cannot be written: {self._recovery.degraded}",
                    "Make room; the daemon tries again every second.",
                )

    def _try_to_recover(self) -> None:
        found = self._recovery.try_again(self._coordinator)
        if found is not None:
            coordinator, events = found
            _log.info("disk_works_again", events=len(events))
            self._sources.pause_generator(False)
            self._restart(coordinator)
            self._pending += events

    # --- signals and the program's text -------------------------------------------------------

    def _from_signals(self) -> list[ev.Event]:
        events: list[ev.Event] = []
        for number in self._reactor.signals():
            if number == signal.SIGHUP:
                self._log_files.reopen()
            elif number == signal.SIGQUIT:
                census = self._census()
                _log.info("state", text=console.line(census), pending=len(self._pending))
            else:
                events.append(self._stop_by(signal.Signals(number)))
        return events

    def _stop_by(self, number: signal.Signals) -> ev.StopAsked:
        self._signals += 1
        if self._signals > 1:
            self._exit_code = 128 + number
            return ev.StopAsked(f"second signal, {number.name}", now=True)
        notify.stopping(number.name)
        detaching = number is signal.SIGTERM and self._config.on_sigterm == "detach"
        if not detaching and self._progress is not None:
            self._progress.say(
                f"{number.name}: running tasks may finish for up to {self._settings.grace_s:g} s; "
                "once more ends them now."
            )
        return ev.StopAsked(number.name, detach=detaching)

    def _note_program(self, message: Register) -> None:
        """A worker of another program text: has ours changed since we looked?"""
        if message.program_hash != self._hash:
            self._look_at_program()

    def _look_at_program(self) -> None:
        try:
            found = program_hash(self._session.program)
        except (OSError, ProgramError) as error:
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
            notify.alive(console.line(self._census()))
        if self._recovery.retry_at is not None and now >= self._recovery.retry_at:
            self._try_to_recover()
        if self._telemetry is not None and self._telemetry.due(now):
            self._telemetry.offer(self._reader.snapshot(self._census()))
            self._telemetry.pump(now)
        if now >= self._metrics.next_at:
            self._metrics.publish(now, self._census(), self._reader.here())
        if not self._announced and self._is_ready(now):
            self._announced = True
            detach.announce_ready(
                self._session.name, self._session.paths.root, os.getpid(), self._session.log_path
            )
        if self._progress is not None and self._progress.due(now):
            self._progress.show(now, self._census())

    def _is_ready(self, now: float) -> bool:
        """Workers can come, and the program is known to be good or is taking its time."""
        book = self._coordinator.book
        known = book.generated or book.total > 0
        late = now >= self._opened_at + GENERATE_PATIENCE_S
        return self._sources.transports_ready and (known or late) and book.finished is None

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
            epoch=self._epoch,
            state=state,
            endpoints=self._endpoints,
            server_public=self._keys.server_public if self._keys is not None else None,
            program_hash=self._hash,
            heartbeat_s=heartbeat_s,
            n=self._beacon_n,
        )
        try:
            write_beacon(self._session.paths.beacon, beacon)
        except OSError as error:
            _log.repeated("beacon_failed", text=str(error))

    # --- the end --------------------------------------------------------------------------------

    def _say_goodbye(self, code: int) -> None:
        """Take the rest away, record how the run ended, and tell whoever watches."""
        if not self._announced:
            # It was over before it began; systemd takes an end without this for a failure.
            notify.ready("ended at its start")
        book = self._coordinator.book
        detached = book.finishing == "detach"
        self._put_beacon("detached" if detached else "closed")
        if not detached:
            self._end_launches()
            if self._keys is not None:
                self._keys.withdraw()
        census = self._census()
        counts = console.counts(census)
        state = "detached" if detached else END_WORDS.get(code, "broken")
        try:
            self._session.write_ended(state, code, counts)
        except OSError as error:
            _log.warning("ended_not_written", text=str(error))
        if self._telemetry is not None:
            self._telemetry.close(self._reader.snapshot(census))
        self._metrics.publish(time.monotonic(), census, self._reader.here())
        _log.info("ended", code=code, state=state, **counts)
        why = book.generation_error
        if not self._announced and why is not None:
            detach.announce_failure(f"jobflowd: error: {why}", code)
        if self._progress is not None:
            log = str(self._session.log_path)
            page, _ = queries.task_page(self._store, None, console.FAILURES_SHOWN, "failed")
            failures = [(str(row["task_id"]), str(row["error"] or "")) for row in page]
            self._progress.say(
                console.summary(census, code, log, ran=book.completed, failures=failures)
            )
            if why is not None:
                self._progress.say(f"jobflowd: error: {why}")

    def _end_launches(self) -> None:
        """Nothing of ours stays behind: what has not ended yet is cancelled."""
        at_once = self._signals > 1
        turn = self._coordinator.last_turn(time.monotonic(), time.time(), at_once=at_once)
        try:
            self._store.commit(turn.changes)
        except DiskFull as error:
            _log.error("disk_full", text=str(error))
        self._performer.perform(turn.effects)
        self._sources.see_workers_out(self._wait_for, 0.0 if at_once else WORKER_EXIT_S)

    def _wait_for(self, fd: int, pause_s: float) -> None:
        self._reactor.watch({fd: 1})
        self._reactor.wait(time.monotonic() + pause_s)
