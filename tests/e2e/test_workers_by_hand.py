"""Workers that people start themselves, and strangers that knock."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from e2e_world import World, kill

pytestmark = pytest.mark.slow

WAIT = {"do": "wait"}
NONE = ("--launcher", "none")


def endpoint(world: World) -> tuple[str, int]:
    """Where the daemon listens."""
    beacon = json.loads((world.root / "beacon.json").read_text())
    found = re.match(r"tcp://(.*):(\d+)", beacon["endpoints"][0])
    assert found is not None
    return found[1], int(found[2])


@pytest.mark.parametrize("mode", ["zmq", "fs", "auto"])
def test_several_workers_by_name_and_by_directory(world: World, mode: str) -> None:
    daemon = world.start(*NONE, mode=mode, n=5, spec=WAIT)
    first = world.worker("--worker-id", "mine")
    second = world.cli.spawn("jobflow-worker", "--session", str(world.root), "--slots", "3")
    world.until_running(4)
    found = {one["worker_id"].rsplit("-", 1)[0]: one for one in world.workers()}
    assert found["mine"]["slots"] == 1
    assert {one["slots"] for one in found.values()} == {1, 3}
    assert len({note.pid for note in world.notes("start")}) == 4
    world.open_gate()
    world.ended(daemon, 0)
    assert first.process.wait(20) == 0, first.printed()
    assert second.process.wait(20) == 0, second.printed()
    assert set(world.started().values()) == {1}


def test_a_worker_that_chooses_files_though_tcp_is_there(world: World) -> None:
    daemon = world.start(*NONE, mode="auto", n=4)
    world.worker("--mode", "fs")
    world.ended(daemon, 0)
    assert "1 slot, fs" in world.text_of_log()


def test_a_worker_that_cannot_connect_uses_its_mailbox(world: World) -> None:
    """An address that is kept for documentation stands for one behind a firewall."""
    daemon = world.start(*NONE, "--manager-host", "192.0.2.1", mode="auto", n=2)
    worker = world.worker()
    world.ended(daemon, 0)
    assert "1 slot, fs" in world.text_of_log()
    assert "mailbox" in worker.stderr.read_text()


def test_an_idle_mailbox_costs_less_than_one_operation_a_second(
    world: World, require: Callable[[str], None]
) -> None:
    """Known failure 13. Counted are calls that name a path in the session directory."""
    require("strace")
    flags = ("--stay", "--heartbeat-interval", "10", "--lease-duration", "60")
    daemon = world.start(*NONE, *flags, mode="fs", n=1)
    worker = world.worker()
    world.until(lambda: world.tasks() == {"succeeded": 1}, "the only task")
    seconds, calls = 40, world.dir / "calls"
    trace = ("-f", "-e", "trace=%file,getdents64", "-o", str(calls), "-p")
    command = ["timeout", "-s", "INT", str(seconds), "strace", *trace, str(worker.process.pid)]
    subprocess.run(command, check=False, capture_output=True)
    if not calls.exists() or "exited" in calls.read_text():
        pytest.skip("strace may not attach to a process here")
    counted = [line for line in calls.read_text().splitlines() if str(world.root) in line]
    assert 1 <= len(counted) <= seconds, "\n".join(counted)
    world.ctl("shutdown", "--now", "--wait")
    world.ended(daemon, 0)


def test_sigterm_hands_the_task_back_uncharged(world: World) -> None:
    """What a batch system does at the end of a job, or a person with `kill`."""
    daemon = world.start(*NONE, "--max-losses", "0", n=1, spec=WAIT)
    first = world.worker()
    world.until_running(1)
    kill(first.process.pid, signal.SIGTERM)
    assert first.process.wait(20) == 0, first.printed()
    world.until(lambda: world.tasks() == {"queued": 1}, "the task to be queued again")
    world.open_gate()
    world.worker()
    world.ended(daemon, 0)
    assert world.started() == {"t00000": 2}


def test_a_name_that_is_a_path_is_refused(world: World) -> None:
    """Known failure 16."""
    daemon = world.start(*NONE, n=1)
    found = world.cli.run("jobflow-worker", "--session", "t1", "--worker-id", "../../x", code=2)
    assert "../../x" in found.stderr
    assert "Traceback" not in found.stderr
    world.worker()
    world.ended(daemon, 0)


def test_sessions_that_are_not_there(world: World) -> None:
    found = world.cli.run("jobflow-worker", "--session", "nowhere", code=5)
    assert "nowhere" in found.stderr
    assert "Traceback" not in found.stderr
    assert world.cli.run("jobflow-worker", code=2).stderr


def test_a_worker_of_another_text_of_the_program_is_told(world: World) -> None:
    daemon = world.start(*NONE, n=2, spec=WAIT)
    first = world.worker()
    world.until_running(1)
    world.program.write_text("raise RuntimeError('no licence here')\n" + world.program.read_text())
    second = world.worker()
    assert second.process.wait(30) == 78, second.printed()
    assert "no licence here" in second.stderr.read_text()
    # Before the gate opens: two tasks take less time than asking how many are done.
    kill(daemon.process.pid, signal.SIGTERM)
    world.until(lambda: world.ask("status")["state"] == "draining", "the end to begin")
    world.open_gate()
    world.ended(daemon, 4)
    first.process.wait(20)


def test_garbage_on_the_port_and_on_the_socket_harms_nobody(world: World) -> None:
    """Known failure 8."""
    daemon = world.start("--workers", "1", n=3, spec=WAIT)
    world.until_running(1)
    address = endpoint(world)
    for data in (b"GET / HTTP/1.1\r\n\r\n", os.urandom(100_000), b"\xff" * 64, b""):
        with socket.create_connection(address, timeout=5) as one:
            send(one, data)
    for path in Path(world.cli.env["XDG_RUNTIME_DIR"]).rglob("*.sock"):
        for data in (b"hello\n", b'{"v": 1}\n', os.urandom(4096) + b"\n", b"x" * 2_000_000):
            with socket.socket(socket.AF_UNIX) as one:
                one.connect(str(path))
                send(one, data)
    assert world.ask("status")["state"] == "running"
    world.open_gate()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}


def send(connection: socket.socket, data: bytes) -> None:
    try:
        connection.settimeout(2)
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)
    except OSError:
        pass  # Hung up on, as it should be.
