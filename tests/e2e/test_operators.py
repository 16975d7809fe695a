"""People at work: scale, pause, cancel, retry, drain, stop, by command and by signal."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from e2e_world import World, is_alive, kill

pytestmark = pytest.mark.slow

WAIT = {"do": "wait"}


def test_scale_up_and_down_while_it_runs(world: World) -> None:
    daemon = world.start("--workers", "1", n=8, spec=WAIT)
    world.until_running(1)
    body = world.ctl("scale", "3")
    assert body["ok"] is True
    assert "3 workers" in body["message"]
    world.until_running(3)
    world.ctl("scale", "1")
    assert len(world.notes("start")) == 3
    world.open_gate()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}


def test_scale_down_now_hands_tasks_back(world: World) -> None:
    daemon = world.start("--workers", "3", n=3, spec=WAIT)
    world.until_running(3)
    world.ctl("scale", "1", "--now")
    world.until(lambda: len(world.workers()) == 1, "one worker")
    assert world.tasks()["queued"] == 2
    world.ctl("scale", "3")
    world.open_gate()
    world.ended(daemon, 0)
    assert world.in_database() == {"succeeded": 3}


def test_pause_resume(world: World) -> None:
    daemon = world.start("--workers", "1", n=4, spec=WAIT)
    world.until_running(1)
    assert world.ctl("pause")["ok"]
    world.open_gate()
    world.until(lambda: world.tasks()["succeeded"] >= 1, "the running task's end")
    assert world.ask("status")["state"] == "paused"
    assert world.tasks()["queued"] == 3
    assert world.ctl("resume")["ok"]
    world.ended(daemon, 0)


def test_cancel_stops_a_running_task_and_its_family(world: World) -> None:
    tasks = [{"id": "family", "do": "family"}, {"id": "queued"}, {"id": "good"}]
    daemon = world.start("--workers", "1", "--stay", tasks=tasks)
    world.until_running(1)
    pid = world.notes("start")[0].pid
    body = world.ctl("cancel", "family", "queued", "unheard-of", code=2)
    assert (sorted(body["canceled"]), body["unknown"]) == (["family", "queued"], ["unheard-of"])
    world.until(lambda: world.tasks() == {"succeeded": 1, "canceled": 2}, "two cancelled")
    world.until(lambda: not is_alive(pid), "the end of the cancelled task's process")
    assert world.started().keys() == {"family", "good"}
    world.ctl("retry", "queued")
    world.until(lambda: world.tasks() == {"succeeded": 2, "canceled": 1}, "the retry")
    world.ctl("shutdown", "--wait")
    world.ended(daemon, 0)


def test_retry_of_a_failed_task_brings_workers_back(world: World) -> None:
    tasks = [{"id": "bad", "do": "wait", "limits": {"timeout_s": 0.5, "max_retries": 0}}]
    daemon = world.start("--workers", "1", "--stay", tasks=tasks)
    world.until(lambda: world.tasks() == {"failed": 1}, "the failure")
    world.open_gate()
    assert world.ctl("retry", "--failed")["ok"]
    world.until(lambda: world.tasks() == {"succeeded": 1}, "the retry")
    world.ctl("shutdown", "--wait")
    world.ended(daemon, 0)


def test_drain_of_one_worker_and_its_replacement(world: World) -> None:
    daemon = world.start("--workers", "1", n=3, spec=WAIT)
    world.until_running(1)
    [worker] = world.workers()
    world.ctl("drain", worker["worker_id"])
    world.open_gate()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}
    assert len({note.worker_id for note in world.notes("start")}) == 2


# --- the end ------------------------------------------------------------------------------------


def test_shutdown_lets_running_tasks_finish(world: World) -> None:
    daemon = world.start("--workers", "2", n=4, spec=WAIT)
    world.until_running(2)
    assert world.ctl("shutdown")["ok"]
    world.open_gate()
    text = world.ended(daemon, 4)
    assert "2 succeeded" in text
    assert "2 left" in text
    assert "jobflowd start --session-id t1" in text
    assert world.cli.run("jobflowctl", "-s", "t1", "wait", code=4).returncode == 4


def test_shutdown_hands_back_what_is_longer_than_the_grace(world: World) -> None:
    daemon = world.start("--workers", "1", "--shutdown-grace-period", "1s", n=2, spec=WAIT)
    world.until_running(1)
    world.ctl("shutdown")
    world.ended(daemon, 4)
    assert world.in_database() == {"queued": 2}
    world.open_gate()
    world.ended(world.again(), 0)


def test_shutdown_now_and_wait(world: World) -> None:
    daemon = world.start("--workers", "2", "--shutdown-grace-period", "60s", n=4, spec=WAIT)
    world.until_running(2)
    pids = [note.pid for note in world.notes("start")]
    world.ctl("shutdown", "--now", "--wait")
    world.ended(daemon, 4)
    assert not any(is_alive(pid) for pid in pids)
    assert world.in_database() == {"queued": 4}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_gracefully(world: World, number: signal.Signals) -> None:
    daemon = world.start("--workers", "2", n=4, spec=WAIT)
    world.until_running(2)
    kill(daemon.process.pid, number)
    world.until(lambda: "once more" in daemon.stderr.read_text(), "a word on the signal")
    assert daemon.process.poll() is None
    world.open_gate()
    world.ended(daemon, 4)
    assert world.in_database() == {"succeeded": 2, "queued": 2}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_two_signals_end_at_once(world: World, number: signal.Signals, code: int) -> None:
    daemon = world.start("--workers", "2", "--shutdown-grace-period", "60s", n=4, spec=WAIT)
    world.until_running(2)
    kill(daemon.process.pid, number)
    world.until(lambda: world.ask("status")["state"] == "draining", "the stop to begin")
    kill(daemon.process.pid, number)
    began = time.monotonic()
    world.ended(daemon, code)
    assert time.monotonic() - began < 10
    world.open_gate()
    world.ended(world.again(), 0)
    assert world.in_database() == {"succeeded": 4}


# --- the beginning ------------------------------------------------------------------------------


def test_a_live_session_is_refused_naming_its_owner(world: World) -> None:
    daemon = world.start("--workers", "1", n=1, spec=WAIT)
    found = world.run("--workers", "1", code=75, n=1, spec=WAIT)
    assert str(daemon.process.pid) in found.stderr
    assert "jobflowctl" in found.stderr
    world.open_gate()
    world.ended(daemon, 0)


def test_detach_returns_when_ready_and_survives_its_terminal(world: World) -> None:
    flags = world.flags("--workers", "1", "--detach", n=2, spec=WAIT)
    found = world.cli.run("jobflowd", *flags)
    said = dict(line.split(None, 1) for line in found.stdout.splitlines())
    assert set(said) == {"session", "pid", "log", "next"}
    pid = int(said["pid"])
    assert world.ask("ping")["pid"] == pid
    assert Path(said["log"]) == world.root / "manager.db.log"
    assert "jobflowctl -s t1" in said["next"]
    world.until_running(1)
    # A terminal that closes sends SIGHUP to its processes; the daemon is none of them.
    assert sid_of(pid) == pid
    world.open_gate()
    assert world.cli.run("jobflowctl", "-s", "t1", "wait").returncode == 0
    world.until(lambda: not is_alive(pid), "the daemon's end")


def sid_of(pid: int) -> int:
    """The process session of a process."""
    fields: list[Any] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[3])


def test_only_one_live_session_needs_no_name(world: World) -> None:
    daemon = world.start("--workers", "1", n=1, spec=WAIT)
    found = world.cli.run("jobflowctl", "status")
    assert "t1" in found.stdout
    world.open_gate()
    world.ended(daemon, 0)
    assert "jobflowd start" in world.cli.run("jobflowctl", "-s", "no-such", "status", code=5).stderr
