"""A report of a real run: everything that was recorded, adding up."""

from __future__ import annotations

import json

import pytest
from e2e_world import World

pytestmark = pytest.mark.slow


def test_a_report_of_a_run_adds_up(world: World) -> None:
    tasks = [{"do": "sleep", "s": 0.2}] * 8 + [{"do": "never"}]
    world.start("--workers", "2", "--stay", tasks=tasks)
    world.until(lambda: world.ask("status")["state"] == "done", "the end of the work")
    file = world.dir / "report.html"
    done = world.cli.run("jobflowctl", "report", "--output", str(file), "--json")
    body = json.loads(done.stdout)
    assert body["schema"] == "jobflow.report/1"
    assert body["attempts"] == 9
    assert body["workers"] == 2
    assert sum(one["slot_s"] for one in body["ledger"]) == pytest.approx(body["slot_s"], abs=0.1)
    useful = next(one for one in body["ledger"] if one["what"].startswith("useful"))
    assert useful["slot_s"] == pytest.approx(1.6, abs=0.8)
    assert any("nonretryable" in one["what"] for one in body["ledger"])
    text = file.read_text()
    assert "Failures by cause" in text
    assert file.stat().st_mode & 0o777 == 0o600
    world.cli.run("jobflowctl", "shutdown", "--now", "--yes", "--wait")
