"""What tasks can do to themselves, and what is recorded of it. The worker survives all of it."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import pytest
from e2e_world import World

pytestmark = pytest.mark.slow

MIB = 1024 * 1024


def last(task: dict[str, Any]) -> dict[str, Any]:
    """The newest attempt of a task."""
    attempt: dict[str, Any] = task["attempts"][-1]
    return attempt


def test_every_way_to_fail_is_told_apart_on_one_worker(world: World) -> None:
    ways = ["error", "never", "os_exit", "sys_exit", "segfault", "unencodable", "nothing"]
    once = {"max_retries": 0}
    tasks = [{"id": way, "do": way, "limits": once} for way in ways]
    flags = ("--workers", "1", "--max-losses", "0", "--stay")
    daemon = world.start(*flags, tasks=tasks)
    world.until(lambda: sum(world.tasks().values()) == len(ways) == ended(world), "all outcomes")
    found = {way: world.ctl("task", way) for way in ways}

    assert found["nothing"]["state"] == "succeeded"
    assert {found[way]["state"] for way in ways[:-1]} == {"failed"}
    assert "ValueError: bad input 0" in found["error"]["error"]
    assert "in execute_task" in last(found["error"])["traceback"]
    assert "tasks.py" in last(found["error"])["traceback"]
    assert "printed before the error" in last(found["error"])["output_tail"]
    assert "no use to try again" in found["never"]["error"]
    assert "7" in found["os_exit"]["error"]
    assert "3" in found["sys_exit"]["error"]
    assert last(found["segfault"])["exit_signal"] == "SIGSEGV"
    assert "last words" in last(found["segfault"])["output_tail"]
    assert "set" in found["unencodable"]["error"]
    assert "result" in found["unencodable"]["error"]
    # The same worker did it all.
    assert len({note.worker_id for note in world.notes("start")}) == 1
    assert len(world.workers()) == 1
    world.ctl("shutdown", "--wait")
    world.ended(daemon, 3)


def ended(world: World) -> int:
    """How many tasks have their outcome."""
    counts = world.tasks()
    return counts["succeeded"] + counts["failed"] + counts["canceled"]


def test_retries_and_what_is_not_retried(world: World) -> None:
    tasks = [
        {"id": "once", "do": "once"},
        {"id": "error", "do": "error", "limits": {"max_retries": 1}},
        {"id": "never", "do": "never"},
        {"id": "unencodable", "do": "unencodable"},
        {"id": "os_exit", "do": "os_exit", "limits": {"max_retries": 0}},
    ]
    flags = ("--workers", "1", "--retry-backoff", "0.1", "--max-losses", "2")
    world.run(*flags, code=3, tasks=tasks)
    assert world.started() == Counter(
        {"once": 2, "error": 2, "never": 1, "unencodable": 1, "os_exit": 3}
    )


def test_limits_of_time_and_memory_end_the_task_alone(world: World) -> None:
    limits = {"max_retries": 0}
    tasks: list[dict[str, Any]] = [
        {"id": "slow", "do": "sleep", "s": 60, "limits": limits | {"timeout_s": 0.5}},
        {"id": "family", "do": "family", "limits": limits | {"timeout_s": 0.5}},
        {
            "id": "fat",
            "do": "memory",
            "bytes": 300 * MIB,
            "limits": limits | {"memory_limit_bytes": 150 * MIB},
        },
        {"id": "good"},
    ]
    world.run("--workers", "1", code=3, tasks=tasks)
    assert world.in_database() == {"failed": 3, "succeeded": 1}
    text = world.text_of_log()
    assert "timeout" in text or "time-out" in text
    assert "memory" in text


def test_limits_for_all_tasks_are_flags(world: World) -> None:
    tasks = [
        {"id": "slow", "do": "sleep", "s": 60, "limits": {"max_retries": 0}},
        {"id": "fat", "do": "memory", "bytes": 300 * MIB, "limits": {"max_retries": 0}},
        {"id": "good"},
    ]
    flags = ("--workers", "2", "--task-timeout", "2s", "--task-memory", "150MB", "--stay")
    daemon = world.start(*flags, tasks=tasks)
    world.until(lambda: ended(world) == 3, "all outcomes")
    assert last(world.task("slow"))["cause"] == "timeout"
    assert last(world.task("fat"))["cause"] == "memory"
    assert world.task("good")["state"] == "succeeded"
    world.ctl("shutdown", "--now", "--wait")
    world.ended(daemon, 3)


@pytest.mark.parametrize("mode", ["zmq", "fs"])
def test_large_results_travel_as_files(world: World, mode: str) -> None:
    tasks = [{"id": f"big{n}", "do": "big", "bytes": MIB} for n in range(3)]
    daemon = world.start("--workers", "1", "--stay", mode=mode, tasks=tasks)
    world.until(lambda: ended(world) == 3, "all outcomes")
    assert world.tasks() == {"succeeded": 3}
    result = world.ctl("task", "big1")["result"]
    data = (world.root / "results" / result["file"]).read_bytes()
    assert len(data) == result["size_bytes"] > MIB
    assert hashlib.sha256(data).hexdigest() == result["sha256"]
    world.ctl("shutdown", "--wait")
    world.ended(daemon, 0)


def test_a_task_three_times_longer_than_the_lease_runs_once(world: World) -> None:
    """Known failure 1 of the original. The lease here is 2 s."""
    world.run("--workers", "2", tasks=[{"id": "long", "do": "sleep", "s": 6.5}, {}])
    assert world.started() == {"long": 1, "t00001": 1}


def test_a_running_task_is_shown_as_running_without_its_help(world: World) -> None:
    """No progress is reported, and the heartbeats are far away."""
    flags = ("--workers", "1", "--heartbeat-interval", "30", "--lease-duration", "120")
    daemon = world.start(*flags, tasks=[{"do": "sleep", "s": 8}])
    world.until_running(1)
    world.until(lambda: world.tasks()["running"] == 1, "the task shown as running", 4)
    world.ctl("shutdown", "--now")
    world.ended(daemon, 4)
