"""The benchmarks run and say what they found in one form. Their figures are not judged here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.__main__ import SUITE, table
from bench.idle import file_calls
from bench.measure import Result, Target
from bench.worker_start import AGENT, CHILD, FILES_AGENT, compiled, metadata_calls

ROOT = Path(__file__).parent.parent.parent
KEYS = {
    *("measure", "unit", "values", "median", "min", "max", "yardstick", "ratio", "ratios"),
    *("target", "ok", "details", "versions", "machine"),
}


def run(*words: str) -> dict[str, Any]:
    """One benchmark as a user runs it; its JSON object."""
    done = subprocess.run(
        [sys.executable, "-m", f"bench.{words[0]}", *words[1:]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def check_form(found: dict[str, Any]) -> None:
    assert set(found) >= KEYS
    assert found["values"]
    assert found["min"] <= found["median"] <= found["max"]
    assert found["ok"] in (True, False, None)
    assert (found["ok"] is None) == (found["target"] is None)
    assert {"jobflowd", "python", "libzmq", "sqlite"} <= set(found["versions"])
    assert found["machine"]["cores"] >= 1
    if found["ratio"] is not None:
        assert len(found["yardstick"]["values"]) == len(found["values"])


@pytest.mark.slow
def test_a_rate_comes_with_its_yardstick_and_its_cost() -> None:
    found = run("throughput", "--quick", "--tasks", "500")
    check_form(found)
    assert found["ratio"] > 0
    assert set(found["details"]["cpu_us_per_task"][0]) == {
        *("daemon", "generator", "mail", "agents", "children"),
    }


@pytest.mark.slow
def test_a_restart_is_measured_on_a_half_done_session() -> None:
    found = run("restart", "--quick", "--tasks", "4000")
    check_form(found)
    assert found["details"]["answering_s"]


@pytest.mark.slow
def test_simulated_workers_connect_and_work() -> None:
    found = run("connected", "--quick", "--workers", "6")
    check_form(found)
    assert found["details"]["online"] == [6]


@pytest.mark.slow
def test_every_command_says_something_first() -> None:
    found = run("first_output", "--quick")
    check_form(found)
    assert {"jobflowctl status", "jobflowctl scale 2", "jobflowd --help"} <= set(found["details"])
    assert all(one["first_ms"] > 0 and one["cpu_ms"] > 0 for one in found["details"].values())


def test_every_line_of_the_suite_is_a_module() -> None:
    modules = {words.split()[0] for words in SUITE}
    assert not [name for name in modules if not (ROOT / "bench" / f"{name}.py").exists()]


def test_a_target_is_judged_by_what_it_is_about() -> None:
    by_ratio = Result("a", "tasks/s", Target("2 x", at_least=2.0, of_ratio=True))
    by_ratio.add(30.0, 10.0)
    by_ratio.add(10.0, 10.0)
    by_ratio.add(50.0, 20.0)
    assert by_ratio.as_json()["ratio"] == 2.5
    assert by_ratio.as_json()["ok"] is True
    by_value = Result("b", "s", Target("under 3 s", at_most=3.0), values=[4.0, 2.0, 5.0])
    assert by_value.as_json()["ok"] is False
    by_value.values = [2.0]
    assert by_value.as_json()["ok"] is True
    by_value.also_ok = False
    assert by_value.as_json()["ok"] is False


def test_the_table_has_a_row_for_each_measure_and_names_failures() -> None:
    good = Result("fast", "tasks/s", Target("1 x", at_least=1.0, of_ratio=True))
    good.add(1234.5, 1000.0)
    text = table([good.as_json(), {"measure": "broken --now", "failed": "no reason"}])
    assert "| fast | 1,234 (1,234 - 1,234) | tasks/s | 1.23 | 1 x | yes |" in text
    assert "| broken --now | failed |" in text


def test_calls_are_read_from_the_table_of_strace() -> None:
    summary = """% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 60.00    0.000100           3        30         5 newfstatat
 40.00    0.000050           2        20           openat
------ ----------- ----------- --------- --------- ----------------
100.00    0.000150           3        50         5 total
"""
    assert file_calls(summary) == {"newfstatat": 30, "openat": 20}


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_the_imports_of_a_worker_stay_within_their_budget() -> None:
    """A thousand workers that start ask one file server for all of this at once.

    Counted beyond a bare interpreter. Per module about five calls, so a dozen modules more fail.
    """
    codes = ("pass", AGENT, FILES_AGENT, CHILD)
    with compiled() as env:
        bare, *counts = (sum(metadata_calls(code, env).values()) for code in codes)
    agent, files_agent, child = (count - bare for count in counts)
    hint = "see python -m bench.worker_start and python -X importtime"
    assert agent <= 870, hint
    assert files_agent <= 600, hint
    assert child <= 450, hint


def test_a_worker_imports_no_more_than_it_needs_to_start() -> None:
    """Each of these was found there once, and took from two to thirty milliseconds."""
    heavy = "asyncio ssl logging statistics tempfile shutil email urllib.request importlib.metadata"
    code = f"{AGENT}; import sys; print(*(one for one in {heavy.split()!r} if one in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.split()


def test_what_has_no_time_left_is_told_and_the_rest_kept(tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    words = ("--quick", "--minutes", "0", "--only", "yardstick", "--out", str(out))
    command = [sys.executable, "-m", "bench", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert "| yardstick | not run |" in out.with_suffix(".md").read_text()
    assert json.loads(out.read_text())["results"][0]["failed"].startswith("not run")
