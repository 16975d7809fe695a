"""A session on a real NFS server with two clients: guests with kernels, and caches, of their own.

The scripts of tests/cluster bring the guests up. The manager runs in one client, workers in the
other; what the tasks note goes to a directory that the guests share without NFS.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .bench import ORACLE, Verdict, judge, read_notes

CLUSTER = Path(__file__).parent.parent / "cluster"
BIN = Path(sys.executable).parent
SERVER, MANAGER, WORKERS = 100, 101, 102
#: An asynchronous server loses what it said was synced; nobody can promise anything on one.
EXPORT = "rw,sync,no_root_squash,no_subtree_check,fsid=0"
SESSION = "n1"
ROOT = f"/nfs/jf/{SESSION}"


class Nfs:
    """A server and two clients, from `up` to `down`."""

    def __init__(self, state: Path, prefix: str = "jn") -> None:
        self.state = state
        self.prefix = prefix
        self.share = state / "share"
        self._running: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        """Bring up what is not up; takes ten seconds, and longer where packages are missing.

        Raises CalledProcessError or TimeoutExpired.
        """
        exported = ("-e", EXPORT, "-p", self.prefix)
        self._script("nfs-up", *exported, str(self.state), timeout_s=300)
        shutil.copy(ORACLE, self.share / "oracle.py")

    def down(self) -> None:
        for process in self._running:
            if process.poll() is None:
                process.kill()
                process.wait()
        self._script("nfs-down", "-r", str(self.state), timeout_s=60)

    def power_cut(self, guest: int) -> None:
        """The guest is gone at once; `up` starts it again."""
        self._script("nfs-down", str(self.state), str(guest), timeout_s=60)

    def link(self, action: str, guest: int) -> None:
        """`cut` or `heal` a guest's network."""
        self._script("netns-link", "-p", self.prefix, action, str(guest), timeout_s=30)

    def _script(self, name: str, *args: str, timeout_s: float) -> None:
        subprocess.run(
            [str(CLUSTER / name), *args],
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            timeout=timeout_s,
        )

    # --- commands in guests -----------------------------------------------------------------

    def spawn(self, guest: int, name: str, *argv: str) -> subprocess.Popen[bytes]:
        """Run a command in a guest; its output goes to the shared file `name`."""
        env = [
            *("HOME=/root", "JOBFLOW_STATE_DIR=/tmp/jf-state", "XDG_RUNTIME_DIR=/run"),
            f"PYTHONPATH={CLUSTER.parent.parent}",
        ]
        line = ["env", "-C", "/share", *env, *argv]
        with (self.share / name).open("wb") as out:
            process = subprocess.Popen(
                [str(CLUSTER / "guest-exec"), str(self.state), str(guest), *line],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._running.append(process)
        return process

    def manager(self, guest: int, name: str, *flags: str, **args: Any) -> subprocess.Popen[bytes]:
        """`jobflowd start` on the NFS, in fs mode, with workers to be started by hand."""
        args = {"log": "/share/notes", **args}
        return self.spawn(
            guest,
            name,
            *(str(BIN / "jobflowd"), "start", "--program", "/share/oracle.py"),
            *("--program-args", json.dumps(args), "--session-id", SESSION),
            *("--shared-dir", "/nfs/jf", "--mode", "fs", "--launcher", "none", *flags),
        )

    def worker(self, guest: int, name: str, *flags: str) -> subprocess.Popen[bytes]:
        argv = (str(BIN / "jobflow-worker"), "--session", ROOT, "--mode", "fs", *flags)
        return self.spawn(guest, name, *argv)

    def run(self, guest: int, *argv: str) -> str:
        """A short command in a guest; its stdout. Raises CalledProcessError."""
        done = subprocess.run(
            [str(CLUSTER / "guest-exec"), str(self.state), str(guest), *argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=True,
            timeout=60,
            text=True,
        )
        return done.stdout

    # --- questions ----------------------------------------------------------------------------

    def ends(self) -> int:
        """How many attempts have noted their end."""
        return sum(one.word == "end" for one in read_notes(self.share / "notes"))

    def printed(self) -> str:
        """Everything that was printed, for the message of a failure."""
        texts = [
            f"--- {path.name}\n{path.read_text(errors='replace')[-3000:]}"
            for path in sorted(self.share.glob("*.out"))
        ]
        return "\n".join(texts)

    def until(self, condition: Callable[[], Any], what: str, timeout_s: float = 90.0) -> None:
        """Wait until it is true. Raises AssertionError."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {timeout_s:g} s for {what}\n{self.printed()}")
            time.sleep(0.2)

    def verdict(self, n: int) -> Verdict:
        """Judge by a copy of the database, with its log if that was left."""
        self.run(MANAGER, "sh", "-c", f"cp {ROOT}/manager.db* /share/")
        return judge(self.share / "manager.db", read_notes(self.share / "notes"), n)
