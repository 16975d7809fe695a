"""A disk that runs full in the middle of a run, and has room again later (RELIABILITY D2)."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from .bench import Bench, state_of
from .conftest import FailingDisk

pytestmark = pytest.mark.slow
TASKS = 60
#: Tasks whose results all arrive at the end.
LAST = 4
MODES = pytest.mark.parametrize("mode", ["zmq", "fs"])


def pause(seconds: float) -> None:
    """Let real time pass: here the passing itself is what is tested."""
    signal.sigtimedwait([signal.SIGUSR2], seconds)


def cpu_s(pid: int) -> float:
    """Seconds of processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def succeeded(bench: Bench) -> int:
    return int(bench.ask("status")["tasks"]["succeeded"])


def state(bench: Bench) -> str:
    return str(bench.ask("status")["state"])


@MODES
def test_a_full_disk_degrades_and_room_heals(
    bench: Bench, small_disk: Path, fill: Callable[[], Path], mode: str
) -> None:
    bench.place = small_disk
    flags = ("--workers", "2", "--shared-dir", str(small_disk))
    daemon = bench.start(*flags, mode=mode, n=TASKS, s=0.2)
    bench.until(bench.serving, "the daemon to serve")
    bench.until(lambda: succeeded(bench) >= 5, "the first results")
    workers = {one["pid"] for one in bench.ask("workers")["workers"]}

    ballast = fill()
    bench.until(lambda: state(bench) == "degraded", "the degraded mode")
    status = bench.ask("status")
    assert "space" in status["state_reason"]
    before = cpu_s(daemon.pid)
    pause(5)  # More than two leases.
    assert cpu_s(daemon.pid) - before < 1.5, "a degraded daemon must not spin"
    status = bench.ask("status")
    assert status["tasks"]["total"] == TASKS
    assert all(state_of(pid) for pid in workers), "workers must live through it"
    if mode == "zmq":
        ages = {one["pid"]: one["heartbeat_age_s"] for one in bench.ask("workers")["workers"]}
        assert set(ages) == workers
    assert bench.ask("tasks", limit=5)["tasks"]
    refusal = bench.ask("scale", workers=1)
    assert refusal["error"]["code"] == "degraded", refusal

    ballast.unlink()
    bench.until(lambda: state(bench) != "degraded", "the end of the degraded mode")
    assert bench.ended(daemon) == 0, bench.printed()
    verdict = bench.verdict(TASKS)
    assert verdict.problems == []
    if mode == "zmq":
        # Mailboxes need the room that is missing, so there a task may be given up and repeated.
        assert verdict.started_again == {}
    assert "disk_works_again" in bench.daemon_log()
    assert "turn_failed" not in bench.daemon_log()


def test_a_start_without_room_is_refused(
    bench: Bench, small_disk: Path, fill: Callable[[], Path]
) -> None:
    bench.place = small_disk
    ballast = fill()
    flags = ("--workers", "1", "--shared-dir", str(small_disk))
    assert bench.ended(bench.start(*flags, n=2)) == 74
    assert "no space is left" in bench.printed()
    ballast.unlink()
    assert bench.ended(bench.start(*flags, n=2)) == 0


def test_what_was_generated_while_the_disk_was_full_comes_later(
    bench: Bench, small_disk: Path, fill: Callable[[], Path]
) -> None:
    """The program is made to wait, so that nothing of its list is dropped or piled up."""
    bench.place = small_disk
    n = 8000
    flags = ("--workers", "1", "--shared-dir", str(small_disk))
    daemon = bench.start(*flags, n=n, pause_at=200, gate=str(bench.root / "gate"))
    bench.until(bench.serving, "the daemon to serve")
    bench.until(lambda: bench.ask("status")["tasks"]["total"] >= 100, "the first tasks")
    ballast = fill()
    (bench.root / "gate").touch()
    bench.until(lambda: state(bench) == "degraded", "the degraded mode")
    pause(2)
    ballast.unlink()
    bench.until(lambda: bench.ask("status")["tasks"]["total"] == n, "all tasks", 60)
    bench.ask("shutdown", now=True)
    assert bench.ended(daemon) == 4


def test_a_file_system_that_turns_read_only_is_waited_for_and_loses_nothing(
    bench: Bench, failing_disk: FailingDisk
) -> None:
    """RELIABILITY D4: ext4 does this after an error of its disk."""
    bench.place = failing_disk.place
    flags = ("--workers", "2", "--shared-dir", str(failing_disk.place))
    daemon = bench.start(*flags, mode="zmq", n=TASKS, s=0.2)
    bench.until(bench.serving, "the daemon to serve")
    bench.until(lambda: succeeded(bench) >= 5, "the first results")

    done = succeeded(bench)
    failing_disk.fail()
    bench.until(lambda: state(bench) == "degraded", "the degraded mode")
    assert "read-only" in bench.ask("status")["state_reason"]
    bench.clear()
    bench.ended(daemon)
    failing_disk.mend()
    daemon = bench.start(*flags, mode="zmq", n=TASKS, s=0.2)
    bench.until(bench.serving, "the next daemon to serve")
    assert succeeded(bench) >= done
    assert bench.ended(daemon) == 0, bench.printed()
    assert bench.verdict(TASKS).problems == []


def _full_at_the_end(
    bench: Bench, small_disk: Path, fill: Callable[[], Path]
) -> tuple[subprocess.Popen[bytes], Path]:
    """All tasks end, and there is no room for their results. Returns the daemon and the ballast."""
    bench.place = small_disk
    daemon = start_large_results(bench, small_disk)
    bench.until(lambda: len(bench.notes()) == LAST, "every task to run")
    ballast = fill()
    hurry(bench).touch()
    bench.until(lambda: len(bench.notes()) == 2 * LAST, "every task to end")
    bench.until(lambda: state(bench) == "degraded", "the degraded mode")
    return daemon, ballast


def hurry(bench: Bench) -> Path:
    return bench.root / "hurry"


def start_large_results(bench: Bench, small_disk: Path) -> subprocess.Popen[bytes]:
    """Results that find no room in what the write-ahead log has already taken."""
    flags = ("--workers", "2", "--slots", "2", "--shared-dir", str(small_disk))
    args = {"n": LAST, "s": 600.0, "hurry": str(hurry(bench)), "echo": "x" * 30_000}
    return bench.start(*flags, mode="zmq", **args)


def test_a_run_does_not_end_while_its_last_results_have_no_room(
    bench: Bench, small_disk: Path, fill: Callable[[], Path]
) -> None:
    """The turn that ends the run is the one that cannot be stored: it has not happened."""
    daemon, ballast = _full_at_the_end(bench, small_disk, fill)
    for _ in range(3):
        tasks = bench.ask("status")["tasks"]
        assert (tasks["succeeded"], tasks["total"]) == (0, LAST), "what is not stored is counted"
        pause(1)
        assert daemon.poll() is None, bench.printed()
    listed = bench.ask("tasks", limit=LAST)["tasks"]
    assert all(one["state"] != "succeeded" for one in listed)

    ballast.unlink()
    assert bench.ended(daemon) == 0, bench.printed()
    verdict = bench.verdict(LAST)
    assert verdict.problems == []
    assert verdict.started_again == {}


def test_a_run_that_is_ended_without_room_says_so_and_goes_on_later(
    bench: Bench, small_disk: Path, fill: Callable[[], Path]
) -> None:
    """Two signals end it at once: not with success, and the next start finds every task."""
    daemon, ballast = _full_at_the_end(bench, small_disk, fill)
    daemon.send_signal(signal.SIGINT)
    pause(1)
    assert daemon.poll() is None, bench.printed()
    daemon.send_signal(signal.SIGINT)
    assert bench.ended(daemon) == 128 + signal.SIGINT, bench.printed()
    ballast.unlink()
    assert bench.ended(start_large_results(bench, small_disk)) == 0, bench.printed()
    assert bench.verdict(LAST).problems == []


def test_who_ends_a_run_is_heard_after_the_disk_had_no_room(
    bench: Bench, small_disk: Path, fill: Callable[[], Path]
) -> None:
    """A shutdown that was decided before the disk was full is not forgotten with the rest."""
    bench.place = small_disk
    flags = ("--workers", "1", "--shared-dir", str(small_disk), "--shutdown-grace-period", "60")
    args = {"n": 2, "s": 600.0, "hurry": str(hurry(bench)), "echo": "x" * 30_000}
    daemon = bench.start(*flags, mode="zmq", **args)
    bench.until(lambda: len(bench.notes()) == 1, "the first task to run")
    bench.ask("shutdown")
    bench.until(lambda: state(bench) == "draining", "the end to begin")
    ballast = fill()
    hurry(bench).touch()
    bench.until(lambda: state(bench) == "degraded", "the degraded mode")
    ballast.unlink()
    assert bench.ended(daemon) == 4, bench.printed()
    notes = [one.task_id for one in bench.notes() if one.word == "start"]
    assert notes == ["t000000"], "a task was begun after the shutdown"
