"""The full-screen view of a real run in a real terminal, as tmux shows it."""

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
