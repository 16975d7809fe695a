"""What runs inside a warm child: load the program once, then run attempt after attempt.

Rules
-----
* This is the only process of a worker that runs the user's code, so nothing here is trusted to
  survive: whatever a task does to this process, the agent (`slots.py`) draws the conclusion.
* A success is a frame, never an exit code. Nothing is sent for an attempt after its outcome.
* The descriptors of the protocol are neither 1 nor 2, lie above what tasks are known to close,
  and do not pass into programs that a task starts; a forked copy of this process closes them.
* Between attempts, what a task commonly changes is put back where a look at it is cheap: working
  directory, umask, the usual signal handlers, alarms, stdout and stderr. What it does to modules,
  the environment and its own globals is its own business: it shares a process with the next task.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import resource
import signal
import socket
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, Final

from jobflow_worker import childwire, limits
from jobflow_worker.author import CurrentAttempt, NonRetryable, TaskProgram, set_current_attempt
from jobflow_worker.body import Unencodable, decode_body, encode_body
from jobflow_worker.processes import die_with_parent
from jobflow_worker.program import ProgramError, ProgramRef, load_program, make_program

#: Tasks that tidy up close 3 to 255 by habit.
_DESCRIPTOR_MIN: Final = 300
#: A position in a file at which nobody stands by chance.
_MARK: Final = 0x5A_F00D_CAFE
_HANDLERS: Final = (
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGALRM, signal.SIG_DFL),
    (signal.SIGINT, signal.default_int_handler),
)


class _Output:
    """fd 1 and 2: one file per attempt that writes something."""

    def __init__(self, folder: str) -> None:
        self._path = os.path.join(folder, childwire.OUTPUT_FILE)
        self._fd = -1
        self._streams: tuple[IO[str], ...] = ()

    def open(self) -> None:
        """Take over the file that the agent put on fd 1 and 2."""
        self._fd = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR_MIN)
        self._streams = (_stream(1), _stream(2))
        sys.stdout, sys.stderr = self._streams

    def collect(self) -> str:
        """What was written since the last call (its end); the next attempt finds an empty file."""
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError, AttributeError, RuntimeError):
            pass  # Closed or replaced by something odd: put back below.
        if (sys.stdout, sys.stderr) != self._streams or sys.stdout.closed or sys.stderr.closed:
            self._streams = (_stream(1), _stream(2))
            sys.stdout, sys.stderr = self._streams
        # Descriptors of one open file share its position, which O_APPEND makes of no other use: the
        # cheapest way to see at once whether anything was written and 1 and 2 are still ours.
        size = os.lseek(self._fd, _MARK, os.SEEK_END) - _MARK
        if size:
            tail = childwire.read_tail(self._fd, size)
            self._renew()
            return tail
        try:
            ours = _position(1) == _MARK == _position(2)
        except OSError:
            ours = False
        if not ours:
            os.dup2(self._fd, 1)
            os.dup2(self._fd, 2)
        return ""

    def _renew(self) -> None:
        """A new file, because what a task left running may go on writing to the old one."""
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        try:
            os.unlink(self._path)
            fresh = os.open(self._path, flags, 0o600)
        except OSError:
            os.ftruncate(self._fd, 0)
            fresh = os.dup(self._fd)
        os.dup2(fresh, self._fd, inheritable=False)
        os.close(fresh)
        os.dup2(self._fd, 1)
        os.dup2(self._fd, 2)


def _position(number: int) -> int:
    return os.lseek(number, 0, os.SEEK_CUR)


def _stream(number: int) -> IO[str]:
    # A line at a time, so that a crash leaves what was printed before it.
    return open(
        number, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False
    )


class _Progress:
    """The `progress_cb` of one attempt; does nothing once that is over."""

    __slots__ = ("_attempt", "_runner", "_task_id", "said")

    def __init__(self, runner: Runner, task_id: str, attempt: int) -> None:
        self._runner = runner
        self._task_id = task_id
        self._attempt = attempt
        self.said = False

    def __call__(self, fraction: float, info: dict[str, Any] | None = None) -> None:
        try:
            value = float(fraction)
            body = None if info is None else encode_body(info)
        except Exception:
            return  # Progress is a courtesy: a bad one must not fail the work.
        if math.isnan(value):
            return
        if body is not None and len(body) > limits.PROGRESS_INFO_BYTES_MAX:
            body = None
        value = min(1.0, max(0.0, value))
        self._runner.moved(self, self._task_id, self._attempt, value, body)


class Runner:
    """The loop of a child. `folder` is the slot's own; the rest comes from the setup file."""

    def __init__(self, folder: str, setup: dict[str, Any], channel: int, pipe: int) -> None:
        self._folder = folder
        self._setup = setup
        self._channel = channel
        self._pipe = pipe
        self._worker_id: str = setup["worker_id"]
        self._pid = os.getpid()
        self._writing = threading.Lock()
        self._output = _Output(folder)
        self._program: TaskProgram | None = None
        self._live: _Progress | None = None
        self._progress_fd = -1
        self._count = 0
        self._started = 0.0
        self._timeout_s: float | None = None
        self._cpu = 0.0
        self._rss_floor = 0
        self._rss_children = 0
        self._clear_refs = -1
        self._cwd = ""
        self._cwd_fd = -1
        self._umask = 0o022

    # --- start --------------------------------------------------------------------------------

    def open(self) -> None:
        """Take hold of descriptors and remember what is restored between attempts."""
        self._output.open()
        os.register_at_fork(after_in_child=self._leave_to_parent)
        self._clean_folder()
        try:
            self._clear_refs = _own(os.open("/proc/self/clear_refs", os.O_WRONLY | os.O_CLOEXEC))
        except OSError:
            self._clear_refs = -1  # The peak of this process's whole life is reported then.
        self._cwd = os.getcwd()
        self._cwd_fd = _own(os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        umask = self._setup["umask"]
        self._umask = os.umask(0o077) if umask is None else umask
        os.umask(self._umask)

    def load(self) -> bool:
        """Load the program and say so; False after having said why it cannot be."""
        try:
            ref = ProgramRef.from_json(self._setup["program"])
            sys.argv = [ref.path]
            self._program = make_program(load_program(ref), self._setup["args"])
        except ProgramError as error:
            said = self._output.collect()
            detail = error.detail + (f"\nIts output:\n{said}" if said else "")
            self._send(
                childwire.BROKEN,
                childwire.plain(error.sentence, limits.ERROR_CHARS_MAX),
                childwire.plain(detail, limits.TRACEBACK_CHARS_MAX),
            )
            return False
        self._restore()
        self._output.collect()
        self._measure()
        self._send(childwire.READY, self._cpu)
        return True

    def run(self) -> None:
        """Run attempts until the agent closes its end."""
        channel = socket.socket(fileno=self._channel)
        while True:
            packet = channel.recv(childwire.PACKET_BYTES_MAX)
            if not packet:
                return
            self._attempt(*decode_body(packet))

    # --- one attempt --------------------------------------------------------------------------

    def _attempt(
        self,
        task_id: str,
        attempt: int,
        spec: bytes | None,
        spec_file: str | None,
        timeout_s: float | None,
    ) -> None:
        assert self._program is not None
        self._count += 1
        self._timeout_s = timeout_s
        progress = self._live = _Progress(self, task_id, attempt)
        current = CurrentAttempt(
            task_id, attempt, self._worker_id, self._make_scratch, self._seconds_left
        )
        set_current_attempt(current)
        file: tuple[str, int, str] | None = None
        failure: tuple[str, str, str] | None = None
        body: bytes | None = None
        self._started = time.monotonic()
        try:
            if spec is None:
                spec = _take_file(str(spec_file))
            result = self._program.execute_task(decode_body(spec), progress)
            body = encode_body(result if isinstance(result, dict) else {"result": result})
            if len(body) > limits.RESULT_INLINE_BYTES_MAX:
                file, body = self._store_result(body), None
        except BaseException as error:
            failure = _describe(error)
        duration = time.monotonic() - self._started
        if os.getpid() != self._pid:
            os._exit(0 if failure is None else 1)  # A forked copy that came back by mistake.
        self._live = None
        set_current_attempt(None)
        self._restore()
        tail = self._output.collect()
        usage = (duration, *self._measure())
        if failure is None:
            self._send(childwire.FINISHED, task_id, attempt, body, file, tail, *usage)
        else:
            self._send(childwire.FAILED, task_id, attempt, *failure, tail, *usage)
        if current.scratch_made:
            _remove_tree(self._scratch_path())

    def _store_result(self, body: bytes) -> tuple[str, int, str]:
        """Write a large result where the manager finds it; returns its name, size and sha256."""
        import hashlib

        if len(body) > limits.RESULT_BYTES_MAX:
            raise Unencodable(
                f"it takes {len(body)} bytes, more than {limits.RESULT_BYTES_MAX}:"
                " write it to a file of your own and return its name"
            )
        name = f"r-{os.urandom(16).hex()}"
        folder = self._setup["results_dir"]
        path, draft = os.path.join(folder, name), os.path.join(folder, f"{name}.tmp")
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(fd, "wb", buffering=0) as file:
                view = memoryview(body)
                while view:
                    view = view[file.write(view) :]
                os.fsync(fd)
            os.rename(draft, path)
            _sync_folder(folder)
        except BaseException:
            _remove_file(draft)
            raise
        return name, len(body), hashlib.sha256(body).hexdigest()

    def moved(
        self, who: _Progress, task_id: str, attempt: int, value: float, info: bytes | None
    ) -> None:
        """Pass progress on: the first at once, then by a file that the agent looks at.

        So the latest one gets out, however fast they come and however long the last one stands,
        without a thread in the user's process.
        """
        if who is not self._live or self._pipe < 0:
            return
        try:
            if self._progress_fd < 0:
                path = os.path.join(self._folder, childwire.PROGRESS_FILE)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
                self._progress_fd = _own(os.open(path, flags, 0o600))
            with self._writing:
                record = childwire.progress_record(task_id, attempt, value, info)
                os.pwrite(self._progress_fd, record, 0)
        except OSError:
            pass
        if not who.said:
            who.said = True
            self._send(childwire.PROGRESS, task_id, attempt, value, info)

    def _seconds_left(self) -> float | None:
        now, ends_at = time.monotonic(), self._setup["ends_at"]
        ends = [] if ends_at is None else [ends_at]
        if self._timeout_s is not None:
            ends.append(self._started + self._timeout_s)
        return max(0.0, min(ends) - now) if ends else None

    def _scratch_path(self) -> str:
        return os.path.join(self._folder, f"attempt-{self._count}")

    def _make_scratch(self) -> Path:
        path = Path(self._scratch_path())
        path.mkdir(mode=0o700, exist_ok=True)
        return path

    # --- between attempts ---------------------------------------------------------------------

    def _restore(self) -> None:
        """Put back what tasks commonly change."""
        signal.alarm(0)
        # Each look at a handler costs as much as encoding a result. Whoever sets one mostly sets
        # SIGTERM's, and that is the one that matters, so it stands for all.
        if signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
            for number, handler in _HANDLERS:
                signal.signal(number, handler)
        os.umask(self._umask)
        try:
            moved = os.getcwd() != self._cwd
        except OSError:
            moved = True  # Into a directory that is gone.
        if moved:
            try:
                os.fchdir(self._cwd_fd)
            except OSError:
                os._exit(70)  # It closed our descriptor: only a new process puts this right.

    def _measure(self) -> tuple[float, int]:
        """CPU seconds and peak memory since the last call, reaped children included."""
        own = resource.getrusage(resource.RUSAGE_SELF)
        reaped = resource.getrusage(resource.RUSAGE_CHILDREN)
        total = own.ru_utime + own.ru_stime + reaped.ru_utime + reaped.ru_stime
        cpu, self._cpu = max(0.0, total - self._cpu), total
        peak = own.ru_maxrss
        if peak > self._rss_floor and self._clear_refs >= 0:
            os.write(self._clear_refs, b"5")  # The kernel forgets the peak: see proc(5).
            self._rss_floor = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if reaped.ru_maxrss > self._rss_children:
            self._rss_children = reaped.ru_maxrss
            peak = max(peak, reaped.ru_maxrss)
        return cpu, peak * 1024

    def _send(self, *items: Any) -> None:
        with self._writing:
            view = memoryview(childwire.frame(*items))
            try:
                while view:
                    view = view[os.write(self._pipe, view) :]
            except OSError:
                os._exit(70)  # Without its pipe this process can tell nobody anything.

    def _clean_folder(self) -> None:
        """Remove what an earlier child of this slot left; here, because it may take long."""
        keep = (childwire.SETUP_FILE, childwire.OUTPUT_FILE)
        for name in os.listdir(self._folder):
            if name not in keep:
                path = os.path.join(self._folder, name)
                if os.path.isdir(path) and not os.path.islink(path):
                    _remove_tree(path)
                else:
                    _remove_file(path)

    def _leave_to_parent(self) -> None:
        """In a forked copy: it must neither take attempts nor hold the pipe open."""
        for fd in (self._pipe, self._channel):
            try:
                os.close(fd)
            except OSError:
                pass
        self._pipe = -1
        self._writing = threading.Lock()


def _take_file(path: str) -> bytes:
    data = Path(path).read_bytes()
    _remove_file(path)
    return data


def _remove_file(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass


def _remove_tree(path: str) -> None:
    import shutil

    shutil.rmtree(path, ignore_errors=True)


def _sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _describe(error: BaseException) -> tuple[str, str, str]:
    """Cause, one line, and traceback of what a task raised. Never raises."""
    if isinstance(error, Unencodable):
        return "unencodable", _one_line(f"The result cannot be encoded: {error}"), ""
    if isinstance(error, NonRetryable):
        cause = "nonretryable"
    elif isinstance(error, MemoryError):
        cause = "memory"
    else:
        cause = "exception"
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        text = "(its text cannot be shown)"
    try:
        said = _traceback(error)
    except BaseException:
        said = ""
    return cause, _one_line(f"{name}: {text}" if text else name), said


def _one_line(text: str) -> str:
    clipped = childwire.plain(text, limits.ERROR_CHARS_MAX)
    return " ".join(clipped.split())[: limits.ERROR_CHARS_MAX]


def _traceback(error: BaseException) -> str:
    import traceback

    frame = error.__traceback__
    while frame and frame.tb_frame.f_code.co_filename == __file__:
        frame = frame.tb_next
    said = "".join(traceback.format_exception(type(error), error, frame))
    return childwire.plain(said, limits.TRACEBACK_CHARS_MAX)


def _own(fd: int) -> int:
    """Move a descriptor out of the way and keep it out of programs that a task starts."""
    moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _DESCRIPTOR_MIN)
    os.close(fd)
    return moved


def _reset_signals() -> None:
    """The agent's ignored and blocked signals were inherited; a task wants the defaults."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGALRM, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def _offer_to_oom_killer() -> None:
    """When the node runs out of memory, this process goes before its agent, which can tell."""
    try:
        Path("/proc/self/oom_score_adj").write_text("500")
    except OSError:
        pass


def main() -> None:
    """Entry point, as started by `slots.py`: argv = -c SETUP CHANNEL PIPE AGENT LABEL."""
    import faulthandler

    setup_file, channel, pipe, agent = sys.argv[1], *map(int, sys.argv[2:5])
    die_with_parent(agent)
    _reset_signals()
    _offer_to_oom_killer()
    faulthandler.enable(file=2, all_threads=False)
    setup = json.loads(Path(setup_file).read_bytes())
    runner = Runner(os.path.dirname(setup_file), setup, _own(channel), _own(pipe))
    runner.open()
    if runner.load():
        runner.run()
