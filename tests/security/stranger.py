"""What another user of the same host tries. Runs as that user, with the standard library only.

argv: a JSON object with `paths` (every path of the session), `pids`, `port`, `sockets`, `write_to`.
Prints one JSON list: a sentence for each thing that should have been refused and was not.
"""

import json
import os
import signal
import socket
import sys

GREETING_NULL = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + b"\0" * 32
READY = b"\x04\x26\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0"


def main():
    task = json.loads(sys.argv[1])
    wins = []
    for path in task["paths"]:
        try_path(path, wins)
    for directory in task["write_to"]:
        try_write(os.path.join(directory, "w-0123456789abcdef"), wins)
    for pid in task["pids"]:
        try_process(pid, wins)
    for path in task["sockets"]:
        try_admin(path, wins)
    try_tcp(task["port"], wins)
    sys.stdout.write(json.dumps(wins))


def read(path):
    with open(path, "rb") as file:
        if not file.read(1):
            raise OSError("empty")


def create(path):
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))


def attempt(what, wins, do, *args):
    try:
        do(*args)
    except OSError:
        return
    wins.append(what)


def try_path(path, wins):
    attempt(f"read {path}", wins, read, path)
    attempt(f"listed {path}", wins, os.listdir, path)
    attempt(f"opened {path} to write", wins, os.open, path, os.O_WRONLY | os.O_NONBLOCK)
    attempt(f"removed {path}", wins, os.unlink, path)
    attempt(f"renamed {path}", wins, os.rename, path, path + ".x")
    attempt(f"opened {path} up", wins, os.chmod, path, 0o777)
    attempt(f"linked {path}", wins, os.link, path, f"/tmp/jobflow-stolen-{os.getpid()}")


def try_write(path, wins):
    attempt(f"made {path}", wins, create, path)
    attempt(f"made the link {path}", wins, os.symlink, "/etc/passwd", path)
    attempt(f"made the FIFO {path}", wins, os.mkfifo, path)
    attempt(f"made the directory {path}", wins, os.mkdir, path)


def try_process(pid, wins):
    for name in ("environ", "mem", "maps"):
        attempt(f"read {name} of {pid}", wins, read, f"/proc/{pid}/{name}")
    for name in ("cwd", "fd"):
        attempt(f"looked into {name} of {pid}", wins, os.listdir, f"/proc/{pid}/{name}")
    for number in (0, signal.SIGTERM, signal.SIGKILL):
        attempt(f"signalled {pid}", wins, os.kill, pid, number)


def try_admin(path, wins):
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.settimeout(5)
            one.connect(path)
            one.sendall(b'{"id": 1, "cmd": "shutdown", "args": {}}\n')
            if one.recv(10):
                wins.append("was answered on " + path)
    except OSError:
        pass


def try_tcp(port, wins):
    """The port itself is open to everybody; what matters is what it says."""
    heard = b""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as one:
            one.settimeout(3)
            one.sendall(GREETING_NULL + READY + b"\x00\x05hello")
            while data := one.recv(4096):
                heard += data
    except OSError:
        pass
    if b"READY" in heard:
        wins.append("spoke in the clear with the manager")


main()
