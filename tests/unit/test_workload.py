"""Slots, pipelines, and what gets stuck behind a long task."""

from __future__ import annotations

from jobflow_worker import limits
from jobflow_worker.messages import Assignment, Held
from jobflow_worker.workload import AHEAD_S, REST_S_MAX, Workload

PATIENCE_S = 1.0


def loaded(slots: int, *names: str, median_s: float | None = None) -> Workload:
    work = Workload(slots)
    for slot in work.slots:
        slot.ready = True
    if median_s is not None:
        work.took(median_s)
    for name in names:
        work.add(Assignment(name, 1, b"", None, None), 0.0)
    return work


def names(held: list[Held]) -> list[str]:
    return [one.task_id for one in held]


def test_each_slot_gets_one_before_any_gets_two() -> None:
    work = loaded(2, "a", "b", "c", median_s=0.001)
    work.feed(0.0, PATIENCE_S)
    assert names(work.running()) == ["a", "b"]
    assert names(work.behind()) == ["c"]


def test_outcomes_of_short_tasks_wait_for_company_while_every_slot_has_work() -> None:
    work = loaded(2, median_s=0.001)
    assert work.rest_s() == 0.0, "a slot has nothing to do"
    for slot in work.slots:
        slot.fed.extend([Held("a", 1)] * 3)
    assert work.rest_s() == 0.001
    work.slots[0].fed.extend([Held("a", 1)] * 220)
    assert work.rest_s() == 0.001, "the poorest slot decides"
    work.slots[1].broken = True
    assert work.rest_s() == REST_S_MAX


def test_long_tasks_are_not_fed_ahead() -> None:
    work = loaded(1, "a", "b", median_s=10.0)
    work.feed(0.0, PATIENCE_S)
    assert len(work.slots[0].fed) == 1
    assert work.ahead(0.01) == 0


def test_short_tasks_are_asked_for_in_advance_within_a_limit() -> None:
    assert loaded(2, median_s=0.1).ahead(0.0001) == 2 * (int(AHEAD_S / 0.1) + 1)
    assert loaded(1, median_s=1e-9).ahead(1.0) == limits.PREFETCH_PER_SLOT_MAX


def test_what_is_fed_behind_a_long_one_is_recalled_and_not_fed_again() -> None:
    work = loaded(1, "a", "b", median_s=0.001)
    work.feed(0.0, PATIENCE_S)
    assert work.stuck_at(PATIENCE_S) == PATIENCE_S
    recall, _ = work.stuck(PATIENCE_S, PATIENCE_S)
    assert recall == [0]
    work.put_back(0, [Held("b", 1)])
    assert work.feed(PATIENCE_S, PATIENCE_S) == []
    _, late = work.stuck(PATIENCE_S, PATIENCE_S)
    assert late == [Held("b", 1)]


def test_stuck_at_never_lies_in_the_past_of_a_check() -> None:
    work = loaded(2, "a", "b", "c", median_s=10.0)
    work.feed(0.0, PATIENCE_S)
    work.add(Assignment("d", 1, b"", None, None), 5.0)
    at = work.stuck_at(PATIENCE_S)
    assert at is not None
    _, late = work.stuck(at, PATIENCE_S)
    for held in late:
        work.take_out(held, at)
    following = work.stuck_at(PATIENCE_S)
    assert following is None or following > at


def test_an_idle_slot_means_that_nothing_is_stuck() -> None:
    work = loaded(2, "a", median_s=10.0)
    work.feed(0.0, PATIENCE_S)
    assert work.stuck_at(PATIENCE_S) is None
    assert work.stuck(99.0, PATIENCE_S) == ([], [])


def test_the_next_one_begins_when_the_first_is_taken_out() -> None:
    work = loaded(1, "a", "b", median_s=0.001)
    work.feed(0.0, PATIENCE_S)
    assert work.began_after(0.0) is None
    work.take_out(Held("a", 1), 0.5)
    assert names(work.running()) == ["b"]
    assert work.began_after(0.0) == 0.5


def test_what_was_given_back_waits_before_all_others() -> None:
    work = loaded(1, "a", "b", "c", median_s=0.001)
    work.feed(0.0, PATIENCE_S)
    work.put_back(0, [Held("b", 1), Held("c", 1)])
    assert names(work.behind()) == ["b", "c"]
    assert len(work) == 3
