"""The pictures of the view: never wider than asked, true to their numbers, safe."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflowctl.text import width
from jobflowctl.watch.drawing import (
    clip_line,
    eta_words,
    heartbeat_style,
    plain,
    progress_bar,
    sparkline,
)
from jobflowctl.watch.grouping import group_failures
from jobflowctl.watch.overview import Model, overview

_number = st.integers(0, 10**7)
_text = st.text(max_size=40)


@given(st.lists(_number, max_size=200), st.integers(0, 100), st.booleans())
def test_a_sparkline_fits_and_shows_what_is_not_zero(
    numbers: list[int], columns: int, unicode: bool
) -> None:
    drawn = sparkline([float(one) for one in numbers], columns, unicode=unicode)
    assert len(drawn) == min(len(numbers), columns)
    lowest = "▁" if unicode else "_"
    if numbers and columns >= len(numbers) and max(numbers):
        assert [char == lowest for char in drawn] == [one == 0 for one in numbers]


@given(
    st.fixed_dictionaries(
        dict.fromkeys(("succeeded", "failed", "canceled", "running", "queued"), _number)
    ),
    st.integers(0, 120),
    st.booleans(),
)
def test_a_progress_bar_has_exactly_its_columns(
    counts: dict[str, int], columns: int, unicode: bool
) -> None:
    body = {**counts, "total": sum(counts.values())}
    assert len(plain(progress_bar(body, columns, unicode=unicode))) == columns


def test_a_progress_bar_shows_a_single_failure() -> None:
    line = progress_bar({"total": 100_000, "succeeded": 50_000, "failed": 1}, 40)
    assert any(style == "red" and text for text, style in line)


@given(st.lists(st.tuples(_text, st.just("")), max_size=8), st.integers(0, 60))
def test_a_clipped_line_fits(line: list[tuple[str, str]], columns: int) -> None:
    assert width(plain(clip_line(line, columns))) <= columns


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"eta_range_s": [120.0, 300.0]}, "2 min to 5 min left"),
        ({"eta_range_s": [120.0, 120.2]}, "about 2 min left"),
        ({"stalled_s": 190.0, "eta_range_s": [1.0, 2.0]}, "no task has ended for 3 min 10 s"),
        ({"eta_reason": "the run is paused"}, "end unknown: the run is paused"),
        ({"tasks": {"total": 3, "succeeded": 2, "failed": 1}}, "nothing left to do"),
        ({"state": "generating", "tasks": {"total": 0}}, "end unknown"),
        ({}, "end unknown"),
    ],
)
def test_the_end_is_a_range_or_a_reason(body: dict[str, Any], words: str) -> None:
    assert words in eta_words(body)[0]


@pytest.mark.parametrize(
    ("age", "style"), [(None, "dim"), (1.0, ""), (20.0, "yellow"), (40.0, "red"), ("x", "dim")]
)
def test_a_late_heartbeat_is_coloured(age: Any, style: str) -> None:
    assert heartbeat_style(age) == style


_json = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats(0, 1e6) | _text,
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "session": _text,
            "state": _text,
            "state_reason": _text,
            "warnings": st.lists(_text, max_size=8),
            "stalled_s": st.none() | st.floats(0, 1e6),
            "eta_range_s": st.none() | st.lists(st.floats(0, 1e6), max_size=3),
            "eta_reason": _json,
            "throughput_per_s": st.none() | st.floats(0, 1e6),
            "pace": _json,
            "tasks": st.dictionaries(st.sampled_from(["total", "failed"]), _number),
        },
    ),
    st.lists(st.dictionaries(st.sampled_from(["signature", "example_task_id"]), _text), max_size=9),
    st.lists(st.dictionaries(st.sampled_from(["kind", "text", "task_id"]), _text), max_size=9),
    st.integers(20, 220),
    st.integers(1, 70),
)
def test_the_overview_fits_whatever_it_is_told(
    body: dict[str, Any], groups: Any, events: Any, columns: int, lines: int
) -> None:
    found = overview(Model(body, groups, events), columns, lines)
    assert len(found) <= lines
    for line in found:
        assert width(plain(line)) <= columns or not body
        assert plain(line).isprintable()


def test_failures_are_grouped_by_what_varies_not() -> None:
    rows = [
        {"task_id": f"t{n}", "error": f"ValueError: bad input {n} in '/a/{n}.npy'\nmore"}
        for n in range(3)
    ]
    rows.append({"task_id": "x", "error": None})
    first, second = group_failures(rows)
    assert first["count"] == 3
    assert first["example_task_id"] == "t0"
    assert (second["group"], second["count"], second["signature"]) == (2, 1, "no error text")


def test_the_overview_says_that_a_canary_goes_ahead_and_forgets_a_speed_that_is_over() -> None:
    body: dict[str, Any] = {"state": "running", "throughput_per_s": 5.0, "tasks": {"total": 9}}
    body["launching"] = {"paused": False, "reason": "", "canary": True}

    def shown(**changes: Any) -> str:
        model = Model(body={**body, **changes})
        return "\n".join(plain(line) for line in overview(model, 120, 24))

    assert "a few launches go ahead" in shown()
    assert "5.0 tasks/s" in shown()
    assert "tasks/s" not in shown(state="done")
    assert "a few launches" not in shown(launching={"canary": False})
