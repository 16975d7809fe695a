"""Local workers as text: how they are started, named and recognised."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobflowd.launchers import multiprocess as mp
from jobflowd.model import LaunchState

hosts = st.text(st.characters(codec="ascii", exclude_characters=":\n"), min_size=1, max_size=60)


@settings(deadline=None)
@given(hosts, st.integers(1, 2**22), st.integers(0, 2**63))
def test_a_job_id_reads_back(host: str, pid: int, ticks: int) -> None:
    text = mp.local_job_id(host, "b8a4087d-9ebe-4cc8-8bfb-72abc97ed653", pid, ticks)
    assert mp.parse_local_job_id(text) == mp.LocalProcess(host, "b8a4087d", pid, ticks)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "12345",
        "local:",
        "local:h:b:1",
        "local:h:b:x:1",
        "local:h:b:1:-1",
        "slurm:h:b:1:1",
        "local::b:1:1",
        "local:h::1:1",
        "local:h:b:٣:1",
    ],
)
def test_other_ids_are_not_ours(text: str) -> None:
    assert mp.parse_local_job_id(text) is None


@settings(deadline=None)
@given(st.text())
def test_parsers_are_total(text: str) -> None:
    mp.parse_local_job_id(text)
    mp.parse_stat(text)
    mp.parse_environ(text.encode(errors="replace"), "X")
    mp.is_worker_of(text.encode(errors="replace"), "l1")


def stat_line(name: str, state: str = "S") -> str:
    numbers = " ".join(str(n) for n in range(4, 53))
    return f"77 ({name}) {state} {numbers}\n"


@pytest.mark.parametrize("name", ["python", "a b", ") Z 1 2", "x) S (", ""])
def test_stat_is_read_whatever_the_name(name: str) -> None:
    assert mp.parse_stat(stat_line(name)) == mp.ProcessStat("S", 6, 22)


def test_a_zombie_is_not_alive() -> None:
    alive = {state: mp.ProcessStat(state, 1, 1).alive for state in "RSDTZX"}
    assert alive == {"R": True, "S": True, "D": True, "T": True, "Z": False, "X": False}


def test_argv_names_the_session_and_the_launch() -> None:
    argv = mp.worker_argv(
        "/usr/bin/python3", "/opt/x y", session_dir="/s/a b", launch_id="l1", slots=3, mode="zmq"
    )
    assert argv[:2] == ["/usr/bin/python3", "-c"]
    assert argv[3:] == [
        "--session",
        "/s/a b",
        "--launch-id",
        "l1",
        "--slots",
        "3",
        "--mode",
        "zmq",
    ]


def test_boot_code_imports_nothing_from_the_current_directory(tmp_path: Path) -> None:
    home = tmp_path / "it's home"
    home.mkdir()
    (home / "boot_probe.py").write_text("def main():\n    import json\n    return 7\n")
    trap = tmp_path / "cwd"
    trap.mkdir()
    for name in ("json", "boot_probe"):
        (trap / f"{name}.py").write_text("raise SystemExit(99)\n")
    code = mp.boot_code("boot_probe", "main", str(home))
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=trap).returncode == 7


def test_environment_is_the_users_without_what_was_meant_for_the_daemon() -> None:
    environ = {
        "PATH": "/bin",
        "NOTIFY_SOCKET": "@x",
        "WATCHDOG_USEC": "1",
        "LISTEN_FDS": "1",
        "JOBFLOW_LAUNCH_ID": "outer",
    }
    assert mp.child_environment(environ) == {"PATH": "/bin"}
    assert mp.worker_environment(environ, session_dir="/s", launch_id="l1") == {
        "PATH": "/bin",
        "JOBFLOW_LAUNCH_ID": "l1",
        "JOBFLOW_SESSION_DIR": "/s",
    }


def test_a_worker_is_told_from_its_children_by_its_arguments() -> None:
    assert mp.is_worker_of(b"python\0-c\0x\0--launch-id\0l1\0--slots\01\0", "l1")
    assert not mp.is_worker_of(b"python\0-c\0x\0--launch-id\0l12\0", "l1")
    assert not mp.is_worker_of(b"python\0--launch-id=l1\0child\0", "l1")
    assert not mp.is_worker_of(b"", "l1")


def test_environ_is_read_by_whole_names() -> None:
    block = b"XJOBFLOW_LAUNCH_ID=no\0JOBFLOW_LAUNCH_ID=a=b\0"
    assert mp.parse_environ(block, "JOBFLOW_LAUNCH_ID") == "a=b"
    assert mp.parse_environ(block, "NOPE") is None


@pytest.mark.parametrize(
    ("code", "name", "state", "words"),
    [
        (0, None, LaunchState.ENDED, "left"),
        (78, None, LaunchState.FAILED, "exit status 78"),
        (-9, "SIGKILL", LaunchState.FAILED, "SIGKILL"),
        (None, None, LaunchState.ENDED, "gone"),
    ],
)
def test_endings_have_words(
    code: int | None, name: str | None, state: LaunchState, words: str
) -> None:
    got, reason = mp.ending(code, name)
    assert got is state
    assert words in reason
