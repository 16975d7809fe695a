"""The daemon's end of the generator child: start it, read what it yields, end it.

Rules
-----
* Nothing here waits: `fileno` is readable while there is something to receive, `receive` reads a
  bounded number of batches and never more bytes than those. Not reading is the back-pressure: the
  pipe fills and the child blocks.
* Every child ends in exactly one `GenerationEnded`, its own or, if it died without one, ours,
  unless the daemon killed it.

`generatechild.py` is the other end and defines the frames.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from itertools import repeat
from typing import Any, Final

import jobflow_worker
from jobflow_worker import limits
from jobflow_worker.codec import decode_body
from jobflowd.events import Generated, GenerationEnded
from jobflowd.generatechild import PREFIX_BYTES
from jobflowd.launchers.multiprocess import boot_code, child_environment
from jobflowd.model import Definition
from jobflowd.processes import read_tail, signal_name

#: The log of what generate_tasks() printed, in the session directory; the latest run only.
LOG_NAME: Final = "generate.log"
#: How long the child may take to leave after its last frame (atexit handlers, pools).
EXIT_GRACE_S: Final = 10.0
#: How often to look where the kernel cannot tell of the child's exit.
LOOK_S: Final = 1.0

_PIPE_BYTES: Final = limits.MIB
#: A frame holds one batch and at most one spec more; anything above is not ours.
_FRAME_BYTES_MAX: Final = 8 * limits.MIB
_END_WIDTH: Final = 3
_TASKS_WIDTH: Final = 1 + len(Definition._fields)


class BrokenStream(ValueError):
    """The child sent something that is not a frame."""


class GeneratorProcess:
    """One run of generate_tasks(), in a process of its own.

    The child reads the program, its arguments and the start directory from the session. `umask` is
    the user's own (-1: inherit).
    """

    def __init__(
        self,
        session_dir: str | os.PathLike[str],
        *,
        umask: int = -1,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
        pidfds: bool = hasattr(os, "pidfd_open"),
    ) -> None:
        self._session_dir = os.path.abspath(session_dir)
        self._umask = umask
        self._environ = child_environment(os.environ if environ is None else environ)
        self._clock = clock
        self._pidfds = pidfds
        self._popen: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None
        self._pidfd: int | None = None
        self._epoll = select.epoll()
        self._buffer = bytearray()
        self._paused = False
        self._ended = False
        self._kill_at: float | None = None
        self._progress_at = 0.0

    @property
    def log_path(self) -> str:
        """Where the child's stdout and stderr go."""
        return os.path.join(self._session_dir, LOG_NAME)

    @property
    def pid(self) -> int | None:
        """The child, while it is not reaped."""
        return (
            None if self._popen is None or self._popen.returncode is not None else (self._popen.pid)
        )

    def start(self) -> None:
        """Start the child. Raises OSError if that is not possible; nothing is left then."""
        reading, writing = os.pipe2(os.O_CLOEXEC)
        try:
            self._popen = self._spawn(writing)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        os.set_blocking(reading, False)
        _enlarge(reading)
        self._pipe = reading
        if self._pidfds:
            try:
                self._pidfd = os.pidfd_open(self._popen.pid)
            except OSError:
                pass  # A kernel older than this Python: `next_deadline` says when to look.
        self._paused = True
        self.resume()

    def _spawn(self, writing: int) -> subprocess.Popen[bytes]:
        home = os.path.dirname(os.path.dirname(os.path.abspath(jobflow_worker.__file__)))
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        log = os.open(self.log_path, flags, 0o600)
        try:
            return subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    boot_code("jobflowd.generatechild", "main", home),
                    self._session_dir,
                    str(writing),
                    str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._session_dir,
                env=self._environ,
                pass_fds=(writing,),
                start_new_session=True,
                umask=self._umask,
            )
        finally:
            os.close(log)

    # --- what the daemon polls ------------------------------------------------------------

    def fileno(self) -> int:
        """Readable while `receive` has something to do."""
        return self._epoll.fileno()

    def next_deadline(self) -> float | None:
        """When to call `receive` and `tick` at the latest (monotonic), or None."""
        if self.pid is None:
            return None
        if self._pidfd is None:
            return self._clock() + LOOK_S
        return self._kill_at

    def tick(self, now: float) -> None:
        """End a child that has said all and does not leave."""
        if self._kill_at is not None and self._kill_at <= now and self.pid is not None:
            self._kill_group()
            self._kill_at = now + LOOK_S

    def receive(self, max_batches: int) -> list[Generated | GenerationEnded]:
        """What has arrived, at most `max_batches`, in order. Empty while paused."""
        events: list[Generated | GenerationEnded] = []
        while len(events) < max_batches and not (self._ended or self._paused):
            # Asked before reading: what an exited child wrote is all in the pipe.
            over = self._has_exited()
            try:
                frame = self._read_frame()
                event = None if frame is None else _event_of(frame)
            except BrokenStream as error:
                self._kill_group()
                event = GenerationEnded(f"the stream of generate_tasks() is broken: {error}")
            if event is None and over:
                event = self._death()
            if event is None:
                break
            events.append(event)
            self._progress_at = self._clock()
            if isinstance(event, GenerationEnded):
                self._close_stream()
        if self._ended and self._has_exited():
            self._reap()
        return events

    def pause(self) -> None:
        """Stop reading: the child blocks when the pipe is full."""
        if self._paused or self._ended:
            return
        for fd in self._fds():
            self._epoll.unregister(fd)
        self._paused = True

    def resume(self) -> None:
        """Read again."""
        if self._paused:
            for fd in self._fds():
                self._epoll.register(fd, select.EPOLLIN)
        self._paused = False
        self._progress_at = self._clock()

    def stalled_for(self, now: float) -> float:
        """Seconds since the child last gave something, as far as that is its own fault."""
        if self._ended or self._paused or self._popen is None:
            return 0.0
        return max(0.0, now - self._progress_at)

    # --- ending ---------------------------------------------------------------------------

    def kill(self) -> None:
        """End the child and what it started, at once and without an event."""
        if self.pid is not None:
            self._kill_group()
        self._close_stream()

    def close(self) -> None:
        """Kill it if it still runs, and give everything back. Waits a second at most."""
        self.kill()
        if self._popen is not None:
            try:
                self._popen.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                # Stuck in the kernel (a hung file server): nobody can wait for that.
                self._popen.returncode = -signal.SIGKILL
        if self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        self._epoll.close()

    def _fds(self) -> list[int]:
        return [fd for fd in (self._pipe, self._pidfd) if fd is not None]

    def _close_stream(self) -> None:
        self.resume()
        self._close_pipe()
        if not self._ended:
            self._ended = True
            self._kill_at = self._clock() + EXIT_GRACE_S
        self._buffer.clear()

    def _close_pipe(self) -> None:
        if self._pipe is not None:
            self._epoll.unregister(self._pipe)
            os.close(self._pipe)
            self._pipe = None

    def _kill_group(self) -> None:
        """Only while the child is not reaped: until then its pid, and its group, are its own."""
        if self._popen is not None and self._popen.returncode is None:
            try:
                os.killpg(self._popen.pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass

    def _has_exited(self) -> bool:
        if self._popen is None or self._popen.returncode is not None:
            return True
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self._popen.pid, options) is not None

    def _reap(self) -> None:
        if self._popen is None or self._popen.returncode is not None:
            return
        self._popen.wait()
        self._kill_at = None
        if self._pidfd is not None:
            self._epoll.unregister(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = None

    def _death(self) -> GenerationEnded:
        """The child is gone without its last frame."""
        assert self._popen is not None
        self._kill_group()
        self._reap()
        return GenerationEnded(_obituary(self._popen.returncode), read_tail(self.log_path))

    # --- reading --------------------------------------------------------------------------

    def _read_frame(self) -> bytes | None:
        """One frame, or None if it is not complete. Never reads beyond its end, so that what is
        left keeps the descriptor readable."""
        if not self._fill(PREFIX_BYTES):
            return None
        size = int.from_bytes(self._buffer[:PREFIX_BYTES], "big")
        if size > _FRAME_BYTES_MAX:
            raise BrokenStream(f"a frame of {size} bytes")
        if not self._fill(PREFIX_BYTES + size):
            return None
        frame = bytes(self._buffer[PREFIX_BYTES:])
        self._buffer.clear()
        return frame

    def _fill(self, size: int) -> bool:
        while len(self._buffer) < size:
            if self._pipe is None:
                return False
            try:
                data = os.read(self._pipe, size - len(self._buffer))
            except BlockingIOError:
                return False
            if not data:
                # Closed before the end: readable for ever, so look at the child's exit only.
                self._close_pipe()
                return False
            self._buffer += data
            self._progress_at = self._clock()
        return True


def _event_of(frame: bytes) -> Generated | GenerationEnded:
    try:
        parts: Any = decode_body(frame)
        if parts[0] == "tasks" and len(parts) == _TASKS_WIDTH and type(parts[1]) is list:
            columns = [one if type(one) is list else repeat(one) for one in parts[1:]]
            return Generated(tuple(map(Definition, *columns)))
        if parts[0] == "end" and len(parts) == _END_WIDTH:
            return GenerationEnded(parts[1], parts[2])
    except (ValueError, TypeError, LookupError) as error:
        raise BrokenStream(type(error).__name__) from None
    raise BrokenStream("an unknown frame")


def _obituary(code: int) -> str:
    what = "the process of generate_tasks() was through with exit status 0 before its last task"
    if code < 0:
        what = f"the process of generate_tasks() was killed by {signal_name(-code)}"
        if code == -signal.SIGKILL:
            what += " (by hand, or because memory ran out)"
    elif code > 0:
        what = f"the process of generate_tasks() ended itself with exit status {code}"
    return what


def _enlarge(pipe: int) -> None:
    """A larger pipe means fewer changes between child and daemon; the default works, too."""
    try:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EPERM, errno.EBUSY):
            raise
