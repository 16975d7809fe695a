"""The pool on a real SLURM: jobs come, go, are taken away, and nothing is lost or left behind."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from cluster_world import BATCH_QUICK, SlurmWorld, script
from e2e_world import kill

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

WAIT = {"do": "wait"}


def test_a_run_from_start_to_end(slurm: SlurmWorld, tmp_path: Path) -> None:
    """Names that shells and sbatch would trip over arrive intact, and nothing stays behind."""
    odd = 'it\'s "50%" #1 $HOME `x`\n\tüß ☃'
    shared = tmp_path / "dir with 'quotes', 100% #1 $HOME"
    shared.mkdir(mode=0o700)
    found = slurm.cli.run(
        "jobflowd",
        *slurm.flags(
            *("--launcher", "slurm", *BATCH_QUICK, "--workers", "4", "--shared-dir", str(shared)),
            *("--prologue", "export GREETING='hello there'"),
            mode="auto",
            n=30,
            spec={"odd": odd},
        ),
        timeout_s=60,
    )
    assert "30 succeeded" in found.stderr
    slurm.until_queue_empty()
    launches = sorted((shared / "t1" / "launches").iterdir())
    assert 1 <= len(launches) <= 4
    printed = []
    for one in launches:
        text = (one / "script").read_text()
        assert "GREETING='hello there'" in text
        # What the program gets never passes through a shell: it is not in the script.
        assert "☃" not in text
        printed.append((one / "output").read_text())
        assert (one / "output").stat().st_mode & 0o077 == 0
    # On a slow machine the others finish the work, and a launch may be cancelled before its
    # agent has said anything.
    assert any("worker jf-" in text for text in printed)
    assert all(n == 1 for n in slurm.started().values())
    record = json.loads((shared / "t1" / "session.json").read_text())
    assert record["program_args"]["spec"]["odd"] == odd


def test_scale_up_and_down(slurm: SlurmWorld) -> None:
    daemon = slurm.batch("--workers", "2", n=12, spec=WAIT)
    slurm.until_online(2)
    assert len(slurm.alive()) == 2
    slurm.ctl("scale", "6")
    slurm.until_online(6)
    assert len(slurm.alive()) == 6
    # More than the cluster has room for: the surplus waits, and goes first.
    slurm.ctl("scale", "10")
    slurm.until(lambda: len(slurm.alive()) == 10, "10 jobs")
    running = {job.job_id for job in slurm.alive() if job.state == "RUNNING"}
    slurm.ctl("scale", str(len(running)))
    slurm.until(lambda: {job.job_id for job in slurm.alive()} == running, "pending ones to go")
    slurm.ctl("scale", "1")
    slurm.open_gate()
    slurm.ended(daemon, 0)
    assert slurm.in_database() == {"succeeded": 12}
    assert all(n == 1 for n in slurm.started().values())
    slurm.until_queue_empty()


def test_scancel_under_our_feet(slurm: SlurmWorld) -> None:
    daemon = slurm.batch("--workers", "2", n=2, spec=WAIT)
    slurm.until_running(2)
    victim = slurm.alive()[0]
    slurm.slurm("scancel", victim.job_id)
    slurm.until(lambda: len(slurm.notes("start")) == 3, "the task to start again")
    assert victim.job_id not in {job.job_id for job in slurm.alive()}
    slurm.open_gate()
    slurm.ended(daemon, 0)
    twice = [task for task, n in slurm.started().items() if n == 2]
    assert len(twice) == 1
    assert "crash" not in slurm.text_of_log()
    assert slurm.in_database() == {"succeeded": 2}


def test_the_time_limit(slurm: SlurmWorld) -> None:
    """The warning makes the worker hand back; nobody is charged, and a new worker goes on."""
    daemon = slurm.batch("--workers", "1", "--slurm-time", "20m", n=1, spec=WAIT)
    slurm.until_running(1)
    first = slurm.alive()[0]
    slurm.until(lambda: slurm.workers()[0]["time_left_s"], "the time left to be known")
    assert 0 < slurm.workers()[0]["time_left_s"] <= 20 * 60
    slurm.slurm("scontrol", "update", f"jobid={first.job_id}", "EndTime=now+40")
    slurm.until(lambda: len(slurm.notes("start")) == 2, "the task to start again", 60)
    attempt = slurm.attempts("t00000")[0]
    assert (attempt["outcome"], attempt["cause"]) == ("returned", "walltime")
    assert slurm.charges("t00000") == (0, 0)
    slurm.open_gate()
    slurm.ended(daemon, 0)


def test_preemption(slurm: SlurmWorld) -> None:
    daemon = slurm.batch("--workers", "1", "--slurm-partition", "lowc", n=1, spec=WAIT)
    slurm.until_running(1)
    hog = slurm.slurm(
        *("sbatch", "--parsable", "-p", "high", "-N4", "-n8", "-o", "/dev/null"),
        *("--wrap", "sleep 300"),
    )
    slurm.until(lambda: not slurm.workers(), "the worker to leave", 30)
    slurm.slurm("scancel", hog)
    slurm.until(lambda: len(slurm.notes("start")) == 2, "the task to start again", 60)
    assert slurm.attempts("t00000")[0]["cause"] == "preempted"
    assert slurm.charges("t00000") == (0, 0)
    slurm.open_gate()
    slurm.ended(daemon, 0)


def test_a_requeued_job_is_a_new_worker(slurm: SlurmWorld) -> None:
    """The administrator may requeue whatever we say; the same id comes back and is taken."""
    daemon = slurm.batch("--workers", "1", "--slurm-skip", "no-requeue", n=1, spec=WAIT)
    slurm.until_running(1)
    job = slurm.alive()[0]
    before = slurm.workers()[0]["worker_id"]
    slurm.slurm("scontrol", "requeue", job.job_id)
    slurm.until(
        lambda: [one for one in slurm.workers() if one["worker_id"] != before], "a new worker", 60
    )
    assert {one.job_id for one in slurm.alive()} == {job.job_id}
    slurm.until(lambda: len(slurm.notes("start")) == 2, "the task to start again")
    assert slurm.charges("t00000") == (0, 0)
    slurm.open_gate()
    slurm.ended(daemon, 0)
    slurm.until_queue_empty()


def test_a_node_that_dies(slurm: SlurmWorld) -> None:
    daemon = slurm.batch("--workers", "1", "--slurm-arg=--nodelist=n3", n=1, spec=WAIT)
    slurm.until_running(1)
    script("slurm-node", slurm.state, "crash", "3")
    slurm.until(lambda: not slurm.workers(), "the worker to be missed")
    script("slurm-node", slurm.state, "start", "3")
    slurm.until(lambda: len(slurm.notes("start")) == 2, "the task to start again", 60)
    slurm.open_gate()
    slurm.ended(daemon, 0)


def test_a_rejected_submission_is_told_in_the_sites_words(slurm: SlurmWorld) -> None:
    daemon = slurm.batch("--workers", "2", "--slurm-partition", "nosuch", n=2)
    slurm.until(lambda: slurm.ask("status")["launching"]["paused"], "launching to pause")
    reason = slurm.ask("status")["launching"]["reason"]
    assert "Invalid partition name specified" in reason
    assert len(slurm.launches()) <= 11
    daemon.process.send_signal(signal.SIGTERM)
    slurm.ended(daemon, 4)


def test_the_controller_is_away(slurm: SlurmWorld) -> None:
    """Work goes on, the trouble is shown, nothing is submitted twice."""
    daemon = slurm.batch("--workers", "2", "--launcher-command-timeout", "4", n=2, spec=WAIT)
    slurm.until_running(2)
    before = {job.job_id for job in slurm.alive()}
    # By SIGTERM, for it loses what it has not saved otherwise.
    kill(int(Path(slurm.state, "run/slurmctld.pid").read_text()), signal.SIGTERM)
    slurm.until(lambda: any("status is unknown" in one for one in warnings(slurm)), "the warning")
    assert len(slurm.workers()) == 2
    script("slurm-up", slurm.state)
    slurm.until(lambda: not any("unknown" in one for one in warnings(slurm)), "an answer", 60)
    assert {job.job_id for job in slurm.alive()} == before
    slurm.open_gate()
    slurm.ended(daemon, 0)
    assert all(n == 1 for n in slurm.started().values())


def warnings(world: SlurmWorld) -> list[str]:
    found: list[str] = world.ask("status")["warnings"]
    return found


def test_killed_between_sbatch_and_its_answer(slurm: SlurmWorld, stub_path: Path) -> None:
    """The job is there and nobody knows its id: it is found by its name, and adopted."""
    real = os.path.realpath("/usr/bin/sbatch")
    stub = stub_path / "sbatch"
    stub.write_text(f'#!/bin/bash\nout=$({real} "$@")\ntouch {stub_path}/done\nsleep 60\n')
    stub.chmod(0o755)
    daemon = slurm.batch("--workers", "1", n=1, spec=WAIT)
    slurm.until((stub_path / "done").exists, "the job to be submitted")
    kill(daemon.process.pid)
    daemon.process.wait()
    stub.unlink()
    slurm.until(lambda: len(slurm.jobs()) == 1, "the job")
    again = slurm.again()
    slurm.until_running(1)
    launch = slurm.until(lambda: [one for one in slurm.launches() if one["batch_job_id"]], "its id")
    assert [one["batch_job_id"] for one in launch] == [slurm.jobs()[0].job_id]
    slurm.open_gate()
    slurm.ended(again, 0)
    assert len(slurm.started()) == 1
    slurm.until_queue_empty()


def test_an_answer_that_never_comes(slurm: SlurmWorld, stub_path: Path) -> None:
    """sbatch works and then hangs: after its time-out the job is found by its name."""
    real = os.path.realpath("/usr/bin/sbatch")
    stub = stub_path / "sbatch"
    stub.write_text(f'#!/bin/bash\nout=$({real} "$@")\nsleep 60\n')
    stub.chmod(0o755)
    daemon = slurm.batch("--workers", "2", "--launcher-command-timeout", "2", n=2, spec=WAIT)
    slurm.until_running(2)
    slurm.until(lambda: all(one["batch_job_id"] for one in slurm.launches()), "the ids")
    assert len(slurm.alive()) == 2
    assert len(slurm.launches()) == 2
    slurm.open_gate()
    slurm.ended(daemon, 0)


def test_detach_and_come_back(slurm: SlurmWorld) -> None:
    """SIGTERM leaves the workers to their work; the next start takes them over."""
    daemon = slurm.batch("--workers", "2", n=8, spec={"do": "sleep", "s": 1.5})
    slurm.until_running(2)
    jobs = {job.job_id for job in slurm.alive()}
    daemon.process.send_signal(signal.SIGTERM)
    assert "Go on with" in slurm.ended(daemon, 4)
    assert {job.job_id for job in slurm.alive()} == jobs
    again = slurm.again()
    slurm.until_online(2)
    assert {job.job_id for job in slurm.alive()} == jobs
    slurm.ended(again, 0, timeout_s=60)
    assert slurm.in_database() == {"succeeded": 8}
    assert all(n == 1 for n in slurm.started().values())
    slurm.until_queue_empty()


def test_workers_that_die_at_once_pause_launching(slurm: SlurmWorld) -> None:
    """Status shows the last words of the dead job."""
    daemon = slurm.batch(
        *("--workers", "1", "--prologue", "echo the module is missing; exit 7"), n=1
    )
    slurm.until(lambda: slurm.ask("status")["launching"]["paused"], "launching to pause", 30)
    assert "the module is missing" in slurm.ask("status")["launching"]["reason"]
    assert len(slurm.launches()) == 3
    daemon.process.send_signal(signal.SIGTERM)
    slurm.ended(daemon, 4)


def test_a_limit_of_submissions_is_respected(slurm_accounting_state: str, make_slurm: Any) -> None:
    slurm = make_slurm(slurm_accounting_state)
    daemon = slurm.batch("--workers", "5", "--slurm-qos", "submit2", n=10, spec=WAIT)
    slurm.until(lambda: slurm.ask("status")["launching"]["paused"], "launching to pause", 30)
    assert "takes no more jobs for now" in slurm.ask("status")["launching"]["reason"]
    assert len(slurm.launches()) <= 8
    slurm.until_running(1)
    assert len(slurm.alive()) == 2
    slurm.open_gate()
    slurm.ended(daemon, 0, timeout_s=60)


def test_the_end_takes_everything_back(slurm: SlurmWorld) -> None:
    """What still waits in the queue when the work is done is cancelled."""
    daemon = slurm.batch(
        *("--workers", "12", "--slurm-cpus", "2"), n=40, spec={"do": "sleep", "s": 0.5}
    )
    slurm.until(lambda: len(slurm.alive()) == 12, "12 jobs")
    slurm.ended(daemon, 0, timeout_s=60)
    slurm.until_queue_empty()
