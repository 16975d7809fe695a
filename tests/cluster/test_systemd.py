"""Both units under a real systemd: ready, watchdog, restart under load, and nothing lost.

The guest has a kernel of its own and this machine's files; what happens to it stays in it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_world import HERE, bring_up, script

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PROGRAM = HERE.parent / "e2e" / "programs" / "tasks.py"
BIN = Path(sys.executable).parent
TASKS = 40
#: Shorter than the unit's own, so that the test need not wait a minute.
QUICK = "[Service]\nWatchdogSec=4s\nRestartSec=1s\n"
SETUP = """\
set -e
useradd --system --home-dir /var/lib/jobflow jobflow
chmod o+x /root
cp '/share/jobflowd@.service' /etc/systemd/system/
mkdir '/etc/systemd/system/jobflowd@.service.d'
cp /share/quick.conf '/etc/systemd/system/jobflowd@.service.d/'
systemctl daemon-reload
install -d -m 700 -o jobflow /var/lib/jobflow
install -d -m 777 /tmp/work
install -m 644 /share/tasks.py /tmp/work/
"""
#: Somebody without rights, whose user manager lives on without a login.
USER_SETUP = """\
set -e
useradd --create-home --home-dir /tmp/ann ann
chmod o+x /root
install -d -m 777 /tmp/work
install -m 644 /share/tasks.py /tmp/work/
loginctl enable-linger ann
"""


class Guest:
    """A booted guest; commands run there as root."""

    #: Before every question to systemd.
    systemctl: tuple[str, ...] = ("systemctl",)
    journal: tuple[str, ...] = ("journalctl", "-u", "jobflowd@t1", "--no-pager")

    def __init__(self, state: str) -> None:
        self.state = state
        self.share = Path(state, "share")

    def run(self, *words: str, check: bool = True) -> str:
        argv = [str(HERE / "guest-exec"), self.state, "150", *words]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0 or not check, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout.strip()

    def as_user(self, *words: str) -> str:
        home = "/var/lib/jobflow"
        env = ("env", "-C", "/tmp/work", f"HOME={home}", f"JOBFLOW_STATE_DIR={home}")
        return self.run("runuser", "-u", "jobflow", "--", *env, *words)

    def shows(self, name: str) -> str:
        return self.run(*self.systemctl, "show", "jobflowd@t1", "-p", name, "--value")

    def signal(self, name: str) -> None:
        self.run("kill", f"-{name}", self.shows("MainPID"))

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = 90) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(
                    f"waited in vain for {what}\n{self.run(*self.journal, check=False)[-5000:]}"
                )
            # Each question is a process and a connection: asking faster helps nobody.
            time.sleep(0.3)

    def restarted(self, times: int) -> bool:
        return (self.shows("NRestarts"), self.shows("ActiveState")) == (str(times), "active")


class Lingering(Guest):
    """The same for a user's own manager."""

    def __init__(self, state: str) -> None:
        super().__init__(state)
        (self.share / "user-setup.sh").write_text(USER_SETUP)
        shutil.copy(PROGRAM, self.share)
        self.run("sh", "/share/user-setup.sh")
        uid = self.run("id", "-u", "ann")
        env = ("env", "-C", "/tmp/work", "HOME=/tmp/ann", f"XDG_RUNTIME_DIR=/run/user/{uid}")
        self._as_ann = ("runuser", "-u", "ann", "--", *env)
        self.systemctl = (*self._as_ann, "systemctl", "--user")
        self.journal = ("journalctl", f"_UID={uid}", "--no-pager")
        self.until(lambda: self.run("ls", f"/run/user/{uid}", check=False) != "", "her manager")

    def as_user(self, *words: str) -> str:
        return self.run(*self._as_ann, *words)


@pytest.fixture
def guest() -> Iterator[Guest]:
    state = f"/tmp/jfs-{os.getpid()}"
    bring_up("systemd-up", state, "-m", "900", "-p", "jfs")
    yield Guest(state)
    script("systemd-down", "-r", state)


def test_a_hung_and_a_killed_daemon_are_restarted_and_nothing_is_lost(guest: Guest) -> None:
    unit = subprocess.run(
        [str(BIN / "jobflowd"), "install-unit", "--system"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout
    assert "Type=notify" in unit
    assert "WatchdogSec=" in unit
    (guest.share / "jobflowd@.service").write_text(unit)
    (guest.share / "quick.conf").write_text(QUICK)
    (guest.share / "setup.sh").write_text(SETUP)
    shutil.copy(PROGRAM, guest.share)
    guest.run("sh", "/share/setup.sh")
    record(guest)

    # `systemctl start` returns when the daemon has said that it is ready.
    guest.run("systemctl", "start", "jobflowd@t1")
    check_life(guest)


def test_so_it_is_with_a_users_own_unit(guest: Guest) -> None:
    """`install-unit --install`, `enable-linger`: nobody is logged in while it runs."""
    ann = Lingering(guest.state)
    said = ann.as_user(str(BIN / "jobflowd"), "install-unit", "--install")
    assert "systemctl --user" in said
    unit = "/tmp/ann/.config/systemd/user/jobflowd@.service"
    assert "Type=notify" in ann.run("cat", unit)
    (ann.share / "quick.conf").write_text(QUICK)
    ann.as_user("mkdir", f"{unit}.d")
    ann.as_user("cp", "/share/quick.conf", f"{unit}.d/")
    record(ann)
    ann.run(*ann.systemctl, "daemon-reload")
    ann.run(*ann.systemctl, "start", "jobflowd@t1")
    assert "ann" in ann.run("ps", "-o", "user=", "-p", ann.shows("MainPID"))
    check_life(ann)


def record(guest: Guest) -> None:
    """Let there be a session t1 with work in it, and no daemon."""
    args = f'{{"n": {TASKS}, "spec": {{"do": "wait"}}, "gate": "gate", "log": "notes"}}'
    start = [str(BIN / "jobflowd"), "start", "--session-id", "t1", "--program", "tasks.py"]
    start += ["--program-args", args, "--workers", "2", "--heartbeat-interval", "0.5"]
    guest.as_user(*start, "--lease-duration", "5", "--detach")
    guest.as_user(str(BIN / "jobflowctl"), "-s", "t1", "shutdown", "--now", "--yes", "--wait")
    guest.as_user("rm", "-f", "notes")


def check_life(guest: Guest) -> None:
    """A started unit is ready, is killed when it hangs, starts again, and nothing is lost."""
    assert guest.shows("ActiveState") == "active"
    guest.until(lambda: f"0/{TASKS} tasks" in guest.shows("StatusText"), "its status")
    guest.until(lambda: "2 workers" in guest.shows("StatusText"), "its workers")
    guest.until(lambda: len(notes(guest)) == 2, "the first tasks")

    guest.signal("STOP")
    guest.until(lambda: guest.restarted(1), "the watchdog")
    guest.signal("KILL")
    guest.until(lambda: guest.restarted(2), "the restart")
    guest.run("touch", "/tmp/work/gate")
    guest.until(lambda: guest.shows("ActiveState") == "inactive", "the end of the run")
    assert (guest.shows("Result"), guest.shows("ExecMainStatus")) == ("success", "0")
    found = Counter(notes(guest))
    assert sum(found.values()) == 2 * TASKS
    assert set(found.values()) == {1}, "every task began once and ended once"


def notes(guest: Guest) -> list[str]:
    """`start TASK` and `end TASK`, as the tasks wrote them."""
    lines = guest.run("sh", "-c", "cat /tmp/work/notes 2>/dev/null || true").splitlines()
    return [" ".join(line.split()[:2]) for line in lines]
