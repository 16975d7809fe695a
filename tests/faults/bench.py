"""A session of real processes to break, and the verdict over it from the oracle and the database.

Needs no pytest, so that the long runs (`python -m tests.faults`, `python -m tests.soak`) use it
too. Nothing outside its own directory is touched, and every process that it starts, at whatever
remove, carries a mark in its environment by which it is found again.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jobflow_worker.codec import decode_body
from jobflowd.api import connect_unix, encode_call, socket_paths
from jobflowd.model import TaskState

MARK = "JOBFLOW_TEST_ID"
ORACLE = Path(__file__).with_name("oracle.py")
BIN = Path(sys.executable).parent
#: Everything that takes seconds by default, in a tenth of them.
QUICK = ("--heartbeat-interval", "0.5", "--lease-duration", "2", "--shutdown-grace-period", "5")
_FOREIGN = ("JOBFLOW_", "SLURM_", "SBATCH_", "LSB_", "LSF_", "XDG_")


class Note(NamedTuple):
    """A line that a task wrote; `at` is monotonic."""

    word: str
    task_id: str
    attempt: int
    worker_id: str
    pid: int
    agent_pid: int
    at: float
    nonce: str


def read_notes(path: Path) -> list[Note]:
    """All whole lines of an oracle's log."""
    if not path.exists():
        return []
    notes = []
    for line in path.read_text().splitlines():
        parts = line.split()
        if len(parts) == len(Note._fields):
            word, task_id, attempt, worker, pid, agent, at, nonce = parts
            notes.append(
                Note(word, task_id, int(attempt), worker, int(pid), int(agent), float(at), nonce)
            )
    return notes


@dataclass(slots=True)
class Verdict:
    """What became of a session's tasks; `problems` is empty if every promise was kept."""

    tasks: int = 0
    states: dict[str, int] = field(default_factory=dict)
    lost: int = 0
    ended_twice: int = 0
    started_again: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def judge(database: Path, notes: Sequence[Note], n: int) -> Verdict:
    """Compare the database of an ended session with what its tasks noted.

    lost: a task that is not there, did not succeed, or whose recorded result no task ever wrote.
    ended_twice: a task with two successes on record, or whose result is not its success's.
    """
    verdict = Verdict(tasks=n)
    ends = {(one.task_id, one.attempt): one.nonce for one in notes if one.word == "end"}
    starts = Counter(one.task_id for one in notes if one.word == "start")
    verdict.started_again = {task: count for task, count in starts.items() if count > 1}
    db = sqlite3.connect(f"file:{database}?mode=ro", uri=True)
    try:
        (health,) = db.execute("PRAGMA quick_check").fetchone()
        if health != "ok":
            verdict.problems.append(f"quick_check says {health}")
        states = dict(db.execute("SELECT state, count(*) FROM tasks GROUP BY state"))
        verdict.states = {TaskState(state).word: count for state, count in states.items()}
        results = db.execute(
            "SELECT task_id, attempt, body FROM task_results JOIN tasks USING (id)"
            f" WHERE state = {TaskState.SUCCEEDED.value}"
        ).fetchall()
        wins = db.execute(
            "SELECT task_id, attempt FROM attempts JOIN tasks ON task = tasks.id"
            " WHERE outcome = 'succeeded'"
        ).fetchall()
    finally:
        db.close()
    by_task = defaultdict(list)
    for task_id, attempt in wins:
        by_task[task_id].append(attempt)
    kept = 0
    for task_id, attempt, body in results:
        if ends.get((task_id, attempt)) == decode_body(body)["nonce"]:
            kept += 1
        if by_task[task_id] != [attempt]:
            verdict.ended_twice += 1
    verdict.lost = n - kept
    if verdict.lost:
        verdict.problems.append(f"{verdict.lost} of {n} tasks lost: {verdict.states}")
    if verdict.ended_twice:
        verdict.problems.append(f"{verdict.ended_twice} tasks ended twice")
    return verdict


class Bench:
    """A private home, and one session in it at a time."""

    def __init__(self, root: Path, name: str = "s") -> None:
        self.root = root
        self.name = name
        # A Unix socket's path has room for 107 bytes.
        self._runtime = tempfile.mkdtemp(prefix="jf-", dir="/tmp")
        self.mark = uuid.uuid4().hex
        #: Where `--shared-dir` was pointed at, if it was.
        self.place: Path | None = None
        self.program = root / "oracle.py"
        self.log = root / "notes"
        for directory in (root, root / "home", root / "state"):
            directory.mkdir(mode=0o700, exist_ok=True)
        shutil.copy(ORACLE, self.program)
        env = {key: value for key, value in os.environ.items() if not key.startswith(_FOREIGN)}
        self.env = env | {
            "HOME": str(root / "home"),
            "XDG_STATE_HOME": str(root / "state"),
            "XDG_RUNTIME_DIR": self._runtime,
            "JOBFLOW_STATE_DIR": str(root / "state" / "jobflow"),
            MARK: self.mark,
        }
        self._count = 0

    @property
    def session(self) -> Path:
        """The session directory."""
        return (self.place or self.root / "state" / "jobflow" / "sessions") / self.name

    @property
    def database(self) -> Path:
        return self.session / "manager.db"

    # --- processes ------------------------------------------------------------------------

    def start(
        self, *flags: str, wrapper: Sequence[str] = (), mode: str = "zmq", **args: Any
    ) -> subprocess.Popen[bytes]:
        """`jobflowd start` of the oracle in the foreground, perhaps under strace."""
        args = {"log": str(self.log), **args}
        return self.spawn(
            *wrapper,
            *(str(BIN / "jobflowd"), "start", "--program", str(self.program)),
            *("--program-args", json.dumps(args), "--session-id", self.name),
            *("--mode", mode, *QUICK, *flags),
        )

    def spawn(self, *argv: str) -> subprocess.Popen[bytes]:
        """Any command in the bench's environment; its output goes to a file of its own."""
        self._count += 1
        with (self.root / f"out-{self._count}").open("wb") as out:
            return subprocess.Popen(
                list(argv),
                env=self.env,
                cwd=self.root,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def printed(self) -> str:
        """The output of the process that was started last."""
        return (self.root / f"out-{self._count}").read_text(errors="replace")

    def left(self) -> dict[int, str]:
        """Pid and command of every live process of this bench."""
        return processes_marked(self.mark)

    def clear(self, patience_s: float = 5.0) -> dict[int, str]:
        """Kill what does not end by itself within the patience; returns what had to be killed."""
        deadline = time.monotonic() + patience_s
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        for pid in left:
            kill(pid, signal.SIGKILL)
        return left

    def close(self) -> None:
        """Kill everything and remove the runtime directory; the rest is the caller's."""
        self.clear(0.0)
        shutil.rmtree(self._runtime, ignore_errors=True)

    # --- questions ------------------------------------------------------------------------

    def ask(self, cmd: str, timeout_s: float = 10.0, **args: Any) -> dict[str, Any]:
        """One request on the admin socket. Raises OSError."""
        error: OSError = FileNotFoundError(str(self.session))
        for path in self._sockets():
            try:
                connection = connect_unix(path, timeout_s=timeout_s)
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

    def _sockets(self) -> Sequence[Path]:
        before = os.environ.get("XDG_RUNTIME_DIR")
        os.environ["XDG_RUNTIME_DIR"] = self._runtime
        try:
            return socket_paths(self.session)
        finally:
            if before is None:
                del os.environ["XDG_RUNTIME_DIR"]
            else:
                os.environ["XDG_RUNTIME_DIR"] = before

    def notes(self) -> list[Note]:
        return read_notes(self.log)

    def verdict(self, n: int) -> Verdict:
        return judge(self.database, self.notes(), n)

    def results(self) -> dict[str, Any]:
        """The recorded results of an ended session, by task."""
        db = sqlite3.connect(f"file:{self.database}?mode=ro", uri=True)
        try:
            rows = db.execute("SELECT task_id, body FROM task_results JOIN tasks USING (id)")
            return {task_id: decode_body(body) for task_id, body in rows}
        finally:
            db.close()

    def daemon_log(self) -> str:
        path = self.session / "manager.db.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 20.0) -> Any:
        """Wait until it is true. Raises AssertionError with the end of the log."""
        deadline = time.monotonic() + timeout_s
        while True:
            found = condition()
            if found:
                return found
            if time.monotonic() > deadline:
                raise AssertionError(
                    f"waited {timeout_s:g} s for {what}\n{self.printed()[-2000:]}\n"
                    f"{self.daemon_log()[-4000:]}"
                )
            time.sleep(0.03)

    def serving(self) -> bool:
        """Whether a daemon answers."""
        try:
            return "pid" in self.ask("ping", timeout_s=2.0)
        except OSError:
            return False

    def ended(self, process: subprocess.Popen[bytes], timeout_s: float = 60.0) -> int:
        """Its exit code. Raises AssertionError if it does not end."""
        try:
            return process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(
                f"still running after {timeout_s:g} s\n{self.daemon_log()[-4000:]}"
            ) from None


def processes_marked(mark: str) -> dict[int, str]:
    """Pid and command line of every live process whose environment carries the mark."""
    marker = f"{MARK}={mark}".encode()
    found = {}
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (directory / "environ").read_bytes().split(b"\0"):
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                if state_of(int(directory.name)) not in ("Z", ""):
                    found[int(directory.name)] = command
        except OSError:
            continue  # It ended while we looked, or is somebody else's.
    return found


def state_of(pid: int) -> str:
    """The kernel's letter for a process, "" if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    return stat.rpartition(")")[2].split()[0]


def kill(pid: int, number: signal.Signals) -> bool:
    """Send a signal; False if there is nobody to take it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
