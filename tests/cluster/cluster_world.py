"""A session whose workers are batch jobs, and the questions that only its tests ask.

The batch systems are real (`slurm-up`, `sge-up` in this folder) or stand-ins that really run the
jobs (`tests/liars`). Nothing here sleeps for a fixed time.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

HERE = Path(__file__).parent
sys.path.append(str(HERE.parent / "e2e"))

from e2e_world import World  # noqa: E402

#: Polls every second; a lease of two seconds.
BATCH_QUICK = ("--launch-poll-interval", "1", "--no-canary")


class Job(NamedTuple):
    """A line of squeue."""

    job_id: str
    state: str
    name: str
    node: str


def script(name: str, *args: str, timeout_s: float = 240) -> str:
    """Run one of the scripts of this folder; what it printed on stdout."""
    done = subprocess.run(
        [str(HERE / name), *args], check=True, stdout=subprocess.PIPE, timeout=timeout_s, text=True
    )
    return done.stdout


def missing(what: str) -> None:
    """Skip the test, or fail it where everything must be there."""
    if os.environ.get("JOBFLOW_REQUIRE_ALL"):
        pytest.fail(f"{what}, and JOBFLOW_REQUIRE_ALL says it must be here")
    pytest.skip(what)


def free_ports(n: int) -> int:
    """The first of `n` ports in a row that are free now."""
    for first in range(17100 + os.getpid() % 400 * 20, 60000, 20):
        try:
            for port in range(first, first + n):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no free ports")


def bring_up(name: str, state: str, *options: str) -> None:
    """Run an up script, and skip with its reason if it fails."""
    if os.geteuid() != 0:
        missing(f"{name} needs root")
    try:
        script(name, *options, state)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        missing(f"{name} failed: {error}")


class SlurmWorld(World):
    """A session on the test cluster."""

    def __init__(self, cli: Any, tmp_path: Path, state: str) -> None:
        super().__init__(cli, tmp_path)
        self.state = state
        self.conf = f"{state}/slurm.conf"
        cli.env["SLURM_CONF"] = self.conf

    def slurm(self, *argv: str, check: bool = True) -> str:
        """A command of SLURM; its stdout."""
        done = subprocess.run(
            argv,
            check=check,
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            env={**os.environ, "SLURM_CONF": self.conf},
        )
        return done.stdout.strip()

    def batch(self, *more: str, launcher: str = "slurm", **args: Any) -> Any:
        """Start a session with batch workers."""
        return self.start("--launcher", launcher, *BATCH_QUICK, *more, mode="auto", **args)

    def jobs(self, states: str = "PD,R,CG,CF,S") -> list[Job]:
        """Our jobs in the queue, other sessions' left out."""
        out = self.slurm("squeue", "-h", "-t", states, "-o", "%i|%T|%j|%N")
        jobs = [Job(*line.split("|")) for line in out.splitlines()]
        return [job for job in jobs if job.name.startswith("jf-")]

    def alive(self) -> list[Job]:
        """Those that wait or run."""
        return [job for job in self.jobs() if job.state in ("PENDING", "RUNNING")]

    def launches(self) -> list[dict[str, Any]]:
        """The launches that the daemon knows."""
        found: list[dict[str, Any]] = self.ask("launches")["launches"]
        return found

    def attempts(self, task_id: str) -> list[dict[str, Any]]:
        """The attempts of a task, oldest first."""
        found: list[dict[str, Any]] = self.task(task_id)["attempts"]
        return found

    def charges(self, task_id: str) -> tuple[int, int]:
        """What the task was charged so far: failures and losses, of two each."""
        task = self.task(task_id)
        return (2 - task["retries_left"], 2 - task["losses_left"])

    def until_online(self, n: int, timeout_s: float = 30) -> None:
        """Wait for so many workers."""
        self.until(lambda: len(self.workers()) == n, f"{n} workers", timeout_s)

    def until_queue_empty(self, timeout_s: float = 20) -> None:
        """Wait until nothing of ours is in the queue."""
        self.until(lambda: not self.jobs(), "an empty queue", timeout_s)
