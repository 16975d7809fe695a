"""`start --dashboard`: at a terminal, this process becomes the wrapper that shows the run.

The wrapper (`jobflow`) starts the daemon as a process of its own and draws the view; so closing
the terminal never ends a run. This package does not import the client: the process replaces itself
by a new interpreter. Used by `cli.py`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from typing import Final

from jobflowd import detach
from jobflowd.config import ConfigError, StartConfig

#: Without the current directory, from which `-c` would import before anything else.
_STARTER: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from jobflowctl.supervise import main; sys.exit(main())"
)
_NEEDED: Final = "textual"


def wanted(config: StartConfig) -> bool:
    """Whether this start is to be shown full-screen.

    Raises `ConfigError` (2) if `--dashboard on` cannot be had; `auto` falls back to lines.
    """
    if config.dashboard == "off" or config.detach or detach.detached():
        return False
    terminals = all(stream.isatty() for stream in (sys.stdin, sys.stdout, sys.stderr))
    drawable = terminals and os.environ.get("TERM", "dumb") != "dumb"
    installed = importlib.util.find_spec(_NEEDED) is not None
    if config.dashboard == "on" and not installed:
        raise ConfigError(
            "--dashboard on needs the package textual, which is not installed; install it with "
            "pip install 'jobflowd[dashboard]', or leave --dashboard away",
            2,
        )
    if config.dashboard == "on" and not drawable:
        raise ConfigError(
            "--dashboard on needs a terminal, and there is none here; leave --dashboard away, "
            "and look from a terminal with `jobflowctl watch`",
            2,
        )
    return drawable and installed


def become_wrapper(config: StartConfig, arguments: Sequence[str]) -> None:
    """Replace this process by the wrapper; `arguments` are those of `start`. Does not return."""
    own = [
        "--external-dashboard=on",
        f"--external-dashboard-refresh={config.dashboard_refresh:g}",
        f"--external-dashboard-log-lines={config.dashboard_log_lines}",
        # The wrapper publishes telemetry unless something is said.
        f"--telemetry-mode={config.telemetry_mode}",
    ]
    os.execv(sys.executable, [sys.executable, "-c", _STARTER, *own, *arguments])
