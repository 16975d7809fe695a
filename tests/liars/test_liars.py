"""Batch systems that are slow, hang, forget to answer, or say nonsense: nothing is lost or doubled.

The stand-in really runs the jobs, and is called through the true subprocess path.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from e2e_world import World

pytestmark = pytest.mark.slow

EVERY_LIE = "slow,hang,error,after,empty,truncated,motd,twice"
FLAGS = (
    *("--launch-poll-interval", "1", "--launcher-command-timeout", "1", "--no-canary"),
    *("--workers", "4"),
)


def jobs_by_name(world: World) -> Counter[str]:
    root = Path(world.cli.env["FAKEBATCH_DIR"])
    return Counter((one / "name").read_text() for one in root.glob("jobs/*"))


def alive(world: World) -> int:
    root = Path(world.cli.env["FAKEBATCH_DIR"])
    return sum(
        1
        for one in root.glob("jobs/*")
        if not (one / "status").exists() and not (one / "killed").exists()
    )


@pytest.mark.parametrize("launcher", ["slurm", "lsf"])
def test_an_honest_system(liar: World, launcher: str) -> None:
    done = liar.run("--launcher", launcher, *FLAGS, mode="auto", n=40)
    assert "40 succeeded" in done.stderr
    assert 1 <= len(jobs_by_name(liar)) <= 4
    liar.until(lambda: alive(liar) == 0, "all jobs to end")


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("launcher", ["slurm", "lsf"])
def test_a_lying_system(liar: World, launcher: str, seed: int) -> None:
    liar.cli.env |= {"FAKEBATCH_LIES": EVERY_LIE, "FAKEBATCH_SEED": str(seed)}
    liar.cli.env["FAKEBATCH_RATE"] = "0.12"
    spec = {"do": "sleep", "s": 0.2}
    liar.run("--launcher", launcher, *FLAGS, mode="auto", n=60, spec=spec, timeout_s=120)
    assert liar.in_database() == {"succeeded": 60}
    assert all(n == 1 for n in liar.started().values())
    assert max(jobs_by_name(liar).values()) == 1
    liar.until(lambda: alive(liar) == 0, "all jobs to end")


@pytest.mark.parametrize("launcher", ["slurm", "lsf"])
@pytest.mark.parametrize("crash", ["before", "after"])
def test_killed_around_the_submission(liar: World, launcher: str, crash: str) -> None:
    """The submitting command itself kills the daemon, with the job made or not."""
    liar.cli.env["FAKEBATCH_CRASH"] = crash
    spawned = liar.cli.spawn(
        "jobflowd",
        *liar.flags("--launcher", launcher, *FLAGS, "--workers", "1", mode="auto", n=3),
    )
    assert spawned.process.wait(20) == -9
    del liar.cli.env["FAKEBATCH_CRASH"]
    made = len(jobs_by_name(liar))
    assert made == (0 if crash == "before" else 1)
    if crash == "after":
        again = liar.again()
        liar.ended(again, 0)
        assert len(jobs_by_name(liar)) == 1
        assert all(n == 1 for n in liar.started().values())


@pytest.mark.parametrize("launcher", ["slurm", "lsf"])
def test_a_refusal(liar: World, launcher: str) -> None:
    where = "--slurm-partition" if launcher == "slurm" else "--lsf-queue"
    daemon = liar.start("--launcher", launcher, *FLAGS, where, "nosuch", mode="auto", n=3)
    liar.until(lambda: liar.ask("status")["launching"]["paused"], "launching to pause")
    assert "nosuch" in liar.ask("status")["launching"]["reason"]
    daemon.process.terminate()
    liar.ended(daemon, 4)
