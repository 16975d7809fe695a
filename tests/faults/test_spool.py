"""Outcomes of workers that could not reach their manager: nothing is computed twice.

Over zmq with the daemon's own workers: tests/e2e/test_kills.py.
"""

from __future__ import annotations

import signal

import pytest

from .bench import BIN, Bench, kill, state_of

pytestmark = pytest.mark.slow


def test_a_restarted_manager_takes_in_what_workers_left(bench: Bench) -> None:
    """The manager dies, its workers finish, give up waiting, and leave their outcomes behind."""
    n = 8
    flags = ("--workers", "4", "--worker-manager-timeout-minutes", "0.1")
    daemon = bench.start(*flags, mode="fs", n=n, s=2.0)
    bench.until(lambda: sum(one.word == "start" for one in bench.notes()) >= 4, "running tasks")
    workers = {one.agent_pid for one in bench.notes()}
    kill(daemon.pid, signal.SIGKILL)
    daemon.wait()
    bench.until(lambda: not any(state_of(pid) for pid in workers), "the workers to leave", 60)
    finished = {one.task_id for one in bench.notes() if one.word == "end"}
    assert len(finished) >= 4
    again = bench.start(*flags, mode="fs", n=n, s=2.0)
    assert bench.ended(again, 60) == 0, bench.printed()
    verdict = bench.verdict(n)
    assert verdict.problems == []
    assert verdict.started_again == {}


def test_a_worker_whose_manager_moved_away_keeps_its_outcome(bench: Bench) -> None:
    """By hand, over zmq: SIGTERM while nobody answers. It spools and says so."""
    daemon = bench.start("--launcher", "none", n=1, s=3.0)
    bench.until(bench.serving, "the daemon to serve")
    worker = bench.spawn(str(BIN / "jobflow-worker"), "--session", str(bench.session))
    bench.until(lambda: len(bench.notes()) == 1, "the task to start")
    kill(daemon.pid, signal.SIGKILL)
    daemon.wait()
    bench.until(lambda: len(bench.notes()) == 2, "the task to end")
    kill(worker.pid, signal.SIGTERM)
    assert worker.wait(60) == 0
    assert "spool" in bench.printed()
    again = bench.start("--launcher", "none", n=1, s=3.0)
    assert bench.ended(again, 30) == 0, bench.printed()
    assert bench.verdict(1).problems == []
    assert len(bench.notes()) == 2, "it was executed again"
