"""Puts the stand-in batch system on PATH, in front of any real one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e")]
from e2e_world import World  # noqa: E402
from rig import stand_in  # noqa: E402


@pytest.fixture
def fake_batch(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The variables that make the stand-in found and working; its jobs end with the test."""
    root = tmp_path / "fakebatch"
    env = stand_in(tmp_path)
    yield env
    for pid_file in root.glob("jobs/*/pid"):
        subprocess.run(["pkill", "-KILL", "-s", pid_file.read_text()], check=False)


@pytest.fixture
def liar(
    fake_batch: dict[str, str],
    cli: Any,
    session_env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """A session on the stand-in."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "JOBFLOW_STATE_DIR"):
        monkeypatch.setenv(name, session_env[name])
    cli.env.update(fake_batch)
    return World(cli, tmp_path)
