"""The daemon's own limits, and that its workers do not inherit them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jobflowd.rlimits import Reserve

SCRIPT = """
import json, resource, subprocess, sys
from jobflowd import rlimits

kinds = (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE)
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
before = [resource.getrlimit(kind) for kind in kinds]
rlimits.protect()
rlimits.protect()
mine = [resource.getrlimit(kind) for kind in kinds]
child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
rlimits.give_back(child.pid)
its = [resource.prlimit(child.pid, kind) for kind in kinds]
child.communicate(b"\\n")
rlimits.give_back(child.pid)
assert mine[0][0] == min(hard, rlimits.FILES_MAX), mine
assert mine[1][0] == 0, mine
assert its == before, (its, before)
"""


def test_the_daemon_is_protected_and_its_children_are_as_the_user_was() -> None:
    subprocess.run([sys.executable, "-c", SCRIPT], check=True, cwd=Path(__file__).parents[2])


def test_a_low_limit_is_warned_about_and_a_high_one_is_not() -> None:
    script = """
import resource
from jobflowd import rlimits
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard))
(notice,) = rlimits.notices()
assert "200 files" in notice
rlimits.FILES_LOW = 200
assert rlimits.notices() == ()
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_a_reserve_gives_what_it_holds_and_takes_it_back() -> None:
    reserve = Reserve(2)
    assert not reserve.give()
    reserve.refill()
    assert [reserve.give() for _ in range(3)] == [True, True, False]
    reserve.refill()
    reserve.close()
    reserve.close()
    assert not reserve.give()
