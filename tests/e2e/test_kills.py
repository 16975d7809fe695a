"""Processes that are killed, stopped and continued: nothing is lost, and nothing done twice."""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path

import pytest
from e2e_world import World, is_alive, kill

pytestmark = pytest.mark.slow

WAIT = {"do": "wait"}
MODES = pytest.mark.parametrize("mode", ["zmq", "fs"])


@MODES
def test_kill_of_the_daemon_repeats_nothing(world: World, mode: str) -> None:
    """Known failure 3: no finished and no still-running attempt is executed again."""
    tasks = [{}] * 10 + [WAIT] * 4
    daemon = world.start("--workers", "2", mode=mode, tasks=tasks)
    world.until(lambda: world.tasks()["succeeded"] == 10, "ten finished tasks")
    world.until_running(2)
    before = {worker["pid"] for worker in world.workers()}
    kill(daemon.process.pid)
    daemon.process.wait()
    second = world.again()
    world.until(lambda: {w["pid"] for w in world.workers()} == before, "the workers of before")
    world.until(lambda: world.tasks()["running"] == 2, "their tasks to be taken back")
    world.open_gate()
    world.ended(second, 0)
    assert set(world.started().values()) == {1}
    assert world.in_database() == {"succeeded": 14}


@MODES
def test_outcomes_of_while_the_daemon_was_dead_are_taken_in(world: World, mode: str) -> None:
    daemon = world.start("--workers", "2", mode=mode, n=6, spec=WAIT)
    world.until_running(2)
    kill(daemon.process.pid)
    daemon.process.wait()
    world.open_gate()
    world.until(lambda: len(world.notes("end")) >= 2, "tasks to end without a manager")
    world.ended(world.again(), 0)
    assert set(world.started().values()) == {1}


@MODES
def test_kill_of_a_worker_queues_its_task_again_soon(world: World, mode: str) -> None:
    """Known failures 2 and 4."""
    daemon = world.start("--workers", "3", mode=mode, n=6, spec=WAIT)
    world.until_running(3)
    workers = world.workers()
    victim = workers[0]
    kill(victim["pid"])
    world.until(lambda: len(world.notes("start")) == 4, "the task to start again", 8)
    world.until(lambda: len(live(world)) == 3, "three workers again")
    assert victim["pid"] not in {one["pid"] for one in live(world)}
    world.open_gate()
    world.ended(daemon, 0)
    assert world.in_database() == {"succeeded": 6}
    [twice] = [task for task, n in world.started().items() if n == 2]
    assert twice in victim["running"] or not victim["running"]


def live(world: World) -> list[dict[str, object]]:
    """Workers that are there."""
    return [one for one in world.workers() if one["state"] in ("idle", "busy")]


def test_kill_of_the_daemons_helpers_costs_nothing(world: World) -> None:
    """The process that reads mailboxes is replaced; workers notice nothing."""
    daemon = world.start("--workers", "1", mode="fs", n=3, spec=WAIT)
    world.until_running(1)
    workers = {one["pid"] for one in world.workers()}
    helpers = [pid for pid in children_of(daemon.process.pid) if pid not in workers]
    assert helpers
    for pid in helpers:
        kill(pid)
    world.open_gate()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}


def children_of(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(one) for one in text.split()]


def test_kill_of_a_child_costs_one_attempt_and_no_worker(world: World) -> None:
    daemon = world.start("--workers", "1", "--retry-backoff", "0.1", n=2, spec=WAIT)
    world.until_running(1)
    note = world.notes("start")[0]
    kill(note.pid)
    world.until(lambda: len(world.notes("start")) == 2, "the next start")
    world.open_gate()
    world.ended(daemon, 0)
    assert len({one.worker_id for one in world.notes("start")}) == 1
    assert sorted(world.started().values()) == [1, 2]


@MODES
def test_a_stopped_daemon_expires_nobody(world: World, mode: str) -> None:
    """SIGSTOP for more than the lease, as a suspended laptop or a frozen node does."""
    daemon = world.start("--workers", "2", mode=mode, n=4, spec=WAIT)
    world.until_running(2)
    pids = {one["pid"] for one in world.workers()}
    kill(daemon.process.pid, signal.SIGSTOP)
    pause(4)
    kill(daemon.process.pid, signal.SIGCONT)
    world.until(lambda: heard_lately(world), "fresh heartbeats")
    assert {one["pid"] for one in world.workers()} == pids
    world.open_gate()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}


def heard_lately(world: World) -> bool:
    return all(one["heartbeat_age_s"] < 1 for one in world.workers())


def pause(seconds: float) -> None:
    """Let real time pass: here the passing itself is what is tested."""
    signal.sigtimedwait([signal.SIGUSR2], seconds)


@MODES
def test_a_worker_that_was_stopped_past_its_lease(world: World, mode: str) -> None:
    """Its task runs elsewhere; when it wakes, its late result does no harm."""
    daemon = world.start("--workers", "2", mode=mode, n=2, spec=WAIT)
    world.until_running(2)
    victim = world.notes("start")[0]
    [worker] = [one for one in world.workers() if one["worker_id"] == victim.worker_id]
    kill(worker["pid"], signal.SIGSTOP)
    world.until(lambda: gone(world, victim.worker_id), "the worker to be given up", 10)
    world.open_gate()
    world.until(lambda: world.tasks()["succeeded"] == 2, "both tasks, one of them twice")
    kill(worker["pid"], signal.SIGCONT)
    world.ended(daemon, 0)
    assert world.in_database() == {"succeeded": 2}
    assert world.started()[victim.task_id] == 2
    world.until(lambda: not is_alive(worker["pid"]), "the end of the stopped worker")


def gone(world: World, worker_id: str) -> bool:
    """Whether a worker is not among those that are there."""
    return worker_id not in {one["worker_id"] for one in live(world)}


def ended(world: World, n: int) -> bool:
    """Whether so many tasks have ended."""
    return len(world.notes("end")) >= n


def test_many_kills_in_a_row(world: World) -> None:
    """The daemon dies five times in one run, at any moment; each task succeeds exactly once."""
    daemon = world.start("--workers", "2", n=150, spec={"do": "sleep", "s": 0.02})
    for n in (5, 30, 60, 90, 120):
        world.until(partial(ended, world, n), f"{n} tasks to end")
        kill(daemon.process.pid)
        daemon.process.wait()
        daemon = world.again()
    world.ended(daemon, 0, 60)
    assert world.in_database() == {"succeeded": 150}
    assert {task: n for task, n in world.started().items() if n > 1} == {}


def test_workers_leave_when_their_manager_never_comes_back(world: World) -> None:
    minutes = ("--worker-manager-timeout-minutes", "0.1")
    daemon = world.start("--workers", "1", *minutes, n=2, spec=WAIT)
    world.until_running(1)
    pids = [one["pid"] for one in world.workers()]
    kill(daemon.process.pid)
    daemon.process.wait()
    world.open_gate()
    world.until(lambda: not any(is_alive(pid) for pid in pids), "the workers to leave", 40)
    assert list((world.root / "spool").iterdir())
    world.ended(world.again(), 0)
    assert set(world.started().values()) == {1}


def test_a_program_that_changes_in_mid_run(world: World) -> None:
    """Workers of the old text finish what they hold and are replaced."""
    daemon = world.start("--workers", "1", tasks=[WAIT, {}, {}])
    world.until_running(1)
    text = world.program.read_text()
    world.program.write_text(text + "\n# A comment is a change of text, too.\n")
    world.until(lambda: "program_changed" in world.text_of_log(), "the daemon to notice")
    world.open_gate()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}
    assert len({note.worker_id for note in world.notes("start")}) == 2


def test_a_worker_whose_program_cannot_be_imported(world: World) -> None:
    """Three launches in a row without a worker: launching pauses, and status shows the tail."""
    text = "import os\nif not os.path.exists({!r}):\n    raise RuntimeError('no licence server')\n"
    licence = world.dir / "licence"
    licence.touch()
    daemon = world.start("--workers", "1", n=2, spec=WAIT)
    world.until_running(1)
    world.program.write_text(text.format(str(licence)) + world.program.read_text())
    os.unlink(licence)
    kill(world.workers()[0]["pid"])
    status = world.until(lambda: paused(world), "launching to pause", 40)
    assert "no licence server" in status["launching"]["reason"]
    assert "no licence server" in world.cli.run("jobflowctl", "-s", "t1", "status").stdout
    licence.touch()
    world.open_gate()
    world.ctl("release", "launcher")
    world.ended(daemon, 0, 40)
    assert Path(world.root / "launches").is_dir()


def paused(world: World) -> dict[str, dict[str, str]] | None:
    status = world.ask("status")
    return status if status["launching"]["paused"] else None
