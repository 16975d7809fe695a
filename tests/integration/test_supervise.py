"""The `jobflow` wrapper with a stub daemon: what it shows, passes on, leaves alone, returns."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobflowctl import supervise
from jobflowctl.text import safe_lines

STUB = str(Path(__file__).with_name("stub_daemon.py"))
_RUN = """
import sys
from jobflowctl.output import Output
from jobflowctl.supervise import Supervisor, parse
terminal = sys.stdin.isatty() and sys.stderr.isatty()
wishes = parse(["--external-dashboard-refresh", "0.1s", *sys.argv[4:]], terminal=terminal)
command = [sys.executable, sys.argv[1], sys.argv[2], sys.argv[3]]
sys.exit(Supervisor(command, wishes, Output(), terminal=terminal).run())
"""


class Wrapper:
    """The wrapper around a stub, at a pseudo-terminal or with files."""

    def __init__(
        self,
        env: dict[str, str],
        directory: Path,
        mode: str,
        *flags: str,
        terminal: bool = True,
        term: str = "dumb",
    ) -> None:
        self.directory = directory
        self._controller, inner = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, STUB, str(directory), mode, *flags],
            stdin=inner if terminal else subprocess.DEVNULL,
            stdout=inner,
            stderr=inner,
            env={**env, "TERM": term},
            start_new_session=True,
        )
        os.close(inner)
        self.shown = ""

    def wait_for(self, words: str) -> None:
        """Read until the words were shown; fails after 20 s."""
        deadline = time.monotonic() + 20
        while words not in self.shown:
            if time.monotonic() > deadline or not self._read():
                pytest.fail(f"never shown: {words!r}\n{self.shown}")

    def _read(self) -> bool:
        if not select.select([self._controller], [], [], 0.5)[0]:
            return True
        try:
            data = os.read(self._controller, 65536)
        except OSError:
            return False
        self.shown += data.decode()
        return bool(data)

    def type(self, keys: bytes) -> None:
        os.write(self._controller, keys)

    def end(self) -> int:
        """The exit code, with everything shown until then."""
        deadline = time.monotonic() + 20
        while self._read() and time.monotonic() < deadline:
            continue
        return self.process.wait(20)

    def hang_up(self) -> None:
        if self._controller >= 0:
            os.close(self._controller)
            self._controller = -1

    def daemon_pid(self) -> int:
        pid: int = json.loads((self.directory / "owner.json").read_text())["pid"]
        return pid

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.hang_up()


@pytest.fixture
def wrapper(
    no_processes_left: None, session_env: dict[str, str], tmp_path: Path
) -> Iterator[Callable[..., Wrapper]]:
    made: list[Wrapper] = []

    def make(mode: str = "idle", *flags: str, terminal: bool = True, term: str = "dumb") -> Wrapper:
        directory = tmp_path / "t1"
        made.append(Wrapper(session_env, directory, mode, *flags, terminal=terminal, term=term))
        return made[-1]

    yield make
    for one in made:
        one.close()


def alive(pid: int) -> bool:
    try:
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_it_shows_progress_and_q_ends_the_run(wrapper: Callable[..., Wrapper]) -> None:
    run = wrapper()
    run.wait_for("40/100 tasks")
    assert "waiting for nothing" in run.shown
    assert "session  t1" in run.shown
    assert "closing this terminal leaves it running" in run.shown
    run.type(b"q")
    assert run.end() == 4
    assert "stopping: workers finish their tasks" in run.shown
    assert "t1 done: 38 succeeded" in run.shown
    assert "words of the daemon" not in run.shown


def test_once_is_graceful_and_twice_is_now(wrapper: Callable[..., Wrapper]) -> None:
    run = wrapper("stubborn")
    run.wait_for("40/100 tasks")
    run.process.send_signal(signal.SIGINT)
    run.wait_for("waiting for w-busy on n1: scan-0001")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert "stopping now" in run.shown


def test_the_third_time_leaves_the_daemon_alone(wrapper: Callable[..., Wrapper]) -> None:
    run = wrapper("stubborn")
    run.wait_for("40/100 tasks")
    pid = run.daemon_pid()
    os.kill(pid, signal.SIGSTOP)
    for words in ("stopping: ", "stopping now"):
        run.process.send_signal(signal.SIGINT)
        run.wait_for(words)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 130
    assert "leaving t1 running" in run.shown
    # Signals to a stopped process are merged, so its second one has to come once more.
    os.kill(pid, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGINT)
        time.sleep(0.05)


def test_closing_the_terminal_leaves_the_run_alone(wrapper: Callable[..., Wrapper]) -> None:
    run = wrapper()
    run.wait_for("40/100 tasks")
    pid = run.daemon_pid()
    run.process.send_signal(signal.SIGHUP)
    run.hang_up()
    assert run.process.wait(20) == 130
    assert alive(pid)
    os.kill(pid, signal.SIGINT)


def test_a_start_that_fails_says_why(wrapper: Callable[..., Wrapper]) -> None:
    run = wrapper("broken")
    assert run.end() == 2
    assert "no program is named; give --program" in run.shown


def test_a_wrapper_that_is_killed_leaves_the_run_alone(wrapper: Callable[..., Wrapper]) -> None:
    run = wrapper()
    run.wait_for("40/100 tasks")
    pid = run.daemon_pid()
    run.process.kill()
    run.process.wait()
    assert alive(pid)
    os.kill(pid, signal.SIGINT)


def test_sigterm_is_passed_on(wrapper: Callable[..., Wrapper]) -> None:
    run = wrapper(terminal=False)
    run.wait_for("40/100 tasks")
    run.process.send_signal(signal.SIGTERM)
    # The stub does not handle it, so it dies of it.
    assert run.end() == 128 + signal.SIGTERM


def test_without_a_view_it_only_waits(wrapper: Callable[..., Wrapper]) -> None:
    flags = ("--external-dashboard", "auto", "--supervisor-log-level", "info")
    run = wrapper("idle", *flags, terminal=False)
    run.wait_for("leaves it running")
    run.wait_for("words of the daemon")
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 4
    assert "40/100" not in run.shown


# --- full screen ------------------------------------------------------------------------------


def test_full_screen_q_ends_the_run_and_says_what_it_waits_for(
    wrapper: Callable[..., Wrapper],
) -> None:
    run = wrapper("stubborn", term="xterm-256color")
    run.wait_for("38 succeeded")
    run.type(b"q")
    run.wait_for("waiting for scan-0001 on n1")
    # In raw mode Ctrl-C is a key.
    run.type(b"\x03")
    assert run.end() == 130
    # The terminal is a usual one again, with the outcome on it.
    assert "38 succeeded" in run.shown.rpartition("\x1b[?1049l")[2]


def test_full_screen_ends_with_the_daemon(wrapper: Callable[..., Wrapper]) -> None:
    run = wrapper(term="xterm-256color")
    run.wait_for("38 succeeded")
    os.kill(run.daemon_pid(), signal.SIGINT)
    assert run.end() == 4
    assert "38 succeeded" in run.shown.rpartition("\x1b[?1049l")[2]


def test_full_screen_closing_the_terminal_leaves_the_run_alone(
    wrapper: Callable[..., Wrapper],
) -> None:
    run = wrapper(term="xterm-256color")
    run.wait_for("38 succeeded")
    pid = run.daemon_pid()
    run.process.send_signal(signal.SIGHUP)
    run.hang_up()
    assert run.process.wait(20) == 130
    assert alive(pid)
    os.kill(pid, signal.SIGINT)


# --- the command line -------------------------------------------------------------------------


def test_its_own_arguments_are_taken_and_all_others_forwarded() -> None:
    wishes = supervise.parse(
        [
            "start",
            "--program",
            "conv.py",
            "--external-dashboard",
            "off",
            "--program-args",
            '{"a": "b c"}',
            "--external-dashboard-refresh=5s",
            "-m",
            "fs",
            "--external-dashboard-stale-timeout",
            "1m",
        ],
        terminal=True,
    )
    forwarded = ("--program", "conv.py", "--program-args", '{"a": "b c"}', "-m", "fs")
    assert wishes == supervise.Wishes(False, 5.0, 60.0, False, forwarded)
    command = supervise.daemon_command(wishes)
    assert command[0] == sys.executable
    assert command[-9:] == ["start", *forwarded, "--dashboard", "off"]


@pytest.mark.parametrize(
    ("flags", "terminal", "view"),
    [([], False, True), (["--external-dashboard", "auto"], False, False)],
)
def test_a_view_wants_telemetry(flags: list[str], terminal: bool, view: bool) -> None:
    wishes = supervise.parse(flags, terminal=terminal)
    assert wishes.view is view
    assert ("--telemetry-mode" in supervise.daemon_command(wishes)) is view
    chosen = supervise.parse([*flags, "--telemetry-mode=off"], terminal=terminal)
    assert supervise.daemon_command(chosen).count("--telemetry-mode") == 0


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--external-dashboard", "maybe"], "invalid choice"),
        (["--external-dashboard-refresh", "soon"], "invalid seconds value"),
        (["--detach"], "jobflowd start --detach"),
    ],
)
def test_usage_is_code_2(flags: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        supervise.parse(flags, terminal=False)
    assert caught.value.code == 2
    assert words in " ".join(safe_lines(capsys.readouterr().err))
