"""Local workers: started, watched, found again and ended. The shell around `multiprocess.py`.

Rules
-----
* A worker leads a process session of its own and outlives the daemon. It is known by host, boot,
  pid and start time, and is signalled only after that was checked: a pid alone may be somebody
  else's by now.
* Nothing here waits. Exits are seen through pidfds in one epoll descriptor (`wake_fd`) where the
  kernel has them, else by asking at `next_deadline`.
* The process table is complete evidence, but for this host and this boot only: nothing is said
  about launches of another host, and those of another boot are over.

Only the daemon uses this.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jobflow_worker
from jobflow_worker import limits
from jobflow_worker.messages import is_label
from jobflow_worker.sessionfiles import SessionFileError, SessionPaths, make_private_dir
from jobflowd import rlimits
from jobflowd.events import LaunchSeen, SubmitFailed, Submitted
from jobflowd.launchers import multiprocess
from jobflowd.launchers.multiprocess import LocalProcess, ProcessStat
from jobflowd.model import LaunchState

#: From SIGTERM to SIGKILL of a worker. It needs KILL_GRACE_S to end its tasks, and as much again
#: to hand their attempts back.
CANCEL_GRACE_S: Final = 2 * limits.KILL_GRACE_S
#: How often to look where the kernel cannot tell of exits by itself.
LOOK_S: Final = 1.0

WorkerArgv = Callable[[str], Sequence[str]]


@dataclass(slots=True)
class _Watched:
    """A live worker. `popen` is set for our own children; `kill_at` once it was told to end."""

    launch_id: str
    process: LocalProcess
    popen: subprocess.Popen[bytes] | None = None
    pidfd: int | None = None
    kill_at: float | None = None


class LocalDesk:
    """Starts and ends the local workers of one session, and knows what became of them.

    `start_dir` is where tasks run, `umask` the user's own (-1: inherit). `argv` builds the command
    of a launch; by default it is this interpreter running the worker of this installation.
    """

    def __init__(
        self,
        session_dir: str | os.PathLike[str],
        *,
        start_dir: str | os.PathLike[str],
        slots: int = 1,
        mode: str = "auto",
        umask: int = -1,
        environ: Mapping[str, str] | None = None,
        argv: WorkerArgv | None = None,
        clock: Callable[[], float] = time.monotonic,
        pidfds: bool = hasattr(os, "pidfd_open"),
    ) -> None:
        self._session_dir = os.path.abspath(session_dir)
        self._paths = SessionPaths(Path(self._session_dir))
        self._start_dir = os.fspath(start_dir)
        self._slots = slots
        self._mode = mode
        self._umask = umask
        self._environ = dict(os.environ if environ is None else environ)
        self._argv = argv if argv is not None else self._worker_argv
        self._clock = clock
        self._pidfds = pidfds
        self._host = socket.gethostname()
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._watched: dict[str, _Watched] = {}
        self._by_pidfd: dict[int, str] = {}
        self._epoll = select.epoll()

    # --- what the daemon polls ------------------------------------------------------------

    def wake_fd(self) -> int:
        """Readable while a worker has ended that `reap` has not told yet."""
        return self._epoll.fileno()

    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest (monotonic), or None."""
        times = [one.kill_at for one in self._watched.values() if one.kill_at is not None]
        if any(one.pidfd is None for one in self._watched.values()):
            times.append(self._clock() + LOOK_S)
        return min(times, default=None)

    def tick(self, now: float) -> None:
        """Kill the workers that were told to end and did not."""
        late = [
            one.launch_id
            for one in self._watched.values()
            if one.kill_at is not None and one.kill_at <= now
        ]
        if late:
            self._kill(late)
            for launch_id in late:
                self._watched[launch_id].kill_at = now + LOOK_S

    # --- starting -------------------------------------------------------------------------

    def submit(self, launch_id: str, exclude: Sequence[str] = ()) -> Submitted | SubmitFailed:
        """Start the worker of this launch. A refusal says why and leaves no process.

        `exclude` is for batch systems, which have other hosts.
        """
        if not is_label(launch_id):
            return SubmitFailed(launch_id, f"{launch_id!r:.80} is not a launch id")
        output = self._output_path(launch_id)
        try:
            popen = self._start(launch_id, output)
        except FileNotFoundError as error:
            what = error.filename if error.filename is not None else self._start_dir
            return SubmitFailed(launch_id, f"cannot start a worker: {what} does not exist")
        except (OSError, SessionFileError) as error:
            return SubmitFailed(launch_id, f"cannot start a worker: {error}")
        rlimits.give_back(popen.pid)
        stat = _read_stat(popen.pid)
        # Our own child cannot be reaped behind our back, so even a dead one has its entry.
        ticks = stat.start_ticks if stat is not None else 0
        process = LocalProcess(self._host, self._boot[:8], popen.pid, ticks)
        self._watch(_Watched(launch_id, process, popen))
        return Submitted(launch_id, self._job_id(process), output=output)

    def _start(self, launch_id: str, output: str) -> subprocess.Popen[bytes]:
        make_private_dir(Path(output).parent, parents=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(output, flags, 0o600)
        try:
            return subprocess.Popen(
                list(self._argv(launch_id)),
                stdin=subprocess.DEVNULL,
                stdout=fd,
                stderr=fd,
                cwd=self._start_dir,
                env=multiprocess.worker_environment(
                    self._environ, session_dir=self._session_dir, launch_id=launch_id
                ),
                start_new_session=True,
                umask=self._umask,
            )
        finally:
            os.close(fd)

    def _worker_argv(self, launch_id: str) -> Sequence[str]:
        return multiprocess.worker_argv(
            sys.executable,
            os.path.dirname(os.path.dirname(os.path.abspath(jobflow_worker.__file__))),
            session_dir=self._session_dir,
            launch_id=launch_id,
            slots=self._slots,
            mode=self._mode,
        )

    # --- looking --------------------------------------------------------------------------

    def query(self, launches: Iterable[tuple[str, str | None]]) -> list[LaunchSeen]:
        """What the process table says of these (launch_id, batch_job_id).

        A launch without an id, or with one that this module did not make, is looked for by its
        environment. Launches of another host are left out: there is no evidence about them.
        """
        asked = dict(launches)
        seen: dict[str, LaunchSeen] = {one.launch_id: one for one in self.reap()}
        nameless = [
            launch_id
            for launch_id, job_id in asked.items()
            if launch_id not in self._watched and launch_id not in seen and _parse(job_id) is None
        ]
        found = self.find(nameless) if nameless else {}
        for launch_id, job_id in asked.items():
            if launch_id in seen:
                continue
            if launch_id not in self._watched:
                self._adopt(launch_id, _parse(found.get(launch_id, job_id)))
            answer = self._answer(launch_id, _parse(job_id))
            if answer is not None:
                seen[launch_id] = answer
        return list(seen.values())

    def reap(self) -> list[LaunchSeen]:
        """The launches whose worker has ended since the last call."""
        names = [self._by_pidfd[fd] for fd, _ in self._epoll.poll(0)] if self._pidfds else []
        names.extend(
            one.launch_id
            for one in self._watched.values()
            if one.pidfd is None and not self._alive(one)
        )
        ended = [self._watched[launch_id] for launch_id in names]
        # What a worker left behind when it was killed would go on writing next to the retry.
        badly = [one for one in ended if one.popen is None or not _ended_well(one.process.pid)]
        # Until its status is taken, the pid of a child, and so its session id, is its own.
        sessions = {one.process.pid for one in badly if one.popen is not None}
        self._kill_rest(badly, sessions)
        return [self._bury(one) for one in ended]

    def living(self) -> list[str]:
        """The launches whose worker is watched and lives."""
        return [name for name, one in self._watched.items() if self._alive(one)]

    def find(self, launch_ids: Iterable[str]) -> dict[str, str]:
        """launch_id -> batch_job_id of live workers of this user, by their environment.

        Only the worker itself is found, not what it started: children inherit its environment but
        neither lead its process session nor have its arguments.
        """
        wanted = set(launch_ids)
        found: dict[str, LocalProcess] = {}
        for pid in _own_pids() if wanted else ():
            launch_id = _launch_of(pid, self._session_dir)
            if launch_id not in wanted or launch_id is None:
                continue
            stat = _read_stat(pid)
            if stat is None or not stat.alive or stat.session != pid:
                continue
            if not multiprocess.is_worker_of(_read(f"/proc/{pid}/cmdline"), launch_id):
                continue
            older = found.get(launch_id)
            if older is None or stat.start_ticks < older.start_ticks:
                found[launch_id] = LocalProcess(self._host, self._boot[:8], pid, stat.start_ticks)
        return {launch_id: self._job_id(process) for launch_id, process in found.items()}

    def _answer(self, launch_id: str, recorded: LocalProcess | None) -> LaunchSeen | None:
        watched = self._watched.get(launch_id)
        if watched is not None:
            return LaunchSeen(launch_id, LaunchState.RUNNING, self._job_id(watched.process))
        if recorded is None:
            reason = f"no process of this launch is on {self._host}"
        elif recorded.host != self._host:
            return None
        elif recorded.boot != self._boot[:8]:
            reason = f"{self._host} has been restarted since"
        else:
            _, reason = multiprocess.ending(None, None)
        job_id = None if recorded is None else multiprocess.local_job_id(*recorded)
        return LaunchSeen(launch_id, LaunchState.ENDED, job_id, reason, self._tail(launch_id))

    def _adopt(self, launch_id: str, process: LocalProcess | None) -> None:
        """Watch a worker that another daemon of this session started, if it is still that one."""
        if process is None or process.host != self._host or process.boot != self._boot[:8]:
            return
        if _is_alive(process):
            self._watch(_Watched(launch_id, process))

    def _watch(self, one: _Watched) -> None:
        self._watched[one.launch_id] = one
        if not self._pidfds:
            return
        try:
            one.pidfd = os.pidfd_open(one.process.pid)
        except OSError:
            # Ended already, or a kernel older than this Python: `reap` looks at the table.
            return
        if one.popen is None and not _is_alive(one.process):
            # It ended just before and the pid may be another's: let `reap` find that out.
            os.close(one.pidfd)
            one.pidfd = None
            return
        self._by_pidfd[one.pidfd] = one.launch_id
        self._epoll.register(one.pidfd, select.EPOLLIN)

    def _alive(self, one: _Watched) -> bool:
        if one.popen is not None:
            return not _has_exited(one.process.pid)
        return _is_alive(one.process)

    def _bury(self, one: _Watched) -> LaunchSeen:
        """The worker has ended: take its status and let go of it."""
        state, reason = multiprocess.ending(None, None)
        if one.popen is not None:
            code = one.popen.wait()
            state, reason = multiprocess.ending(code, signal_name(-code) if code < 0 else None)
        self._forget(one)
        job_id = self._job_id(one.process)
        return LaunchSeen(one.launch_id, state, job_id, reason, self._tail(one.launch_id))

    def _forget(self, one: _Watched) -> None:
        del self._watched[one.launch_id]
        if one.pidfd is not None:
            del self._by_pidfd[one.pidfd]
            self._epoll.unregister(one.pidfd)
            os.close(one.pidfd)

    # --- ending ---------------------------------------------------------------------------

    def cancel(self, launch_id: str, batch_job_id: str | None, now: bool = False) -> None:
        """End a worker: SIGTERM, and SIGKILL to all its processes when the grace is over.

        Repeating it changes nothing until then; with `now` the kill is immediate. Only the worker
        is asked to end: it hands its attempts back and ends its tasks itself, while tasks that
        got the signal too would look like crashes.
        """
        if launch_id not in self._watched:
            process = _parse(batch_job_id)
            if process is None:
                process = _parse(self.find([launch_id]).get(launch_id))
            self._adopt(launch_id, process)
        one = self._watched.get(launch_id)
        if one is None or not self._alive(one):
            return
        clock = self._clock()
        if now:
            self._kill([launch_id])
            one.kill_at = clock + LOOK_S
        elif one.kill_at is None:
            _send(one.process.pid, signal.SIGTERM)
            one.kill_at = clock + CANCEL_GRACE_S
        else:
            self.tick(clock)

    def _kill(self, launch_ids: Iterable[str]) -> None:
        """SIGKILL to the workers and to everything that they started."""
        victims = [self._watched[one] for one in launch_ids]
        victims = [one for one in victims if self._alive(one)]
        for one in victims:
            _send(one.process.pid, signal.SIGKILL)
        self._kill_rest(victims, sessions={one.process.pid for one in victims})

    def _kill_rest(self, victims: Sequence[_Watched], sessions: set[int]) -> None:
        """SIGKILL to what these workers started, found by environment, which also reaches those
        that made a session of their own, and by these process sessions."""
        names = {one.launch_id for one in victims}
        for pid in _own_pids() if victims else ():
            stat = _read_stat(pid)
            if stat is None or not stat.alive or pid == os.getpid():
                continue
            ours = stat.session in sessions or _launch_of(pid, self._session_dir) in names
            if ours and _is_alive(LocalProcess("", "", pid, stat.start_ticks)):
                _send(pid, signal.SIGKILL)

    # --- small things ---------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the workers without ending them: they outlive the daemon."""
        for one in list(self._watched.values()):
            if one.popen is not None:
                # Tells subprocess not to complain about, nor to wait for, a child left running.
                one.popen.returncode = 0
            self._forget(one)
        self._epoll.close()

    def _job_id(self, process: LocalProcess) -> str:
        return multiprocess.local_job_id(*process)

    def _output_path(self, launch_id: str) -> str:
        return str(self._paths.launch_dir(launch_id) / "output")

    def _tail(self, launch_id: str) -> str:
        return read_tail(self._output_path(launch_id))


def _parse(job_id: str | None) -> LocalProcess | None:
    """The process that a recorded batch_job_id names, or None."""
    return None if job_id is None else multiprocess.parse_local_job_id(job_id)


def _read(path: str) -> bytes:
    """A small file of /proc; empty if the process is gone or not ours to look at."""
    try:
        with open(path, "rb") as file:
            return file.read(limits.MIB)
    except OSError:
        return b""


def _read_stat(pid: int) -> ProcessStat | None:
    return multiprocess.parse_stat(_read(f"/proc/{pid}/stat").decode(errors="replace"))


def _is_alive(process: LocalProcess) -> bool:
    stat = _read_stat(process.pid)
    return stat is not None and stat.alive and stat.start_ticks == process.start_ticks


def _has_exited(pid: int) -> bool:
    """True if this child of ours is over. Its status stays, so its pid stays its own."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _ended_well(pid: int) -> bool:
    """True if this child of ours, which is over, left with exit status 0."""
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return status is not None and status.si_code == os.CLD_EXITED and status.si_status == 0


def _own_pids() -> Iterator[int]:
    """The processes of this user."""
    uid = os.getuid()
    with os.scandir("/proc") as entries:
        for entry in entries:
            if not entry.name.isdigit():
                continue
            try:
                if entry.stat().st_uid == uid:
                    yield int(entry.name)
            except OSError:
                continue


def _launch_of(pid: int, session_dir: str) -> str | None:
    """The launch of this session that a process belongs to. Other sessions may use its name."""
    block = _read(f"/proc/{pid}/environ")
    if multiprocess.parse_environ(block, multiprocess.SESSION_VARIABLE) != session_dir:
        return None
    return multiprocess.parse_environ(block, multiprocess.LAUNCH_VARIABLE)


def _send(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        pass


def signal_name(number: int) -> str:
    """ "SIGKILL" for 9; real-time signals have no names."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def read_tail(path: str) -> str:
    """The end of a worker's output, for people."""
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limits.OUTPUT_TAIL_BYTES_MAX))
            return file.read(limits.OUTPUT_TAIL_BYTES_MAX).decode(errors="replace")
    except OSError:
        return ""
