"""The daemon comes back on another login node, or on its own after a reboot, and adopts the pool.

The login nodes are real hosts to everybody: hosts 0 and 3 of the test network, each with a name,
an address and a port space of its own; hosts 1 and 2 are compute nodes. A reboot is told by the
owner record: another boot id, under a pid that lives again.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_world import BATCH_QUICK, HERE, SlurmWorld, bring_up, free_ports, missing, script
from e2e_world import kill

from jobflowd.ownership import pid_start

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PREFIX = "jl"
FLAGS = ("--launcher", "slurm", *BATCH_QUICK, "--workers", "2", "--slurm-cpus", "2")
DAEMON = str(Path(sys.executable).parent / "jobflowd")
SLEEP = {"do": "sleep", "s": 1.0}


class LoginWorld(SlurmWorld):
    """A session that is started on one of two login nodes."""

    def on(self, host: int, *words: str) -> Any:
        """`jobflowd start` there, in the foreground; returns when it serves."""
        spawned = self.cli.spawn(str(HERE / "netns-exec"), "-p", PREFIX, str(host), DAEMON, *words)
        self.until_serving(spawned)
        return spawned

    def slurm(self, *argv: str, check: bool = True) -> str:
        return super().slurm(str(HERE / "netns-exec"), "-p", PREFIX, "0", *argv, check=check)

    def pool(self) -> dict[str, str]:
        """Where each worker is."""
        return {one["worker_id"]: one["host"] for one in self.workers()}


@pytest.fixture(scope="module")
def login_state() -> Iterator[str]:
    if os.geteuid() != 0:
        missing("network namespaces need root")
    state = f"/tmp/jfl-{os.getpid()}"
    script("netns-up", "-p", PREFIX, "3")
    bring_up("slurm-up", state, "-n", "2", "-s", PREFIX, "-p", str(free_ports(4)))
    yield state
    script("slurm-down", "-r", state)
    script("netns-down", "-p", PREFIX)


@pytest.fixture
def world(outside: None, login_state: str, cli: Any, tmp_path: Path) -> Iterator[LoginWorld]:
    world = LoginWorld(cli, tmp_path, login_state)
    yield world
    cli.close()
    world.slurm("scancel", "--user=root", check=False)
    world.until(lambda: not world.slurm("squeue", "-h"), "an empty cluster", 30)


def adopted(world: LoginWorld, daemon: Any, jobs: set[str], pool: dict[str, str]) -> None:
    """The same workers in the same jobs go on, nothing is done twice, and all is cleaned up."""
    world.until(lambda: world.pool() == pool, "the workers to come over", 60)
    assert {job.job_id for job in world.alive()} == jobs
    world.ended(daemon, 0, timeout_s=90)
    assert world.in_database() == {"succeeded": 30}
    assert all(n == 1 for n in world.started().values())
    world.until_queue_empty()


def begun(world: LoginWorld, mode: str) -> tuple[Any, set[str], dict[str, str]]:
    daemon = world.on(0, *world.flags(*FLAGS, mode=mode, n=30, spec=SLEEP))
    world.until_running(2, 40)
    return daemon, {job.job_id for job in world.alive()}, world.pool()


@pytest.mark.parametrize("mode", ["zmq", "fs"])
def test_another_login_node_adopts_the_pool(world: LoginWorld, mode: str) -> None:
    daemon, jobs, pool = begun(world, mode)
    daemon.process.send_signal(signal.SIGTERM)
    assert "Go on with" in world.ended(daemon, 4)
    again = world.on(3, "start", "--session-id", "t1")
    assert world.ask("status")["host"] == f"{PREFIX}3"
    adopted(world, again, jobs, pool)


def test_another_login_node_takes_over_from_a_dead_one(world: LoginWorld) -> None:
    """The record still names the dead daemon: only the user can know that its host is gone."""
    daemon, jobs, pool = begun(world, "zmq")
    kill(daemon.process.pid)
    daemon.process.wait()
    owner = json.loads((world.root / "owner.json").read_text())
    assert owner["host"] == f"{PREFIX}0"
    again = world.on(3, "start", "--session-id", "t1", "--takeover")
    adopted(world, again, jobs, pool)


def test_a_rebooted_login_node_adopts_the_pool(world: LoginWorld) -> None:
    """At once: another boot id tells that the process of the record is gone, whoever has its
    pid now."""
    daemon, jobs, pool = begun(world, "zmq")
    kill(daemon.process.pid)
    daemon.process.wait()
    path = world.root / "owner.json"
    owner = json.loads(path.read_text())
    somebody = os.getpid()
    same = {**owner, "pid": somebody, "pid_start": pid_start(somebody)}
    path.write_text(json.dumps(same))
    here = (str(HERE / "netns-exec"), "-p", PREFIX, "0", DAEMON, "start", "--session-id", "t1")
    assert "already run by" in world.cli.run(*here, code=75).stderr
    path.write_text(json.dumps({**same, "boot_id": "an earlier boot"}))
    again = world.on(0, "start", "--session-id", "t1")
    adopted(world, again, jobs, pool)
