"""One minute of the soak; `python -m tests.soak --minutes 10` for more."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.again import repetitions
from tests.soak.killer import Blow

from .bench import Note

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parent.parent.parent


def test_a_minute_of_killing_everything_loses_nothing(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "tests.soak", "--minutes", "1", "--json"]
    done = subprocess.run(
        [*argv, "--dir", str(tmp_path / "soak")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.stdout, done.stderr
    figures = json.loads(done.stdout)
    # Repetitions are judged by timing, which a busy machine blurs: the long soak reports them.
    broken = ("lost", "ended_twice", "leaked_processes")
    assert {key: figures[key] for key in broken} == dict.fromkeys(broken, 0)
    assert figures["manager_kills"] >= 1
    assert figures["worker_kills"] >= 1


def test_the_accounts_tell_a_repetition_with_cause_from_one_without() -> None:
    """The judge itself: without this, a soak that says 0 says nothing."""
    first = Note("start", "t", 1, "w", 10, 9, 1.0, "-")
    end = Note("end", "t", 1, "w", 10, 9, 2.0, "n")
    again = Note("start", "t", 2, "v", 20, 19, 5.0, "-")
    finished = repetitions([first, end, again], [])
    assert len(finished.although_finished) == 1
    running = repetitions([first, again, end._replace(at=9.0)], [])
    assert len(running.although_running) == 1
    killed = Blow("agent", 9, signal.SIGKILL, 3.0)
    assert repetitions([first, end, again], [killed]).excused == 1
    too_late = Blow("agent", 9, signal.SIGKILL, 6.0)
    assert repetitions([first, end, again], [too_late]).excused == 0
    stopped = Blow("agent", 19, signal.SIGSTOP, 0.5, 4.5)
    assert repetitions([first, end, again], [stopped]).excused == 0
    late = [first._replace(attempt=2), end._replace(attempt=2), again._replace(attempt=1)]
    assert repetitions(late, [stopped]).excused == 1
