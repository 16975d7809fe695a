"""Fixtures of the end-to-end tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from e2e_world import World


@pytest.fixture
def world(
    no_processes_left: None,
    cli: Any,
    session_env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """A session to start, stop and break. The test's own process sees the same directories."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "JOBFLOW_STATE_DIR"):
        monkeypatch.setenv(name, session_env[name])
    return World(cli, tmp_path)
