"""What happens to the daemon and its tasks that has no other room: signals, too little memory, a
question to nobody, a file server's lost answers.
"""

from __future__ import annotations

import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobflowd import ownership
from jobflowd.sessiondir import SessionPaths

from .bench import Bench

SLOW = pytest.mark.slow
ASKS = """
from jobflow_worker import TaskDefinition, TaskProgram

class Asks(TaskProgram):
    def generate_tasks(self):
        yield TaskDefinition("t", {})

    def execute_task(self, spec, progress_cb):
        try:
            return {"answer": input("password: ")}
        except EOFError:
            return {"answer": None}
"""


@SLOW
def test_sigquit_tells_the_state_and_harms_nothing(bench: Bench) -> None:
    """RELIABILITY D15."""
    hurry = bench.root / "hurry"
    daemon = bench.start("--workers", "1", n=2, s=600.0, hurry=str(hurry))
    bench.until(lambda: len(bench.notes()) == 1, "a running task")
    daemon.send_signal(signal.SIGQUIT)
    bench.until(lambda: " state " in bench.daemon_log(), "a line of its state")
    hurry.touch()
    assert bench.ended(daemon) == 0, bench.printed()
    assert bench.verdict(2).problems == []


@SLOW
def test_a_task_that_asks_is_answered_by_nobody_at_once(bench: Bench) -> None:
    """RELIABILITY W8: it would wait for ever at a terminal that is not there."""
    bench.program.write_text(ASKS)
    assert bench.ended(bench.start("--workers", "1")) == 0, bench.printed()
    assert bench.results() == {"t": {"answer": None}}


@SLOW
def test_without_memory_it_dies_and_the_next_start_goes_on(bench: Bench) -> None:
    """RELIABILITY D10: whatever it cannot do then, it never ends well and loses nothing."""
    n, hurry = 400, bench.root / "hurry"
    flags = ("--workers", "2", "--slots", "2")
    args = {"n": n, "s": 0.02, "pause_at": 40, "gate": str(hurry)}
    daemon = bench.start(*flags, mode="zmq", **args)
    bench.until(lambda: len(bench.notes()) >= 40, "work to be done")
    pages = int(Path(f"/proc/{daemon.pid}/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 64 * 1024
    resource.prlimit(daemon.pid, resource.RLIMIT_AS, (room, room))
    hurry.touch()
    code = bench.ended(daemon)
    assert code == 0 or "Traceback" in bench.printed() or code in (-9, -6, 70, 74), code
    bench.clear()
    assert bench.ended(bench.start(*flags, mode="zmq", **args)) == 0, bench.printed()
    assert bench.verdict(n).problems == []


@pytest.mark.parametrize("call", ["link", "rename"])
def test_a_lost_answer_of_the_file_server_does_not_lock_us_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """RELIABILITY F4: the request came through, was sent again, and is answered with an error."""
    paths = SessionPaths(tmp_path)
    before = ownership.this_process(0.0)
    paths.owner.write_bytes(before.encode())
    real: Callable[..., Any] = getattr(os, call)

    def answered_twice(*args: Any, **words: Any) -> None:
        real(*args, **words)
        real(*args, **words)

    monkeypatch.setattr(os, call, answered_twice)
    mine = ownership.this_process(1.0)
    assert ownership._replace_record(paths, before, mine)
    assert ownership.read_owner(paths.owner) == mine
    assert sorted(one.name for one in tmp_path.iterdir()) == [paths.owner.name]


def test_who_was_slower_is_still_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same errors when somebody else did it."""
    paths = SessionPaths(tmp_path)
    other, mine = ownership.this_process(0.0), ownership.this_process(1.0)
    link = os.link

    def too_late(source: str, target: Path) -> None:
        paths.owner.write_bytes(other.encode())
        link(source, target)

    monkeypatch.setattr(os, "link", too_late)
    assert not ownership._replace_record(paths, None, mine)
    assert ownership.read_owner(paths.owner) == other
