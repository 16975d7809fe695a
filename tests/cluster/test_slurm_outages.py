"""SLURM as it is on a bad day: the controller away, jobs gone, held, forgotten, or nobody's.

What the daemon asks of SLURM is counted by wrappers in front of the real commands. Two tests run
the daemon's inside in virtual time over the real SLURM (`tests/liars/rig.py`): the minute between
two answers passes at once there, while the jobs are as real as everywhere.
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_world import HERE, SlurmWorld, bring_up, free_ports, script
from e2e_world import kill

sys.path.append(str(HERE.parent / "liars"))

from rig import Rig

from jobflowd.launchers.slurm import Slurm

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

WAIT = {"do": "wait"}
COUNTED = ("sbatch", "squeue", "scancel")


class Calls:
    """The commands that the daemon has run, by wrappers that are first on its PATH."""

    def __init__(self, directory: Path) -> None:
        self._log = directory / "calls"
        for name in COUNTED:
            real = shutil.which(name)
            assert real is not None
            wrapper = directory / name
            wrapper.write_text(f'#!/bin/bash\necho {name} >>"{self._log}"\nexec {real} "$@"\n')
            wrapper.chmod(0o755)

    def so_far(self) -> Counter[str]:
        return Counter(self._log.read_text().split() if self._log.exists() else ())


@pytest.fixture
def calls(stub_path: Path) -> Calls:
    return Calls(stub_path)


def controller_away(world: SlurmWorld) -> None:
    """By SIGTERM, for it loses what it has not saved otherwise."""
    kill(int(Path(world.state, "run/slurmctld.pid").read_text()), signal.SIGTERM)


def pool(world: SlurmWorld) -> set[tuple[str, str]]:
    """Who works, and in which job."""
    jobs = {one["launch_id"]: one["batch_job_id"] for one in world.launches()}
    return {(one["worker_id"], jobs[one["launch_id"]]) for one in world.workers()}


def states(world: SlurmWorld) -> list[str]:
    """The launches' states, oldest first."""
    return [one["state"] for one in world.launches()]


def warned(world: SlurmWorld) -> bool:
    return any("status is unknown" in one for one in world.ask("status")["warnings"])


def test_the_controller_is_away_for_a_minute(slurm: SlurmWorld, calls: Calls) -> None:
    """Work goes on all the time; afterwards the pool is the same, and nothing was submitted."""
    daemon = slurm.batch("--workers", "3", n=240, spec={"do": "sleep", "s": 1.0})
    slurm.until_running(3)
    slurm.until(lambda: all(one["batch_job_id"] for one in slurm.launches()), "the ids")
    before = pool(slurm)
    assert len(before) == 3
    controller_away(slurm)
    asked, away_at, done = calls.so_far(), time.monotonic(), len(slurm.notes("end"))
    slurm.until(lambda: time.monotonic() - away_at > 60, "a minute to pass", 70)
    assert warned(slurm)
    assert len(slurm.notes("end")) > done + 60
    meanwhile = calls.so_far() - asked
    script("slurm-up", slurm.state)
    # Each question waits longer than the one before: 2, 4, 8 ... polls.
    assert set(meanwhile) == {"squeue"}
    assert meanwhile["squeue"] <= 6
    slurm.until(lambda: not warned(slurm), "an answer", 120)
    assert pool(slurm) == before
    slurm.ended(daemon, 0, timeout_s=150)
    assert slurm.in_database() == {"succeeded": 240}
    assert all(n == 1 for n in slurm.started().values())
    assert calls.so_far()["sbatch"] == 3
    slurm.until_queue_empty()


def test_a_worker_lost_while_the_controller_is_away(slurm: SlurmWorld, calls: Calls) -> None:
    """Its replacement is tried for in vain, with pauses, and comes with the controller."""
    daemon = slurm.batch("--workers", "2", n=2, spec=WAIT)
    slurm.until_running(2)
    slurm.until(lambda: all(one["batch_job_id"] for one in slurm.launches()), "the ids")
    before = pool(slurm)
    controller_away(slurm)
    lost = slurm.workers()[0]
    kill(lost["pid"], signal.SIGKILL)
    slurm.until(lambda: len(slurm.workers()) == 1, "the worker to be missed")
    tried_at = time.monotonic()
    slurm.until(lambda: calls.so_far()["sbatch"] > 2, "a submission", 30)
    slurm.until(lambda: time.monotonic() - tried_at > 40, "some time to pass", 50)
    assert calls.so_far()["sbatch"] <= 2 + 10
    script("slurm-up", slurm.state)
    slurm.until(lambda: len(slurm.notes("start")) == 3, "the task to start again", 120)
    assert len(pool(slurm)) == 2
    assert len(pool(slurm) & before) == 1
    assert len(slurm.alive()) == 2
    slurm.open_gate()
    slurm.ended(daemon, 0, timeout_s=60)
    assert slurm.in_database() == {"succeeded": 2}
    slurm.until_queue_empty()


@pytest.mark.parametrize("how", ["cancelled while it waits", "killed while it works"])
def test_a_job_that_is_gone_is_replaced_within_two_polls(
    slurm: SlurmWorld, calls: Calls, how: str
) -> None:
    waits = how == "cancelled while it waits"
    flags = ("--slurm-partition", "closed" if waits else "main", "--launch-poll-interval", "4")
    daemon = slurm.batch("--workers", "1", *flags, n=1, spec=WAIT)
    if waits:
        slurm.until(lambda: states(slurm) == ["pending"], "the job to wait")
        slurm.slurm("scancel", slurm.alive()[0].job_id)
    else:
        slurm.until_running(1)
        # Neither the worker nor its shell can say good-bye.
        job = slurm.alive()[0].job_id
        slurm.slurm("scancel", "--signal=KILL", "--full", job)
        # SLURM itself takes its time to see that: polls count from then on.
        slurm.until(lambda: job not in [one.job_id for one in slurm.alive()], "the job's end", 60)
    polls = calls.so_far()["squeue"]
    slurm.until(lambda: calls.so_far()["sbatch"] == 2, "another job", 40)
    assert calls.so_far()["squeue"] - polls <= 2
    if waits:
        slurm.until(lambda: len(slurm.alive()) == 1, "the new job")
        daemon.process.send_signal(signal.SIGTERM)
        slurm.ended(daemon, 4)
        return
    slurm.until(lambda: len(slurm.notes("start")) == 2, "the task to start again", 40)
    slurm.open_gate()
    slurm.ended(daemon, 0)
    assert calls.so_far()["sbatch"] == 2


def test_a_held_job_is_shown_with_the_sites_reason(slurm: SlurmWorld, calls: Calls) -> None:
    """It counts as coming: nobody submits another for it."""
    daemon = slurm.batch("--workers", "1", "--slurm-arg=--begin=now+3600", n=1)

    def reasons() -> list[str]:
        return [one["reason"] for one in slurm.launches() if one["state"] == "pending"]

    slurm.until(lambda: reasons() == ["BeginTime"], "the job to wait")
    job = slurm.alive()[0].job_id
    slurm.slurm("scontrol", "hold", job)
    slurm.until(lambda: reasons() == ["JobHeldAdmin"], "the reason to be shown")
    assert "JobHeldAdmin" in slurm.cli.run("jobflowctl", "-s", "t1", "launches").stdout
    polls = calls.so_far()["squeue"]
    slurm.until(lambda: calls.so_far()["squeue"] > polls + 5, "some polls")
    assert calls.so_far()["sbatch"] == 1
    slurm.slurm("scontrol", "release", job)
    slurm.slurm("scontrol", "update", f"jobid={job}", "StartTime=now")
    slurm.ended(daemon, 0, timeout_s=60)
    assert calls.so_far()["sbatch"] == 1


# --- the daemon's inside in virtual time, over the real SLURM ---------------------------------


@pytest.fixture(scope="module")
def forgetful_state() -> Iterator[str]:
    """A SLURM that forgets ended jobs after five seconds."""
    state = f"/tmp/jff-{os.getpid()}"
    bring_up("slurm-up", state, "-n", "1", "-j", "5", "-p", str(free_ports(4)))
    yield state
    script("slurm-down", "-r", state)


@pytest.fixture
def forgetful(forgetful_state: str, make_slurm: Any) -> SlurmWorld:
    world: SlurmWorld = make_slurm(forgetful_state)
    return world


@pytest.fixture
def inside(forgetful: SlurmWorld, tmp_path: Path, calls: Calls) -> Iterator[Rig]:
    root = tmp_path / "t1"
    root.mkdir()
    environ = {"SLURM_CONF": forgetful.conf, "PATH": forgetful.cli.env["PATH"]}
    rig = Rig(root, Slurm(), environ, wanted=1)
    with rig.one_life():
        yield rig


def test_a_forgotten_job_is_replaced_within_two_polls(
    inside: Rig, forgetful: SlurmWorld, calls: Calls
) -> None:
    """No word of it any more, neither in the queue nor in a history: two answers without it."""
    world = forgetful
    inside.run_for(1.0)
    (job,) = world.alive()
    world.slurm("scancel", job.job_id)
    world.until(lambda: not world.slurm("squeue", "-h", "-t", "all"), "it to be forgotten", 90)
    polls = calls.so_far()["squeue"]
    while calls.so_far()["sbatch"] == 1:
        assert calls.so_far()["squeue"] - polls <= 2
        inside.run_for(1.0)
    assert calls.so_far()["squeue"] - polls <= 2
    assert len(world.alive()) == 1


def test_a_job_under_our_name_that_nobody_knows_is_taken_away(
    inside: Rig, forgetful: SlurmWorld, calls: Calls
) -> None:
    """After it was seen twice; the same name with another ending, or another's name, stays."""
    world = forgetful
    inside.run_for(1.0)
    ours = {job.job_id for job in world.alive()}
    names = ("jf-abcdef-99", "jf-abcdefg-99", "analysis")
    sbatch = ("sbatch", "--parsable", "-o", "/dev/null", "--wrap", "sleep 600")
    orphan, *others = [world.slurm(*sbatch, "-J", name) for name in names]
    inside.run_for(59.0)
    polls = calls.so_far()["squeue"]
    inside.run_for(200.0)
    assert calls.so_far()["squeue"] - polls >= 2
    left = world.slurm("squeue", "-h", "-t", "PD,R", "-o", "%i").split()
    assert orphan not in left
    assert ours | set(others) == set(left)
    assert calls.so_far()["scancel"] == 1
