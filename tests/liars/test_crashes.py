"""Crashes at every point around a submission: no job too many, none too few. And the number of
questions that a batch system is asked in an hour.

A few of each here; `python tests/liars/measure.py` does it a hundred times and prints the figures.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from rig import POINTS, Crash, Rig, calls, live_jobs

from jobflowd.launchers.lsf import Lsf
from jobflowd.launchers.slurm import Slurm

pytestmark = pytest.mark.slow


def crash_and_count(root: Path, fake: Path, env: dict[str, str], system: str, point: str) -> int:
    """Crash once at this point, restart, wait ten virtual minutes; the number of live jobs."""
    root.mkdir()
    rig = Rig(root, Slurm() if system == "slurm" else Lsf(), env, wanted=1, crash_at=point)
    try:
        with rig.one_life():
            rig.run_for(1.0)
    except Crash:
        pass
    rig.crash_at = ""
    with rig.one_life():
        rig.run_for(600.0)
    names = live_jobs(fake)
    assert all(n == 1 for n in names.values())
    return sum(names.values())


@pytest.mark.parametrize("system", ["slurm", "lsf"])
@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("again", range(2))
def test_one_job_whatever_happens(
    fake_batch: dict[str, str], tmp_path: Path, system: str, point: str, again: int
) -> None:
    env = {**fake_batch, "FAKEBATCH_HOLD": "yes"}
    fake = Path(fake_batch["FAKEBATCH_DIR"])
    assert crash_and_count(tmp_path / "t1", fake, env, system, point) == 1
    shutil.rmtree(fake / "jobs")


def start_and_scale(root: Path, fake: Path, env: dict[str, str], seed: int) -> tuple[int, int]:
    """One start with five changes of scale, some around a restart. How many jobs were ever there
    above what was wanted, and how many were missing after two quiet minutes."""
    dice = random.Random(seed)
    root.mkdir()
    rig = Rig(root, Slurm(), env, wanted=dice.randrange(1, 9))
    over = missing = 0
    wanted = rig.wanted
    for _ in range(2):
        with rig.one_life():
            if wanted != rig.wanted:
                rig.scale(wanted)
            for _ in range(3):
                rig.run_for(dice.uniform(0.0, 130.0))
                over = max(over, sum(live_jobs(fake).values()) - wanted)
                wanted = dice.randrange(0, 9)
                rig.scale(wanted)
                # What is too much now is being taken away, and was not when it was submitted.
                rig.run_for(130.0)
                over = max(over, sum(live_jobs(fake).values()) - wanted)
            missing += max(0, wanted - sum(live_jobs(fake).values()))
            rig.wanted = wanted
    return over, missing


@pytest.mark.parametrize("seed", range(2))
def test_never_too_many(fake_batch: dict[str, str], tmp_path: Path, seed: int) -> None:
    env = {**fake_batch, "FAKEBATCH_HOLD": "yes"}
    fake = Path(fake_batch["FAKEBATCH_DIR"])
    assert start_and_scale(tmp_path / "t1", fake, env, seed) == (0, 0)


@pytest.mark.parametrize("launches", [5, 50])
def test_one_question_a_minute(fake_batch: dict[str, str], tmp_path: Path, launches: int) -> None:
    env = {**fake_batch, "FAKEBATCH_HOLD": "yes"}
    fake = Path(fake_batch["FAKEBATCH_DIR"])
    (tmp_path / "t1").mkdir()
    rig = Rig(tmp_path / "t1", Slurm(), env, wanted=launches)
    with rig.one_life():
        rig.run_for(900.0)
    assert sum(live_jobs(fake).values()) == launches
    found = calls(fake)
    assert found["sbatch"] == launches
    assert found["squeue"] <= 16
    assert found["scancel"] == 0
