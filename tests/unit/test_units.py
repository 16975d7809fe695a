"""The units and the warning about logout: texts only; that they work is for systemd to say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from jobflowd import unitcommand
from jobflowd.logout import risk

ROOT = Path(__file__).parent.parent.parent
SESSION = "0::/user.slice/user-1000.slice/session-3.scope\n"
MANAGER = "0::/user.slice/user-1000.slice/user@1000.service/app.slice/x.service\n"
SYSTEM = "0::/system.slice/jobflowd@t1.service\n"


@pytest.mark.parametrize(
    ("system", "file", "command"),
    [
        (False, "systemd/jobflowd@.service", unitcommand.USER_COMMAND),
        (True, "systemd/system/jobflowd@.service", unitcommand.SYSTEM_COMMAND),
    ],
)
def test_the_files_are_what_the_command_prints(system: bool, file: str, command: str) -> None:
    assert (ROOT / file).read_text() == unitcommand.unit_text(system=system, command=command)


@pytest.mark.parametrize("system", [True, False])
def test_ends_are_no_accidents_and_some_accidents_are_final(system: bool) -> None:
    text = unitcommand.unit_text(system=system, command="/x/jobflowd")
    for line in (
        "Type=notify",
        "SuccessExitStatus=3 4",
        "RestartPreventExitStatus=2 3 65 66 75 77 78",
        "KillMode=process",
        "ExecStart=/x/jobflowd start --session-id %i --dashboard off",
    ):
        assert line in text.splitlines()
    assert not re.search(r"^(ProtectHome|PrivateTmp)", text, re.MULTILINE)


def test_a_path_with_blanks_and_percent_signs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a b%i"
    folder.mkdir()
    (folder / "jobflowd").write_text("")
    monkeypatch.setattr("sys.executable", str(folder / "python"))
    assert unitcommand.this_command() == f'"{tmp_path}/a b%%i/jobflowd"'


def test_installing_writes_where_systemd_looks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for _ in range(2):
        path = unitcommand.install(system=False)
    assert path == tmp_path / "systemd/user/jobflowd@.service"
    assert path.stat().st_mode & 0o777 == 0o644
    assert "ExecStart=" in path.read_text()
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("cgroup", "kills", "lingers", "words"),
    [
        (SESSION, True, False, "KillUserProcesses"),
        (SESSION, True, True, "KillUserProcesses"),
        (SESSION, False, False, ""),
        (SESSION, None, False, ""),
        (MANAGER, None, False, "enable-linger"),
        (MANAGER, None, True, ""),
        (SYSTEM, None, False, ""),
        ("", True, False, ""),
    ],
)
def test_logout_is_warned_of_where_it_kills(
    cgroup: str, kills: bool | None, lingers: bool, words: str
) -> None:
    found = risk(cgroup, kills=kills, lingers=lingers)
    assert words in found
    assert bool(found) == bool(words)
