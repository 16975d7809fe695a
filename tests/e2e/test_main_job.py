"""The main job: from a class to its results, in every mode; what the read verbs say of it."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import pytest
from e2e_world import World

pytestmark = pytest.mark.slow

#: Field names of SPEC.md, "Machine-readable outputs".
STATUS = {
    "": "schema session program state state_reason started_at uptime_s pid host version tasks "
    "workers launches throughput_per_s eta_s launching resources warnings",
    "tasks": "total queued assigned running succeeded failed canceled held",
    "workers": "target online idle busy draining quarantined offline",
    "launches": "planned submitted pending running online ended failed canceled stale",
    "launching": "paused reason canary",
    "resources": "cpu_s rss_bytes db_bytes",
}
TASK = (
    "schema task_id state spec result error priority retries_left losses_left attempts",
    "attempt worker_id host batch_job_id started_at ended_at outcome cause exit_signal "
    "max_rss_bytes cpu_s error output_tail",
)
LISTS = {
    "tasks": "task_id state attempts worker_id progress started_at finished_at error",
    "workers": "worker_id state host pid slots transport heartbeat_age_s running done failed "
    "launch_id batch_job_id time_left_s",
    "launches": "launch_id system state batch_job_id submitted_at worker_id reason script output",
}


def has(found: dict[str, Any], names: str) -> None:
    """Every name of the contract is there; more may be."""
    assert set(names.split()) <= set(found), sorted(set(names.split()) - set(found))


@pytest.mark.parametrize("mode", ["zmq", "fs", "auto"])
def test_a_run_does_every_task_once(world: World, mode: str) -> None:
    found = world.run("--workers", "3", mode=mode, n=60)
    assert "60 succeeded, 0 failed of 60 tasks" in found.stderr
    assert found.stdout == ""
    assert world.started() == Counter({f"t{i:05}": 1 for i in range(60)})
    assert world.in_database() == {"succeeded": 60}


@pytest.mark.parametrize("mode", ["zmq", "fs"])
def test_read_verbs_have_the_fields_of_the_contract(world: World, mode: str) -> None:
    daemon = world.start("--workers", "2", mode=mode, tasks=[{"do": "wait"}] * 2 + [{}] * 2)
    world.until_running(2)
    world.until(lambda: world.tasks()["running"] == 2, "two tasks shown as running", 5)
    status = world.ctl("status")
    assert status["schema"] == "jobflow.status/1"
    assert (status["session"], status["state"]) == ("t1", "running")
    assert status["tasks"]["total"] == 4
    assert (status["workers"]["busy"], status["workers"]["target"]) == (2, 2)
    has(status, STATUS[""])
    for part in ("tasks", "workers", "launches", "launching", "resources"):
        has(status[part], STATUS[part])
    for verb, names in LISTS.items():
        listing = world.ctl(verb)
        assert listing["schema"] == f"jobflow.{verb}/1"
        assert listing[verb]
        for row in listing[verb]:
            has(row, names)
    assert {row["transport"] for row in world.ctl("workers")["workers"]} == {mode}
    running = world.ctl("tasks", "--state", "running")["tasks"]
    assert sorted(row["task_id"] for row in running) == ["t00000", "t00001"]
    assert world.ctl("snapshot")["schema"] == "jobflow.snapshot/1"
    events = world.ctl("events")
    assert {"at", "kind", "task_id", "worker_id", "launch_id", "text"} <= set(events["events"][0])
    world.open_gate()
    world.ended(daemon, 0)


def test_a_task_shows_its_spec_result_and_attempts(world: World) -> None:
    daemon = world.start("--workers", "1", "--stay", tasks=[{"id": "a", "do": "once"}])
    world.until(lambda: world.tasks() == {"succeeded": 1}, "the task to succeed")
    task = world.ctl("task", "a")
    has(task, TASK[0])
    assert (task["state"], task["result"]) == ("succeeded", {"attempt": 2})
    assert task["spec"] == {"i": 0, "id": "a", "do": "once"}
    assert [one["attempt"] for one in task["attempts"]] == [1, 2]
    for attempt in task["attempts"]:
        has(attempt, TASK[1])
    assert "only the first time" in task["attempts"][0]["error"]
    assert world.ask("status")["state"] == "done"
    world.ctl("shutdown", "--wait")
    world.ended(daemon, 0)


def test_finished_work_is_not_done_again(world: World) -> None:
    world.run("--workers", "2", n=20)
    found = world.run("--workers", "2", n=20)
    assert "already complete" in found.stderr
    by_name = world.cli.run("jobflowd", "start", "--session-id", "t1")
    assert "already complete" in by_name.stderr
    assert set(world.started().values()) == {1}
    assert world.cli.run("jobflowctl", "-s", "t1", "wait").returncode == 0


def test_fresh_begins_anew_and_keeps_the_old_record(world: World) -> None:
    world.run("--workers", "2", n=5)
    world.run("--workers", "2", "--fresh", n=6)
    assert Counter(world.started().values()) == {2: 5, 1: 1}
    assert list(world.root.rglob("manager.db*")) != [world.root / "manager.db"]
    assert world.in_database() == {"succeeded": 6}


def test_another_program_or_other_args_are_another_session(world: World) -> None:
    world.run("--workers", "1", n=2)
    found = world.run("--workers", "1", code=78, n=3)
    assert '"n": 2' in found.stderr or '"n":2' in found.stderr
    assert "--session-id" in found.stderr
    assert "--fresh" in found.stderr
    assert world.in_database() == {"succeeded": 2}


def test_no_tasks_are_a_success_with_a_message(world: World) -> None:
    assert "no task" in world.run("--workers", "2", n=0).stderr


def test_failed_tasks_are_exit_code_3_and_shown(world: World) -> None:
    tasks = [{}, {"do": "never"}, {"do": "error", "limits": {"max_retries": 0}}]
    found = world.run("--workers", "1", code=3, tasks=tasks)
    assert "1 succeeded, 2 failed of 3 tasks" in found.stderr
    assert "  t00001: NonRetryable: no use to try again" in found.stderr
    assert "  t00002: ValueError: bad input 2" in found.stderr
    assert "jobflowctl -s t1 failures" in found.stderr
    assert world.cli.run("jobflowctl", "-s", "t1", "wait", code=3).returncode == 3
    world.run("--workers", "1", code=3, tasks=tasks)
    assert set(world.started().values()) == {1}


def test_the_telemetry_file_is_the_snapshot(world: World) -> None:
    world.run("--workers", "1", "--telemetry-mode", "file", n=3)
    body = json.loads((world.root / "dashboard_snapshot.json").read_bytes())
    assert body["schema"] == "jobflow.snapshot/1"


@pytest.mark.parametrize("command", ["jobflow", "jobflow-manager"])
def test_the_other_commands_run_the_same_job(world: World, command: str) -> None:
    flags = world.flags("--workers", "2", n=8)[1:]
    world.cli.run(command, *flags)
    assert world.in_database() == {"succeeded": 8}


@pytest.mark.parametrize("package", ["jobflowd", "jobflowctl", "jobflow_worker"])
def test_packages_run_as_modules(world: World, package: str) -> None:
    assert world.cli.run("python", "-m", package, "--version").stdout.strip()
