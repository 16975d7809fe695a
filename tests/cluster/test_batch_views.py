"""What a batch system and the process table show to others: paths and ids, and no secret (T8)."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cluster_world import SlurmWorld

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

NOBODY = 65534
#: Stands for what people put into their program's arguments.
TOKEN = "token-91c0be77-of-the-program"
#: The process table, and every environment that this user may read.
PROCESSES = "ps -ef ww; cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null | tr '\\0' '\\n'"


def seen_by(uid: int, world: SlurmWorld, *argv: str) -> str:
    """What this user gets from a command, complaints included."""
    done = subprocess.run(
        argv,
        check=False,
        user=uid,
        group=uid,
        extra_groups=[],
        cwd="/",
        env={"PATH": os.environ["PATH"], "SLURM_CONF": world.conf},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        errors="replace",
        timeout=60,
    )
    return done.stdout


def secrets_of(world: SlurmWorld) -> list[str]:
    """Every secret of the session's key files."""
    words = ("client_secret", "server_secret", "mail_secret")
    found = []
    for path in (world.root / "keys").glob("*.key"):
        values = json.loads(path.read_text())
        found += [values[word] for word in words if word in values]
    return found


def batch_views(world: SlurmWorld, job_id: str, uid: int) -> dict[str, str]:
    commands = {
        "job": ("scontrol", "show", "job", "-dd", job_id),
        "stored script": ("scontrol", "write", "batch_script", job_id, "-"),
        "queue": ("squeue", "--all", "-o", "%all"),
        "steps": ("scontrol", "show", "step"),
        "accounting": ("sacct", "-a", "-P", "-D", "--format", "ALL"),
    }
    return {
        f"{name} of {job_id} as {uid}": seen_by(uid, world, *argv)
        for name, argv in commands.items()
    }


@pytest.fixture(name="world")
def _world(slurm_accounting_state: str, make_slurm: Callable[[str], SlurmWorld]) -> SlurmWorld:
    return make_slurm(slurm_accounting_state)


def test_no_view_of_the_batch_system_shows_a_secret(world: SlurmWorld) -> None:
    daemon = world.batch("--workers", "2", n=4, spec={"do": "wait"}, token=TOKEN)
    world.until_running(2)
    secrets = secrets_of(world)
    # The manager's, the mailboxes', that of workers by hand, and one for each launch.
    assert len(secrets) == 5
    jobs = world.alive()
    assert len(jobs) == 2
    seen: dict[str, str] = {}
    for uid in (0, NOBODY):
        for job in jobs:
            seen.update(batch_views(world, job.job_id, uid))
    for path in (world.root / "launches").rglob("*"):
        if path.is_file():
            seen[str(path)] = path.read_text(errors="replace")
    processes = seen_by(NOBODY, world, "bash", "-c", PROCESSES)
    everything = seen_by(0, world, "bash", "-c", PROCESSES)
    # The views are real ones: they do show these jobs.
    of_job = f"of {jobs[1].job_id} as 0"
    assert f"JobId={jobs[1].job_id}" in seen[f"job {of_job}"]
    assert "#SBATCH" in seen[f"stored script {of_job}"]
    assert jobs[1].name in seen[f"queue {of_job}"]
    assert "--launch-id" in processes
    world.open_gate()
    world.ended(daemon, 0, 60)
    world.until_queue_empty()
    # The accounting learns of a job's end a moment later.
    shown = f"accounting of {jobs[0].job_id} as 0"
    world.until(
        lambda: (seen.update(batch_views(world, jobs[0].job_id, 0)), jobs[0].name in seen[shown])[
            1
        ],
        "the accounting",
    )
    for path in world.dir.rglob("*"):
        if path.is_file() and path.suffix in (".log", "") and "keys" not in path.parts:
            seen.setdefault(str(path), path.read_text(errors="replace"))
    for secret in secrets:
        assert not [name for name, text in seen.items() if secret in text]
        assert secret not in processes
        assert secret not in everything, "not even in the owner's own environments"
    # What was typed on the daemon's command line is there, and in no job.
    typed = Path(f"/proc/{daemon.process.pid}/cmdline")
    assert not typed.exists()
    jobs_only = [name for name in seen if " as " in name or "/launches/" in name]
    assert not [name for name in jobs_only if TOKEN in seen[name]]


def test_another_user_sees_neither_environment_nor_output_of_a_job(world: SlurmWorld) -> None:
    daemon = world.batch("--workers", "1", n=1, spec={"do": "wait"})
    world.until_running(1)
    (worker,) = world.workers()
    (launch,) = [one for one in world.launches() if one["worker_id"] == worker["worker_id"]]
    # The directories above are opened, as a careless home is: the session must stand by itself.
    opened = [one for one in world.root.parents if str(one).startswith("/tmp/")]
    modes = {one: one.stat().st_mode for one in opened}
    for one in opened:
        one.chmod(modes[one] | 0o005)
    try:
        for path in (f"/proc/{worker['pid']}/environ", launch["script"], launch["output"]):
            assert "Permission denied" in seen_by(NOBODY, world, "cat", path), path
    finally:
        for one in opened:
            one.chmod(modes[one])
    world.open_gate()
    world.ended(daemon, 0, 60)
