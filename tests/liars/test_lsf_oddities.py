"""What LSF is known for: hosts lost and found again, zombies, forgotten jobs, status 255.

The stand-in's bsub, bjobs and bkill follow `tests/cluster/LSF.md`, and are called through the true
subprocess path. Where only the count of jobs matters, hours pass in virtual time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_world import World, is_alive
from rig import Rig, calls, live_jobs

from jobflowd.launchers.lsf import Lsf
from jobflowd.model import LaunchState

pytestmark = pytest.mark.slow

WAIT = {"do": "wait"}
FLAGS = (
    *("--launcher", "lsf", "--launch-poll-interval", "1", "--launcher-command-timeout", "2"),
    *("--no-canary", "--workers", "2"),
)


@pytest.fixture
def fake(fake_batch: dict[str, str]) -> Path:
    return Path(fake_batch["FAKEBATCH_DIR"])


@pytest.fixture
def rig(fake_batch: dict[str, str], fake: Path, tmp_path: Path) -> Iterator[Rig]:
    """Two jobs that were seen to wait."""
    root = tmp_path / "t1"
    root.mkdir()
    rig = Rig(root, Lsf(), {**fake_batch, "FAKEBATCH_HOLD": "yes"}, wanted=2)
    with rig.one_life():
        rig.run_for(130.0)
        assert sum(live_jobs(fake).values()) == 2
        yield rig


def lie(rig: Rig, *lies: str, rate: float = 1.0) -> None:
    """From now on the commands tell these."""
    rig.desk._env |= {"FAKEBATCH_LIES": ",".join(lies), "FAKEBATCH_RATE": str(rate)}


# --- in virtual time --------------------------------------------------------------------------


def test_a_forgotten_job_is_replaced_after_two_answers(rig: Rig, fake: Path) -> None:
    """It was never seen to end."""
    (fake / "jobs" / "1000" / "forgotten").touch()
    before = calls(fake)
    while calls(fake)["bsub"] == before["bsub"]:
        rig.run_for(1.0)
        assert calls(fake)["bjobs"] - before["bjobs"] <= 2
    rig.run_for(600.0)
    assert calls(fake)["bsub"] == before["bsub"] + 1


def test_a_job_that_one_answer_leaves_out_is_not_replaced(rig: Rig, fake: Path) -> None:
    before = calls(fake)
    for _ in range(10):
        (fake / "jobs" / "1000" / "forgotten").touch()
        rig.run_for(60.0)
        (fake / "jobs" / "1000" / "forgotten").unlink()
        rig.run_for(60.0)
    assert calls(fake)["bsub"] == before["bsub"]
    assert calls(fake)["bkill"] == 0


def test_status_255_for_jobs_not_found_is_an_answer(rig: Rig, fake: Path) -> None:
    """Where a site wants it (LSB_BJOBS_CONSISTENT_EXIT_CODE): what is missing is missing."""
    lie(rig, "notfound")
    before = calls(fake)
    rig.run_for(600.0)
    assert calls(fake)["bsub"] == before["bsub"]
    (fake / "jobs" / "1000" / "forgotten").touch()
    rig.run_for(200.0)
    assert calls(fake)["bsub"] == before["bsub"] + 1


def test_status_255_with_half_an_answer_proves_no_absence(rig: Rig, fake: Path) -> None:
    """What it says is believed, what it leaves out is not."""
    lie(rig, "partial")
    before = calls(fake)
    rig.run_for(7200.0)
    after = calls(fake) - before
    assert set(after) == {"bjobs"}
    states = [one.state for one in rig.coordinator.book.launches.values()]
    assert states == [LaunchState.PENDING] * 2
    lie(rig)
    (fake / "jobs" / "1000" / "forgotten").touch()
    rig.run_for(600.0)
    assert calls(fake)["bsub"] == before["bsub"] + 1


def test_a_forgotten_job_can_be_taken_away(rig: Rig, fake: Path) -> None:
    """bkill says 255 and "No matching job found": that is a success, and not tried for ever."""
    for number in ("1000", "1001"):
        (fake / "jobs" / number / "forgotten").touch()
    rig.scale(0)
    rig.run_for(600.0)
    assert {one.state for one in rig.coordinator.book.launches.values()} == {LaunchState.CANCELED}
    assert 1 <= calls(fake)["bkill"] <= 3
    assert calls(fake)["bsub"] == 2


@pytest.mark.parametrize("seed", range(2))
def test_every_oddity_for_hours(rig: Rig, fake: Path, seed: int) -> None:
    """The two jobs wait for all that time, and nothing else ever does."""
    rig.desk._env["FAKEBATCH_SEED"] = str(seed)
    lie(rig, "partial", "notfound", "empty", "truncated", "motd", "twice", "error", rate=0.3)
    rig.run_for(4 * 3600.0)
    assert calls(fake)["bsub"] == 2
    assert calls(fake)["bkill"] == 0


# --- with workers -----------------------------------------------------------------------------


def place_of(world: World, fake: Path, worker: dict[str, object]) -> Path:
    """The directory of this worker's job."""
    (place,) = (
        one.parent for one in fake.glob("jobs/*/name") if one.read_text() == worker["launch_id"]
    )
    return place


def polls(world: World, fake: Path, n: int) -> None:
    """Wait for so many more answers."""
    before = calls(fake)["bjobs"]
    world.until(lambda: calls(fake)["bjobs"] >= before + n, f"{n} polls")


def test_a_host_that_flaps_costs_nothing(liar: World, fake: Path) -> None:
    """RUN, UNKWN, RUN, ... while the worker reports all the time."""
    daemon = liar.start(*FLAGS, mode="auto", n=2, spec=WAIT)
    liar.until_running(2)
    before = {one["worker_id"] for one in liar.workers()}
    lost = place_of(liar, fake, liar.workers()[0]) / "host_lost"
    for _ in range(3):
        lost.touch()
        polls(liar, fake, 3)
        lost.unlink()
        polls(liar, fake, 2)
    assert {one["worker_id"] for one in liar.workers()} == before
    assert calls(fake)["bsub"] == 2
    assert calls(fake)["bkill"] == 0
    liar.open_gate()
    liar.ended(daemon, 0)
    assert all(n == 1 for n in liar.started().values())


def test_a_zombie_is_no_capacity(liar: World, fake: Path) -> None:
    """Its host is lost and its worker silent: UNKWN, then killed and ZOMBI for as long as the host
    is away. It is replaced once, and the run ends with it still in the queue's books."""
    daemon = liar.start(*FLAGS, "--launch-stale-timeout", "5", mode="auto", n=2, spec=WAIT)
    liar.until_running(2)
    worker = liar.workers()[0]
    place = place_of(liar, fake, worker)
    (place / "host_lost").touch()
    os.kill(int(str(worker["pid"])), signal.SIGSTOP)
    try:
        liar.until(lambda: len(liar.notes("start")) == 3, "the task to start again", 40)
        liar.until((place / "killed").exists, "it to be killed")
        polls(liar, fake, 4)
        assert calls(fake)["bsub"] == 3
        assert len(liar.workers()) == 2
        (place / "host_lost").unlink()
    finally:
        os.kill(int(str(worker["pid"])), signal.SIGCONT)
    # The host is back with the worker on it, whom nobody expects any more: it is sent away.
    liar.until(lambda: not is_alive(int(str(worker["pid"]))), "the worker to leave", 40)
    polls(liar, fake, 2)
    liar.open_gate()
    liar.ended(daemon, 0)
    assert liar.in_database() == {"succeeded": 2}
    assert calls(fake)["bsub"] == 3


@pytest.mark.parametrize("seed", range(2))
def test_a_run_among_oddities(liar: World, fake: Path, seed: int) -> None:
    liar.cli.env |= {
        "FAKEBATCH_LIES": "unkwn,missing,partial,notfound,motd,twice,error",
        "FAKEBATCH_RATE": "0.3",
        "FAKEBATCH_SEED": str(seed),
    }
    spec = {"do": "sleep", "s": 0.2}
    liar.run(*FLAGS, mode="auto", n=40, spec=spec, timeout_s=120)
    assert liar.in_database() == {"succeeded": 40}
    assert all(n == 1 for n in liar.started().values())
    names = [one.read_text() for one in fake.glob("jobs/*/name")]
    assert len(names) == len(set(names))
