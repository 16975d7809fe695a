"""Fixtures for tests that start real processes. None is used unless a test asks for it.

`session_env`        an environment that touches nothing of the user's, for one test
`cli`                runs jobflowd, jobflowctl and jobflow-worker in that environment
`no_processes_left`  fails the test if a process of its environment outlives it
`require`            skips without a real component, but fails where all must be there
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

# These machines are shared and noisy: a slow draw or a slow example proves nothing. CI draws the
# same examples each time, so that a red run is about the change; by hand they are fresh.
hypothesis.settings.register_profile(
    "noisy",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("noisy")

TEST_ID = "JOBFLOW_TEST_ID"

# Who runs the tests in the background ignores Ctrl-C, and what they start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def session_env(tmp_path: Path) -> Iterator[dict[str, str]]:
    """Environment variables with home, state and runtime directories of the test's own."""
    foreign = ("JOBFLOW_", "SLURM_", "SBATCH_", "LSB_", "LSF_", "XDG_")
    env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    # A Unix socket's path has room for 107 bytes, which tmp_path may use up alone.
    runtime_dir = tempfile.mkdtemp(prefix="jf-", dir="/tmp")
    home, state = tmp_path / "home", tmp_path / "state"
    for directory in (home, state):
        directory.mkdir(mode=0o700)
    env |= {
        "HOME": str(home),
        "XDG_STATE_HOME": str(state),
        "XDG_RUNTIME_DIR": runtime_dir,
        "JOBFLOW_STATE_DIR": str(state / "jobflow"),
        TEST_ID: uuid.uuid4().hex,
    }
    yield env
    shutil.rmtree(runtime_dir, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Spawned:
    """A process that was started, and the files that take what it prints."""

    process: subprocess.Popen[bytes]
    stdout: Path
    stderr: Path

    def printed(self) -> str:
        """Everything so far, for the message of a failure."""
        return f"--- stdout\n{self.stdout.read_text()}\n--- stderr\n{self.stderr.read_text()}"


class Cli:
    """Real commands of the environment that the tests run in, always with a time-out."""

    def __init__(self, env: dict[str, str], cwd: Path) -> None:
        self.env = env
        self.cwd = cwd
        self._spawned: list[Spawned] = []

    def run(
        self, command: str, *args: str, timeout_s: float = 60, code: int | None = 0
    ) -> subprocess.CompletedProcess[str]:
        """Run to the end; fails the test unless the exit code is `code` (None: any)."""
        spawned = self.spawn(command, *args)
        try:
            found = spawned.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            pytest.fail(f"{command} {args} still ran after {timeout_s} s\n{spawned.printed()}")
        if code is not None and found != code:
            pytest.fail(f"{command} {args} ended with {found}, not {code}\n{spawned.printed()}")
        out, err = spawned.stdout.read_text(), spawned.stderr.read_text()
        return subprocess.CompletedProcess([command, *args], found, out, err)

    def spawn(self, command: str, *args: str) -> Spawned:
        """Start in a process group of its own; killed at the end of the test if it still runs.

        Its output goes to files: a pipe would be held open by whatever the process leaves behind.
        """
        stem = f"{len(self._spawned)}-{Path(command).name}"
        out, err = self.cwd / f"{stem}.out", self.cwd / f"{stem}.err"
        with out.open("wb") as stdout, err.open("wb") as stderr:
            process = subprocess.Popen(
                [str(Path(sys.executable).parent / command), *args],
                env=self.env,
                cwd=self.cwd,
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                start_new_session=True,
            )
        self._spawned.append(Spawned(process, out, err))
        return self._spawned[-1]

    def close(self) -> None:
        """Kill what still runs of the spawned process groups."""
        for spawned in self._spawned:
            if spawned.process.poll() is None:
                os.killpg(spawned.process.pid, signal.SIGKILL)
                spawned.process.wait()


@pytest.fixture
def cli(session_env: dict[str, str], tmp_path: Path) -> Iterator[Cli]:
    """`cli.run("jobflowctl", "-s", "t1", "status")`; `cli.spawn` for what goes on running."""
    cli = Cli(session_env, tmp_path)
    yield cli
    cli.close()


def processes_of(test_id: str) -> dict[int, str]:
    """Pid and command line of every process whose environment carries the test's id."""
    found = {}
    marker = f"{TEST_ID}={test_id}".encode()
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (directory / "environ").read_bytes().split(b"\0"):
                command = (directory / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                found[int(directory.name)] = command
        except OSError:
            continue  # It ended while we looked, or belongs to somebody else.
    return found


@pytest.fixture
def no_processes_left(session_env: dict[str, str]) -> Iterator[None]:
    """Ask for it before `cli`. Ending processes get five seconds, then the test fails."""
    yield
    deadline = time.monotonic() + 5
    while (left := processes_of(session_env[TEST_ID])) and time.monotonic() < deadline:
        time.sleep(0.05)
    for pid in left:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    assert not left, f"processes left behind: {left}"


@pytest.fixture
def require() -> Callable[[str], None]:
    """`require("strace")`, `require("medvol")`: a command on PATH, or a module that imports."""

    def check(component: str) -> None:
        if shutil.which(component) or importlib.util.find_spec(component):
            return
        if os.environ.get("JOBFLOW_REQUIRE_ALL"):
            pytest.fail(f"{component} is missing, and JOBFLOW_REQUIRE_ALL says it must be here")
        pytest.skip(f"{component} is not installed")

    return check
