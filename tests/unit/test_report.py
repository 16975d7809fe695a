"""The report: a ledger that adds up, charts from bounded numbers, a page that asks nobody."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflowctl import reportdata
from jobflowctl.reportpage import page

T0 = 1_790_000_000.0
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\x1b[2J"
STATUS = {
    "session": "t1",
    "program": "/data/conv.py:Conv",
    "state": "done",
    "host": "login2",
    "tasks": {"total": 3, "succeeded": 2, "failed": 1},
}


def iso(at: float | None) -> str | None:
    return None if at is None else datetime.fromtimestamp(T0 + at, timezone.utc).isoformat()


def worker(name: str, begun: float, ended: float | None, slots: int = 1) -> dict[str, Any]:
    return {
        "worker_id": name,
        "host": "n1",
        "slots": slots,
        "registered_at": iso(begun),
        "ended_at": iso(ended),
    }


def attempt(
    name: str, worker_id: str, begun: float | None, ended: float | None, **more: Any
) -> dict[str, Any]:
    return {
        "task_id": name,
        "attempt": 1,
        "worker_id": worker_id,
        "started_at": iso(begun),
        "ended_at": iso(ended),
        "outcome": "succeeded",
        "cause": "",
        **more,
    }


def test_the_ledger_says_where_the_time_went() -> None:
    run = reportdata.read_run(
        [
            attempt("a", "w1", 10, 30),
            attempt("b", "w1", 35, 50, outcome="failed", cause="timeout"),
            attempt("c", "w1", 50, 60, outcome="returned", cause="draining"),
        ],
        [worker("w1", 0, 100), worker("w2", 0, 50)],
        T0 + 100,
    )
    found = dict(reportdata.ledger(run))
    assert found == {
        reportdata.USEFUL: pytest.approx(20),
        "wasted: failed, timeout": pytest.approx(15),
        "wasted: handed back, draining": pytest.approx(10),
        # Ten seconds of w1, and all of w2.
        reportdata.STARTING: pytest.approx(60),
        reportdata.BETWEEN: pytest.approx(5),
        reportdata.ENDING: pytest.approx(40),
    }
    assert next(iter(found)) == reportdata.USEFUL


_time = st.floats(-50, 500)
_worker = st.tuples(_time, st.none() | _time, st.integers(1, 4))
_attempt = st.tuples(
    st.integers(0, 5),
    st.none() | _time,
    st.none() | _time,
    st.none() | st.floats(0, 300),
    st.sampled_from(["succeeded", "failed", "lost", "returned", "canceled", "unknown", ""]),
)


@given(st.lists(_worker, max_size=5), st.lists(_attempt, max_size=30))
def test_whatever_the_clocks_say_it_adds_up(workers: Any, attempts: Any) -> None:
    run = reportdata.read_run(
        [
            attempt(f"t{n}", f"w{one[0]}", one[1], one[2], duration_s=one[3], outcome=one[4])
            for n, one in enumerate(attempts)
        ],
        [worker(f"w{n}", *one) for n, one in enumerate(workers)],
        T0 + 500,
    )
    lines = reportdata.ledger(run)
    assert all(seconds >= -1e-6 for _, seconds in lines)
    total = sum(seconds for _, seconds in lines)
    assert total == pytest.approx(sum(one.slot_s for one in run.lives), abs=1e-3)
    assert len(reportdata.throughput(run)["at"]) == reportdata.BUCKETS
    reportdata.timeline(run)
    reportdata.durations(run)
    found = reportdata.what_if(run)
    assert found is None or 0 <= found.would_take_s <= found.took_s
    assert page(STATUS, [], run, "2026-01-01T00:00:00Z").startswith("<!doctype html>")


def test_more_workers_help_where_there_is_work_for_them() -> None:
    many = [attempt(f"t{n}", "w1", n, n + 1.0) for n in range(100)]
    run = reportdata.read_run(many, [worker("w1", 0, 100)], T0 + 100)
    found = reportdata.what_if(run)
    assert found is not None
    assert (found.slots, found.more_slots) == (1, 10)
    assert found.would_take_s == pytest.approx(10, abs=1)
    one = reportdata.read_run([attempt("t", "w1", 0, 100)], [worker("w1", 0, 100)], T0 + 100)
    found = reportdata.what_if(one)
    assert found is not None
    assert found.would_take_s == pytest.approx(100)


def test_a_long_run_makes_a_page_of_bounded_size() -> None:
    attempts = [attempt(f"t{n}", f"w{n % 500}", n / 10, n / 10 + 5) for n in range(20_000)]
    fleet = [worker(f"w{n}", 0, 2100) for n in range(500)]
    run = reportdata.read_run(attempts, fleet, T0 + 2100)
    assert len(reportdata.timeline(run)) == reportdata.TIMELINE_MAX
    assert len(page(STATUS, [], run, "")) < 500_000


def test_data_never_becomes_markup_and_nothing_is_fetched() -> None:
    run = reportdata.read_run(
        [attempt(HOSTILE, HOSTILE, 0, 1, cause=HOSTILE, outcome=HOSTILE)],
        [worker(HOSTILE, 0, 2)],
        T0 + 2,
    )
    status = {**STATUS, "session": HOSTILE, "program": HOSTILE, "host": HOSTILE}
    groups = [{"count": 1, "signature": HOSTILE, "example_task_id": HOSTILE, "hosts": [HOSTILE]}]
    text = page(status, groups, run, HOSTILE)
    assert text.count("<script") == text.count("</script>") == 3
    assert "<img" not in text
    assert "\x1b" not in text
    assert not re.search(r"""<[^>]+\b(src|href)\s*=""", text.split("<script")[0])
    assert "default-src 'none'" in text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text)
    assert json.loads(data)["timeline"][0]["worker"].startswith("</script>")
    assert "MIT License" in text
