"""What systemd itself says of the units, offline."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

#: 0 is safest, 10 is a service without any sandbox.
EXPOSURE_MAX = 30


@pytest.fixture
def analyze(require: Callable[[str], None], tmp_path: Path) -> Callable[..., str]:
    require("systemd-analyze")
    runtime = tmp_path / "run"
    runtime.mkdir(mode=0o700)

    def run(*words: str) -> str:
        done = subprocess.run(
            ["systemd-analyze", *words],
            capture_output=True,
            text=True,
            timeout=60,
            env={**os.environ, "XDG_RUNTIME_DIR": str(runtime), "SYSTEMD_PAGER": ""},
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


@pytest.mark.parametrize("kind", ["--user", "--system"])
def test_systemd_finds_no_fault(
    cli: Any, analyze: Callable[..., str], tmp_path: Path, kind: str
) -> None:
    unit = tmp_path / "jobflowd@.service"
    unit.write_text(cli.run("jobflowd", "install-unit", kind).stdout)
    said = analyze("verify", "--man=no", kind, str(unit))
    assert "jobflowd@" not in said


def test_the_system_unit_is_well_sandboxed(
    cli: Any, analyze: Callable[..., str], tmp_path: Path
) -> None:
    unit = tmp_path / "jobflowd@.service"
    unit.write_text(cli.run("jobflowd", "install-unit", "--system").stdout)
    analyze("security", "--offline=yes", f"--threshold={EXPOSURE_MAX}", str(unit))


def test_install_unit_says_what_comes_next(cli: Any, tmp_path: Path) -> None:
    done = cli.run("jobflowd", "install-unit", "--install")
    assert "systemctl --user daemon-reload" in done.stdout
    assert (Path(cli.env["HOME"]) / ".config/systemd/user/jobflowd@.service").is_file()
