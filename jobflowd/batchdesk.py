"""The batch system's desk: scripts kept, commands run, answers turned into events.

Rules
-----
* The shell around a `Launcher`; it decides nothing. Commands run through `Commands`: nothing here
  waits, and every answer becomes an event for a later turn.
* One status query for all launches at a time, whatever their number. A launch is told of as
  absent only by a whole answer, with its submitting command dead, and after the system's history
  did not know it either.
* A job of ours that no open launch claims is told of once it was seen twice: it may just be
  ending.
* Each launch keeps its script and its output in `launches/<id>/` of the session.

Only the daemon uses this; `LocalDesk` in `processes.py` has the same shape for local workers.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from jobflow_worker.sessionfiles import (
    SessionFileError,
    SessionPaths,
    make_private_dir,
    write_private,
)
from jobflowd import logs
from jobflowd.commands import Commands, Finished, batch_environment
from jobflowd.events import (
    Event,
    LaunchSeen,
    QueryAnswered,
    QueryFailed,
    SubmitFailed,
    Submitted,
)
from jobflowd.launchers.base import (
    Accepted,
    Answer,
    JobSeen,
    LaunchContext,
    Launcher,
    NoEvidence,
    Refused,
    Unknown,
)
from jobflowd.launchers.multiprocess import child_environment
from jobflowd.metrics import CommandTimes
from jobflowd.model import LAUNCH_OVER, LaunchState
from jobflowd.processes import read_tail

_log = logs.get(__name__)

#: Ids in one command, and names in one look into the history: an argument list has its limits.
IDS_MAX: Final = 500
#: What the user's own shell set for other systems' submissions of its own.
_UNWANTED: Final = ("JOBFLOW_", "BSUB_")
_LOCALE: Final = ("LC_ALL", "LANG", "LANGUAGE")

Context = Callable[[str], LaunchContext]


def submit_environment(launcher: Launcher, environ: Mapping[str, str]) -> dict[str, str]:
    """What batch commands run with: nothing of our own job, of our own service or of ours."""
    plain = batch_environment(child_environment(environ))
    kept = {name: value for name, value in plain.items() if not name.startswith(_UNWANTED)}
    for name, value in launcher.environment.items():
        kept.pop(name, None)
        if value is not None:
            kept[name] = value
    return kept


def restored(launcher: Launcher, environ: Mapping[str, str]) -> dict[str, str | None]:
    """What a job's script must set back, because submissions run without it."""
    changed = {name: environ.get(name) for name in _LOCALE if name in environ or name == "LC_ALL"}
    return changed | {name: environ.get(name) for name in launcher.environment}


@dataclass(slots=True)
class _Query:
    """A status query that has been asked and not answered: the launches it is about."""

    asked: dict[str, str | None]
    unsettled: frozenset[str]
    events: list[Event] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


class BatchDesk:
    """Submits, looks after and takes away the batch jobs of one session.

    `context` spells a launch out; `prefix` begins the names of all jobs of this session; `user`
    is whose jobs are asked about; `timeout_s` bounds each command.
    """

    def __init__(
        self,
        session_dir: str | os.PathLike[str],
        launcher: Launcher,
        context: Context,
        *,
        user: str,
        prefix: str,
        timeout_s: float,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = SessionPaths(Path(os.path.abspath(session_dir)))
        self._launcher = launcher
        self._context = context
        self._user = user
        self._prefix = f"{prefix}-"
        self._timeout_s = timeout_s
        self._env = submit_environment(launcher, os.environ if environ is None else environ)
        self._clock = clock
        self._commands = Commands()
        self._waiting: dict[int, Callable[[Finished], None]] = {}
        #: For the metrics: what has run and how long; and since when each one that runs does.
        self.times = CommandTimes()
        self._began: dict[int, tuple[str, float]] = {}
        self._events: list[Event] = []
        #: Launches whose submitting command runs, or could not be killed.
        self._submitting: set[str] = set()
        self._query: _Query | None = None
        self._history = True
        self._orphans: set[str] = set()
        self._to_cancel: dict[str, str | None] = {}
        self._cancelling: dict[int, tuple[str, ...]] = {}

    # --- what the daemon polls ------------------------------------------------------------

    def wake_fd(self) -> int:
        """Readable while `tick` has something to do."""
        return self._commands.wake_fd()

    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest (monotonic), or None."""
        if self._to_cancel or self._events:
            return float("-inf")
        now = self._clock()
        due = self._commands.next_deadline(now)
        # The loop's idea of now is a little older than ours.
        return float("-inf") if due is not None and due <= now else due

    def tick(self, now: float) -> None:
        """Start what waits, read what runs, and take in what is over."""
        self._start_cancels()
        for finished in self._commands.service(now):
            command, began = self._began.pop(finished.handle)
            took = max(0.0, self._clock() - began)
            self.times.ended(command, took, finished.rc, timed_out=finished.timed_out)
            self._cancelling.pop(finished.handle, None)
            self._waiting.pop(finished.handle)(finished)

    def reap(self) -> list[Event]:
        """The events since the last call."""
        events, self._events = self._events, []
        return events

    @property
    def busy(self) -> bool:
        """True while a command runs or waits to."""
        return bool(self._to_cancel) or self._commands.busy

    def living(self) -> list[str]:
        """Launches that are being taken away by a command that has not ended."""
        return [*self._to_cancel, *(one for many in self._cancelling.values() for one in many)]

    def close(self) -> None:
        """Let go of the jobs. A submission that runs is cut off: the next start finds its job."""
        self._commands.close()

    # --- submitting -----------------------------------------------------------------------

    def submit(self, launch_id: str, exclude: Sequence[str] = ()) -> SubmitFailed | None:
        """Write the script down and run the submission; its answer comes as an event.

        A launch that cannot be written down is told of at once.
        """
        ctx = self._context(launch_id)
        hosts = dict.fromkeys((*ctx.exclude_hosts, *exclude))
        ctx = replace(ctx, exclude_hosts=tuple(hosts))
        problems = self._launcher.problems(ctx)
        if problems:
            return SubmitFailed(launch_id, problems[0])
        script = self._launcher.script(ctx).encode("utf-8", "surrogateescape")
        try:
            make_private_dir(Path(ctx.script_path).parent, parents=True)
            write_private(Path(ctx.script_path), script, fsync=False)
            _make_output(ctx.output_path)
        except (OSError, SessionFileError) as error:
            return SubmitFailed(launch_id, f"the job's script cannot be written: {error}")
        self._submitting.add(launch_id)
        self._run(
            self._launcher.submit_argv(ctx), lambda done: self._submitted(ctx, done), stdin=script
        )
        return None

    def _submitted(self, ctx: LaunchContext, done: Finished) -> None:
        launch_id = ctx.launch_id
        if done.dead:
            self._submitting.discard(launch_id)
        if done.rc is None and not done.timed_out:
            self._events.append(SubmitFailed(launch_id, done.err))
            return
        match self._launcher.parse_submit(done.rc, done.out, done.err):
            case Accepted(job_id):
                self._events.append(Submitted(launch_id, job_id, ctx.script_path, ctx.output_path))
            case Refused(reason, limited):
                self._events.append(SubmitFailed(launch_id, reason, limited=limited))
            case Unknown(reason):
                self._events.append(SubmitFailed(launch_id, reason, unknown=True))

    # --- looking --------------------------------------------------------------------------

    def query(self, launches: Iterable[tuple[str, str | None]]) -> None:
        """Ask for the state of all jobs of the user; one question at a time."""
        if self._query is not None:
            return
        self._query = _Query(dict(launches), frozenset(self._submitting))
        self._run(self._launcher.query_argv(self._user), self._answered)

    def _answered(self, done: Finished) -> None:
        query = self._query
        assert query is not None
        answer = self._evidence(done, self._launcher.parse_query)
        if isinstance(answer, NoEvidence):
            self._query = None
            self._events.append(QueryFailed(answer.reason))
            return
        found = self._found(query, answer.jobs)
        self._note_orphans(query, answer.jobs)
        if not answer.whole:
            self._conclude([])
            return
        unsettled = query.unsettled | self._submitting
        query.absent = [one for one in query.asked if one not in found and one not in unsettled]
        argv = None
        if query.absent and self._history:
            argv = self._launcher.history_argv(self._user, query.absent[:IDS_MAX])
        if argv is None:
            self._conclude(query.absent)
        else:
            self._run(argv, self._history_told)

    def _history_told(self, done: Finished) -> None:
        query = self._query
        assert query is not None
        answer = self._evidence(done, self._launcher.parse_history)
        if isinstance(answer, NoEvidence):
            self._history = not answer.never
            self._conclude(query.absent if answer.never else [])
            return
        # Accounting may lag behind the queue: what it calls alive is neither there nor gone.
        jobs = [one for one in answer.jobs if one.state in LAUNCH_OVER]
        found = self._found(query, jobs)
        known = found | {one.name for one in answer.jobs}
        asked = query.absent[:IDS_MAX] if answer.whole else []
        self._conclude([one for one in asked if one not in known])

    def _conclude(self, absent: Sequence[str]) -> None:
        query, self._query = self._query, None
        assert query is not None
        self._events += [*query.events, QueryAnswered(tuple(absent))]

    def _evidence(
        self, done: Finished, parse: Callable[[int | None, str, str], Answer | NoEvidence]
    ) -> Answer | NoEvidence:
        if done.cut:
            return NoEvidence("the answer was too long")
        if done.rc is None and not done.timed_out:
            return NoEvidence(done.err)
        return parse(done.rc, done.out, done.err)

    def _found(self, query: _Query, jobs: Iterable[JobSeen]) -> set[str]:
        """Note what the answer says of the launches that it was asked about."""
        by_id = {job_id: launch_id for launch_id, job_id in query.asked.items() if job_id}
        best: dict[str, JobSeen] = {}
        for job in jobs:
            launch_id = job.name if job.name in query.asked else by_id.get(job.batch_job_id)
            if launch_id is None:
                continue
            other = best.get(launch_id)
            # Two jobs of one name: ours is the one whose id we know, else the one that lives.
            if other is None or self._rank(query, launch_id, job) > self._rank(
                query, launch_id, other
            ):
                best[launch_id] = job
        query.events += [self._seen(launch_id, job) for launch_id, job in best.items()]
        return set(best)

    @staticmethod
    def _rank(query: _Query, launch_id: str, job: JobSeen) -> tuple[bool, bool]:
        return (job.batch_job_id == query.asked[launch_id], job.state not in LAUNCH_OVER)

    def _seen(self, launch_id: str, job: JobSeen) -> LaunchSeen:
        tail = ""
        if job.state in LAUNCH_OVER:
            tail = read_tail(str(self._paths.launch_dir(launch_id) / "output"))
        words = (job.batch_job_id, job.reason, tail, job.time_left_s, job.blameless)
        return LaunchSeen(launch_id, job.state, *words)

    def _note_orphans(self, query: _Query, jobs: Iterable[JobSeen]) -> None:
        """Jobs of our name that no open launch claims."""
        now: set[str] = set()
        for job in jobs:
            alive = job.state in (LaunchState.PENDING, LaunchState.RUNNING)
            claimed = job.name in query.asked or job.name in self._submitting
            if not alive or claimed or not job.name.startswith(self._prefix):
                continue
            now.add(job.batch_job_id)
            if job.batch_job_id in self._orphans:
                query.events.append(self._seen(job.name, job))
        self._orphans = now

    # --- taking away ----------------------------------------------------------------------

    def cancel(self, launch_id: str, batch_job_id: str | None, now: bool = False) -> None:
        """Take a job away; those of one pass go by one command. Idempotent."""
        self._to_cancel[launch_id] = batch_job_id or self._to_cancel.get(launch_id)

    def _start_cancels(self) -> None:
        wanted, self._to_cancel = self._to_cancel, {}
        ids = [(name, job_id) for name, job_id in wanted.items() if job_id is not None]
        for start in range(0, len(ids), IDS_MAX):
            some = ids[start : start + IDS_MAX]
            argv = self._launcher.cancel_argv([job_id for _, job_id in some])
            self._cancelling[self._run(argv, self._canceled)] = tuple(name for name, _ in some)
        for name, job_id in wanted.items():
            if job_id is None:
                argv = self._launcher.cancel_named_argv(self._user, name)
                self._cancelling[self._run(argv, self._canceled)] = (name,)

    def _canceled(self, done: Finished) -> None:
        # Whether the jobs are gone is for the next query to say; it repeats what is not.
        complaint = self._launcher.parse_cancel(done.rc, done.out, done.err)
        if complaint:
            _log.repeated("cancel_failed", text=complaint)

    # --- small things ---------------------------------------------------------------------

    def _run(
        self, argv: Sequence[str], then: Callable[[Finished], None], stdin: bytes | None = None
    ) -> int:
        handle = self._commands.start(argv, stdin=stdin, timeout_s=self._timeout_s, env=self._env)
        self._waiting[handle] = then
        self._began[handle] = (os.path.basename(argv[0]), self._clock())
        return handle


def _make_output(path: str) -> None:
    """The output's file belongs to its user alone from the beginning, whoever opens it next."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    os.close(os.open(path, flags, 0o600))
