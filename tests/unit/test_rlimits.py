"""The daemon's own limits, and that its workers do not inherit them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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
