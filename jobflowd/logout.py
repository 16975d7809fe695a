"""Does a logout end a daemon in the background? One sentence if it does, with the way out.

systemd's logind can be told to kill whatever a login has left behind (KillUserProcesses), also
what ran under nohup or in tmux. A process that belongs to the user's own service manager lives as
long as that does: until the last logout, unless the user "lingers". Used by `cli.py`.
"""

from __future__ import annotations

import os
import pwd
import re
import subprocess
from pathlib import Path
from typing import Final

_ASK: Final = (
    "busctl",
    "get-property",
    "org.freedesktop.login1",
    "/org/freedesktop/login1",
    "org.freedesktop.login1.Manager",
    "KillUserProcesses",
)
_PATIENCE_S: Final = 2.0
_LINGER: Final = Path("/var/lib/systemd/linger")


def risk(cgroup: str, *, kills: bool | None, lingers: bool) -> str:
    """What a logout would do to a process of this control group, "" if nothing.

    `cgroup` is the text of /proc/self/cgroup. `kills`: what logind does with what a login leaves
    behind, None if it does not say.
    """
    if re.search(r"/session-[^/]+\.scope", cgroup) and kills:
        return (
            "logout will kill the daemon (logind has KillUserProcesses=yes). To keep it: "
            "`jobflowd install-unit --install` and run it as jobflowd@NAME, or start it with "
            "`systemd-run --user --scope jobflowd start ...`; both need `loginctl enable-linger`"
        )
    if re.search(r"/user@\d+\.service/", cgroup) and not lingers:
        return (
            "your last logout will end the daemon, because you do not linger; to keep it: "
            "`loginctl enable-linger`"
        )
    return ""


def logout_warning() -> str:
    """`risk` for this process. Never raises, and takes two seconds at most."""
    try:
        cgroup = Path("/proc/self/cgroup").read_text()
        name = pwd.getpwuid(os.getuid()).pw_name
        lingers = (_LINGER / name).exists()
    except (OSError, KeyError):
        return ""
    # Only then is the answer worth a question.
    kills = _kills() if "/session-" in cgroup else None
    return risk(cgroup, kills=kills, lingers=lingers)


def _kills() -> bool | None:
    try:
        done = subprocess.run(
            _ASK, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"b true": True, "b false": False}.get(done.stdout.strip())
