"""The pool never overshoots, settles, and shrinks in the order that costs least."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobflowd.model import LaunchState
from jobflowd.pool import (
    BACKOFF_S,
    BACKOFF_S_MAX,
    COMING,
    EMPTY_ENDS_MAX,
    SUBMIT_FAILURES_MAX,
    SURPLUS_S,
    Breaker,
    LaunchView,
    Plan,
    PoolState,
    PoolView,
    TokenBucket,
    WorkerView,
    plan,
    submit_bucket,
)


def view(**changes: object) -> PoolView:
    base = PoolView(now=100.0, wanted=4, slots_per_worker=1, ready=100, running=0, soon_due=0)
    return replace(base, **changes)  # type: ignore[arg-type]


def worker(n: int, *, busy: int = 0, leaving: bool = False, managed: bool = True) -> WorkerView:
    return WorkerView(f"w{n}", n, 1, busy, leaving, managed)


def launch(n: int, state: LaunchState, *, cancel_asked: bool = False) -> LaunchView:
    return LaunchView(f"l{n}", state, n, cancel_asked)


# --- growing ----------------------------------------------------------------------------------


def test_fills_up_to_the_wanted_number() -> None:
    assert plan(view()).submit == 4


@pytest.mark.parametrize(
    ("ready", "running", "soon_due", "slots", "submit"),
    [(3, 0, 0, 1, 3), (0, 1, 1, 1, 2), (9, 0, 0, 4, 3), (0, 0, 0, 1, 0), (100, 0, 0, 64, 2)],
)
def test_no_more_than_the_work_can_use(
    ready: int, running: int, soon_due: int, slots: int, submit: int
) -> None:
    seen = view(ready=ready, running=running, soon_due=soon_due, slots_per_worker=slots)
    assert plan(seen).submit == submit


@pytest.mark.parametrize("state", sorted(COMING))
def test_a_launch_that_may_bring_a_worker_counts(state: LaunchState) -> None:
    assert plan(view(launches=(launch(1, state),))).submit == 3


def test_nothing_is_submitted_while_that_is_not_allowed() -> None:
    assert plan(view(may_submit=False)).empty


def test_one_launch_proves_the_way_for_all() -> None:
    assert plan(view(coming_max=1)).submit == 1
    assert plan(view(coming_max=1, launches=(launch(1, LaunchState.PENDING),))).submit == 0
    assert plan(view(coming_max=0)).submit == 0


def test_a_lost_worker_is_replaced_while_work_remains() -> None:
    three = tuple(worker(n, busy=1) for n in range(3))
    assert plan(view(running=3, workers=three)).submit == 1
    assert plan(view(ready=0, running=3, workers=three)).submit == 0


def test_a_leaving_worker_still_takes_its_place() -> None:
    workers = (*(worker(n, busy=1) for n in range(3)), worker(3, busy=1, leaving=True))
    assert plan(view(running=4, workers=workers)).submit == 0


def test_a_cancelled_launch_still_takes_its_place_until_it_is_gone() -> None:
    asked = launch(1, LaunchState.PENDING, cancel_asked=True)
    assert plan(view(launches=(asked,))).submit == 3


def test_what_a_leaving_worker_runs_needs_no_new_worker() -> None:
    seen = view(ready=0, running=1, workers=(worker(1, busy=1, leaving=True),))
    assert plan(seen).target == 0


def test_workers_started_by_hand_take_work_but_no_place() -> None:
    by_hand = tuple(worker(n, managed=False) for n in range(3))
    assert plan(view(ready=5, workers=by_hand)).submit == 2
    assert plan(view(workers=by_hand)).submit == 4
    assert plan(view(wanted=0, workers=by_hand)).empty


# --- shrinking --------------------------------------------------------------------------------


def test_scale_down_takes_queued_then_starting_then_idle_then_busy() -> None:
    seen = view(
        wanted=0,
        launches=(
            launch(1, LaunchState.PENDING),
            launch(2, LaunchState.RUNNING),
            launch(3, LaunchState.PENDING),
        ),
        workers=(worker(4, busy=2), worker(5), worker(6, busy=1), worker(7)),
    )
    everything = plan(seen)
    assert everything.cancel == ("l3", "l1", "l2")
    assert everything.drain == ("w7", "w5", "w6", "w4")
    assert plan(replace(seen, wanted=5)).cancel == ("l3", "l1")
    assert plan(replace(seen, wanted=5)).drain == ()
    assert plan(replace(seen, wanted=3)).drain == ("w7",)


@pytest.mark.parametrize("state", [LaunchState.PLANNED, LaunchState.STALE])
def test_an_unresolved_launch_is_not_cancelled(state: LaunchState) -> None:
    seen = view(wanted=1, launches=(launch(1, state),), workers=(worker(2, busy=1),))
    assert plan(seen) == Plan(1, drain=("w2",))


def test_workers_stay_when_the_queue_runs_empty() -> None:
    idle = tuple(worker(n) for n in range(4))
    assert plan(view(ready=0, running=0, workers=idle)).empty


def test_queued_launches_are_taken_back_after_a_while_without_use() -> None:
    queued = tuple(launch(n, LaunchState.PENDING) for n in range(4))
    seen = view(ready=1, launches=queued)
    first = plan(seen)
    assert first.empty
    assert first.again_at == 100.0 + SURPLUS_S
    later = plan(replace(seen, now=100.0 + SURPLUS_S), first.state)
    assert later.cancel == ("l3", "l2", "l1")


def test_a_queue_that_fills_again_forgets_the_surplus() -> None:
    queued = tuple(launch(n, LaunchState.PENDING) for n in range(4))
    short = plan(view(ready=1, launches=queued))
    full = plan(view(now=130.0, launches=queued), short.state)
    assert full.state == PoolState()
    again = plan(view(now=161.0, ready=1, launches=queued), full.state)
    assert again.empty


# --- properties -------------------------------------------------------------------------------

numbers = st.integers(0, 12)
launches = st.lists(st.tuples(st.sampled_from(sorted(COMING)), st.booleans()), max_size=8).map(
    lambda many: tuple(launch(n, one, cancel_asked=asked) for n, (one, asked) in enumerate(many))
)
workers = st.lists(st.tuples(numbers, st.booleans(), st.booleans()), max_size=8).map(
    lambda many: tuple(
        worker(100 + n, busy=busy, leaving=leaving, managed=managed)
        for n, (busy, leaving, managed) in enumerate(many)
    )
)
views = st.builds(
    PoolView,
    now=st.floats(0, 1e6),
    wanted=numbers,
    slots_per_worker=st.integers(1, 4),
    ready=numbers,
    running=numbers,
    soon_due=numbers,
    launches=launches,
    workers=workers,
    may_submit=st.booleans(),
    coming_max=st.one_of(st.none(), st.integers(0, 3)),
)


def apply(seen: PoolView, done: Plan) -> PoolView:
    """The world right after a plan was carried out."""
    fresh = tuple(launch(1000 + n, LaunchState.PLANNED) for n in range(done.submit))
    kept = tuple(
        one._replace(cancel_asked=one.cancel_asked or one.launch_id in done.cancel)
        for one in seen.launches
    )
    told = tuple(
        one._replace(leaving=one.leaving or one.worker_id in done.drain) for one in seen.workers
    )
    return replace(seen, launches=kept + fresh, workers=told)


def alive(seen: PoolView) -> int:
    managed = sum(1 for one in seen.workers if one.managed)
    return managed + sum(1 for one in seen.launches if one.state in COMING)


@settings(deadline=None)
@given(views)
def test_never_overshoots(seen: PoolView) -> None:
    done = plan(seen)
    if done.submit:
        assert seen.may_submit
        assert alive(seen) + done.submit <= seen.wanted
        coming = sum(1 for one in seen.launches if not one.cancel_asked)
        assert seen.coming_max is None or coming + done.submit <= seen.coming_max
    assert not (done.submit and (done.cancel or done.drain))


@settings(deadline=None)
@given(views)
def test_is_settled_after_one_plan(seen: PoolView) -> None:
    done = plan(seen)
    assert plan(seen) == done
    assert plan(apply(seen, done), done.state).empty


@settings(deadline=None)
@given(views)
def test_sends_away_only_what_is_over_the_wanted_number(seen: PoolView) -> None:
    done = plan(seen)
    after = apply(seen, done)
    staying = [one for one in after.workers if one.managed and not one.leaving]
    if done.drain:
        firm = [one for one in after.launches if not one.cancel_asked]
        assert len(staying) + len(firm) >= seen.wanted
        named = {one.worker_id: one for one in seen.workers}
        assert all(named[one].managed and not named[one].leaving for one in done.drain)
        assert max(named[one].busy for one in done.drain) <= min(
            (one.busy for one in staying), default=99
        )


@settings(deadline=None)
@given(views)
def test_converges_when_the_world_obeys(seen: PoolView) -> None:
    seen = replace(seen, may_submit=True, coming_max=None, running=0, soon_due=0, ready=50)
    for _ in range(30):
        done = plan(seen)
        seen = apply(seen, done)
        online = tuple(
            worker(2000 + one.order + len(seen.workers))
            for one in seen.launches
            if not one.cancel_asked
        )
        stayed = tuple(one for one in seen.workers if not one.leaving)
        seen = replace(seen, launches=(), workers=stayed + online)
    assert sum(1 for one in seen.workers if one.managed) == seen.wanted


# --- breaker ----------------------------------------------------------------------------------


def test_ten_refused_submissions_in_a_row_open_the_breaker() -> None:
    breaker = Breaker()
    for _ in range(SUBMIT_FAILURES_MAX - 1):
        breaker.on_submit_failed(0.0, "invalid partition")
    assert not breaker.open
    breaker.on_submitted()
    for _ in range(SUBMIT_FAILURES_MAX):
        breaker.on_submit_failed(5.0, "invalid partition")
    assert breaker.open
    assert "invalid partition" in breaker.why
    assert breaker.coming_max(5.0) == 0
    assert breaker.next_at(5.0) == 5.0 + BACKOFF_S
    assert breaker.coming_max(5.0 + BACKOFF_S) == 1
    assert breaker.next_at(5.0 + BACKOFF_S) is None
    breaker.on_submitted()
    assert not breaker.open


def opened() -> Breaker:
    breaker = Breaker()
    for _ in range(EMPTY_ENDS_MAX):
        breaker.on_ended_empty(0.0, "exit status 127", "jobflow-worker: not found")
    return breaker


def test_launches_that_bring_no_worker_open_it_and_say_why() -> None:
    breaker = opened()
    assert breaker.open
    assert "3 launches in a row" in breaker.why
    assert "exit status 127" in breaker.why
    assert breaker.tail == "jobflow-worker: not found"


def test_a_taken_submission_does_not_close_it_if_workers_do_not_start() -> None:
    breaker = opened()
    breaker.on_submitted()
    assert breaker.open


def test_each_failed_trial_doubles_the_pause() -> None:
    breaker = opened()
    pauses = []
    now = 0.0
    for _ in range(7):
        until = breaker.next_at(now)
        assert until is not None
        pauses.append(until - now)
        now = until
        breaker.on_ended_empty(now, "exit status 127", "")
    assert pauses == [30.0, 60.0, 120.0, 240.0, 480.0, BACKOFF_S_MAX, BACKOFF_S_MAX]


def test_a_refused_trial_counts_too() -> None:
    breaker = opened()
    breaker.on_submit_failed(BACKOFF_S, "controller down")
    assert breaker.next_at(BACKOFF_S) == BACKOFF_S + 2 * BACKOFF_S
    assert "3 launches" in breaker.why


def test_ends_during_the_pause_do_not_prolong_it() -> None:
    breaker = opened()
    breaker.on_ended_empty(10.0, "exit status 127", "")
    assert breaker.next_at(10.0) == BACKOFF_S


def test_a_registration_or_a_release_forgets_everything() -> None:
    for close in (Breaker.on_registered, Breaker.release):
        breaker = opened()
        breaker.on_ended_empty(BACKOFF_S, "again", "")
        close(breaker)
        assert breaker == Breaker()
        assert breaker.coming_max(0.0) is None


# --- pace -------------------------------------------------------------------------------------


def test_the_bucket_allows_a_burst_and_then_a_rate() -> None:
    bucket = submit_bucket(local=False)
    assert bucket.take(0.0, 50) == 10
    assert bucket.take(0.5, 50) == 0
    assert bucket.next_at(0.5) == 1.0
    assert bucket.take(1.0, 50) == 1
    assert bucket.take(1000.0, 50) == 10


def test_the_bucket_survives_a_clock_that_stands_still() -> None:
    bucket = TokenBucket(rate=1.0, burst=2)
    assert bucket.take(5.0, 1) == 1
    assert bucket.take(5.0, 5) == 1
    assert bucket.take(5.0, 1) == 0
    assert bucket.take(5.0, -1) == 0
