"""Fixtures that bring real batch systems up, once for all tests of this folder."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from cluster_world import SlurmWorld, bring_up, free_ports, script


@pytest.fixture(scope="session")
def slurm_state() -> Iterator[str]:
    """A SLURM of four nodes; the state directory of its scripts."""
    state = f"/tmp/jfc-{os.getpid()}"
    bring_up("slurm-up", state, "-p", str(free_ports(8)), "-t", "5")
    yield state
    script("slurm-down", "-r", state)


@pytest.fixture(scope="session")
def slurm_accounting_state() -> Iterator[str]:
    """A SLURM with accounting, QOS and associations."""
    state = f"/tmp/jfa-{os.getpid()}"
    bring_up("slurm-up", state, "-a", "-n", "2", "-p", str(free_ports(120)))
    yield state
    script("slurm-down", "-r", state)


@pytest.fixture(scope="session")
def sge_state() -> Iterator[str]:
    """A Grid Engine of one host."""
    state = f"/tmp/jfg-{os.getpid()}"
    bring_up("sge-up", state)
    yield state
    script("sge-down", "-r", state)


@pytest.fixture
def outside(session_env: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The test's own process sees the directories of its session."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "JOBFLOW_STATE_DIR"):
        monkeypatch.setenv(name, session_env[name])


Make = Callable[[str], SlurmWorld]


@pytest.fixture
def make_slurm(outside: None, cli: Any, tmp_path: Path) -> Iterator[Make]:
    """Makes worlds on a cluster; their jobs are gone after the test."""
    made: list[SlurmWorld] = []

    def make(state: str) -> SlurmWorld:
        made.append(SlurmWorld(cli, tmp_path, state))
        return made[-1]

    yield make
    cli.close()
    for world in made:
        # A test may have broken the cluster: mend it for the next one.
        script("slurm-up", world.state)
        world.slurm("scancel", "--user=root", check=False)
        world.until(lambda w=world: not w.slurm("squeue", "-h"), "an empty cluster", 30)


@pytest.fixture
def slurm(slurm_state: str, make_slurm: Make) -> SlurmWorld:
    """A session on the cluster of four nodes."""
    return make_slurm(slurm_state)


@pytest.fixture
def stub_path(tmp_path: Path, cli: Any) -> Path:
    """A directory that is first on PATH of what the test starts."""
    directory = tmp_path / "bin"
    directory.mkdir()
    cli.env["PATH"] = f"{directory}:{cli.env['PATH']}"
    assert shutil.which("bash")
    return directory
