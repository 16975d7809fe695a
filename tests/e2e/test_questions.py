"""Questions about a run and after it: causes, stories, logs, results, replay, an ended session."""

from __future__ import annotations

import csv
import json
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from e2e_world import World, is_alive, kill

pytestmark = pytest.mark.slow

ONCE = {"limits": {"max_retries": 0}}
BAD = [
    *({"id": f"bad{n}", "do": "error", **ONCE} for n in range(3)),
    {"id": "dead", "do": "os_exit", **ONCE},
    {"id": "good"},
]


def groups(world: World) -> dict[str, dict[str, Any]]:
    """Failure groups by signature."""
    return {one["signature"]: one for one in world.ctl("failures")["groups"]}


@pytest.fixture
def failed(world: World) -> World:
    """A run that has ended with failures."""
    world.run("--workers", "1", "--max-losses", "0", code=3, tasks=BAD)
    return world


def leave(world: World) -> None:
    """End the daemon that answers questions."""
    pid = world.ask("ping")["pid"]
    world.ctl("shutdown")
    world.until(lambda: not is_alive(pid), "the serving daemon to leave")


def test_failures_are_grouped_and_retried_by_group(world: World) -> None:
    daemon = world.start("--workers", "1", "--max-losses", "0", "--stay", tasks=BAD)
    world.until(lambda: world.tasks() == {"succeeded": 1, "failed": 4}, "the failures")
    found = groups(world)
    assert [one["count"] for one in world.ctl("failures")["groups"]] == [3, 1]
    [error] = [text for text in found if text.startswith("ValueError: bad input N at tasks.py:")]
    assert found[error]["example_task_id"] in {"bad0", "bad1", "bad2"}
    assert found[error]["hosts"] == [world.workers()[0]["host"]]
    before = world.started()
    body = world.ctl("retry", "--group", str(found[error]["group"]))
    assert (body["queued"], body["ok"]) == (3, True)
    world.until(lambda: world.tasks() == {"succeeded": 1, "failed": 4}, "the failures again")
    again = world.started() - before
    assert set(again) == {"bad0", "bad1", "bad2"}
    assert groups(world)[error]["group"] == found[error]["group"], "a number is for ever"
    assert (
        "no failure group 99"
        in world.cli.run("jobflowctl", "-s", "t1", "retry", "--group", "99", code=2).stderr
    )
    world.ctl("shutdown", "--wait", code=0)
    world.ended(daemon, 3)


def test_cancel_all_and_retry_failed_of_many_tasks(world: World) -> None:
    tasks = 5000
    daemon = world.start("--launcher", "none", "--stay", n=tasks)
    world.until(lambda: world.tasks() == {"queued": tasks}, "the tasks")
    body = world.ctl("cancel", "--all")
    assert body["canceled"] == tasks
    assert world.tasks() == {"canceled": tasks}
    assert len(world.ask("events", last=1000)["events"]) < 100, "history is not pushed out"
    world.ctl("shutdown")
    world.ended(daemon, 0)


def test_explain_tells_what_a_task_waits_for(world: World) -> None:
    spec = {"do": "wait"}
    daemon = world.start("--workers", "1", "--stay", n=3, spec=spec)
    world.until_running(1)
    world.until(lambda: world.task("t00000")["state"] == "running", "a report of the first task")
    body = world.ctl("explain", "t00000")
    assert body["state"] == "running"
    assert body["holder"]["worker_id"] == world.workers()[0]["worker_id"]
    assert "has run for" in body["reasons"][0]
    waiting = world.ctl("explain", "t00002")
    assert waiting["state"] in ("queued", "assigned")
    world.ctl("pause")
    text = world.cli.run("jobflowctl", "-s", "t1", "explain", "t00002").stdout
    assert "paused" in text or "has not begun" in text
    assert (
        "no task 'nope'"
        in world.cli.run("jobflowctl", "-s", "t1", "explain", "nope", code=2).stderr
    )
    world.ctl("resume")
    world.open_gate()
    world.until(lambda: world.tasks() == {"succeeded": 3}, "the end")
    assert world.ctl("explain", "t00001")["reasons"] == ["it has its result"]
    world.ctl("shutdown")
    world.ended(daemon, 0)


def test_logs_results_metrics_backup_and_replay(world: World) -> None:
    specs = [
        {"id": "small"},
        {"id": "big", "do": "big", "bytes": 200_000},
        {"id": "bad", "do": "error", **ONCE},
    ]
    daemon = world.start("--workers", "1", "--stay", tasks=specs)
    world.until(lambda: world.tasks() == {"succeeded": 2, "failed": 1}, "the end of the tasks")
    run = world.cli.run
    assert "started session=t1" in run("jobflowctl", "-s", "t1", "logs").stdout
    worker = world.workers()[0]["worker_id"]
    assert worker in run("jobflowctl", "-s", "t1", "logs", worker).stdout
    printed = run("jobflowctl", "-s", "t1", "logs", "bad").stdout
    assert "printed before the error" in printed
    assert "ValueError: bad input" in printed
    rows = [
        json.loads(line)
        for line in run("jobflowctl", "-s", "t1", "results").stdout.split("\n")[:-1]
    ]
    assert [row["task_id"] for row in rows] == ["small", "big"]
    assert len(rows[1]["result"]["text"]) > 100_000, "read from its file"
    table = world.dir / "results.csv"
    run("jobflowctl", "-s", "t1", "results", "--format", "csv", "-o", str(table))
    csv.field_size_limit(1_000_000)
    with table.open(newline="") as stream:
        assert [row["task_id"] for row in csv.DictReader(stream)] == ["small", "big"]
    text = run("jobflowctl", "-s", "t1", "metrics").stdout
    assert 'jobflow_tasks{state="succeeded"} 2' in text
    assert text.endswith("# EOF\n")
    copy = world.dir / "copy.db"
    run("jobflowctl", "-s", "t1", "backup", str(copy))
    with sqlite3.connect(copy) as db:
        assert db.execute("SELECT count(*) FROM tasks").fetchone() == (3,)
    db.close()
    assert "is there already" in run("jobflowctl", "-s", "t1", "backup", str(copy), code=1).stderr
    assert json.loads(run("jobflowctl", "-s", "t1", "replay", "small").stdout) == {"i": 0}
    again = run("jobflowctl", "-s", "t1", "replay", "bad", code=3)
    assert "ValueError: bad input 2" in again.stderr
    # What the task prints is not part of the one object.
    told = run("jobflowctl", "-s", "t1", "replay", "bad", "--json", code=3)
    assert (json.loads(told.stdout)["ok"], json.loads(told.stdout)["error"]) == (
        *(False, "ValueError: bad input 2"),
    )
    assert "printed before the error" in told.stderr
    assert world.task("bad")["attempts"][0]["traceback"].startswith("Traceback")
    world.ctl("shutdown")
    world.ended(daemon, 3)


def test_a_damaged_result_file_is_told_and_not_shown(world: World) -> None:
    world.run("--workers", "1", tasks=[{"id": "big", "do": "big", "bytes": 200_000}])
    [file] = (world.root / "results").iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    found = world.cli.run("jobflowctl", "-s", "t1", "results", code=1)
    assert "checksum" in json.loads(found.stdout)["problem"]
    leave(world)


# --- after the end ------------------------------------------------------------------------------


def test_an_ended_session_is_opened_for_questions(failed: World) -> None:
    ended = (failed.root / "ended.json").read_text()
    found = failed.cli.run("jobflowctl", "-s", "t1", "failures", "--json")
    assert "has ended" in found.stderr
    assert sum(one["count"] for one in json.loads(found.stdout)["groups"]) == 4
    status = failed.ctl("status")
    assert (status["state"], status["workers"]["online"]) == ("done", 0)
    assert failed.ask("ping")["serving"] is True
    assert failed.cli.run("jobflowctl", "-s", "t1", "wait", code=3).returncode == 3
    sessions = json.loads(failed.cli.run("jobflowctl", "sessions", "--json").stdout)["sessions"]
    assert [one["state"] for one in sessions] == ["ended"]
    refused = failed.cli.run("jobflowctl", "-s", "t1", "scale", "3", code=1)
    assert "has ended" in refused.stderr
    leave(failed)
    assert (failed.root / "ended.json").read_text() == ended
    assert failed.cli.run("jobflowctl", "-s", "t1", "wait", code=3).returncode == 3


def test_retry_in_an_ended_session_launches_again(failed: World) -> None:
    [dead] = [one for text, one in groups(failed).items() if "exit code 7" in text]
    pid = failed.ask("ping")["pid"]
    failed.ctl("retry", "--group", str(dead["group"]))
    assert failed.cli.run("jobflowctl", "-s", "t1", "wait", code=3).returncode == 3
    failed.until(lambda: not is_alive(pid), "the run's end")
    assert failed.started()["dead"] == 2
    assert set(failed.started().values()) == {1, 2}
    assert "generated" not in failed.text_of_log().rpartition("serving_ends")[2].split("text=")[0]


def test_a_start_takes_over_from_a_serving_daemon(failed: World) -> None:
    groups(failed)
    serving = failed.ask("ping")["pid"]
    daemon = failed.again("--stay")
    failed.until(lambda: not is_alive(serving), "the serving daemon's end")
    assert failed.ask("ping") == {**failed.ask("ping"), "pid": daemon.process.pid, "serving": False}
    refused = failed.ask("yield")
    assert refused["error"]["code"] == "conflict"
    # Before, tasks might be left that nobody knows of yet: exit code 4.
    failed.until(lambda: failed.ask("status")["state"] != "generating", "the end of the list")
    failed.ctl("shutdown")
    failed.ended(daemon, 3)


def test_serve_in_the_foreground_leaves_when_idle_or_told(failed: World) -> None:
    idle = failed.cli.spawn("jobflowd", "serve", "t1", "--idle", "0.5s")
    failed.ended(idle, 0)
    served = failed.cli.spawn("jobflowd", "serve", str(failed.root))
    failed.until_serving(served)
    kill(served.process.pid, signal.SIGTERM)
    failed.ended(served, 0)


def test_a_session_whose_program_is_gone_answers_and_refuses_a_retry(failed: World) -> None:
    failed.program.unlink()
    assert len(groups(failed)) == 2
    found = failed.cli.run("jobflowctl", "-s", "t1", "retry", "--failed", code=1)
    assert "cannot be read" in found.stderr
    assert failed.tasks() == {"succeeded": 1, "failed": 4}
    leave(failed)


def test_a_project_from_init_runs(world: World, tmp_path: Path) -> None:
    (tmp_path / "project").mkdir()
    world.cli.cwd = tmp_path / "project"
    said = world.cli.run("jobflowctl", "init", "lines.py", "--workers", "2", "--mode", "fs").stdout
    assert "next  jobflowd start --config jobflow.toml" in said
    world.name = "lines"
    found = world.cli.run("jobflowd", "start", "--config", "jobflow.toml")
    assert "1 succeeded" in found.stderr
    kept = world.cli.run("jobflowctl", "init", "lines.py").stdout
    assert "kept lines.py" in kept
    bad = world.cli.run("jobflowctl", "init", "x.py", "--lease-duration", "soon", code=2)
    assert "--lease-duration" in bad.stderr
