"""The command line as people meet it: sentences, exit codes, `--detach`, `config show`."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

#: Stands in for `jobflowd.daemon` behind the real command line, session and detaching.
STUB = """
import os, signal, sys, types
from jobflowd import detach
from jobflowd.sessiondir import open_session

def run(config):
    act = os.environ["STUB"]
    if act == "print":
        print(config.workers, config.program_args)
        return 3
    if act == "quiet":
        return 0
    if act == "die":
        print("a library's last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    if act == "bug":
        raise KeyError("oh")
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    session = open_session(config)
    if act == "slow":
        detach.announce_waiting("the tasks of conv")
        signal.sigtimedwait([signal.SIGUSR1], 1.2)
    if act == "stuck":
        detach.announce_waiting("the tasks of conv")
        signal.sigtimedwait([signal.SIGUSR1], 15)
    print("noise before", file=sys.stderr, flush=True)
    detach.announce_ready(session.name, session.paths.root, os.getpid(), session.log_path)
    signal.sigwait([signal.SIGTERM])
    session.close()
    return 4

sys.modules["jobflowd.daemon"] = stub = types.ModuleType("jobflowd.daemon")
stub.run = run
import jobflowd
jobflowd.daemon = stub
from jobflowd.cli import main
sys.exit(main())
"""

Runner = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def world(tmp_path: Path, session_env: dict[str, str]) -> Path:
    (tmp_path / "jobflowd").write_text(STUB)
    (tmp_path / "conv.py").write_text("class Conv: ...\n")
    return tmp_path


@pytest.fixture
def stub(world: Path, session_env: dict[str, str]) -> Runner:
    """Run the command line with the stub daemon acting as `act`."""

    def run(act: str, *args: str, env: dict[str, str] | None = None) -> Any:
        return subprocess.run(
            [sys.executable, str(world / "jobflowd"), *args],
            env={**session_env, "STUB": act, **(env or {})},
            cwd=world,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    return run


def one_sentence(found: subprocess.CompletedProcess[str], code: int, *says: str) -> None:
    assert found.returncode == code, found.stderr
    lines = found.stderr.strip().splitlines()
    assert len(lines) == 1, found.stderr
    assert lines[0].startswith("jobflowd: error: ")
    for one in says:
        assert one in lines[0]
    assert found.stdout == ""


def untouched(world: Path) -> bool:
    return not (world / "state" / "jobflow").exists()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--mode", "pigeon"], "auto, zmq, fs"),
        (["--launcher", "pbs"], "multiprocess"),
        (["--workers", "many"], "--workers"),
        (["--workers"], "argument"),
        (["--no-such-flag"], "--no-such-flag"),
        (["--program-args", "{bad"], "--program-args"),
        (["--program-args", "[1, 2]"], "a list"),
        (["--program-args", "null"], "null"),
        (["--session-id", "../x"], "--session-id"),
        (["--lease-duration", "soon"], "5m"),
        (["--config", "/nonexistent.toml"], "/nonexistent.toml"),
        (["--session-id", "a\x1b[31mb"], "\\x1b"),
        (["surplus"], "surplus"),
    ],
)
def test_usage_errors_are_one_sentence(
    stub: Runner, world: Path, args: list[str], says: str
) -> None:
    found = stub("ready", "start", "--program", "conv.py", *args)
    one_sentence(found, 2, says)
    assert untouched(world)


def test_refusals_of_the_session_are_one_sentence(stub: Runner, world: Path) -> None:
    one_sentence(stub("ready", "start", "-P", "nope.py"), 66, "nope.py")
    one_sentence(stub("ready", "start"), 2, "--program")
    one_sentence(stub("ready", "start", "-P", "conv.py", "-l", "20"), 78, "--lease-duration 40")
    assert untouched(world)


def test_the_same_errors_come_out_of_a_detached_start(stub: Runner, world: Path) -> None:
    one_sentence(stub("ready", "start", "--detach", "-P", "nope.py"), 66, "nope.py")
    one_sentence(stub("ready", "start", "--detach", "-P", "conv.py", "-l", "20"), 78, "--lease")
    one_sentence(stub("bug", "start", "--detach", "-P", "conv.py"), 1, "KeyError")
    assert untouched(world)


def test_a_bug_shows_its_traceback_only_with_debug(stub: Runner) -> None:
    one_sentence(stub("bug", "start", "-P", "conv.py"), 1, "KeyError", "--debug")
    found = stub("bug", "start", "-P", "conv.py", "--debug")
    assert found.returncode == 1
    assert "Traceback" in found.stderr


def test_flags_reach_the_daemon_and_its_code_comes_back(stub: Runner) -> None:
    args = ["start", "-P", "conv.py", "-A", '{"a": "b c"}']
    found = stub("print", *args, env={"JOBFLOW_WORKERS": "7"})
    assert (found.returncode, found.stdout) == (3, "7 {'a': 'b c'}\n")
    assert stub("print", *args, "--workers", "2").stdout.startswith("2 ")
    # Ready was never said; the end of the daemon is the answer, with all that it printed.
    found = stub("print", *args, "--detach")
    assert found.returncode == 3
    # On a busy machine a line before it says what the start waits for.
    assert found.stderr.endswith("10 {'a': 'b c'}\n")


def test_a_run_that_is_over_at_once_is_said(stub: Runner) -> None:
    found = stub("quiet", "start", "-P", "conv.py", "--detach")
    assert found.returncode == 0
    assert "all tasks have succeeded" in found.stderr


def test_a_daemon_that_dies_at_its_start_is_reported(stub: Runner) -> None:
    found = stub("die", "start", "--detach", "-P", "conv.py")
    assert found.returncode == 139
    assert "last words" in found.stderr
    assert "SIGSEGV" in found.stderr


@pytest.fixture
def detached(no_processes_left: None, stub: Runner, world: Path) -> Iterator[Runner]:
    """`stub` whose daemon is ended after the test."""
    yield stub
    owner = world / "state/jobflow/sessions/conv/owner.json"
    if owner.exists():
        os.kill(json.loads(owner.read_text())["pid"], signal.SIGTERM)


def test_detach_returns_when_ready_and_leaves_the_daemon(detached: Runner, world: Path) -> None:
    found = detached("ready", "start", "-P", "conv.py", "--detach", "--workers", "3")
    assert found.returncode == 0, found.stderr
    assert found.stderr == ""
    words = dict(line.split(None, 1) for line in found.stdout.splitlines())
    root = world / "state/jobflow/sessions/conv"
    pid = int(words["pid"])
    assert words["session"].startswith("conv ")
    assert words["log"] == str(root / "manager.db.log")
    assert "jobflowctl -s conv" in words["next"]
    assert os.getsid(pid) == pid
    assert os.readlink(f"/proc/{pid}/fd/0") == "/dev/null"
    environ = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"JOBFLOW_READY_FD" in environ  # As it was started; a child of it gets os.environ.
    pipes = [os.readlink(one) for one in Path(f"/proc/{pid}/fd").iterdir()]
    assert not [one for one in pipes if one.startswith("pipe:")]

    one_sentence(
        detached("ready", "start", "-P", "conv.py", "--detach"), 75, f"pid {pid} on", "shutdown"
    )


def test_a_slow_start_says_what_it_waits_for(detached: Runner) -> None:
    found = detached("slow", "start", "-P", "conv.py", "--detach")
    assert found.returncode == 0
    assert found.stderr == "jobflowd: waiting for the tasks of conv ...\n"


def test_ctrl_c_while_waiting_stops_the_daemon(
    no_processes_left: None, world: Path, session_env: dict[str, str]
) -> None:
    process = subprocess.Popen(
        [sys.executable, str(world / "jobflowd"), "start", "-P", "conv.py", "--detach"],
        env={**session_env, "STUB": "stuck"},
        cwd=world,
        stderr=subprocess.PIPE,
        text=True,
    )
    lock = world / "state/jobflow/sessions/conv/session.json"
    deadline = time.monotonic() + 20
    while not lock.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "interrupted" in err


def test_readiness_is_told_to_systemd(
    no_processes_left: None, world: Path, session_env: dict[str, str]
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        address = f"{session_env['XDG_RUNTIME_DIR']}/notify"
        systemd.bind(address)
        systemd.settimeout(20)
        process = subprocess.Popen(
            [sys.executable, str(world / "jobflowd"), "start", "-P", "conv.py"],
            env={**session_env, "STUB": "ready", "NOTIFY_SOCKET": address},
            cwd=world,
            stderr=subprocess.DEVNULL,
        )
        try:
            assert b"READY=1" in systemd.recv(4096).split(b"\n")
        finally:
            process.terminate()
            assert process.wait(20) == 4


def test_config_show_names_every_origin(world: Path, session_env: dict[str, str]) -> None:
    (world / "c.toml").write_text("slots = 4\n")

    def show(*args: str) -> str:
        return subprocess.run(
            [sys.executable, "-m", "jobflowd", "config", "show", "--config", "c.toml", *args],
            env={**session_env, "JOBFLOW_WORKERS": "7"},
            cwd=world,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    rows = {line.split(" = ")[0].strip(): line for line in show().splitlines()}
    assert rows["workers"].endswith("environment JOBFLOW_WORKERS")
    assert rows["slots"].endswith(f"config {world / 'c.toml'}")
    assert rows["port"].endswith("default")
    found = json.loads(show("--json"))
    assert found["schema"] == "jobflow.config/1"
    slots = next(one for one in found["settings"] if one["name"] == "slots")
    assert slots["value"] == 4


def test_version_and_help(world: Path, session_env: dict[str, str]) -> None:
    def run(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "jobflowd", *args],
            env={**session_env, "COLUMNS": "120"},
            cwd=world,
            capture_output=True,
            text=True,
            check=False,
        )

    version = run("--version")
    assert version.returncode == 0
    for word in ("jobflowd ", "protocol ", "python ", "zmq ", "sqlite ", "curve "):
        assert word in version.stdout
    text = run("start", "--help").stdout
    from jobflowd.flags import SETTINGS

    for setting in SETTINGS.values():
        assert setting.flag in text
        assert setting.short is None or setting.short in text
    assert "Examples" in text
    nothing = run()
    assert nothing.returncode == 2
    assert "start" in nothing.stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["serve", "nope"], "There is no session 'nope'."),
        (["serve", "nope", "--idle", "abc"], "see jobflowd serve --help"),
        (["install-unit", "--nope"], "see jobflowd install-unit --help"),
        (["start", "--nope"], "see jobflowd start --help"),
    ],
)
def test_a_wrong_word_is_no_bug_and_names_the_help_of_its_verb(
    session_env: dict[str, str], words: list[str], said: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobflowd", *words],
        env=session_env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "bug" not in done.stderr
