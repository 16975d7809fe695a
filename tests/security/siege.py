"""What an attack on the port costs a running session: throughput besieged, as a ratio to quiet.

    python -m tests.security.siege --seconds 8                   every attack, twice
    python -m tests.security.siege --only stalled --files 256    with few descriptors

One session runs all the time; phases without and with an attack take turns, so that what else the
machine does weighs on both. The tasks do nothing: there is nothing to see but the daemon. What an
attacker's own process costs on a small machine is part of the ratio, so each attack is also run
against a port of nobody, and that ratio is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __package__:  # `python -m` from the root of the checkout
    sys.path.insert(0, str(Path(__file__).parent))

import zmq
from peers import beat, frame

from jobflow_worker.keyfile import read_key_file
from jobflow_worker.sessionfiles import read_beacon
from jobflowd.api import connect_unix, encode_call, socket_paths

PROGRAM = """
from jobflow_worker import TaskDefinition, TaskProgram

class Idle(TaskProgram):
    def generate_tasks(self):
        for n in range(self.program_args["n"]):
            yield TaskDefinition(f"t{n}", {})

    def execute_task(self, spec, progress_cb):
        return {}
"""
GREETING = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\0" * 32
#: How many connections an attacker holds, and how many it makes in a second.
HELD = 500
PER_S = 500


def stalled(port: int, stop: threading.Event, root: Path) -> None:
    """Connections that say nothing, or half a greeting, and stay."""
    _connects(port, stop, (b"", GREETING[:11]))


def garbage(port: int, stop: threading.Event, root: Path) -> None:
    """Noise, another protocol, and a greeting that is followed by noise."""
    _connects(port, stop, (os.urandom(2000), b"GET / HTTP/1.0\r\n\r\n", GREETING + b"\xff" * 500))


def _connects(port: int, stop: threading.Event, payloads: tuple[bytes, ...]) -> None:
    held: list[socket.socket] = []
    number = 0
    while not stop.wait(1 / PER_S):
        number += 1
        try:
            one = socket.create_connection(("127.0.0.1", port), 1)
            one.setblocking(False)
            held.append(one)
            one.send(payloads[number % len(payloads)])
        except OSError:
            pass
        if len(held) > HELD:
            held.pop(0).close()
    for one in held:
        one.close()


def unlisted(port: int, stop: threading.Event, root: Path) -> None:
    """Whole handshakes with keys of nobody: each costs the daemon key agreement and an answer."""
    beacon = read_beacon(root / "beacon.json")
    assert beacon is not None
    assert beacon.server_public is not None
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    held: list[zmq.Socket[bytes]] = []
    while not stop.wait(0.005):
        one = context.socket(zmq.DEALER)
        one.setsockopt(zmq.LINGER, 0)
        one.curve_serverkey = beacon.server_public.encode()
        one.curve_publickey, one.curve_secretkey = zmq.curve_keypair()
        one.connect(f"tcp://127.0.0.1:{port}")
        held.append(one)
        if len(held) > 50:
            held.pop(0).close()
    for one in held:
        one.close()
    context.term()


def mad_friend(port: int, stop: threading.Event, root: Path) -> None:
    """A peer with a good key that reports without end, as fast as the socket takes it (T5)."""
    keys = read_key_file(root / "keys" / "hand.key").curve()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sock = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.LINGER, 0)
    sock.curve_serverkey, sock.curve_publickey = keys.server_public, keys.public
    sock.curve_secretkey = keys.secret
    sock.connect(f"tcp://127.0.0.1:{port}")
    message = frame(beat(), sender="w-00000000deadbeef")
    while not stop.is_set():
        try:
            sock.send(message, zmq.DONTWAIT)
        except zmq.Again:
            sock.poll(50, zmq.POLLOUT)
    sock.close()
    context.term()


ATTACKS: dict[str, Callable[[int, threading.Event, Path], None]] = {
    "stalled": stalled,
    "garbage": garbage,
    "unlisted": unlisted,
    "mad-friend": mad_friend,
}


class Besieged:
    """A session that always has work."""

    def __init__(self, directory: Path, files: int | None, n: int) -> None:
        self.root = directory / "state" / "sessions" / "siege"
        program = directory / "idle.py"
        program.write_text(PROGRAM)
        self.env = {**os.environ, "JOBFLOW_STATE_DIR": str(directory / "state")}
        os.environ["JOBFLOW_STATE_DIR"] = self.env["JOBFLOW_STATE_DIR"]
        self.log = (directory / "stderr").open("wb")
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "jobflowd", "start", "--program", str(program)),
                *("--program-args", json.dumps({"n": n}), "--session-id", "siege"),
                *("--mode", "zmq", "--workers", "2", "--heartbeat-interval", "2"),
            ],
            env=self.env,
            stdout=self.log,
            stderr=self.log,
        )
        self.until(lambda: self.done() > 200, "the first tasks")
        if files is not None:
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.prlimit(self.process.pid, resource.RLIMIT_NOFILE, (files, hard))

    def until(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + 60
        while True:
            try:
                if condition():
                    return
            except OSError:
                pass
            if time.monotonic() > deadline or self.process.poll() is not None:
                raise SystemExit(f"waited in vain for {what}; see {self.log.name}")
            time.sleep(0.05)

    def status(self) -> dict[str, Any]:
        error: OSError = FileNotFoundError(str(self.root))
        for path in socket_paths(self.root):
            try:
                connection = connect_unix(path, timeout_s=15)
            except OSError as found:
                error = found
                continue
            with connection, connection.makefile() as lines:
                connection.sendall(encode_call(1, "status", {}))
                body: dict[str, Any] = json.loads(lines.readline())
                if body.get("error"):
                    raise OSError(str(body["error"]))
                return dict(body.get("body", body))
        raise error

    def done(self) -> int:
        return int(self.status()["tasks"]["succeeded"])

    def rate(self, seconds: float) -> float:
        """Tasks a second, over this time."""
        began, before = time.monotonic(), self.done()
        time.sleep(seconds)
        return (self.done() - before) / (time.monotonic() - began)

    def port(self) -> int:
        beacon = read_beacon(self.root / "beacon.json")
        assert beacon is not None
        return int(beacon.endpoints[0].rpartition(":")[2])

    def close(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        self.log.close()


def under(attack: str, port: int, besieged: Besieged, seconds: float) -> float:
    """The rate while the attack runs, in a process of its own, against this port."""
    pid = os.fork()
    if pid == 0:
        stop = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: stop.set())
        os.nice(5)
        ATTACKS[attack](port, stop, besieged.root)
        os._exit(0)
    try:
        time.sleep(1)
        return besieged.rate(seconds)
    finally:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)


def besiege(besieged: Besieged, attack: str, seconds: float, rounds: int) -> dict[str, float]:
    """Medians of the ratios to the quiet phases before and after."""
    ratios: dict[str, list[float]] = {"daemon": [], "nobody": []}
    with socket.socket() as silent:
        # A port that is listened on, and whose owner never looks.
        silent.bind(("127.0.0.1", 0))
        silent.listen(4096)
        where = {"daemon": besieged.port(), "nobody": silent.getsockname()[1]}
        for _ in range(rounds):
            for target, port in where.items():
                before = besieged.rate(seconds / 2)
                during = under(attack, port, besieged, seconds)
                quiet = (before + besieged.rate(seconds / 2)) / 2
                ratios[target].append(during / quiet)
    return {target: statistics.median(found) for target, found in ratios.items()}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="What an attack costs a running session.")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", choices=list(ATTACKS))
    parser.add_argument("--files", type=int, help="the daemon's limit of open files")
    args = parser.parse_args()
    chosen = [args.only] if args.only else list(ATTACKS)
    with tempfile.TemporaryDirectory(prefix="jobflow-siege-") as directory:
        besieged = Besieged(Path(directory), args.files, 3_000_000)
        try:
            sys.stdout.write(f"quiet {besieged.rate(args.seconds):,.0f} tasks/s\n")
            for attack in chosen:
                found = besiege(besieged, attack, args.seconds, args.rounds)
                line = f"{attack:<12} {found['daemon']:.2f} of quiet"
                sys.stdout.write(f"{line}   (same load, port of nobody: {found['nobody']:.2f})\n")
                sys.stdout.flush()
            tasks = besieged.status()["tasks"]
            sys.stdout.write(f"{tasks['succeeded']:,} succeeded, {tasks['failed']} failed\n")
        finally:
            besieged.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
