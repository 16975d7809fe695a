"""A real daemon with its workers in a private directory, and what it costs.

Rule: a benchmark steers and asks as a user would, through the command line and the admin socket,
and looks from outside at /proc. All that it started is ended with it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from jobflowd.api import connect_unix, encode_call, socket_paths

BIN = Path(sys.executable).parent
PROGRAMS = Path(__file__).with_name("programs")
_SESSION = "bench"
_FOREIGN = ("JOBFLOW_", "SLURM_", "SBATCH_", "LSB_", "LSF_", "XDG_")
_ANSWER_S = 120.0


class NotReached(RuntimeError):
    """The daemon did not come to the state that was waited for; carries the end of its output."""


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU seconds so far, or bytes of memory now, by kind of process."""

    daemon: float = 0.0
    generator: float = 0.0
    mail: float = 0.0
    agents: float = 0.0
    children: float = 0.0

    def __sub__(self, other: Cost) -> Cost:
        return Cost(
            self.daemon - other.daemon,
            self.generator - other.generator,
            self.mail - other.mail,
            self.agents - other.agents,
            self.children - other.children,
        )

    def per(self, count: float, unit: float = 1e6, digits: int = 2) -> dict[str, float]:
        """Each by `count`, in parts of `unit`: microseconds a task, by default."""
        return {
            name: round(getattr(self, name) / count * unit, digits)
            for name in ("daemon", "generator", "mail", "agents", "children")
        }


def cpu_of(pid: int) -> float:
    """CPU seconds of all threads of a process; 0 if it is gone."""
    total = 0
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            total += int((thread / "schedstat").read_text().split()[0])
    except (OSError, IndexError):
        return _ticks_s(pid, 11)
    return total / 1e9


def reaped_cpu_of(pid: int) -> float:
    """CPU seconds of the ended children of a process: so a generator's are not forgotten."""
    return _ticks_s(pid, 13)


def _ticks_s(pid: int, first: int) -> float:
    """User and system time, two neighbouring fields after the name in `stat`; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[first]) + int(fields[first + 1])) / os.sysconf("SC_CLK_TCK")


def memory_of(pid: int) -> float:
    """Resident bytes of a process; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * float(os.sysconf("SC_PAGE_SIZE"))


def peak_memory_of(pid: int) -> float:
    """The most resident bytes that a process ever had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(found[1]) * 1024.0 if found else 0.0


class Rig:
    """One session. A context manager: leaving it ends every process and removes every file."""

    def __init__(
        self,
        program: str,
        args: Mapping[str, Any] | None = None,
        *,
        workers: int = 2,
        mode: str = "zmq",
        launcher: str = "multiprocess",
        flags: Sequence[str] = (),
        wrap: Sequence[str] = (),
    ) -> None:
        """`program`: a name in bench/programs. `wrap`: a command before the daemon's own."""
        self.place = Path(tempfile.mkdtemp(prefix="jf-bench-"))
        self.args = {**(args or {}), "place": str(self.place)}
        self.session = self.place / _SESSION
        self._program = PROGRAMS / f"{program}.py"
        self._workers = workers
        self._flags = ["--mode", mode, "--launcher", launcher, "--no-canary", "--stay"]
        self._flags += ["--shutdown-grace-period", "1", *flags]
        self._wrap = list(wrap)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._buffer = b""
        self._pid = 0

    def __enter__(self) -> Rig:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self.place, ignore_errors=True)

    # --- life -----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the daemon, for the first time or again, and wait until it answers."""
        env = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "JOBFLOW_STATE_DIR"):
            env[name] = str(self.place)
        output = os.open(self.place / "output", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._pid = 0
        self._process = subprocess.Popen(
            [
                *self._wrap,
                *(str(BIN / "jobflowd"), "start", "--program", str(self._program)),
                *("--program-args", json.dumps(self.args), "--session-id", _SESSION),
                *("--shared-dir", str(self.place), "--workers", str(self._workers)),
                *self._flags,
            ],
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
        os.close(output)
        self.wait(self._answers, "an answer of the daemon", 60.0, 0.005)

    def stop(self) -> None:
        """End the daemon and everything below it."""
        self._hang_up()
        process, self._process = self._process, None
        if process is None:
            return
        below = _descendants(process.pid)
        try:
            os.kill(self._pid or process.pid, signal.SIGTERM)
            process.wait(20)
        except (subprocess.TimeoutExpired, ProcessLookupError):
            process.kill()
            process.wait()
        for one in below:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(below, 5)

    def kill(self) -> None:
        """SIGKILL, as by a crash; workers go, too."""
        self._hang_up()
        process, self._process = self._process, None
        assert process is not None
        below = _descendants(process.pid)
        process.kill()
        process.wait()
        for one in below:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass
        psutil.wait_procs(below, 5)

    @property
    def pid(self) -> int:
        """Of the daemon itself, whatever it is wrapped in."""
        if not self._pid:
            assert self._process is not None
            self._pid = self._process.pid
            if self._wrap:
                words = str(BIN / "jobflowd")
                below = _descendants(self._pid)
                self._pid = next(one.pid for one in below if words in one.cmdline()[:2])
        return self._pid

    @property
    def database(self) -> Path:
        """Of a session that does not run: while it does, nobody else may open it."""
        return self.session / "manager.db"

    # --- questions ------------------------------------------------------------------------------

    def _answers(self) -> bool:
        if self._process is not None and self._process.poll() is not None:
            raise NotReached(f"the daemon ended\n{self.output()}")
        try:
            self.ask("ping")
        except (OSError, ValueError):
            self._hang_up()
            return False
        return True

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket, self._buffer = None, b""

    def _connect(self) -> socket.socket:
        error: OSError = FileNotFoundError("no admin socket")
        # The socket may be in a runtime directory, which this process does not share.
        kept = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = str(self.place)
        try:
            for path in socket_paths(self.session):
                try:
                    return connect_unix(path, timeout_s=_ANSWER_S)
                except OSError as one:
                    error = one
        finally:
            if kept is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = kept
        raise error

    def ask(self, cmd: str, **args: Any) -> dict[str, Any]:
        """One question or order. Raises ValueError with the daemon's words for a refusal."""
        if self._socket is None:
            self._socket = self._connect()
        self._socket.settimeout(_ANSWER_S)
        self._socket.sendall(encode_call(1, cmd, args))
        while b"\n" not in self._buffer:
            data = self._socket.recv(1 << 20)
            if not data:
                raise ConnectionResetError("the daemon hung up")
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(str(answer["error"]))
        return answer

    def tasks(self, state: str) -> int:
        """How many tasks are in this state."""
        return int(self.ask("status")["tasks"].get(state, 0))

    def online(self) -> int:
        """How many workers are connected."""
        return int(self.ask("status")["workers"].get("online", 0))

    def metric(self, name: str) -> float:
        """One sample of the daemon's OpenMetrics text, by its whole name."""
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.ask("metrics")["text"], re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait(
        self,
        condition: Callable[[], object],
        what: str,
        within_s: float = 300.0,
        every_s: float = 0.02,
    ) -> None:
        """Until the condition holds; `NotReached` with the daemon's output if it does not."""
        deadline = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > deadline:
                raise NotReached(f"waited {within_s:g} s in vain for {what}\n{self.output()}")
            time.sleep(every_s)

    def wait_for_tasks(
        self, state: str, count: int, within_s: float = 600.0, every_s: float = 0.02
    ) -> None:
        """Until so many tasks are in this state; asks every `every_s` near the end only.

        Whoever asks takes time from those who work.
        """
        began = time.monotonic()
        first = have = self.tasks(state)
        while have < count:
            now = time.monotonic()
            if now > began + within_s:
                raise NotReached(
                    f"{have} of {count} tasks {state} after {within_s:g} s\n{self.output()}"
                )
            left_s = (now - began) * (count - have) / max(1, have - first)
            time.sleep(min(0.5, max(every_s, left_s / 4)) if have > first else every_s)
            have = self.tasks(state)

    def go(self) -> float:
        """Let the program's generator go on; returns the monotonic time of it."""
        now = time.monotonic()
        (self.place / "go").touch(0o600)
        return now

    def output(self) -> str:
        """The end of what the daemon said."""
        said = self.place / "output"
        return said.read_text(errors="replace")[-2000:] if said.exists() else ""

    # --- cost -----------------------------------------------------------------------------------

    def cpu(self) -> Cost:
        """CPU seconds of the processes that live now, since each one's start."""
        cost = self._cost(cpu_of)
        # What ends while tasks run is the generator.
        return replace(cost, generator=cost.generator + reaped_cpu_of(self.pid))

    def memory(self) -> Cost:
        """Resident bytes of the processes that live now."""
        return self._cost(memory_of)

    def agents(self) -> list[int]:
        """Process ids of the workers that this daemon started."""
        return [one.pid for one in psutil.Process(self.pid).children() if _kind_of(one) == "agents"]

    def _cost(self, of: Callable[[int], float]) -> Cost:
        sums = dict.fromkeys(("generator", "mail", "agents", "children"), 0.0)
        for one in psutil.Process(self.pid).children():
            kind = _kind_of(one)
            sums[kind] += of(one.pid)
            below = "children" if kind == "agents" else kind
            sums[below] += sum(of(child.pid) for child in _descendants(one.pid))
        return Cost(of(self.pid), **sums)


def _kind_of(process: psutil.Process) -> str:
    """What a child of the daemon is for, by its command line."""
    try:
        words = " ".join(process.cmdline())
    except psutil.Error:
        return "generator"
    if "mailchild" in words:
        return "mail"
    if "generatechild" in words:
        return "generator"
    return "agents" if re.search(r"jobflow[-_]worker", words) else "generator"


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
