"""The same pool on a real Grid Engine: it keeps the launcher interface honest."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_world import BATCH_QUICK, script
from e2e_world import World

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

WAIT = {"do": "wait"}
SGE = ("--launcher", "sge", *BATCH_QUICK)


class SgeWorld(World):
    """A session on the test cell."""

    def sge(self, *argv: str) -> str:
        """A command of Grid Engine; its stdout."""
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, text=True, timeout=60, check=False, env=self.cli.env
        )
        return done.stdout

    def job_ids(self) -> list[str]:
        """The jobs that wait or run."""
        lines = self.sge("qstat", "-u", "root").splitlines()[2:]
        return [line.split()[0] for line in lines if line.strip()]


@pytest.fixture
def sge(
    outside: None, sge_state: str, cli: Any, tmp_path: Path, session_env: dict[str, str]
) -> Iterator[SgeWorld]:
    for line in script("sge-up", sge_state).splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        if name in ("PATH", "LD_LIBRARY_PATH"):
            value = os.path.expandvars(value)
        cli.env[name] = value.strip("'\"")
    world = SgeWorld(cli, tmp_path)
    yield world
    cli.close()
    world.sge("qdel", "-u", "root")
    world.until(lambda: not world.job_ids(), "an empty cell", 30)


def test_a_run_from_start_to_end(sge: SgeWorld) -> None:
    done = sge.run(*SGE, "--workers", "3", mode="auto", n=20)
    assert "20 succeeded" in done.stderr
    assert all(n == 1 for n in sge.started().values())
    sge.until(lambda: not sge.job_ids(), "an empty queue")


def test_scale_and_qdel_under_our_feet(sge: SgeWorld) -> None:
    daemon = sge.start(*SGE, "--workers", "1", mode="auto", n=6, spec=WAIT)
    sge.until_running(1)
    sge.ctl("scale", "3")
    sge.until_running(3, 40)
    assert len(sge.job_ids()) == 3
    sge.sge("qdel", sge.job_ids()[0])
    sge.until(lambda: len(sge.notes("start")) == 4, "the task to start again", 40)
    assert "crash" not in sge.text_of_log()
    sge.open_gate()
    sge.ended(daemon, 0)


def test_the_time_limit(sge: SgeWorld) -> None:
    """Limits of seconds: the soft one warns, and the task comes back uncharged."""
    daemon = sge.start(*SGE, "--workers", "1", "--sge-time", "8s", mode="auto", n=1, spec=WAIT)
    sge.until(lambda: len(sge.notes("start")) == 2, "the task to start again", 60)
    attempts = sge.task("t00000")["attempts"]
    assert (attempts[0]["outcome"], attempts[0]["cause"]) == ("returned", "walltime")
    sge.open_gate()
    sge.ended(daemon, 0, timeout_s=60)


def test_detach_and_come_back(sge: SgeWorld) -> None:
    daemon = sge.start(*SGE, "--workers", "2", mode="auto", n=8, spec={"do": "sleep", "s": 1.5})
    sge.until_running(2)
    jobs = set(sge.job_ids())
    daemon.process.send_signal(signal.SIGTERM)
    sge.ended(daemon, 4)
    assert set(sge.job_ids()) == jobs
    again = sge.again()
    sge.ended(again, 0, timeout_s=60)
    assert all(n == 1 for n in sge.started().values())
    assert sge.in_database() == {"succeeded": 8}


def test_a_rejected_submission(sge: SgeWorld) -> None:
    daemon = sge.start(*SGE, "--workers", "1", "--sge-queue", "nosuch", mode="auto", n=1)
    sge.until(lambda: sge.ask("status")["launching"]["paused"], "launching to pause", 60)
    assert "nosuch" in sge.ask("status")["launching"]["reason"]
    daemon.process.send_signal(signal.SIGTERM)
    sge.ended(daemon, 4)
