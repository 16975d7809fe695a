"""Fixtures of the attacker's tests: real sessions, borrowed from the end-to-end tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

# The session of real processes is the end-to-end tests'; it is not written twice.
sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))
from e2e_world import World


@pytest.fixture
def world(
    no_processes_left: None,
    cli: Any,
    session_env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """A session to attack. The test's own process sees the same directories."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "JOBFLOW_STATE_DIR"):
        monkeypatch.setenv(name, session_env[name])
    return World(cli, tmp_path)
