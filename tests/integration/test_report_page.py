"""The report's page in a real browser, without a network: all charts are drawn, nothing fails."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import pytest

from jobflowctl.reportdata import read_run
from jobflowctl.reportpage import page

pytestmark = pytest.mark.slow
CHARTS = 4


def test_a_browser_draws_every_chart(require: Callable[[str], None], tmp_path: Path) -> None:
    require("chromium")

    def at(seconds: float) -> str:
        return datetime.fromtimestamp(1_790_000_000 + seconds, timezone.utc).isoformat()

    fleet = [
        {"worker_id": f"w{n}", "slots": 1, "registered_at": at(n), "ended_at": at(100)}
        for n in range(5)
    ]
    attempts = [
        {
            "task_id": f"t{n}",
            "attempt": 1,
            "worker_id": f"w{n % 5}",
            "started_at": at(n),
            "ended_at": at(n + 3),
            "outcome": "failed" if n % 7 == 0 else "succeeded",
            "cause": "exception" if n % 7 == 0 else "",
        }
        for n in range(90)
    ]
    file = tmp_path / "report.html"
    status = {"session": "t1", "tasks": {"total": 90}}
    file.write_text(page(status, [], read_run(attempts, fleet, 1_790_000_100.0), at(100)))
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr")
    done = subprocess.run(
        [
            "chromium",
            *flags,
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            file.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert f'data-drawn="{CHARTS}"' in done.stdout
    complaints = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert not complaints
