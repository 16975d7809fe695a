"""The JSON contract of SPEC.md: names, units, times, and bodies that are not JSON by nature."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflow_worker import codec
from jobflow_worker.messages import ResultFile
from jobflowd import answers
from jobflowd.census import Census, Here, Launching, LaunchView, TaskCounts, WorkerView

HERE = Here(4711, "login2", "0.1.0", 1.5, 1000, 2000, ("from the daemon",))


def _census(**changes: Any) -> Census:
    return Census("t1", "/p.py:P", "running", started_at=1_790_000_000.0, **changes)


def test_status_has_every_name_of_the_contract() -> None:
    census = _census(
        tasks=TaskCounts(5, 4, 3, 2, 1, 6, held=2),
        workers=(
            WorkerView("a", "busy", "n", 1, 2, "zmq", running=("x",)),
            WorkerView("b", "idle", "n", 2, 2, "zmq"),
            WorkerView("c", "draining", "n", 3, 2, "fs"),
        ),
        workers_offline=4,
        launch_counts={"pending": 2},
        target=3,
        throughput_per_s=0.12345678,
        eta_s=float("inf"),
        launching=Launching(True, "3 in a row", False),
        warnings=("of the coordinator",),
    )
    assert answers.status(census, HERE, 1_790_000_060.25) == {
        "session": "t1",
        "program": "/p.py:P",
        "state": "running",
        "state_reason": "",
        "started_at": "2026-09-21T14:13:20.000Z",
        "uptime_s": 60.25,
        "pid": 4711,
        "host": "login2",
        "version": "0.1.0",
        "tasks": {
            "total": 21,
            "queued": 5,
            "assigned": 4,
            "running": 3,
            "succeeded": 2,
            "failed": 1,
            "canceled": 6,
            "held": 2,
        },
        "workers": {
            "target": 3,
            "online": 2,
            "idle": 1,
            "busy": 1,
            "draining": 1,
            "quarantined": 0,
            "offline": 4,
        },
        "launches": {
            "planned": 0,
            "submitted": 0,
            "pending": 2,
            "running": 0,
            "online": 0,
            "ended": 0,
            "failed": 0,
            "canceled": 0,
            "stale": 0,
        },
        "throughput_per_s": 0.123,
        "eta_s": None,
        "eta_range_s": None,
        "eta_reason": "",
        "stalled_s": None,
        "launching": {"paused": True, "reason": "3 in a row", "canary": False},
        "resources": {"cpu_s": 1.5, "rss_bytes": 1000, "db_bytes": 2000},
        "warnings": ["of the coordinator", "from the daemon"],
    }


def test_workers_come_in_pages() -> None:
    names = [f"w{number:02d}" for number in range(7)]
    census = _census(workers=tuple(WorkerView(n, "idle", "h", 1, 1, "zmq") for n in names[::-1]))
    seen: list[str] = []
    after = ""
    while True:
        page = answers.workers(census, after=after, limit=3)
        seen += [row["worker_id"] for row in page["workers"]]
        if page["next"] is None:
            break
        after = page["next"]
    assert seen == names


def test_a_worker_has_every_name_of_the_contract() -> None:
    view = WorkerView(
        "w", "busy", "n1", 9, 2, "fs", 0.25, ("a",), 3, 1, "l", "77", 60.0, progress={"a": 0.5}
    )
    (row,) = answers.workers(_census(workers=(view,)))["workers"]
    contract = {
        "worker_id": "w",
        "state": "busy",
        "host": "n1",
        "pid": 9,
        "slots": 2,
        "transport": "fs",
        "heartbeat_age_s": 0.25,
        "running": ["a"],
        "done": 3,
        "failed": 1,
        "launch_id": "l",
        "batch_job_id": "77",
        "time_left_s": 60.0,
    }
    assert {key: row[key] for key in contract} == contract


def test_times_of_rows_become_texts_and_progress_comes_from_memory() -> None:
    row = {"task_id": "a", "state": "running", "progress": None, "started_at": 0.5}
    body = answers.tasks(([row, {"task_id": "b", "finished_at": None}], "9"), {"a": 0.25})
    assert body["next"] == "9"
    assert body["tasks"][0]["started_at"] == "1970-01-01T00:00:00.500Z"
    assert body["tasks"][0]["progress"] == 0.25
    assert body["tasks"][1] == {"task_id": "b", "finished_at": None, "progress": None}
    assert answers.events(([{"at": 1.0, "kind": "k"}], "3")) == {
        "events": [{"at": "1970-01-01T00:00:01.000Z", "kind": "k"}],
        "next": "3",
    }


def test_a_task_shows_its_bodies_decoded() -> None:
    spec = codec.encode_body({"n": [1, 2.5, None, True], "blob": b"\x00\xff", "bad": float("nan")})
    body = answers.task(
        {"task_id": "a", "spec": spec, "result": None, "attempts": [{"started_at": 1.0}]}
    )
    assert body["spec"] == {"n": [1, 2.5, None, True], "blob": {"base64": "AP8="}, "bad": "nan"}
    assert body["attempts"] == [{"started_at": "1970-01-01T00:00:01.000Z"}]


def test_a_large_result_is_named_and_a_broken_one_is_no_failure() -> None:
    large = answers.task({"result": ResultFile("r1", 70_000, "ab")})
    assert large["result"] == {"file": "r1", "size_bytes": 70_000, "sha256": "ab"}
    assert answers.task({"result": b"\xc1"})["result"] == {"undecodable": True, "bytes": 1}


def test_the_snapshot_is_the_status_and_bounded_lists() -> None:
    many = tuple(LaunchView(f"l{n}", "slurm", "ended") for n in range(500))
    body = answers.snapshot(_census(launches=many), HERE, 1_790_000_000.0)
    assert body["state"] == "running"
    assert len(body["launch_list"]) == answers.SNAPSHOT_ROWS_MAX
    assert body["launch_list"][-1]["launch_id"] == "l499"
    assert body["launches"]["ended"] == 500


@pytest.mark.parametrize("at", [None, float("nan"), float("inf"), 1e20, -1e20])
def test_a_moment_that_is_none(at: float | None) -> None:
    assert answers.iso(at) is None


def test_nothing_is_too_strange_to_show() -> None:
    deep: Any = []
    for _ in range(500):
        deep = [deep]
    value = answers.json_safe(
        {
            1: {
                2,
            },
            "o": object(),
            "deep": deep,
            "view": memoryview(b"a"),
        }
    )
    assert value["1"] == [2]
    assert value["o"] == "(object)"
    assert json.dumps(value, allow_nan=False)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner) | st.tuples(inner),
        max_leaves=10,
    )
)
def test_every_body_becomes_json(value: Any) -> None:
    json.dumps(answers.json_safe(value), allow_nan=False)
