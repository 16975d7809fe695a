"""The admin socket with real clients: private, patient only so long, never hurt by any of them."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobflow_worker.reactor import Reactor
from jobflowd import admin, api
from jobflowd.admin import AdminServer, AlreadyServed, Request


@pytest.fixture
def place() -> Iterator[Path]:
    """A short private directory: a Unix socket's path has room for 107 bytes."""
    directory = Path(tempfile.mkdtemp(prefix="jf-", dir="/tmp"))
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def server(place: Path) -> Iterator[AdminServer]:
    server = AdminServer(place / "jobflow" / "x.sock")
    server.open()
    yield server
    server.close()


def pump(server: AdminServer, now: float = 1.0) -> list[Request]:
    """Serve at a made-up time until nothing more is ready."""
    requests: list[Request] = []
    for _ in range(200):
        poller = select.poll()
        for fd, events in server.interest().items():
            poller.register(fd, events)
        ready = [fd for fd, _ in poller.poll(0)]
        found = server.service(ready, now)
        requests += found
        if not ready and not found and server.next_deadline(now) > now:
            break
    return requests


def connect(server: AdminServer) -> socket.socket:
    assert server.path is not None
    client = api.connect_unix(server.path, timeout_s=5)
    client.settimeout(5)
    return client


def read(client: socket.socket) -> dict[str, Any]:
    """One answer; {} if the server hung up."""
    data = b""
    while not data.endswith(b"\n"):
        more = client.recv(65536)
        if not more:
            return {}
        data += more
    answer: dict[str, Any] = json.loads(data)
    return answer


# --- the file ---------------------------------------------------------------------------------


def test_the_socket_is_private(server: AdminServer) -> None:
    assert server.path is not None
    assert stat.S_IMODE(os.lstat(server.path).st_mode) == 0o600
    assert stat.S_IMODE(os.lstat(server.path.parent).st_mode) == 0o700
    umask = os.umask(0o022)
    os.umask(umask)
    assert umask != 0o177


@pytest.mark.parametrize("what", ["open", "link", "file"])
def test_a_directory_that_others_prepared_is_not_used(place: Path, what: str) -> None:
    prepared = place / "prepared"
    elsewhere = place / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    if what == "open":
        prepared.mkdir()
        prepared.chmod(0o755)
    elif what == "link":
        prepared.symlink_to(elsewhere)
    else:
        prepared.write_text("")
    with pytest.raises(api.NotOurs):
        AdminServer(prepared / "x.sock").open()
    server = AdminServer(prepared / "x.sock", place / "spare" / "x.sock")
    assert server.open() == place / "spare" / "x.sock"
    server.close()


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(place: Path) -> None:
    path = place / "x.sock"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    first, second = AdminServer(path), AdminServer(path, place / "spare.sock")
    first.open()
    with pytest.raises(AlreadyServed):
        second.open()
    connect(first).close()
    first.close()
    assert not path.exists()


def test_a_busy_daemon_is_a_live_one(place: Path) -> None:
    path = place / "x.sock"
    with socket.socket(socket.AF_UNIX) as busy, contextlib.ExitStack() as stack:
        busy.bind(str(path))
        busy.listen(0)
        for _ in range(4):
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                client.connect(str(path))
        with pytest.raises(AlreadyServed):
            AdminServer(path).open()
        with pytest.raises(TimeoutError):
            api.connect_unix(path, timeout_s=0.1)


def test_a_path_longer_than_an_address_works(place: Path) -> None:
    directory = place / ("d" * 100) / ("e" * 100)
    directory.parent.mkdir(mode=0o700)
    server = AdminServer(directory / "x.sock")
    path = server.open()
    assert len(str(path)) > 107
    with connect(server) as client:
        client.sendall(b'{"cmd": "ping"}\n')
        (request,) = pump(server)
        server.answer(request.ticket, {})
        assert read(client)["ok"]
    server.close()
    assert not path.exists()


def test_close_removes_only_its_own_file(server: AdminServer) -> None:
    assert server.path is not None
    server.path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(server.path))
        server.close()
        assert server.path.exists()


def test_a_socket_that_vanished_is_made_again(server: AdminServer) -> None:
    assert server.path is not None
    with connect(server) as old:
        pump(server, 1.0)
        shutil.rmtree(server.path.parent)
        pump(server, 1.0 + admin.CHECK_S)
        with connect(server) as new:
            for client in (old, new):
                client.sendall(b'{"cmd": "ping"}\n')
                (request,) = pump(server, 7.0)
                server.answer(request.ticket, {"pid": 1})
                assert read(client)["pid"] == 1


def test_a_socket_that_cannot_be_made_again_is_trouble_and_then_is_not(place: Path) -> None:
    server = AdminServer(place / "jobflow" / "x.sock")
    server.open()
    shutil.rmtree(place / "jobflow")
    (place / "jobflow").write_text("in the way")
    pump(server, 100.0)
    assert server.trouble is not None
    assert "cannot reach" in server.trouble
    (place / "jobflow").unlink()
    pump(server, 200.0)
    assert server.trouble is None
    connect(server).close()
    server.close()


# --- lines ------------------------------------------------------------------------------------


def test_a_request_and_its_answer(server: AdminServer) -> None:
    with connect(server) as client:
        client.sendall(api.encode_call(7, "scale", {"workers": 3}))
        (request,) = pump(server)
        assert (request.cmd, request.args) == ("scale", {"workers": 3})
        assert (request.pid, request.uid) == (os.getpid(), os.getuid())
        server.answer(request.ticket, {"message": "yes"})
        assert read(client) == {"id": 7, "ok": True, "message": "yes"}


def test_a_long_answer_comes_through_the_loop_of_the_daemon(server: AdminServer) -> None:
    client = connect(server)
    client.sendall(api.encode_call(1, "status", {}))
    ((request,),) = (pump(server),)
    server.answer(request.ticket, {"text": "x" * 1_000_000})
    got = b""
    client.setblocking(False)
    with Reactor() as reactor:
        while not got.endswith(b"\n"):
            reactor.watch(server.interest())
            ready = reactor.wait(time.monotonic() + 0.1)
            before = len(got)
            server.service([one for one in ready if isinstance(one, int)], 1.0)
            with contextlib.suppress(BlockingIOError):
                got += client.recv(1 << 20)
            assert ready or len(got) > before, f"it stands still after {len(got)} bytes"
    client.close()
    assert len(got) > 1_000_000


def test_a_line_may_come_in_pieces_and_several_in_one(server: AdminServer) -> None:
    with connect(server) as client:
        line = api.encode_call(1, "status")
        for byte in line[:10]:
            client.sendall(bytes([byte]))
            assert pump(server) == []
        client.sendall(line[10:] + api.encode_call(2, "workers") + b"\n" + b"rubbish\n")
        for number, cmd in ((1, "status"), (2, "workers")):
            (request,) = pump(server)
            assert request.cmd == cmd
            server.refuse(request.ticket, "conflict", "No.", "Later.")
            error = {"code": "conflict", "message": "No.", "hint": "Later."}
            assert read(client) == {"id": number, "error": error}
        assert pump(server) == []
        assert read(client)["error"]["code"] == "usage"


def test_a_bad_line_is_answered_and_the_next_is_served(server: AdminServer) -> None:
    with connect(server) as client:
        client.sendall(b'{"cmd": "rm -rf"}\n')
        assert pump(server) == []
        assert read(client)["error"]["code"] == "usage"
        client.sendall(b'{"cmd": "ping"}\n')
        (request,) = pump(server)
        assert request.cmd == "ping"


def test_a_line_without_end_is_refused_and_cut_off(server: AdminServer) -> None:
    with connect(server) as client:
        client.settimeout(0.05)
        rest = b"x" * (api.LINE_BYTES_MAX + 1)
        while rest:
            with contextlib.suppress(TimeoutError, BrokenPipeError, ConnectionResetError):
                rest = rest[client.send(rest) :]
                assert pump(server) == []
                continue
            break
        client.settimeout(5)
        assert "too long" in read(client)["error"]["message"]
        with contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(lines=st.lists(st.binary(max_size=60), max_size=4))
def test_no_bytes_hurt_the_server(server: AdminServer, lines: list[bytes]) -> None:
    with connect(server) as client:
        client.sendall(b"\n".join(lines))
        for request in pump(server):
            server.answer(request.ticket, {})
    pump(server)
    assert len(server.interest()) == 1, "the client is forgotten"


def test_answers_that_cannot_be_sent_become_errors(server: AdminServer) -> None:
    class Odd:
        pass

    bodies: list[tuple[Any, str]] = [
        ({"x": Odd()}, "internal"),
        ({"x": float("nan")}, "internal"),
        ({"x": "y" * admin.ANSWER_BYTES_MAX}, "busy"),
    ]
    with connect(server) as client:
        for body, code in bodies:
            client.sendall(b'{"cmd": "ping"}\n')
            (request,) = pump(server)
            server.answer(request.ticket, body)
            assert read(client)["error"]["code"] == code


def test_a_client_that_left_needs_no_answer(server: AdminServer) -> None:
    with connect(server) as client:
        client.sendall(b'{"cmd": "ping"}\n')
        (request,) = pump(server)
    server.answer(request.ticket, {})
    server.answer(request.ticket, {})
    server.refuse(12345, "busy", "", "")
    pump(server)
    assert len(server.interest()) == 1


# --- patience ---------------------------------------------------------------------------------


def test_a_client_that_stops_in_a_line_is_cut_off(server: AdminServer) -> None:
    with connect(server) as slow, connect(server) as idle:
        slow.sendall(b'{"cmd":')
        pump(server, 1.0)
        # Another byte does not buy more time.
        slow.sendall(b" ")
        pump(server, 1.0 + admin.LINE_PATIENCE_S - 1)
        assert server.next_deadline(5.0) <= 1.0 + admin.LINE_PATIENCE_S
        pump(server, 1.0 + admin.LINE_PATIENCE_S)
        assert read(slow) == {}
        idle.sendall(b'{"cmd": "ping"}\n')
        assert len(pump(server, 7.0)) == 1


def test_an_idle_client_is_let_go_at_last(server: AdminServer) -> None:
    with connect(server) as client:
        pump(server, 1.0)
        pump(server, admin.IDLE_PATIENCE_S)
        pump(server, 1.0 + admin.IDLE_PATIENCE_S)
        assert read(client) == {}


def test_a_client_that_waits_for_its_answer_is_not_hurried(server: AdminServer) -> None:
    with connect(server) as client:
        client.sendall(b'{"cmd": "ping"}\n')
        (request,) = pump(server, 1.0)
        pump(server, 10_000.0)
        server.answer(request.ticket, {})
        assert read(client)["ok"]


def test_a_greedy_client_is_cut_off_and_nobody_notices(server: AdminServer) -> None:
    with connect(server) as greedy, connect(server) as other:
        greedy.setblocking(False)
        line = b'{"cmd": "tasks"}\n' * 1000
        with contextlib.suppress(BlockingIOError):
            while True:
                greedy.send(line)
        body = {"text": "x" * 1_000_000}
        (request,) = pump(server, 1.0)
        server.answer(request.ticket, body)
        # It does not read, so its next request is not even looked at.
        assert pump(server, 2.0) == []
        other.sendall(b'{"cmd": "ping"}\n')
        (request,) = pump(server, 3.0)
        server.answer(request.ticket, {})
        assert read(other)["ok"]
        pump(server, 1.0 + admin.WRITE_PATIENCE_S)
        assert len(server.interest()) == 2, "the listener and the other"


def test_a_slow_reader_that_goes_on_reading_gets_all(server: AdminServer) -> None:
    body = {"text": "x" * 4_000_000}
    with connect(server) as client:
        client.sendall(b'{"cmd": "tasks"}\n')
        (request,) = pump(server, 0.0)
        server.answer(request.ticket, body)
        data, now = b"", 0.0
        while not data.endswith(b"\n"):
            now += admin.WRITE_PATIENCE_S * 0.6
            pump(server, now)
            data += client.recv(1_000_000)
        assert json.loads(data)["text"] == body["text"]


def test_room_is_made_for_new_clients_by_the_longest_idle(server: AdminServer) -> None:
    with contextlib.ExitStack() as stack:
        clients = []
        for number in range(admin.CLIENTS_MAX):
            clients.append(stack.enter_context(connect(server)))
            pump(server, float(number))
        newest = stack.enter_context(connect(server))
        pump(server, 50.0)
        assert read(clients[0]) == {}, "the longest idle one was let go"
        for client in [*clients[1:], newest]:
            client.sendall(b'{"cmd": "ping"}\n')
        assert len(pump(server, 51.0)) == admin.CLIENTS_MAX
        with connect(server) as refused:
            pump(server, 52.0)
            assert read(refused)["error"]["code"] == "busy"


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_gets_no_answer(server: AdminServer) -> None:
    assert server.path is not None
    # Open every door that keeps others out, so that only the credentials are left.
    for directory in (server.path.parent, server.path.parent.parent):
        directory.chmod(0o711)
    server.path.chmod(0o666)
    script = (
        "import os, socket, sys; s = socket.socket(socket.AF_UNIX);"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534); s.connect(sys.argv[1]);"
        's.settimeout(20); s.sendall(b\'{"cmd": "ping"}\\n\'); print(s.recv(10))'
    )
    with subprocess.Popen(
        [sys.executable, "-I", "-c", script, str(server.path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        while process.poll() is None:
            select.select(server.sockets(), [], [], 0.05)
            assert pump(server) == []
        assert process.stdout is not None
        assert process.stderr is not None
        printed, complaint = process.stdout.read(), process.stderr.read()
    # Hung up before or after its request, but never answered.
    assert printed.strip() == b"b''" or b"Broken pipe" in complaint or b"reset" in complaint


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """As if a stranger's connections had taken all that were free."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken: list[int] = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))), hard))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in taken:
            os.close(fd)


def test_operators_are_served_when_no_descriptor_is_left(server: AdminServer) -> None:
    """T4: strangers on the TCP port may hold all others for as long as they come."""
    pump(server)
    clients = [connect(server) for _ in range(12)]
    for client in clients:
        client.sendall(api.encode_call(1, "ping"))
    listener = next(iter(server.interest()))
    with no_descriptor_left():
        requests = pump(server)
        assert len(requests) == 8, "those for whom descriptors were kept back"
        assert listener not in server.interest(), "the loop must not spin"
        assert server.next_deadline(1.0) <= 1.2
        for request in requests:
            server.answer(request.ticket, {"pid": 1})
        for client in clients[:8]:
            assert read(client)["ok"]
            client.close()
        # What they used is there for the next ones.
        assert len(pump(server, 2.0)) == 4
    for client in clients[8:]:
        client.close()
    pump(server, 3.0)
    assert listener in server.interest()
