"""Jobs under our name that no open launch claims: taken away, once that is certain.

They come from submissions that were given up and came through after all, or from a database that
was put back. What is ours, and what only looks like it, stays.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rig import Rig, calls, live_jobs

from jobflowd.launchers.lsf import Lsf
from jobflowd.launchers.slurm import Slurm

pytestmark = pytest.mark.slow

CANCEL = {"slurm": "scancel", "lsf": "bkill"}
Submit = Callable[[str], None]


@pytest.fixture(params=["slurm", "lsf"])
def system(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def rig(fake_batch: dict[str, str], tmp_path: Path, system: str) -> Rig:
    """Wants one worker; jobs wait for ever."""
    root = tmp_path / "t1"
    root.mkdir()
    env = {**fake_batch, "FAKEBATCH_HOLD": "yes"}
    return Rig(root, Slurm() if system == "slurm" else Lsf(), env, wanted=1)


@pytest.fixture
def submit(fake_batch: dict[str, str], tmp_path: Path, system: str) -> Submit:
    """Makes a job of this name behind the daemon's back."""

    def run(name: str) -> None:
        given = {"--job-name": name, "--output": "/dev/null", "--chdir": "/"}
        argv, mark, path = ["sbatch"], "#SBATCH", tmp_path / "script"
        if system == "lsf":
            given = {"-J": name, "-o": "/dev/null", "-cwd": "/"}
            argv, mark = ["bsub"], "#BSUB"
        lines = ["#!/bin/sh", *(f"{mark} {word} {value}" for word, value in given.items())]
        path.write_text("\n".join(lines) + "\n")
        if system == "slurm":
            argv.append(str(path))
        env = {**fake_batch, "FAKEBATCH_HOLD": "yes"}
        with path.open() as script:
            subprocess.run(
                [str(tmp_path / "bin" / argv[0]), *argv[1:]],
                stdin=script,
                env=env,
                check=True,
                stdout=subprocess.DEVNULL,
            )

    return run


@pytest.fixture
def fake(fake_batch: dict[str, str]) -> Path:
    return Path(fake_batch["FAKEBATCH_DIR"])


@pytest.fixture
def running(rig: Rig) -> Iterator[Rig]:
    """Its one job is there."""
    with rig.one_life():
        rig.run_for(1.0)
        yield rig


def cancelled(fake: Path) -> set[str]:
    return {(one.parent / "name").read_text() for one in fake.glob("jobs/*/killed")}


def test_it_is_taken_away_when_it_was_seen_twice(
    running: Rig, submit: Submit, fake: Path, system: str
) -> None:
    submit("jf-abcdef-99")
    running.run_for(61.0)
    assert cancelled(fake) == set()
    running.run_for(60.0)
    assert cancelled(fake) == {"jf-abcdef-99"}
    assert live_jobs(fake) == {"jf-abcdef-1": 1}
    running.run_for(600.0)
    assert calls(fake)[CANCEL[system]] == 1


def test_one_that_ends_by_itself_is_left_alone(
    running: Rig, submit: Submit, fake: Path, system: str
) -> None:
    submit("jf-abcdef-99")
    running.run_for(61.0)
    (place,) = (one.parent for one in fake.glob("jobs/*/name") if one.read_text()[-2:] == "99")
    (place / "status").write_text("0")
    running.run_for(600.0)
    assert calls(fake)[CANCEL[system]] == 0


@pytest.mark.parametrize("name", ["jf-abcde-1", "jf-abcdefg-1", "my-jf-abcdef-1", "analysis"])
def test_what_only_looks_like_ours_stays(
    running: Rig, submit: Submit, fake: Path, name: str
) -> None:
    submit(name)
    running.run_for(600.0)
    assert cancelled(fake) == set()


def test_a_job_of_a_launch_that_was_given_up(running: Rig, submit: Submit, fake: Path) -> None:
    """It was over and has been replaced; now a second job of its name comes through."""
    (place,) = (one.parent for one in fake.glob("jobs/*/name"))
    (place / "killed").write_text("yes")
    running.run_for(130.0)
    assert live_jobs(fake) == {"jf-abcdef-2": 1}
    submit("jf-abcdef-1")
    running.run_for(200.0)
    assert live_jobs(fake) == {"jf-abcdef-2": 1}
    running.run_for(600.0)
    assert live_jobs(fake) == {"jf-abcdef-2": 1}
    assert len(list(fake.glob("jobs/*"))) == 3


def test_a_second_job_of_a_launch_that_is_there(running: Rig, submit: Submit, fake: Path) -> None:
    """No submission of ours makes one, but a person can: it is not mistaken for ours, whose id is
    known, and ours is not cancelled for it."""
    submit("jf-abcdef-1")
    running.run_for(600.0)
    assert cancelled(fake) == set()
    assert running.coordinator.book.launches["jf-abcdef-1"].batch_job_id == "1000"


def test_a_new_life_begins_to_count_anew(rig: Rig, submit: Submit, fake: Path) -> None:
    with rig.one_life():
        rig.run_for(1.0)
        submit("jf-abcdef-99")
        rig.run_for(61.0)
    with rig.one_life():
        rig.run_for(1.0)
        assert cancelled(fake) == set()
        rig.run_for(130.0)
        assert cancelled(fake) == {"jf-abcdef-99"}


@pytest.mark.parametrize("seed", range(3))
def test_among_lies(
    rig: Rig, submit: Submit, fake: Path, seed: int, fake_batch: dict[str, str]
) -> None:
    """Answers that are empty, cut, doubled or under a banner take nothing of ours away."""
    lies = {"FAKEBATCH_LIES": "empty,truncated,motd,twice,error", "FAKEBATCH_SEED": str(seed)}
    rig.environ = {**rig.environ, **lies, "FAKEBATCH_RATE": "0.25"}
    rig.wanted = 3
    with rig.one_life():
        rig.run_for(1.0)
        submit("jf-abcdef-99")
        submit("jf-abcdefg-99")
        rig.run_for(7200.0)
        left = live_jobs(fake)
    assert "jf-abcdef-99" not in left
    assert left.pop("jf-abcdefg-99") == 1
    assert sum(left.values()) == 3
    assert cancelled(fake) == {"jf-abcdef-99"}
