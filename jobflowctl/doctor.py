"""`jobflowctl doctor`: the preflight check of a session that exists.

Rule: the work is `jobflowd check`, with the session's own record; here it is only started.
"""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jobflowctl.output import Output
    from jobflowd.api import SessionPlace


def examine(place: SessionPlace, output: Output) -> int:
    """Run the check and pass its lines on; its exit code."""
    argv = [sys.executable, "-m", "jobflowd", "check", "--session-id", place.session]
    argv += ["--shared-dir", str(place.dir.parent)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    lines = done.stdout.splitlines()
    output.line("doctor", {"findings": lines, "exit_code": done.returncode}, "\n".join(lines))
    return done.returncode
