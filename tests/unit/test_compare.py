"""`bench/compare.py`: what is missing or fails is a row, and figures are those of the same turn."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import compare
from bench.compare import Contestant, Row, Runner, spread_of, table, take_turn, tasks_for


def answer(rate: float, error: str = "") -> dict[str, Any]:
    return {"version": "1.0", "runs": {"noop": {"tasks": 10, "rate": rate}}, "error": error}


def test_a_ratio_is_taken_within_a_turn() -> None:
    row = Row("peer", "as usual")
    for own, yardstick in ((200.0, 100.0), (40.0, 10.0), (90.0, 30.0)):
        row.take(answer(own), answer(yardstick)["runs"])
    assert row.as_json()["ratio"] == {"noop": 3.0}
    assert row.as_json()["median"] == {"noop": 90.0}


def test_spread_is_half_the_range() -> None:
    assert spread_of([90.0, 100.0, 130.0]) == pytest.approx(0.2)


def test_the_table_shows_what_failed_and_what_is_missing() -> None:
    good, broken, missing = (Row(name, "as usual") for name in ("good", "broken", "missing"))
    good.take(answer(2000.0), answer(1000.0)["runs"])
    broken.take({"version": "2.0", "runs": {}, "error": "OSError: no\nroom"}, {})
    missing.take({"version": None, "runs": {}, "error": "not installed"}, {})
    text = table([good, broken, missing])
    assert "| good | 1.0 | 2,000 ±0% | 2.000 | - | - |" in text
    assert "| broken | 2.0 | failed | - | failed | - |" in text
    assert "| missing | not installed |" in text
    assert "- broken: OSError: no room" in text
    assert len({line.count("|") for line in text.splitlines() if line.startswith("|")}) == 1


def test_tries_grow_until_they_tell_something() -> None:
    tried = []

    def run(tasks: int) -> float:
        tried.append(tasks)
        return tasks / 1000

    assert tasks_for(run, 3.0, 50) == 3000
    assert tried == [50, 200, 800]


def test_a_slow_contestant_gets_at_least_the_first_try() -> None:
    assert tasks_for(lambda tasks: 100.0, 3.0, 8) == 8


def turn(
    contestant: Contestant, place: Path, monkeypatch: pytest.MonkeyPatch, **tasks: int
) -> dict[str, Any]:
    monkeypatch.chdir(place)
    monkeypatch.setitem(compare.CONTESTANTS, "peer", contestant)
    take_turn("peer", 1.0, tasks)
    found: dict[str, Any] = json.loads((place / "answer.json").read_text())
    return found


def test_one_that_is_not_installed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def never() -> Iterator[Runner]:
        raise AssertionError("opened")
        yield

    found = turn(Contestant(never, "no-such-peer", ""), tmp_path, monkeypatch)
    assert found["version"] is None
    assert found["error"].startswith("not installed")


def test_what_was_measured_before_a_failure_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(workload: str, tasks: int) -> float:
        if workload == "busy":
            raise RuntimeError("broken")
        return 2.0

    @contextmanager
    def opened() -> Iterator[Runner]:
        yield run

    found = turn(Contestant(opened, "", ""), tmp_path, monkeypatch, noop=10, busy=10)
    assert found["runs"] == {"noop": {"tasks": 10, "rate": 5.0}}
    assert found["error"] == "RuntimeError: broken"


def test_one_that_hangs_is_ended() -> None:
    found = compare.turn_of(compare.YARDSTICK, 1000.0, {}, 0.001)
    assert found["error"] == "not done within 0.001 s"
    assert found["runs"] == {}
