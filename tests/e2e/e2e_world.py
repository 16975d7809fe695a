"""What the end-to-end tests share: a session of real processes, and questions about it.

Nothing here sleeps for a fixed time: `World.until` waits for a condition, with a deadline.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pytest

from jobflowd.api import connect_unix, encode_call, socket_paths
from jobflowd.model import TaskState

T = TypeVar("T")

PROGRAM = Path(__file__).parent / "programs" / "tasks.py"
#: Everything that takes seconds by default, in a tenth of them.
QUICK = ("--heartbeat-interval", "0.5", "--lease-duration", "2", "--shutdown-grace-period", "5")


class Note(NamedTuple):
    """A line that a task wrote."""

    word: str
    task_id: str
    attempt: int
    worker_id: str
    pid: int


class World:
    """One session, `t1` unless said otherwise, and the program beside it."""

    def __init__(self, cli: Any, tmp_path: Path) -> None:
        self.cli = cli
        self.dir = tmp_path
        self.program = tmp_path / "tasks.py"
        self.log = tmp_path / "notes"
        self.gate = tmp_path / "gate"
        self.name = "t1"
        shutil.copy(PROGRAM, self.program)

    @property
    def root(self) -> Path:
        """The session directory."""
        return Path(self.cli.env["JOBFLOW_STATE_DIR"]) / "sessions" / self.name

    # --- commands -----------------------------------------------------------------------------

    def flags(self, *more: str, mode: str = "zmq", **args: Any) -> list[str]:
        """Arguments of `jobflowd` for a start with these program args."""
        args = {"log": str(self.log), "gate": str(self.gate), **args}
        what = ["--program", str(self.program), "--program-args", json.dumps(args)]
        return ["start", *what, "--session-id", self.name, "--mode", mode, *QUICK, *more]

    def start(self, *more: str, mode: str = "zmq", **args: Any) -> Any:
        """Start a daemon in the foreground and return when it serves."""
        spawned = self.cli.spawn("jobflowd", *self.flags(*more, mode=mode, **args))
        self.until_serving(spawned)
        return spawned

    def again(self, *more: str) -> Any:
        """Start the session by its name."""
        spawned = self.cli.spawn("jobflowd", "start", "--session-id", self.name, *more)
        self.until_serving(spawned)
        return spawned

    def until_serving(self, spawned: Any) -> None:
        """Wait until the process answers; fails if it ends instead."""

        def serving() -> bool:
            if spawned.process.poll() is not None:
                pytest.fail(f"the daemon ended: {spawned.printed()}")
            try:
                return bool(self.ask("ping")["pid"] == spawned.process.pid)
            except OSError:
                return False

        self.until(serving, "the daemon to serve")

    def run(
        self, *more: str, mode: str = "zmq", code: int = 0, timeout_s: float = 60, **args: Any
    ) -> subprocess.CompletedProcess[str]:
        """A whole run in the foreground."""
        found: subprocess.CompletedProcess[str] = self.cli.run(
            "jobflowd", *self.flags(*more, mode=mode, **args), code=code, timeout_s=timeout_s
        )
        return found

    def ended(self, spawned: Any, code: int, timeout_s: float = 30) -> str:
        """Wait for a process and check its exit code; returns its stderr."""
        try:
            found = spawned.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {timeout_s} s\n{spawned.printed()}")
        assert found == code, spawned.printed()
        text: str = spawned.stderr.read_text()
        return text

    def ctl(self, *args: str, code: int = 0) -> dict[str, Any]:
        """`jobflowctl -s NAME ... --json`, its stdout."""
        found = self.cli.run("jobflowctl", "-s", self.name, *args, "--json", code=code)
        body: dict[str, Any] = json.loads(found.stdout)
        return body

    def worker(self, *more: str) -> Any:
        """A worker by hand."""
        return self.cli.spawn("jobflow-worker", "--session", self.name, *more)

    def open_gate(self) -> None:
        """Let waiting tasks end."""
        self.gate.touch()

    # --- questions ----------------------------------------------------------------------------

    def ask(self, cmd: str, **args: Any) -> dict[str, Any]:
        """One request on the admin socket, without the price of a process. Raises OSError."""
        error: OSError = FileNotFoundError(str(self.root))
        for path in socket_paths(self.root):
            try:
                connection = connect_unix(path, timeout_s=10)
            except OSError as found:
                error = found
                continue
            with connection, connection.makefile() as lines:
                connection.sendall(encode_call(1, cmd, args))
                line = lines.readline()
            if not line:
                raise ConnectionResetError("no answer")
            body: dict[str, Any] = json.loads(line)
            return body.get("body", body)
        raise error

    def tasks(self) -> Counter[str]:
        """Tasks by state, of those that there are."""
        counts = self.ask("status")["tasks"]
        return Counter({state: n for state, n in counts.items() if n and state != "total"})

    def workers(self) -> list[dict[str, Any]]:
        """The workers that the daemon knows."""
        found: list[dict[str, Any]] = self.ask("workers")["workers"]
        return found

    def task(self, task_id: str) -> dict[str, Any]:
        """Everything about one task."""
        return self.ask("task", task_id=task_id)

    def notes(self, word: str) -> list[Note]:
        """What tasks wrote: "start" or "end"."""
        if not self.log.exists():
            return []
        rows = [line.split() for line in self.log.read_text().splitlines()]
        notes = [Note(w, task, int(attempt), who, int(pid)) for w, task, attempt, who, pid in rows]
        return [note for note in notes if note.word == word]

    def started(self) -> Counter[str]:
        """How often each task was started."""
        return Counter(note.task_id for note in self.notes("start"))

    def in_database(self) -> Counter[str]:
        """Tasks by state, read from the database of an ended session."""
        with sqlite3.connect(f"file:{self.root / 'manager.db'}?mode=ro", uri=True) as db:
            rows = db.execute("SELECT state, count(*) FROM tasks GROUP BY state").fetchall()
        db.close()
        return Counter({TaskState(state).word: n for state, n in rows})

    def text_of_log(self) -> str:
        """The daemon's log."""
        return (self.root / "manager.db.log").read_text()

    # --- waiting ------------------------------------------------------------------------------

    def until(self, condition: Callable[[], T], what: str, timeout_s: float = 20) -> T:
        """Wait until the condition is true; fails with the log if it does not become so."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                log = self.root / "manager.db.log"
                text = log.read_text() if log.exists() else "(no log)"
                pytest.fail(f"waited {timeout_s:g} s in vain for {what}\n{text[-6000:]}")
            time.sleep(0.03)

    def until_running(self, n: int, timeout_s: float = 20) -> None:
        """Wait until so many tasks have started and not ended."""
        self.until(
            lambda: len(self.notes("start")) - len(self.notes("end")) >= n,
            f"{n} running tasks",
            timeout_s,
        )


def kill(pid: int, number: signal.Signals = signal.SIGKILL) -> None:
    """Send a signal to one process."""
    os.kill(pid, number)


def is_alive(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"
