"""The forecast: a range that holds, silence where nothing can be known, bounded memory."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflowd.forecast import BUCKETS_MAX, Pace


def run(
    pace: Pace, *, until: float, slots: int, task_s: float, start: float = 0.0, ended: int = 0
) -> int:
    """A steady run of so many slots; returns the number of ended tasks."""
    now = start
    before = ended
    while now < until:
        now += 0.5
        ended = before + int((now - start) * slots / task_s)
        pace.note(now, ended, slots)
    return ended


def test_a_steady_run_ends_within_its_range() -> None:
    pace = Pace()
    pace.note(0.0, 0, 4)
    ended = run(pace, until=100.0, slots=4, task_s=2.0)
    assert ended == 200
    found = pace.forecast(100.0, remaining=400, busy=4, held_back="")
    assert found.low_s is not None
    assert found.high_s is not None
    assert found.low_s < 200.0 < found.high_s
    assert found.high_s < 300.0
    assert found.reason == ""


def test_very_short_tasks_have_a_forecast_at_any_moment() -> None:
    pace = Pace()
    pace.note(0.0, 0, 4)
    now, ended = 0.0, 0
    for _ in range(200):
        now += 1.003
        ended += 5000
        pace.note(now, ended, 4)
        found = pace.forecast(now, remaining=50_000, busy=4, held_back="")
        assert found.low_s is not None or now < 3
    assert found.low_s == pytest.approx(10.0, rel=0.2)


def test_nothing_is_said_before_five_tasks_have_ended() -> None:
    pace = Pace()
    pace.note(0.0, 0, 1)
    pace.note(10.0, 4, 1)
    found = pace.forecast(10.0, remaining=100, busy=1, held_back="")
    assert found.low_s is None
    assert "too few" in found.reason


def test_twice_the_workers_halve_it_at_once() -> None:
    pace = Pace()
    pace.note(0.0, 0, 4)
    run(pace, until=100.0, slots=4, task_s=2.0)
    one = pace.forecast(100.0, remaining=400, busy=4, held_back="")
    two = pace.forecast(100.0, remaining=400, busy=8, held_back="")
    assert one.low_s is not None
    assert two.low_s == pytest.approx(one.low_s / 2)


def test_a_time_without_workers_does_not_slow_the_pace() -> None:
    pace = Pace()
    pace.note(0.0, 0, 4)
    ended = run(pace, until=100.0, slots=4, task_s=2.0)
    before = pace.forecast(100.0, remaining=400, busy=4, held_back="")
    pace.note(100.0, ended, 0)
    pace.note(140.0, ended, 4)
    after = pace.forecast(140.0, remaining=400, busy=4, held_back="")
    assert after.low_s == pytest.approx(before.low_s, rel=0.1)


def test_no_running_task_means_that_nobody_knows() -> None:
    pace = Pace()
    pace.note(0.0, 0, 4)
    run(pace, until=20.0, slots=4, task_s=1.0)
    found = pace.forecast(20.0, remaining=10, busy=0, held_back="")
    assert (found.low_s, found.reason) == (None, "no task is running")


def test_a_stall_is_named_and_ends_the_forecast() -> None:
    pace = Pace()
    pace.note(0.0, 0, 4)
    ended = run(pace, until=100.0, slots=4, task_s=2.0)
    pace.note(190.0, ended, 4)
    found = pace.forecast(190.0, remaining=10, busy=4, held_back="")
    assert found.stalled_s == pytest.approx(90.0, abs=1.0)
    assert found.low_s is None
    quiet = pace.forecast(130.0, remaining=10, busy=4, held_back="")
    assert quiet.stalled_s is None


def test_what_holds_the_run_back_is_passed_on() -> None:
    pace = Pace()
    pace.note(0.0, 0, 4)
    run(pace, until=100.0, slots=4, task_s=2.0)
    found = pace.forecast(100.0, remaining=10, busy=4, held_back="the run is paused")
    assert (found.low_s, found.reason) == (None, "the run is paused")


def test_an_ended_run_has_no_forecast_and_no_reason() -> None:
    pace = Pace()
    pace.note(0.0, 0, 1)
    run(pace, until=100.0, slots=1, task_s=1.0)
    found = pace.forecast(1000.0, remaining=0, busy=0, held_back="")
    assert (found.low_s, found.reason, found.stalled_s) == (None, "", None)


def test_a_change_of_pace_widens_the_range() -> None:
    steady, changed = Pace(), Pace()
    for pace in (steady, changed):
        pace.note(0.0, 0, 4)
    run(steady, until=200.0, slots=4, task_s=2.0)
    ended = run(changed, until=100.0, slots=4, task_s=8.0)
    run(changed, until=110.0, slots=4, task_s=1.0, start=100.0, ended=ended)
    ratios = []
    for pace, now in ((steady, 200.0), (changed, 110.0)):
        found = pace.forecast(now, remaining=1000, busy=4, held_back="")
        assert found.low_s is not None
        assert found.high_s is not None
        ratios.append(found.high_s / found.low_s)
    assert ratios[1] > 1.5 * ratios[0]


@given(st.lists(st.floats(0.01, 5000.0), min_size=1, max_size=300), st.integers(0, 2**32))
def test_memory_is_bounded_and_no_end_is_forgotten(steps: list[float], seed: int) -> None:
    chance = random.Random(seed)
    pace, now, ended = Pace(), 0.0, 0
    pace.note(now, 0, 0)
    for step in steps:
        now += step
        ended += chance.randrange(5)
        pace.note(now, ended, chance.randrange(9))
    found = pace.forecast(now, remaining=1, busy=1, held_back="")
    assert len(found.history) <= BUCKETS_MAX
    assert sum(found.history) == ended
    assert len(found.history) * found.bucket_s >= now
