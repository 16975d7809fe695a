"""What a person sees who starts a run in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from e2e_world import World

pytestmark = pytest.mark.slow

WIDTH = 100
#: Without the full-screen view, which has tests of its own.
LINES = ("--dashboard", "off")
#: A session leader that opens a terminal has it as its own, so that Ctrl-C reaches it.
ON_TERMINAL = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
for number in range(3):
    os.dup2(fd, number)
os.close(fd)
os.execv(sys.argv[2], sys.argv[2:])
"""


class Terminal:
    """A command on a terminal of its own, and everything that it showed."""

    def __init__(self, world: World, *command: str) -> None:
        self.shown = b""
        # Its side stays open here as well: the first who opens it might be the last to close it.
        self._ours, self._theirs = pty.openpty()
        fcntl.ioctl(self._theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
        program = str(Path(sys.executable).parent / command[0])
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_TERMINAL, os.ttyname(self._theirs), program, *command[1:]],
            env={**world.cli.env, "TERM": "xterm"},
            cwd=world.dir,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self._ours, 65536)
            except OSError:
                return  # The other side has closed.
            if not data:
                return
            self.shown += data

    def press(self, key: bytes) -> None:
        """Type something."""
        os.write(self._ours, key)

    def close(self) -> None:
        """Take the terminal away."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._theirs)
        self._reader.join(10)
        os.close(self._ours)

    def screen(self) -> list[str]:
        """The lines as they stand at the end: a line that was rewritten counts as its last text."""
        lines = []
        for line in self.shown.decode().replace("\r\n", "\n").split("\n"):
            cells = ""
            for part in line.split("\r"):
                cells = part + cells[len(part) :]
            lines.append(cells.rstrip())
        return lines


@pytest.fixture
def terminals() -> Iterator[list[Terminal]]:
    opened: list[Terminal] = []
    yield opened
    for one in opened:
        one.close()


def test_the_progress_line_is_whole_and_the_end_says_what_to_do(
    world: World, terminals: list[Terminal]
) -> None:
    tasks = [{"do": "sleep", "s": 0.4}] * 6 + [{"do": "never"}]
    terminal = Terminal(world, "jobflowd", *world.flags(*LINES, "--workers", "1", tasks=tasks))
    terminals.append(terminal)
    assert terminal.process.wait(30) == 3
    world.until(lambda: "of 7 tasks" in terminal.shown.decode(), "the summary")
    screen = terminal.screen()
    text = "\n".join(screen)
    assert "jobflowctl -s t1 status" in text
    assert "6 succeeded, 1 failed of 7 tasks" in text
    assert "jobflowctl -s t1 failures" in text
    # No line of the log has come between, and every picture of the line starts at its left.
    assert "worker_online" not in text
    for picture in re.findall(r"\r([^\r\n]*)", terminal.shown.decode()):
        assert re.match(r"\s*$|\d+/\d+ tasks|\d\d:\d\d:\d\d WARNING ", picture), picture
        assert len(picture) < WIDTH
    # The warning has a line of its own, and says enough.
    assert any(re.match(r"\S+ WARNING task_failed .*no use to try again", one) for one in screen)


def test_ctrl_c_says_what_happens(world: World, terminals: list[Terminal]) -> None:
    flags = world.flags(*LINES, "--workers", "1", n=3, spec={"do": "wait"})
    terminal = Terminal(world, "jobflowd", *flags)
    terminals.append(terminal)
    world.until_running(1)
    terminal.press(b"\x03")
    world.until(lambda: "once more" in terminal.shown.decode(), "a word on the signal")
    world.open_gate()
    assert terminal.process.wait(20) == 4
    world.until(lambda: "Go on with" in terminal.shown.decode(), "the next command")


def test_a_detached_daemon_outlives_its_terminal(world: World, terminals: list[Terminal]) -> None:
    flags = world.flags("--workers", "1", "--detach", n=1, spec={"do": "wait"})
    terminal = Terminal(world, "jobflowd", *flags)
    terminals.append(terminal)
    assert terminal.process.wait(20) == 0
    terminals.remove(terminal)
    terminal.close()
    world.until_running(1)
    assert world.ask("status")["state"] == "running"
    world.open_gate()
    assert world.cli.run("jobflowctl", "-s", "t1", "wait").returncode == 0


def test_a_terminal_that_goes_away_does_not_end_a_run(
    world: World, terminals: list[Terminal]
) -> None:
    """In the foreground, SIGHUP only opens the log anew."""
    flags = world.flags(*LINES, "--workers", "1", n=2, spec={"do": "wait"})
    terminal = Terminal(world, "jobflowd", *flags)
    terminals.append(terminal)
    world.until_running(1)
    terminal.process.send_signal(signal.SIGHUP)
    world.open_gate()
    assert terminal.process.wait(20) == 0
