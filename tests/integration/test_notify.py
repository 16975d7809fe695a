"""sd_notify against a real datagram socket, by path and in the abstract namespace."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from jobflowd import notify


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_arrive(
    session_env: dict[str, str], monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"{session_env['XDG_RUNTIME_DIR']}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind("\0" + name[1:] if abstract else name)
        systemd.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name[1:] if abstract else name)
        assert notify.ready("session t1\nREADY=0")
        lines = systemd.recv(4096).split(b"\n")
        assert b"READY=1" in lines
        assert b"STATUS=session t1 READY=0" in lines
        assert notify.status("1/2 done")
        assert systemd.recv(4096) == b"STATUS=1/2 done"
        assert notify.alive("1/2 done")
        assert systemd.recv(4096) == b"WATCHDOG=1\nSTATUS=1/2 done"
        assert notify.extend_timeout(1.5)
        assert systemd.recv(4096) == b"EXTEND_TIMEOUT_USEC=1500000"
        assert notify.stopping("done")
        assert systemd.recv(4096) == b"STOPPING=1\nSTATUS=done"


def test_nobody_to_tell_is_no_error(tmp_path: Path) -> None:
    for address in ("", "relative", str(tmp_path / "nobody"), "/" + "x" * 200):
        assert not notify.notify("READY=1", environ={"NOTIFY_SOCKET": address})
    assert not notify.notify("READY=1", environ={})


def test_a_full_queue_does_not_block(session_env: dict[str, str]) -> None:
    name = f"{session_env['XDG_RUNTIME_DIR']}/notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(name)
        sent = [notify.notify("STATUS=x", environ={"NOTIFY_SOCKET": name}) for _ in range(10_000)]
    assert not all(sent)


def test_watchdog_interval() -> None:
    mine = str(os.getpid())
    assert notify.watchdog_interval_s({"WATCHDOG_USEC": "60000000"}) == 20
    assert notify.watchdog_interval_s({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": mine}) == 1
    for environ in (
        {},
        {"WATCHDOG_USEC": "0"},
        {"WATCHDOG_USEC": "soon"},
        {"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"},
    ):
        assert notify.watchdog_interval_s(environ) is None
