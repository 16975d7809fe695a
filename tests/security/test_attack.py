"""A session under attack: other users, unauthenticated peers, impostors, planted files."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import psutil
import pytest
import zmq
from attacked import World, is_alive, kill
from peers import frame, keys, link_to, pair, register, said, until
from test_gate import fake_refuser

from jobflow_worker.keyfile import KeyFile, read_key_file
from jobflow_worker.messages import HAND, Finished, TaskFinished, Usage
from jobflow_worker.sessionfiles import Beacon, SessionPaths, read_beacon, write_private
from jobflow_worker.transport import mailfile
from jobflowd.api import socket_paths
from jobflowd.zmqserver import CurveServer, ZmqServer

pytestmark = pytest.mark.slow

WAIT = {"do": "wait"}
NOBODY = 65534


@pytest.fixture(name="world")
def _world(
    no_processes_left: None,
    cli: Any,
    session_env: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    """A session to attack. The test's own process sees the same directories."""
    for name in ("HOME", "XDG_STATE_HOME", "XDG_RUNTIME_DIR", "JOBFLOW_STATE_DIR"):
        monkeypatch.setenv(name, session_env[name])
    return World(cli, tmp_path)


def beacon_of(world: World) -> Beacon:
    found = read_beacon(world.root / "beacon.json")
    assert found is not None
    return found


def port_of(world: World) -> int:
    return int(beacon_of(world).endpoints[0].rpartition(":")[2])


def processes_of(world: World) -> list[psutil.Process]:
    """Every process of the session: they carry the test's mark in their environment."""
    mark = world.cli.env["JOBFLOW_TEST_ID"]
    found = []
    for one in psutil.process_iter():
        try:
            if one.environ().get("JOBFLOW_TEST_ID") == mark:
                found.append(one)
        except psutil.Error:
            continue
    return found


def secrets_of(world: World) -> dict[str, str]:
    """Every secret key of the session, by its file."""
    found = {}
    for path in (world.root / "keys").glob("*.key"):
        values = json.loads(path.read_text())
        words = ("client_secret", "server_secret", "mail_secret")
        found[path.name] = next(values[word] for word in words if word in values)
    return found


# --- strangers on the network -----------------------------------------------------------------


def test_nobody_without_a_key_of_ours_reaches_the_core(world: World) -> None:
    """T1: unknown key, no key, plaintext; and the run does not notice."""
    daemon = world.start("--workers", "1", n=3, spec=WAIT)
    world.until_running(1)
    endpoint, public = beacon_of(world).endpoints[0], beacon_of(world).server_public
    assert public is not None
    message = said(register(), sender="w-00000000deadbeef")
    with ExitStack() as stack:
        links = [
            stack.enter_context(closing(link_to(endpoint, with_keys, "w-00000000deadbeef")))
            for with_keys in (None, keys(public.encode()), keys(pair()[0]))
        ]
        for link in links:
            link.send([message], lambda: [message])
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline:
            assert not [one for link in links for one in link.receive().envelopes]
            time.sleep(0.02)
        assert links[1].refused
        assert not any(link.heard for link in links)
    assert len(world.workers()) == 1
    world.open_gate()
    world.ended(daemon, 0)
    log = world.text_of_log()
    assert "evil" not in log
    assert log.count("refused a client whose key is not of this session") == 1, "it is rate-limited"


def flood(port: int, stop: threading.Event) -> None:
    """Half-open, garbage and wrong-mechanism connections, as fast as they go, 300 at a time."""
    greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
    payloads = (b"", b"\0", greeting, os.urandom(2000), b"GET / HTTP/1.0\r\n\r\n", greeting * 50)
    number = 0
    held: list[socket.socket] = []
    while not stop.is_set():
        number += 1
        try:
            one = socket.create_connection(("127.0.0.1", port), 1)
            one.setblocking(False)
            held.append(one)
            one.send(payloads[number % len(payloads)] or b"\xff")
        except OSError:
            pass
        if len(held) > 300:
            held.pop(0).close()
        time.sleep(0.002)
    for one in held:
        one.close()


def test_a_flood_of_strangers_does_not_stop_a_run(world: World) -> None:
    """T4, and with few descriptors: the daemon's own files must still open."""
    daemon = world.start("--workers", "2", n=60, spec={"do": "sleep", "s": 0.05})
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (150, hard))
    stop = threading.Event()
    attacker = threading.Thread(target=flood, args=(port_of(world), stop), daemon=True)
    attacker.start()
    try:
        world.until(lambda: len(world.notes("end")) >= 55, "the run under attack", 40)
        assert world.ask("ping")["pid"] == daemon.process.pid, "operators are served"
    finally:
        stop.set()
        attacker.join()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}
    assert "Traceback" not in world.text_of_log()


def test_a_run_outlasts_hundreds_of_stalled_connections(world: World) -> None:
    """T4: 500 that say nothing, and descriptors for a hundred. Who is connected works on."""
    daemon = world.start("--workers", "2", n=200, spec={"do": "sleep", "s": 0.1})
    world.until(lambda: len(world.notes("end")) >= 5, "both workers at work")
    world.until(lambda: len(world.workers()) == 2, "both workers")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.prlimit(daemon.process.pid, resource.RLIMIT_NOFILE, (100, hard))
    port, fds = port_of(world), Path(f"/proc/{daemon.process.pid}/fd")
    with ExitStack() as stack:
        for _ in range(500):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5))
            one.setblocking(False)
        world.until(lambda: len(list(fds.iterdir())) >= 100, "no descriptor to be left", 10)
        before = len(world.notes("end"))
        world.until(lambda: len(world.notes("end")) >= before + 30, "work under attack")
        assert len(list(fds.iterdir())) >= 90, "the attack is still on"
    world.until(lambda: world.ask("status")["tasks"]["total"] == 200, "an answer after it", 30)
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}
    assert "Traceback" not in world.text_of_log()


def test_a_worker_that_sends_bombs_hurts_only_itself(world: World) -> None:
    """T11, T24: an authenticated peer gone mad. Memory stays bounded, the others go on."""
    daemon = world.start("--workers", "1", n=40, spec={"do": "sleep", "s": 0.05})
    mine = read_key_file(world.root / "keys" / "hand.key").curve()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.LINGER, 0)
    sock.curve_serverkey, sock.curve_publickey = mine.server_public, mine.public
    sock.curve_secretkey = mine.secret
    sock.connect(beacon_of(world).endpoints[0])
    wide = b"\xdc\x27\x10" + b"\x80" * 10_000
    bomb = b"\xdc" + (400).to_bytes(2, "big") + wide * 400
    process = psutil.Process(daemon.process.pid)
    peak = 0
    for number in range(150):
        try:
            sock.send(bomb if number % 2 else os.urandom(100_000), zmq.DONTWAIT)
        except zmq.Again:
            time.sleep(0.01)
        peak = max(peak, process.memory_info().rss)
    sock.send(frame(register("jf-not-mine-1"), sender="w-00000000deadbeef"))
    world.until(lambda: len(world.notes("end")) >= 38, "the run beside the bombs", 60)
    peak = max(peak, process.memory_info().rss)
    sock.close()
    context.term()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}
    assert peak < 800 * 2**20, f"{peak / 2**20:.0f} MiB"


@pytest.mark.parametrize("kind", ["own key", "plaintext", "claims a refusal"])
def test_an_impostor_on_a_dead_managers_port_gets_nothing(world: World, kind: str) -> None:
    """T2: the daemon dies, somebody else listens there; then it comes back on another port."""
    daemon = world.start("--workers", "1", n=4, spec=WAIT)
    world.until_running(1)
    port, public = port_of(world), beacon_of(world).server_public
    worker = world.workers()[0]["pid"]
    kill(daemon.process.pid)
    daemon.process.wait()
    with ExitStack() as stack:
        if kind == "claims a refusal":
            # The port may still be busy for a moment with what the daemon left.
            until(lambda: _listens(stack, port), "the port")
        else:
            curve = CurveServer(*pair()) if kind == "own key" else None
            impostor = stack.enter_context(closing(ZmqServer("127.0.0.1", port, curve)))
            until(lambda: _bound(impostor, port), "the port")
            deadline = time.monotonic() + 6
            while time.monotonic() < deadline:
                assert not impostor.receive(100).items
                time.sleep(0.05)
        output = next((world.root / "launches").glob("*/output"))
        world.until(lambda: "127.0.0.1" in output.read_text(), "the worker's complaint")
        assert is_alive(worker), "a claim of an impostor is no reason to leave"
        again = world.again()
        assert port_of(world) != port
        assert beacon_of(world).server_public == public
        world.until(lambda: [w["pid"] for w in world.workers()] == [worker], "the survivor")
        world.open_gate()
        world.ended(again, 0)
    assert set(world.started().values()) == {1}


def _bound(server: ZmqServer, port: int) -> bool:
    server.bind()
    return server.port == port


def _listens(stack: ExitStack, port: int) -> bool:
    try:
        stack.enter_context(closing(fake_refuser(port)))
    except OSError:
        return False
    return True


# --- keys in a real run -----------------------------------------------------------------------


def test_a_restart_keeps_port_and_keys_and_lets_survivors_in(world: World) -> None:
    daemon = world.start("--workers", "2", n=4, spec=WAIT)
    world.until_running(2)
    before, pids = secrets_of(world), {one["pid"] for one in world.workers()}
    first = beacon_of(world)
    kill(daemon.process.pid)
    daemon.process.wait()
    again = world.again()
    second = beacon_of(world)
    assert (second.server_public, second.endpoints) == (first.server_public, first.endpoints)
    assert secrets_of(world) == before
    world.until(lambda: {one["pid"] for one in world.workers()} == pids, "both survivors")
    world.open_gate()
    world.ended(again, 0)
    assert set(world.started().values()) == {1}


def test_keys_go_with_their_launch_and_with_the_run(world: World) -> None:
    """T5."""
    daemon = world.start("--workers", "2", n=6, spec=WAIT)
    world.until_running(2)
    assert len(secrets_of(world)) == 5
    world.ctl("scale", "1")
    world.until(lambda: len(secrets_of(world)) == 4, "one key less", 30)
    world.open_gate()
    world.ended(daemon, 0)
    assert set(secrets_of(world)) == {"server.key", "mail.key"}


@pytest.mark.parametrize("how", ["unknown", "open"])
def test_a_worker_whose_key_is_no_good_leaves_with_77(world: World, how: str) -> None:
    daemon = world.start("--launcher", "none", n=1)
    path = world.root / "keys" / "hand.key"
    if how == "open":
        path.chmod(0o640)
    else:
        good = read_key_file(path)
        public, secret = pair()
        other = KeyFile(good.session, HAND, good.server_public, public.decode(), secret.decode())
        path.write_bytes(other.encode())
    worker = world.worker("--mode", "zmq")
    text = world.ended(worker, 77, 30)
    assert ("open to others" if how == "open" else "refuses this worker's key") in text
    daemon.process.send_signal(signal.SIGINT)
    world.ended(daemon, 4)


def test_a_start_with_keys_that_others_could_read_is_refused(world: World) -> None:
    daemon = world.start("--workers", "1", n=2, spec=WAIT)
    kill(daemon.process.pid)
    daemon.process.wait()
    (world.root / "keys" / "server.key").chmod(0o644)
    found = world.cli.run("jobflowd", "start", "--session-id", world.name, code=77)
    assert "open to others" in found.stderr
    for path in (world.root / "keys").iterdir():
        path.unlink()
    world.open_gate()
    world.ended(world.again(), 0, 60)


def test_a_worker_without_the_session_directory_needs_the_key_file(world: World) -> None:
    daemon = world.start("--launcher", "none", n=3)
    where = [
        "--mode", "zmq", "--manager-host", "127.0.0.1", "--port", str(port_of(world)),
        "--program", str(world.program), "--program-args", json.dumps({"log": str(world.log)}),
    ]  # fmt: skip
    refused = world.cli.run("jobflow-worker", *where, code=77)
    assert "--key-file" in refused.stderr
    copy = world.dir / "copy.key"
    copy.write_bytes((world.root / "keys" / "hand.key").read_bytes())
    copy.chmod(0o600)
    worker = world.cli.spawn("jobflow-worker", *where, "--key-file", str(copy))
    world.ended(daemon, 0)
    world.ended(worker, 0)


def test_plaintext_is_said_at_every_start_and_in_status(world: World) -> None:
    daemon = world.start("--workers", "1", "--insecure-plaintext", n=1, spec=WAIT)
    assert beacon_of(world).server_public is None
    assert any("--insecure-plaintext" in one for one in world.ctl("status")["warnings"])
    assert "--insecure-plaintext" in world.cli.run("jobflowctl", "-s", "t1", "status").stdout
    assert set(secrets_of(world)) == {"mail.key"}
    kill(daemon.process.pid)
    daemon.process.wait()
    again = world.again("--insecure-plaintext")
    world.open_gate()
    text = world.ended(again, 0)
    assert "run code as you" in text
    assert world.text_of_log().count("run code as you") == 2


def test_from_plaintext_to_keys_and_back_workers_follow(world: World) -> None:
    """The flag is a choice of each start. Survivors learn it from the beacon, in both ways."""
    daemon = world.start("--workers", "1", "--insecure-plaintext", n=2, spec=WAIT)
    world.until_running(1)
    pid = world.workers()[0]["pid"]
    for flags in ((), ("--insecure-plaintext",)):
        kill(daemon.process.pid)
        daemon.process.wait()
        daemon = world.again(*flags)
        assert (beacon_of(world).server_public is None) == bool(flags)
        world.until(lambda: [w["pid"] for w in world.workers()] == [pid], "the survivor", 40)
    world.open_gate()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}


# --- what can be seen -------------------------------------------------------------------------


#: Stands for what people put into their program's arguments.
TOKEN = "token-4f1d6a9e-of-the-program"


def test_key_material_is_nowhere_but_in_the_key_files(world: World) -> None:
    """T8, T20: arguments, environments, logs, database, launches, snapshots, tracebacks."""
    once = {"limits": {"max_retries": 0}}
    tasks = [{}, {"do": "error", **once}, {"do": "os_exit", **once}, {"do": "never"}, WAIT, WAIT]
    daemon = world.start("--workers", "2", "--telemetry-mode", "file", tasks=tasks, token=TOKEN)
    world.until_running(2)
    secrets = secrets_of(world)
    assert len(secrets) == 5
    seen: dict[str, bytes] = {}
    processes = processes_of(world)
    assert len(processes) >= 5
    for one in processes:
        for name in ("cmdline", "environ"):
            seen[f"{one.pid} {name}"] = Path(f"/proc/{one.pid}/{name}").read_bytes()
    for verb in (["status"], ["tasks"], ["workers"], ["launches"], ["events"], ["snapshot"]):
        seen[" ".join(verb)] = json.dumps(world.ask(*verb)).encode()
    workers = [text for name, text in seen.items() if "cmdline" in name and b"launch-id" in text]
    assert workers
    assert not [text for text in workers if str(world.log).encode() in text], "no program args"
    kill(world.workers()[0]["pid"])
    world.open_gate()
    world.ended(daemon, 3)
    for path in world.dir.rglob("*"):
        if path.is_file() and path.suffix != ".key":
            seen[str(path)] = path.read_bytes()
    assert any("manager.db.log" in name for name in seen)
    found = [
        f"{name} of {key}"
        for name, text in seen.items()
        for key, secret in secrets.items()
        if secret.encode() in text or json.dumps(secret)[1:-1].encode() in text
    ]
    assert not found
    told = {name for name, text in seen.items() if TOKEN.encode() in text}
    typed = f"{daemon.process.pid} cmdline"
    assert told <= {typed, str(world.root / "session.json")}, "program args are for the program"


def test_nothing_is_open_to_others_under_umask_000(world: World) -> None:
    """T7: files, directories and sockets, while it runs and afterwards."""
    before = os.umask(0)
    try:
        daemon = world.start(
            "--workers", "1", "--telemetry-mode", "file", mode="auto",
            tasks=[{"do": "big", "bytes": 100_000}, {"do": "error"}, WAIT],
        )  # fmt: skip
        by_file = world.worker("--mode", "fs")
    finally:
        os.umask(before)
    world.until(lambda: len(world.workers()) == 2, "both workers")
    open_now = open_to_others(world)
    sockets = [path for path in socket_paths(world.root) if path.exists()]
    assert [stat.S_IMODE(path.stat().st_mode) for path in sockets] == [0o600]
    world.open_gate()
    world.ended(daemon, 3, 60)
    world.ended(by_file, 0)
    assert not open_now + open_to_others(world)


def open_to_others(world: World) -> list[str]:
    """What a stranger may touch, of all that jobflow made."""
    roots = [Path(world.cli.env[name]) for name in ("JOBFLOW_STATE_DIR", "XDG_RUNTIME_DIR")]
    found = []
    for root in roots:
        for path in [root, *root.rglob("*")]:
            try:
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue
            if mode & 0o077 and not stat.S_ISLNK(mode):
                found.append(f"{path} {stat.S_IMODE(mode):04o}")
    return found


@pytest.fixture
def open_world(world: World) -> Iterator[World]:
    """The same session in a place that every user of the host can walk to."""
    place = Path(
        subprocess.check_output(["mktemp", "-d", "/tmp/jf-open-XXXXXX"], text=True).strip()
    )
    (place / "jobflow" / "sessions").mkdir(parents=True)
    for one in (place, place / "jobflow", place / "jobflow" / "sessions"):
        one.chmod(0o755)
    world.cli.env["JOBFLOW_STATE_DIR"] = str(place / "jobflow")
    os.environ["JOBFLOW_STATE_DIR"] = str(place / "jobflow")  # Undone with the fixture `world`.
    runtime = Path(world.cli.env["XDG_RUNTIME_DIR"])
    runtime.chmod(0o755)
    yield world
    shutil.rmtree(place)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_another_user_gets_nothing(open_world: World, require: Any) -> None:
    """T1, T6, T7, T14, T16: read, list, write, plant, signal, ask, connect; as another uid."""
    require("setpriv")
    if not os.access("/usr/bin/python3", os.X_OK):
        pytest.skip("another user needs a Python that it can run")
    world = open_world
    daemon = world.start("--workers", "1", mode="auto", n=2, spec=WAIT)
    world.until_running(1)
    root = world.root
    directories = [root, *(path for path in root.rglob("*") if path.is_dir())]
    task = {
        "paths": [str(root), *map(str, root.rglob("*"))],
        "write_to": [*map(str, directories), str(root.parent), str(root.parent.parent)],
        "pids": [one.pid for one in processes_of(world)],
        "sockets": [str(path) for path in socket_paths(root)],
        "port": port_of(world),
    }
    assert len(task["paths"]) > 15
    found = subprocess.run(
        ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups",
         "/usr/bin/python3", "-I", "-", json.dumps(task)],
        input=(Path(__file__).parent / "stranger.py").read_text(),
        capture_output=True, text=True, timeout=60, check=False, cwd="/",
    )  # fmt: skip
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout) == []
    world.open_gate()
    world.ended(daemon, 0)
    assert set(world.started().values()) == {1}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
@pytest.mark.parametrize("wrong", ["another user's", "open", "a link"])
def test_a_prepared_session_directory_is_refused(world: World, wrong: str) -> None:
    """T6, T15: whoever made it, or may write in it, could have put anything there."""
    world.root.parent.mkdir(parents=True, mode=0o700)
    if wrong == "a link":
        (world.dir / "elsewhere").mkdir(mode=0o700)
        world.root.symlink_to(world.dir / "elsewhere")
    else:
        world.root.mkdir(mode=0o700)
        if wrong == "open":
            world.root.chmod(0o770)
        else:
            os.chown(world.root, NOBODY, NOBODY)
    found = world.cli.run("jobflowd", *world.flags(n=1), code=77)
    assert str(world.root) in found.stderr
    assert not (world.dir / "elsewhere" / "session.json").exists()


def test_it_listens_where_it_says_and_nowhere_else(world: World) -> None:
    """T4, T22: one TCP port on loopback for local workers, one private socket; no metrics port."""
    daemon = world.start("--workers", "1", mode="auto", n=1, spec=WAIT)
    world.until_running(1)
    tcp, unix = [], []
    for one in processes_of(world):
        for link in one.net_connections("inet"):
            if link.status == psutil.CONN_LISTEN:
                tcp.append((link.laddr.ip.removeprefix("::ffff:"), link.laddr.port))
        unix += [link.laddr for link in one.net_connections("unix") if link.laddr]
    assert tcp == [("127.0.0.1", port_of(world))]
    ours = {str(path) for path in socket_paths(world.root)}
    assert set(unix) <= ours | {""}, "no other named or abstract socket"
    world.open_gate()
    world.ended(daemon, 0)


# --- what is planted --------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fs", "auto"])
def test_planted_names_links_and_fifos_stop_nothing(world: World, mode: str) -> None:
    """T14, T15: somebody with a shared directory by mistake, or a broken copy of one."""
    target = world.dir / "precious"
    target.write_text("precious")
    daemon = world.start("--workers", "1", mode=mode, n=3, spec=WAIT)
    world.until_running(1)
    paths = SessionPaths(world.root)
    strange = ["..", "x" * 200, "a b", "\x1b[31mred", "w-0123456789abcdef", "evil\n2020 forged"]
    for directory in (paths.mail_new, paths.mail_in, paths.mail_out, paths.spool, paths.results):
        for number, name in enumerate(strange):
            plant(directory / name if name != ".." else directory / "...", number, target)
        (directory / f"w-{os.urandom(8).hex()}").symlink_to(target)
        os.mkfifo(directory / f"w-{os.urandom(8).hex()}", 0o600)
        (directory / f"w-{os.urandom(8).hex()}").mkdir()
        large = directory / f"w-{os.urandom(8).hex()}"
        large.touch()
        os.truncate(large, 1 << 33)
    world.until(lambda: list(paths.quarantine.iterdir()), "the quarantine")
    world.until(lambda: "foreign files" in " ".join(world.ctl("status")["warnings"]), "status")
    assert world.ask("ping")["pid"] == daemon.process.pid
    world.open_gate()
    world.ended(daemon, 0, 60)
    assert set(world.started().values()) == {1}
    kept = sorted(one.name for one in paths.quarantine.iterdir())
    assert not [one for one in kept if not re.fullmatch(r"[A-Za-z0-9._-]+", one)]
    assert {"new-evil_2020_forged", "new-a_b"} <= {one.partition("-")[2] for one in kept}
    assert target.read_text() == "precious"
    log = world.text_of_log()
    assert "Traceback" not in log
    assert "\x1b" not in log
    assert "\n2020 forged" not in log
    assert "a foreign file was moved to" in log


def test_forged_mailboxes_are_not_believed_and_go_to_quarantine(world: World) -> None:
    """T15: this user's own files, whole and well-formed, but without the session's seal."""
    flags = ("--workers", "1", "--heartbeat-interval", "0.5")
    daemon = world.start(*flags, mode="fs", n=2, spec=WAIT)
    world.until_running(1)
    paths = SessionPaths(world.root)
    real = world.workers()[0]["worker_id"]
    (task,) = world.until(lambda: world.workers()[0]["running"], "the report")
    usage = Usage(0.0, 0.0, 0)
    lie = TaskFinished(0, (Finished(task, 1, b"\x80", None, usage, "forged"),))
    for number, sender in enumerate((real, "w-00000000deadbeef")):
        data = mailfile.pack([frame(lie, sender=sender)], 7, mailfile.FLOW)
        if number:
            data = mailfile.Seal(os.urandom(20)).put(data, f"in/{sender}")
        write_private(paths.mail_in / sender, data)
        write_private(paths.mail_new / sender, b"")
    names = {"in-w-00000000deadbeef"}
    world.until(
        lambda: names <= {one.name.partition("-")[2] for one in paths.quarantine.iterdir()},
        "the quarantine",
    )
    # The real worker's next report took its own place again.
    assert [one["worker_id"] for one in world.workers()] == [real]
    assert world.tasks()["succeeded"] == 0
    world.open_gate()
    world.ended(daemon, 0, 60)
    assert set(world.started().values()) == {1}


def plant(path: Path, number: int, target: Path) -> None:
    """Something of a wrong kind under this name."""
    if number % 3 == 0:
        path.symlink_to(target)
    elif number % 3 == 1:
        os.mkfifo(path, 0o600)
    else:
        path.write_bytes(os.urandom(500))


def test_modules_in_the_current_directory_are_not_imported(world: World) -> None:
    """T19: `zmq.py` in a shared directory must not run as whoever works there."""
    evil = world.dir / "evil"
    evil.mkdir()
    marker = world.dir / "was-imported"
    text = f"open({str(marker)!r}, 'a').write(__name__ + '\\n')\nraise SystemExit(99)\n"
    names = [
        "zmq", "msgpack", "psutil", "typer", "click", "rich", "json", "socket", "subprocess",
        "sqlite3", "tomli", "jobflowd", "jobflow_worker", "jobflowctl", "sitecustomize",
        "usercustomize", "textual",
    ]  # fmt: skip
    for name in names:
        (evil / f"{name}.py").write_text(text)
    # The program's own folder comes last on the path, so it shadows nothing either.
    program = evil / "tasks.py"
    program.write_text(world.program.read_text())
    world.program = program
    cli = world.cli
    home, cli.cwd = cli.cwd, evil
    try:
        daemon = world.start("--workers", "1", mode="auto", n=2, spec=WAIT)
        by_hand = world.worker()
        world.until_running(2)
        world.ctl("status")
        cli.run("jobflowd", "--version")
        cli.run("jobflowd", "config", "show")
        world.open_gate()
        world.ended(daemon, 0)
        world.ended(by_hand, 0)
    finally:
        cli.cwd = home
    assert not marker.exists(), marker.read_text()


def test_a_program_that_everybody_can_change_is_warned_about(world: World) -> None:
    """T19."""
    world.program.chmod(0o666)
    found = world.run("--workers", "1", n=1)
    assert "can be written by everybody" in found.stderr
    world.program.chmod(0o644)
    assert "can be written by everybody" not in world.run("--fresh", n=1).stderr


# --- what is shown ----------------------------------------------------------------------------

EVIL = "\x1b]0;owned\x07\x1b[2J\u202egnp.exe\x9b31m\r\nFAKE 12:00 ended code=0"


def test_evil_words_reach_no_terminal_and_forge_no_line(world: World) -> None:
    """T17: task ids, errors, output and labels with escape sequences, through every view."""
    once = {"limits": {"max_retries": 0}}
    refused = world.run("--workers", "1", code=65, tasks=[{"id": "evil\u202e\x1b[31m"}])
    tasks: list[dict[str, Any]] = [{"do": "evil_error", **once}, {}]
    text = world.program.read_text() + (
        "\n    def evil_error(self, spec, progress_cb):\n"
        f"        print({EVIL!r}, flush=True)\n"
        f"        raise ValueError({EVIL!r})\n"
    )
    world.program.write_text(text)
    daemon = world.start("--workers", "1", "--stay", "--fresh", tasks=tasks)
    world.until(lambda: world.tasks()["failed"] == 1, "the failure")
    shown = [refused.stdout, refused.stderr]
    for verb in (
        ["status"], ["tasks"], ["tasks", "--state", "failed"], ["task", "t00000"],
        ["events"], ["workers"], ["launches"],
    ):  # fmt: skip
        found = world.cli.run("jobflowctl", "-s", "t1", *verb, code=None)
        shown += [found.stdout, found.stderr]
    daemon.process.send_signal(signal.SIGINT)
    daemon.process.wait(30)
    shown += [daemon.stderr.read_text(), daemon.stdout.read_text(), world.text_of_log()]
    shown.append(next((world.root / "launches").glob("*/output")).read_text())
    for text in shown:
        assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", text), text
        assert not re.search(r"^FAKE 12:00", text, re.MULTILINE), text
