"""`jobflowd serve`: an ended session, opened for questions.

Rules
-----
* Nothing is generated, launched or bound: no worker can come. What was recorded of the run's end
  stays true, so its beacon, its pointer and `ended.json` are not touched.
* `retry` (and `cancel`) change tasks by the same coordinator, on the same one transaction a turn.
  As soon as a task is queued again this process gives everything back and becomes the daemon of
  a run, which launches and ends like any other.
* It leaves after some idle minutes, on a signal, and at once when a start wants the session.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Final

from jobflow_worker.program import ProgramError, ProgramRef, program_hash
from jobflow_worker.reactor import Reactor
from jobflow_worker.sessionfiles import SessionFileError, SessionPaths, SessionRecord
from jobflowd import config as configuration
from jobflowd import daemon, detach, logs, ownership, views
from jobflowd import events as ev
from jobflowd.admin import AdminServer, Request
from jobflowd.api import READS, Ended, NoSuchSession, SessionPlace, find_session, socket_paths
from jobflowd.bulk import Bulk
from jobflowd.census import Census
from jobflowd.config import StartConfig
from jobflowd.coordinator import Coordinator
from jobflowd.dbfile import DiskFull
from jobflowd.effects import Reply
from jobflowd.filesystems import filesystem_of
from jobflowd.forecast import Forecast
from jobflowd.inquiries import Inquiries
from jobflowd.metrics import Metrics
from jobflowd.opening import make_settings
from jobflowd.ownership import SessionError
from jobflowd.reading import Reader
from jobflowd.sessiondir import EXIT_USAGE, Session, known_database
from jobflowd.sessionplace import worded
from jobflowd.store import Store
from jobflowd.wording import count

_log = logs.get("jobflowd")

IDLE_S: Final = 600.0
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: What can be changed in a session that has ended.
_CHANGES: Final = frozenset(("retry", "cancel"))
_WORK_LEFT: Final = 4


def serve(name_or_dir: str, idle_s: float = IDLE_S) -> int:
    """Answer questions about an ended session; if work is queued again, run it.

    Returns 0, or the exit code of that run. Raises what a start raises.
    """
    try:
        place = find_session(name_or_dir)
    except NoSuchSession as error:
        raise SessionError(f"{error.message} {error.hint}".rstrip(), EXIT_USAGE) from None
    umask = os.umask(0o077)
    if _serve_ended(place, idle_s):
        return 0
    os.umask(umask)
    return daemon.run(_config(place), generate=False)


def _serve_ended(place: SessionPlace, idle_s: float) -> bool:
    """False if there is work to be done now."""
    ended = place.ended()
    session = open_ended(place)
    with ExitStack() as stack:
        stack.callback(session.close)
        log_files = logs.start(
            session.log_path,
            level=session.config.log_level,
            form=session.config.log_format,
            console=not detach.in_background(),
        )
        stack.callback(log_files.close)
        return Server(session, stack, log_files, ended, idle_s).loop()


def _config(place: SessionPlace) -> StartConfig:
    return configuration.load({"session_id": place.dir.name, "shared_dir": str(place.dir.parent)})


def open_ended(place: SessionPlace) -> Session:
    """Own the session without beginning a run in it. Raises as `sessiondir.open_session` does.

    The program is not looked at: questions can be asked when it is gone.
    """
    paths = SessionPaths(place.dir)
    record = SessionRecord.load(paths.session_file)
    try:
        program = ProgramRef.from_json(record.program)
    except ValueError as error:
        raise SessionFileError(f"{paths.session_file}: {error}") from None
    filesystem, network_fs = filesystem_of(paths.root)
    config = configuration.with_recorded(_config(place), record.settings)
    config = configuration.resolve(config, network_fs)
    try:
        owned = ownership.take(paths, name=record.session)
    except OSError as error:
        raise worded(error, paths.root) from None
    return Session(
        name=record.session,
        paths=paths,
        config=config,
        record=record,
        program=program,
        program_hash="",
        db_path=known_database(paths, record),
        filesystem=filesystem,
        network_fs=network_fs,
        started_at=place.started_at or owned.owner.started_at,
        resumed=True,
        archived=None,
        warnings=(),
        ownership=owned,
    )


class Server:
    """One ended session being asked about."""

    def __init__(
        self,
        session: Session,
        stack: ExitStack,
        log_files: logs.Logging,
        ended: Ended | None,
        idle_s: float,
    ) -> None:
        self._session = session
        self._log_files = log_files
        self._ended = ended
        self._idle_s = idle_s
        self._idle_at = time.monotonic() + idle_s
        self._owner_at = 0.0
        self._leaving = False
        self._revived = False
        self._reactor = stack.enter_context(Reactor())
        self._reactor.watch_signals(SIGNALS)
        if not session.db_path.exists():
            raise SessionError(f"the database {session.db_path} is not there", ownership.EXIT_IO)
        store = self._store = Store(session.db_path)
        stack.callback(store.close)
        store.open()
        snapshot = store.load()
        settings = replace(make_settings(session, store, snapshot.meta), launcher="none", stay=True)
        self._coordinator = Coordinator(settings, snapshot, int(snapshot.meta.get("epoch", 0)))
        # Nobody generates here: what there is, is all.
        self._coordinator.book.generated = True
        self._admin = AdminServer(*socket_paths(session.paths.root))
        stack.callback(self._admin.close)
        self._admin.open()
        self._bulk = Bulk(store, self._admin)
        inquiries = Inquiries(store, session.paths, session.log_path, Metrics())
        self._reader = Reader(store, self._admin, inquiries, serving=True)
        _log.info("serving", session=session.name, pid=os.getpid(), idle_s=idle_s)
        detach.announce_ready(session.name, session.paths.root, os.getpid(), session.log_path)

    def loop(self) -> bool:
        """Answer until it is time to go; False if there is work to be done now."""
        while not self._leaving:
            self._pass()
            if self._revived and not self._bulk.jobs:
                _log.info("serving_ends", text="tasks are queued again: the run goes on")
                return False
        return True

    def _pass(self) -> None:
        self._reactor.watch(self._admin.interest())
        now = time.monotonic()
        until = min(self._admin.next_deadline(now), self._idle_at, self._owner_at)
        ready = self._reactor.wait(now if self._bulk.busy else until)
        now = time.monotonic()
        for number in self._reactor.signals():
            if number == signal.SIGHUP:
                self._log_files.reopen()
            else:
                self._leave(signal.Signals(number).name)
        events: list[ev.Event] = []
        for request in self._admin.service([one for one in ready if isinstance(one, int)], now):
            self._idle_at = now + self._idle_s
            self._take(request, events)
        events += self._bulk.events()
        if events:
            self._turn(now, events)
        if now >= self._owner_at:
            self._owner_at = now + ownership.BEAT_S
            self._session.refresh_owner()
        if now >= self._idle_at and not self._bulk.jobs:
            self._leave("nobody asks any more")

    def _leave(self, why: str) -> None:
        _log.info("serving_ends", text=why)
        self._leaving = True

    # --- requests -------------------------------------------------------------------------------

    def _take(self, request: Request, events: list[ev.Event]) -> None:
        ticket, cmd = request.ticket, request.cmd
        if cmd in READS:
            try:
                self._reader.answer(request, self._coordinator, self._census)
            except Exception as error:
                _log.exception("question_failed", cmd=cmd)
                self._admin.refuse(ticket, "internal", f"{type(error).__name__}: {error}")
            return
        _log.info("asked", cmd=cmd, args=request.args, pid=request.pid, uid=request.uid)
        if cmd in ("yield", "shutdown"):
            words = "The run has ended already; this daemon only answered questions and leaves."
            self._admin.answer(ticket, {"message": words, "workers": 0, "remaining": 0})
            self._leave(f"asked to by pid {request.pid}")
        elif cmd not in _CHANGES:
            again = f"Go on with it: jobflowd start --session-id {self._session.name}"
            self._admin.refuse(ticket, "conflict", "The run of this session has ended.", again)
        elif cmd == "retry" and (trouble := self._program_trouble()):
            self._admin.refuse(ticket, "conflict", trouble, "Nothing was queued.")
        elif not self._bulk.takes(ticket, cmd, request.args, time.time()):
            events.append(ev.Asked(ticket, cmd, dict(request.args)))

    def _program_trouble(self) -> str:
        """Why the tasks could not be run if they were queued again."""
        try:
            program_hash(self._session.program)
        except ProgramError as error:
            return error.sentence
        return ""

    def _turn(self, now: float, events: Sequence[ev.Event]) -> None:
        coordinator = self._coordinator
        facts = self._store.lookup(coordinator.questions(now, events))
        turn = coordinator.turn(now, time.time(), events, facts)
        try:
            self._store.commit(turn.changes)
        except DiskFull as error:
            for event in events:
                if isinstance(event, ev.Asked):
                    self._bulk.refuse(event.ticket, "degraded", str(error), "Make room.")
            # What memory says now was never stored.
            self._leave("the disk is full")
            return
        for effect in turn.effects:
            if isinstance(effect, Reply):
                self._reply(effect)

    def _reply(self, reply: Reply) -> None:
        if reply.error is not None:
            self._bulk.refuse(reply.ticket, *reply.error)
            return
        if reply.body.get("queued"):
            self._revived = True
        self._bulk.answer(reply.ticket, reply.body)

    # --- what is shown --------------------------------------------------------------------------

    def _census(self) -> Census:
        census = views.take_census(self._coordinator, started_at=self._session.started_at)
        left = self._coordinator.book.remaining
        state = "paused" if left else "done"
        return replace(
            census,
            state=state,
            state_reason=self._reason(left),
            workers=(),
            target=0,
            throughput_per_s=None,
            eta_s=None,
            forecast=Forecast(),
        )

    def _reason(self, left: int) -> str:
        word = f"{self._ended.state}, code {self._ended.code}" if self._ended else "not recorded"
        text = f"the run has ended ({word}); its records are open for questions"
        if left:
            how = f"jobflowd start --session-id {self._session.name}"
            text += f"; {count(left, 'task is', 'tasks are')} left: {how}"
        return text
