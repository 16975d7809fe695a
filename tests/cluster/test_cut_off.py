"""Workers on hosts of their own, cut off from the manager: network namespaces under SLURM.

The manager is told to give a second address of its host, which SLURM itself does not use: so a
worker can lose its manager while the cluster is well.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cluster_world import (
    BATCH_QUICK,
    HERE,
    SlurmWorld,
    bring_up,
    free_ports,
    missing,
    script,
)

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PREFIX = "jc"
MANAGER = "192.0.2.200"
EXEC = (str(HERE / "netns-exec"), "-p", PREFIX, "0")


class CutWorld(SlurmWorld):
    """A session whose daemon is on host 0 and whose nodes n1, n2 are hosts 1 and 2."""

    def start(self, *more: str, mode: str = "auto", **args: Any) -> Any:
        daemon = str(Path(sys.executable).parent / "jobflowd")
        address = ("--manager-host", MANAGER)
        flags = self.flags(*more, *address, mode=mode, **args)
        spawned = self.cli.spawn(EXEC[0], *EXEC[1:], daemon, *flags)
        self.until_serving(spawned)
        return spawned

    def slurm(self, *argv: str, check: bool = True) -> str:
        return super().slurm(*EXEC, *argv, check=check)

    def cut(self, node: int) -> None:
        """The manager's address leads nowhere from this node."""
        route(node, "add", "blackhole", MANAGER)

    def heal(self, node: int) -> None:
        route(node, "del", "blackhole", MANAGER)


def route(node: int, *words: str) -> None:
    subprocess.run(["ip", "-n", f"{PREFIX}{node}", "route", *words], check=True)


@pytest.fixture(scope="module")
def cut_state() -> Iterator[str]:
    if os.geteuid() != 0:
        missing("network namespaces need root")
    state = f"/tmp/jfn-{os.getpid()}"
    script("netns-up", "-p", PREFIX, "2")
    subprocess.run(
        ["ip", "-n", f"{PREFIX}0", "address", "add", f"{MANAGER}/24", "dev", "eth0"], check=True
    )
    bring_up("slurm-up", state, "-n", "2", "-s", PREFIX, "-p", str(free_ports(4)))
    yield state
    script("slurm-down", "-r", state)
    script("netns-down", "-p", PREFIX)


@pytest.fixture
def world(outside: None, cut_state: str, cli: Any, tmp_path: Path) -> Iterator[CutWorld]:
    world = CutWorld(cli, tmp_path, cut_state)
    yield world
    cli.close()
    world.slurm("scancel", "--user=root", check=False)
    world.until(lambda: not world.slurm("squeue", "-h"), "an empty cluster", 30)


FLAGS = ("--launcher", "slurm", *BATCH_QUICK, "--workers", "2", "--slurm-cpus", "2")


def test_a_worker_that_starts_cut_off_uses_the_mailbox(world: CutWorld) -> None:
    world.cut(2)
    try:
        daemon = world.start(*FLAGS, n=2, spec={"do": "wait"})
        world.until_running(2, 40)
        used = {worker["host"]: worker["transport"] for worker in world.workers()}
        assert used == {"jc1": "zmq", "jc2": "fs"} or used == {"n1": "zmq", "n2": "fs"}
        world.open_gate()
        world.ended(daemon, 0)
        assert all(n == 1 for n in world.started().values())
    finally:
        world.heal(2)


def test_a_worker_cut_off_in_mid_run_loses_nothing(world: CutWorld) -> None:
    daemon = world.start(*FLAGS, mode="zmq", n=60, spec={"do": "sleep", "s": 0.3})
    world.until_running(2, 40)
    world.cut(2)
    world.until(lambda: len(world.workers()) == 1, "the worker to be missed")
    before = len(world.notes("end"))
    world.until(lambda: len(world.notes("end")) > before + 5, "the other to go on")
    world.heal(2)
    world.ended(daemon, 0, timeout_s=90)
    assert world.in_database() == {"succeeded": 60}
