"""Crashes at every point around a submission: no job too many, none too few. And the number of
questions that a batch system is asked in an hour.

A few of each here; `python tests/liars/measure.py` does it a hundred times and prints the figures.
"""

from __future__ import annotations

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
