"""The full-screen view, followed logs and the debugger in a real terminal, as tmux shows it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from e2e_world import World

pytestmark = pytest.mark.slow


class Tmux:
    """One terminal of a given size."""

    def __init__(self, world: World, socket: Path, columns: int, lines: int, command: str) -> None:
        self._socket = str(socket)
        self._env = {**world.cli.env, "LC_ALL": "C.UTF-8"}
        size = ("-x", str(columns), "-y", str(lines))
        self._call("new-session", "-d", *size, f"{command}; echo LEFT $?; cat")

    def _call(self, *words: str) -> str:
        done = subprocess.run(
            ["tmux", "-S", self._socket, "-f", "/dev/null", *words],
            capture_output=True,
            text=True,
            timeout=20,
            env=self._env,
            check=True,
        )
        return done.stdout

    def text(self) -> str:
        """What is on the screen."""
        return self._call("capture-pane", "-p")

    def press(self, *keys: str) -> None:
        self._call("send-keys", *keys)

    def close(self) -> None:
        self._call("kill-server")


@pytest.fixture
def tmux(require: Callable[[str], None], world: World) -> Iterator[Callable[..., Tmux]]:
    require("tmux")
    opened: list[Tmux] = []

    def make(columns: int, lines: int, command: str) -> Tmux:
        socket = Path(world.cli.env["XDG_RUNTIME_DIR"], f"tmux{len(opened)}")
        opened.append(Tmux(world, socket, columns, lines, command))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


@pytest.mark.parametrize(("columns", "lines"), [(80, 24), (200, 60)])
def test_a_run_is_watched_through_a_restart(
    world: World, tmux: Callable[..., Tmux], columns: int, lines: int
) -> None:
    daemon = world.start("--workers", "2", n=6, spec={"do": "wait"})
    world.until_running(2)
    ctl = f"{Path(sys.executable).parent / 'jobflowctl'} watch --interval 0.2s"
    screen = tmux(columns, lines, ctl)
    world.until(lambda: "0 of 6" in screen.text(), "the overview")
    world.until(lambda: "2 busy" in screen.text(), "the workers")
    world.until(lambda: "q Leave" in screen.text(), "the keys")
    screen.press("3")
    world.until(lambda: "2 rows" in screen.text(), "the list of workers")
    screen.press("1")
    daemon.process.kill()
    daemon.process.wait()
    world.until(lambda: "Trying again" in screen.text(), "the banner")
    world.again()
    world.until(lambda: "Trying again" not in screen.text(), "the banner to go")
    screen.press("q")
    world.until(lambda: "LEFT 0" in screen.text(), "the shell")
    # Leaving the view ends nothing.
    assert world.ask("status")["state"] == "running"
    world.open_gate()
    world.cli.run("jobflowctl", "-s", "t1", "wait")


def ctl_of(*words: str) -> str:
    return f"{Path(sys.executable).parent / 'jobflowctl'} -s t1 {' '.join(words)}"


def test_logs_of_a_running_task_are_followed(world: World, tmux: Callable[..., Tmux]) -> None:
    daemon = world.start("--workers", "1", "--stay", tasks=[{"do": "talk"}, {"do": "wait"}])
    world.until(lambda: world.tasks()["running"] == 1, "the news that it runs")
    once = world.cli.run("jobflowctl", "-s", "t1", "logs", "t00000").stdout
    assert "attempt 1  running" in once
    assert "before the gate, attempt 1" in once
    waiting = world.cli.run("jobflowctl", "-s", "t1", "logs", "t00001").stdout
    assert "no attempt has begun" in waiting
    screen = tmux(80, 24, ctl_of("logs", "-f", "t00000"))
    world.until(lambda: "before the gate, attempt 1" in screen.text(), "what it has printed")
    assert "after" not in screen.text()
    world.open_gate()
    world.until(lambda: "LEFT 0" in screen.text(), "the end of the task")
    text = screen.text()
    assert text.count("before the gate") == text.count("after the gate") == 1
    assert "t00000 succeeded" in text
    world.cli.run("jobflowctl", "-s", "t1", "shutdown")
    world.ended(daemon, 0)


def test_output_of_one_of_several_slots_is_not_guessed(world: World) -> None:
    daemon = world.start("--workers", "1", "--slots", "2", tasks=[{"do": "talk"}] * 2)
    world.until(lambda: world.tasks()["running"] == 2, "the news that both run")
    text = world.cli.run("jobflowctl", "-s", "t1", "logs", "t00000").stdout
    assert "its output comes with its end" in text
    assert "its worker runs several tasks" in text
    assert "before the gate" not in text
    world.open_gate()
    world.ended(daemon, 0)


def test_logs_of_daemon_worker_and_launch_are_followed_until_ctrl_c(
    world: World, tmux: Callable[..., Tmux]
) -> None:
    world.start("--workers", "1", n=1, spec={"do": "wait"})
    world.until_running(1)
    worker = world.workers()[0]
    daemon = tmux(120, 24, ctl_of("logs", "-f"))
    of_worker = tmux(120, 24, ctl_of("logs", "-f", worker["worker_id"]))
    of_launch = tmux(120, 24, ctl_of("logs", "-f", "--launch", worker["launch_id"]))
    world.until(lambda: "worker_online" in daemon.text(), "the daemon's log")
    for screen in (of_worker, of_launch):
        world.until(lambda one=screen: worker["worker_id"] in one.text(), "the worker's log")
        screen.press("C-c")
        world.until(lambda one=screen: "LEFT 130" in one.text(), "the shell")
        assert "Traceback" not in screen.text()
    # What is written later is shown, and the end of the daemon ends it.
    world.open_gate()
    world.until(lambda: "LEFT 0" in daemon.text(), "the end")
    assert "worker_left" in daemon.text() or "ended" in daemon.text()


def test_a_failed_task_is_replayed_in_the_debugger(world: World, tmux: Callable[..., Tmux]) -> None:
    tasks = [{"do": "error", "limits": {"max_retries": 0}}]
    daemon = world.start("--workers", "1", "--stay", tasks=tasks)
    world.until(lambda: world.tasks() == {"failed": 1}, "the failure")
    screen = tmux(100, 30, ctl_of("replay", "t00000", "--pdb"))
    world.until(lambda: "(Pdb)" in screen.text(), "the debugger")
    screen.press("p spec['i'] + 41", "Enter")
    world.until(lambda: "\n41\n" in screen.text(), "a value of the failed frame")
    screen.press("q", "Enter")
    world.until(lambda: "LEFT 3" in screen.text(), "the shell")
    assert "It failed after" in screen.text()
    assert world.task("t00000")["state"] == "failed"
    world.ctl("shutdown")
    world.ended(daemon, 3)
