"""Commands of a batch system as children that nobody waits for.

Rules
-----
* Nothing here blocks and there are no threads: exits and output wake one descriptor
  (`wake_fd`), `service` reads a bounded amount.
* Every command has a time-out, after which its whole process group is killed. It runs in a process
  group of its own, so that a Ctrl-C meant for the daemon does not cut a submission in half.
* Every command that was started is told of exactly once, as `Finished`. Only `Finished.dead` says
  that it can have no more effect: a process stuck in a hung file server survives its own killing.
* At most `max_parallel` run at a time, the rest waits in order: batch controllers are shared.

What the answers mean is the launchers' business.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from jobflow_worker import limits

#: Status answers for tens of thousands of jobs have a few MiB. More is cut, and said to be.
OUT_BYTES_MAX: Final = 32 * limits.MIB
ERR_BYTES_MAX: Final = 64 * limits.KIB
#: Read per pipe and call of `service`.
_READ_BYTES_MAX: Final = limits.MIB
#: After a kill, how long a process may take to be gone before it is told of as not dead.
KILL_PATIENCE_S: Final = 5.0
#: How often to look where the kernel cannot tell of exits.
LOOK_S: Final = 0.1

#: What describes the batch job that the daemon itself may run in. Passed on, it would be taken for
#: options of the commands (SBATCH_*) or would make a worker believe it lived in the daemon's job.
_OWN_JOB: Final = ("SLURM_", "SBATCH_", "SRUN_", "SQUEUE_", "SACCT_", "SALLOC_", "LSB_", "LS_JOB")
#: What tells where the batch system is.
_KEPT: Final = ("SLURM_CONF", "SLURM_CLUSTERS", "LSB_SHAREDIR")


def batch_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The environment for batch commands: plain messages and times, nothing of our own job."""
    kept = {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not name.startswith(_OWN_JOB)
    }
    for name in ("LANG", "LANGUAGE"):
        kept.pop(name, None)
    return kept | {"LC_ALL": "C"}


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that is over. `rc` is None if it could not be started or did not end by itself;
    `err` then says why. `cut`: there was more output than is kept."""

    handle: int
    rc: int | None
    out: str
    err: str
    timed_out: bool = False
    dead: bool = True
    cut: bool = False


@dataclass(slots=True)
class _Order:
    handle: int
    argv: tuple[str, ...]
    stdin: bytes | None
    timeout_s: float
    env: dict[str, str]


@dataclass(slots=True)
class _Output:
    """One pipe of a command, and what came out of it."""

    fd: int | None
    room: int
    data: bytearray = field(default_factory=bytearray)
    cut: bool = False


@dataclass(slots=True)
class _Running:
    order: _Order
    popen: subprocess.Popen[bytes]
    out: _Output
    err: _Output
    pidfd: int | None
    kill_at: float
    give_up_at: float | None = None


class Commands:
    """Runs commands for one daemon. Times are monotonic seconds, passed in."""

    def __init__(self, max_parallel: int = 4, *, pidfds: bool = hasattr(os, "pidfd_open")) -> None:
        self._max_parallel = max_parallel
        self._pidfds = pidfds
        self._epoll = select.epoll()
        self._waiting: deque[_Order] = deque()
        self._running: dict[int, _Running] = {}
        self._stuck: list[subprocess.Popen[bytes]] = []
        self._last_handle = 0

    def start(
        self,
        argv: Sequence[str],
        *,
        stdin: bytes | None = None,
        timeout_s: float,
        env: Mapping[str, str],
    ) -> int:
        """Run a command as soon as there is room; `service` starts it and tells of its end.

        `timeout_s` counts from its real start. Without `stdin` it reads nothing.
        """
        self._last_handle += 1
        order = _Order(self._last_handle, tuple(argv), stdin, timeout_s, dict(env))
        self._waiting.append(order)
        return self._last_handle

    def wake_fd(self) -> int:
        """Readable while `service` has something to do."""
        return self._epoll.fileno()

    def next_deadline(self, now: float) -> float | None:
        """When to call `service` at the latest, or None if nothing runs."""
        if self._waiting and len(self._running) < self._max_parallel:
            return now
        times = [
            one.kill_at if one.give_up_at is None else one.give_up_at
            for one in self._running.values()
        ]
        if any(one.pidfd is None for one in self._running.values()):
            times.append(now + LOOK_S)
        return min(times, default=None)

    @property
    def busy(self) -> bool:
        """True while a command runs or waits."""
        return bool(self._running or self._waiting)

    def service(self, now: float) -> list[Finished]:
        """Start what has room, read, enforce time-outs, and tell what is over."""
        self._stuck = [one for one in self._stuck if one.poll() is None]
        finished: list[Finished] = []
        for one in list(self._running.values()):
            done = self._look_at(one, now)
            if done is not None:
                finished.append(done)
        while self._waiting and len(self._running) < self._max_parallel:
            refused = self._launch(self._waiting.popleft(), now)
            if refused is not None:
                finished.append(refused)
        return finished

    def close(self) -> None:
        """Kill what runs and forget what waits. Waits a second at most."""
        self._waiting.clear()
        for one in list(self._running.values()):
            _kill_group(one.popen)
            self._release(one)
            self._stuck.append(one.popen)
        for popen in self._stuck:
            try:
                popen.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                # Stuck in the kernel: it dies when it can.
                popen.returncode = -signal.SIGKILL
        self._epoll.close()

    # --- one command ----------------------------------------------------------------------

    def _launch(self, order: _Order, now: float) -> Finished | None:
        try:
            popen = _spawn(order)
        except (OSError, ValueError) as error:
            return Finished(order.handle, None, "", f"cannot run {order.argv[0]!r}: {error}")
        assert popen.stdout is not None
        assert popen.stderr is not None
        out = _Output(os.dup(popen.stdout.fileno()), OUT_BYTES_MAX)
        err = _Output(os.dup(popen.stderr.fileno()), ERR_BYTES_MAX)
        popen.stdout.close()
        popen.stderr.close()
        one = _Running(order, popen, out, err, None, now + order.timeout_s)
        if self._pidfds:
            try:
                one.pidfd = os.pidfd_open(popen.pid)
            except OSError:
                pass  # A kernel older than this Python: `next_deadline` says when to look.
        for fd in (out.fd, err.fd, one.pidfd):
            if fd is not None:
                os.set_blocking(fd, False)
                self._epoll.register(fd, select.EPOLLIN)
        self._running[order.handle] = one
        return None

    def _look_at(self, one: _Running, now: float) -> Finished | None:
        # Asked before reading: what an exited command wrote is all in the pipes. A grandchild may
        # hold them open for ever, so their end is not waited for.
        exited = one.popen.poll() is not None
        more = [self._read(one.out), self._read(one.err)]
        if exited and (now >= one.kill_at or not any(more)):
            return self._finish(one, dead=True)
        if one.give_up_at is None and now >= one.kill_at and not exited:
            _kill_group(one.popen)
            one.give_up_at = now + KILL_PATIENCE_S
        elif one.give_up_at is not None and now >= one.give_up_at:
            return self._finish(one, dead=exited)
        return None

    def _finish(self, one: _Running, *, dead: bool) -> Finished:
        self._release(one)
        if not dead:
            self._stuck.append(one.popen)
        timed_out = one.give_up_at is not None
        return Finished(
            one.order.handle,
            None if timed_out else one.popen.returncode,
            one.out.data.decode(errors="replace"),
            one.err.data.decode(errors="replace"),
            timed_out,
            dead,
            one.out.cut or one.err.cut,
        )

    def _read(self, output: _Output) -> bool:
        """Read what is there, within bounds; True if there may be more right now."""
        taken = 0
        while output.fd is not None and taken < _READ_BYTES_MAX:
            try:
                data = os.read(output.fd, 65536)
            except BlockingIOError:
                return False
            if not data:
                self._drop(output.fd)
                output.fd = None
                return False
            taken += len(data)
            room = output.room - len(output.data)
            output.data += data[:room]
            output.cut = output.cut or len(data) > room
        return output.fd is not None

    def _release(self, one: _Running) -> None:
        del self._running[one.order.handle]
        for fd in (one.out.fd, one.err.fd, one.pidfd):
            if fd is not None:
                self._drop(fd)

    def _drop(self, fd: int) -> None:
        self._epoll.unregister(fd)
        os.close(fd)


def _spawn(order: _Order) -> subprocess.Popen[bytes]:
    # A file as stdin needs no writing that could block, whatever its size.
    with tempfile.TemporaryFile() as source:
        if order.stdin:
            source.write(order.stdin)
            source.seek(0)
        return subprocess.Popen(
            order.argv,
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=order.env,
            start_new_session=True,
        )


def _kill_group(popen: subprocess.Popen[bytes]) -> None:
    """Only while it is not reaped: until then its pid, and so its group, is its own."""
    if popen.returncode is None:
        try:
            os.killpg(popen.pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            pass
