"""A slot's child as the agent sees it: a process, a socket to feed it, a pipe that it talks on.

Rules
-----
* Only `slots.py` uses this. It knows processes and bytes; queues, blame and limits are the slot's.
* `fileno` stays the same over restarts, and the pipe behind it is new for each child. While there
  is no child, the pipe is quiet; while there is one, only the child holds its writing end, so a
  death is seen at once as the end of the pipe.
* A process group is killed while its dead leader is still unreaped, so that its number cannot
  have passed to a stranger.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from jobflow_worker import childwire, limits, processes
from jobflow_worker.messages import Assignment, Held
from jobflow_worker.programref import ProgramRef
from jobflow_worker.record import Record

_READ_BYTES: Final = 256 * limits.KIB
_SOCKET_BYTES: Final = 4 * limits.MIB
#: `-c` puts the current directory first on the path; it must not shadow what is installed.
_BOOT: Final = (
    "import sys; sys.path[:1] = [] if sys.path[:1] == [''] else sys.path[:1]; "
    "from jobflow_worker.child import main; main()"
)
#: Marks a child and all that it starts, so that what outlives it is known as its own.
_TAG_VARIABLE: Final = "JOBFLOW_CHILD"
_SEE: Final = os.WEXITED | os.WNOHANG | os.WNOWAIT
_FULL: Final = (errno.EAGAIN, errno.ENOBUFS, errno.ENOMEM)


class ChildSetup(Record):
    """What a slot's child needs to know.

    `scratch_dir` exists and is on a local disk; each slot makes its own folder in it.
    `results_dir` exists in the session. `env`: the whole environment, None to inherit. `label` is
    shown by ps. `umask`: of the user, for the files of tasks; None to inherit. `ends_at`:
    monotonic time at which this worker must be gone.
    """

    program: ProgramRef
    args: dict[str, Any]
    cwd: str | Path
    results_dir: Path
    scratch_dir: Path
    worker_id: str
    env: Mapping[str, str] | None = None
    label: str = ""
    umask: int | None = None
    ends_at: float | None = None


class End(NamedTuple):
    """How a child ended; CPU and memory are of its whole life."""

    signal_name: str | None
    exit_code: int | None
    cpu_s: float
    max_rss_bytes: int

    @property
    def words(self) -> str:
        """The end of a sentence that begins with the process."""
        if self.signal_name is not None:
            return f"was ended by {self.signal_name}{_SIGNAL_WORDS.get(self.signal_name, '')}"
        if self.exit_code == 0:
            return "left with exit code 0 and no result (os._exit, or exec?)"
        return f"left with exit code {self.exit_code}"


_SIGNAL_WORDS: Final = {
    "SIGSEGV": " (invalid memory access)",
    "SIGBUS": " (a bus error: often a full disk behind mapped memory)",
    "SIGABRT": " (abort: a library gave up)",
    "SIGFPE": " (an arithmetic error)",
    "SIGILL": " (an instruction that this machine does not know)",
    "SIGXCPU": " (the CPU time limit)",
    "SIGKILL": " (from outside: often because memory ran out)",
}


class ChildProcess:
    """At most one living child at a time, in the slot's own folder."""

    def __init__(self, folder: str, setup: ChildSetup) -> None:
        self.folder = folder
        self._setup = setup
        self._process: subprocess.Popen[bytes] | None = None
        self._tag = b""
        self._sweep_again: list[bytes] = []
        self._feeder: socket.socket | None = None
        self._taker: socket.socket | None = None
        self._pipe = -1
        self._pipe_end = -1
        self._buffer = bytearray()
        self._spec_files: dict[Held, str] = {}
        self._spec_count = 0
        self._orphans: list[int] = []
        self.hung_up = False

    # --- start ----------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the pipe; from now on there is a `fileno`."""
        self._renew_pipe()

    def start(self) -> None:
        """Start a child. Raises OSError, and there is none then."""
        assert self._process is None
        try:
            self._exec()
        except OSError:
            self._close_channel()
            raise

    def _exec(self) -> None:
        setup = self._setup
        os.makedirs(self.folder, mode=0o700, exist_ok=True)
        setup_file = os.path.join(self.folder, childwire.SETUP_FILE)
        _write_file(setup_file, self._setup_text())
        mark = os.urandom(8).hex()
        self._tag = f"{_TAG_VARIABLE}={mark}".encode()
        env = {**(os.environ if setup.env is None else setup.env), _TAG_VARIABLE: mark}
        self._feeder, self._taker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._feeder.setblocking(False)
        self._feeder.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BYTES)
        numbers = [self._taker.fileno(), self._pipe_end]
        argv = [sys.executable, "-c", _BOOT, setup_file, *map(str, numbers), str(os.getpid())]
        output = _create(self._output_path, os.O_RDWR | os.O_APPEND)
        try:
            self._process = subprocess.Popen(
                [*argv, setup.label],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                pass_fds=numbers,
                cwd=setup.cwd,
                env=env,
                start_new_session=True,
            )
        finally:
            os.close(output)
        os.close(self._pipe_end)
        self._pipe_end = -1

    def _setup_text(self) -> bytes:
        setup = self._setup
        values = {
            "program": setup.program.to_json(),
            "args": setup.args,
            "results_dir": os.path.abspath(setup.results_dir),
            "worker_id": setup.worker_id,
            "umask": setup.umask,
            "ends_at": setup.ends_at,
        }
        return json.dumps(values).encode("ascii")

    def _renew_pipe(self) -> None:
        self._buffer.clear()
        reading, writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(reading, False)
        try:
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, limits.MIB)
        except OSError:
            pass  # Above the user's quota of pipe memory; the usual size works too.
        if self._pipe < 0:
            self._pipe = reading
        else:
            os.dup2(reading, self._pipe, inheritable=False)
            os.close(reading)
        if self._pipe_end >= 0:
            os.close(self._pipe_end)
        self._pipe_end = writing
        self.hung_up = False

    # --- talk -----------------------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The child's pid, which is also its process group; None if there is none."""
        return self._process.pid if self._process else None

    def fileno(self) -> int:
        """Readable when the child has said something or has ended."""
        return self._pipe

    def send(self, one: Assignment) -> bool:
        """Feed one attempt; False if there is no room now.

        Raises OSError if its spec is large and cannot be put into a file.
        """
        assert self._feeder is not None
        big = len(one.spec) > childwire.SPEC_INLINE_BYTES_MAX
        packet = childwire.packet(one, self._spill(one) if big else None)
        try:
            self._feeder.send(packet)
        except OSError as error:
            if error.errno in _FULL:
                return False
            raise
        return True

    def _spill(self, one: Assignment) -> str:
        """Put a large spec into a file, which the child removes as it takes it."""
        held = Held(one.task_id, one.attempt)
        if held not in self._spec_files:
            self._spec_count += 1
            path = os.path.join(self.folder, f"spec-{self._spec_count}")
            _write_file(path, one.spec)
            self._spec_files[held] = path
        return self._spec_files[held]

    def forget(self, held: Held) -> None:
        """An attempt that was sent is over or taken back: its file, if it has one, may go."""
        if self._spec_files and held in self._spec_files:
            try:
                os.unlink(self._spec_files.pop(held))
            except OSError:
                pass  # The child took it.

    def take_back(self, most: int) -> list[Held]:
        """Withdraw up to so many packets that the child has not taken; returns whose they were.

        The child may take one from between them meanwhile, so they need not be neighbours.
        """
        back: list[Held] = []
        while self._taker is not None and len(back) < most:
            try:
                data = self._taker.recv(childwire.PACKET_BYTES_MAX, socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            back.append(Held(*childwire.whose(data)))
        return back

    def end_input(self) -> None:
        """Let the child end by itself after what it has taken."""
        if self._feeder is not None:
            self._feeder.shutdown(socket.SHUT_WR)

    def read(self) -> tuple[list[list[Any]], bool]:
        """Some frames that the child sent, and whether there may be more.

        At the end of the pipe `hung_up` becomes true and the pipe is replaced by a quiet one.
        Raises Corrupt.
        """
        try:
            data = os.read(self._pipe, _READ_BYTES)
        except BlockingIOError:
            return [], False
        if not data:
            self._renew_pipe()
            self.hung_up = True
            return [], False
        self._buffer += data
        return childwire.take_frames(self._buffer), len(data) == _READ_BYTES

    def signal(self, number: int) -> None:
        """Signal the child's whole process group."""
        if self._process is not None:
            processes.signal_group(self._process.pid, number)

    # --- look -----------------------------------------------------------------------------------

    def memory(self, limit: int) -> int:
        """Bytes that the child and its descendants use; exact only around and above the limit."""
        return processes.tree_memory(self._process.pid, limit) if self._process else 0

    @property
    def _output_path(self) -> str:
        return os.path.join(self.folder, childwire.OUTPUT_FILE)

    def output_tail(self) -> str:
        """The end of what the running attempt, or the one that the child died of, wrote."""
        try:
            fd = os.open(self._output_path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return ""
        try:
            return childwire.read_tail(fd, os.fstat(fd).st_size)
        except OSError:
            return ""
        finally:
            os.close(fd)

    def trim_output(self) -> None:
        """If the output file is above its limit, throw the older half away."""
        try:
            if os.stat(self._output_path).st_size > limits.OUTPUT_FILE_BYTES_MAX:
                _trim(self._output_path, limits.OUTPUT_FILE_BYTES_MAX // 2)
        except OSError:
            pass  # The child is just replacing it.

    # --- end ------------------------------------------------------------------------------------

    def is_dead(self) -> bool:
        """True if the child has ended and is not reaped yet."""
        return (
            self._process is not None and os.waitid(os.P_PID, self._process.pid, _SEE) is not None
        )

    def end_group(self) -> None:
        """Kill what is left of the child's process group, and what left the group."""
        if self._process is not None:
            processes.signal_group(self._process.pid, signal.SIGKILL)
            self._orphans += processes.kill_tagged(self._tag)
            self._sweep_again.append(self._tag)

    def reap(self) -> End:
        """Take the dead child's status. Call `end_group` and `read` to the end before."""
        assert self._process is not None
        process, self._process = self._process, None
        _, status, rusage = os.wait4(process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        process.returncode = code  # So that Popen does not wait for it again.
        self._orphans = processes.reap([*self._orphans, -process.pid])
        cpu, rss = rusage.ru_utime + rusage.ru_stime, rusage.ru_maxrss * 1024
        return End(None, code, cpu, rss) if code >= 0 else End(_name(-code), None, cpu, rss)

    def reset(self) -> None:
        """Forget the dead child's channels; ready for `start`."""
        self._close_channel()
        self._renew_pipe()

    def reap_orphans(self) -> bool:
        """Reap what the dead left behind; False while some of it is still dying.

        Looks for more of it once more: a process in the middle of an exec shows no environment.
        """
        while self._sweep_again:
            self._orphans += processes.kill_tagged(self._sweep_again.pop())
        self._orphans = processes.reap(self._orphans)
        return not self._orphans

    @property
    def has_orphans(self) -> bool:
        """Whether `reap_orphans` has something to do."""
        return bool(self._orphans or self._sweep_again)

    def close(self) -> None:
        """Let go of everything and remove the folder. The child is dead, or cannot die."""
        if self._process is not None:
            self._process.returncode = -signal.SIGKILL  # In an uninterruptible sleep.
            self._process = None
        self._close_channel()
        for fd in (self._pipe, self._pipe_end):
            if fd >= 0:
                os.close(fd)
        self._pipe = self._pipe_end = -1
        import shutil  # The agent has loaded it after the start, which needs it not.

        shutil.rmtree(self.folder, ignore_errors=True)

    def _close_channel(self) -> None:
        for one in (self._feeder, self._taker):
            if one is not None:
                one.close()
        self._feeder = self._taker = None


def _write_file(path: str, data: bytes) -> None:
    """A new private file with this content. Raises OSError."""
    with open(_create(path, os.O_WRONLY), "wb") as file:
        file.write(data)


def _create(path: str, flags: int) -> int:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)


def _trim(path: str, keep: int) -> None:
    """Move the end of a file that others append to to its front, and cut it there."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        source, target = os.fstat(fd).st_size - keep, 0
        while data := os.pread(fd, limits.MIB, source):
            target += os.pwrite(fd, data, target)
            source += len(data)
        # What is written between the last read and this line is lost with the older half.
        os.ftruncate(fd, target)
    finally:
        os.close(fd)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"SIG{number}"
