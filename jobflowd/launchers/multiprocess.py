"""Workers as processes on this host: how they are started, named and recognised, as text.

Rule: pure; `processes.py` does what is described here. A local worker is known by host, boot, pid
and start time, because a pid alone may belong to somebody else by now. Its launch id is in its
environment and in its arguments, so it is found again when its pid was never recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final, NamedTuple

from jobflowd.model import LaunchState

NAME: Final = "multiprocess"
LAUNCH_VARIABLE: Final = "JOBFLOW_LAUNCH_ID"
SESSION_VARIABLE: Final = "JOBFLOW_SESSION_DIR"

#: What a service manager told the daemon and nobody else: a worker that inherited these could
#: report itself ready, or be waited for, in the daemon's place.
_SERVICE_VARIABLES: Final = (
    "NOTIFY_SOCKET",
    "WATCHDOG_PID",
    "WATCHDOG_USEC",
    "LISTEN_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
)


class LocalProcess(NamedTuple):
    """A process of some host, without doubt: `start_ticks` is field 22 of /proc/PID/stat."""

    host: str
    boot: str
    pid: int
    start_ticks: int


class ProcessStat(NamedTuple):
    """The fields of /proc/PID/stat that tell who a process is and whether it lives."""

    state: str
    session: int
    start_ticks: int

    @property
    def alive(self) -> bool:
        """A zombie has ended; only its exit status is left."""
        return self.state not in "ZXx"


def boot_code(module: str, function: str, home: str) -> str:
    """The argument of `python -c` that calls a function of ours and exits with its result.

    Nothing is imported from the current directory (`-c` puts it first on the path), and our own
    packages are found in `home` even if they are not installed. This is preferred to the installed
    scripts because it also works where those were never made or have lost their interpreter.
    """
    return (
        "import sys; sys.path[:] = [p for p in sys.path if p]; "
        f"sys.path.append({home!r}) if {home!r} not in sys.path else None; "
        f"from {module} import {function}; sys.exit({function}())"
    )


def worker_argv(
    interpreter: str, home: str, *, session_dir: str, launch_id: str, slots: int, mode: str
) -> list[str]:
    """Start a worker of this session. Program arguments are never here: it reads the session."""
    return [
        interpreter,
        "-c",
        boot_code("jobflow_worker.cli", "main", home),
        "--session",
        session_dir,
        "--launch-id",
        launch_id,
        "--slots",
        str(slots),
        "--mode",
        mode,
    ]


def child_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """The daemon's environment without what was meant for the daemon itself."""
    return {
        name: value
        for name, value in environ.items()
        if name not in _SERVICE_VARIABLES and name != LAUNCH_VARIABLE
    }


def worker_environment(
    environ: Mapping[str, str], *, session_dir: str, launch_id: str
) -> dict[str, str]:
    """The environment of a local worker."""
    return child_environment(environ) | {
        LAUNCH_VARIABLE: launch_id,
        SESSION_VARIABLE: session_dir,
    }


def local_job_id(host: str, boot_id: str, pid: int, start_ticks: int) -> str:
    """The batch_job_id of a local process. Eight characters of a boot id tell boots apart."""
    return f"local:{host}:{boot_id[:8]}:{pid}:{start_ticks}"


def parse_local_job_id(text: str) -> LocalProcess | None:
    """What `local_job_id` was given, or None if it did not make this text."""
    head, _, rest = text.partition(":")
    parts = rest.rsplit(":", 3)
    if head != "local" or len(parts) != 4:
        return None
    host, boot, pid, ticks = parts
    if not (host and boot and _is_number(pid) and _is_number(ticks)):
        return None
    return LocalProcess(host, boot, int(pid), int(ticks))


def parse_stat(text: str) -> ProcessStat | None:
    """Read /proc/PID/stat. The name in it may hold anything, ") Z 1" too: count from its end."""
    fields = text[text.rfind(")") + 1 :].split()
    if len(fields) < 20 or not (_is_number(fields[3]) and _is_number(fields[19])):
        return None
    return ProcessStat(fields[0], int(fields[3]), int(fields[19]))


def parse_environ(block: bytes, name: str) -> str | None:
    """The value of a variable in /proc/PID/environ."""
    wanted = name.encode() + b"="
    for entry in block.split(b"\0"):
        if entry.startswith(wanted):
            return entry[len(wanted) :].decode(errors="replace")
    return None


def is_worker_of(cmdline: bytes, launch_id: str) -> bool:
    """True if a command line (/proc/PID/cmdline) is a worker of this launch, not a child of it:
    the children inherit the environment but not the arguments."""
    wanted = (b"--launch-id", launch_id.encode())
    return wanted in pairwise(cmdline.split(b"\0"))


def ending(exit_code: int | None, signal_name: str | None) -> tuple[LaunchState, str]:
    """How a worker's end reads in the launches table. Both None: nobody could see its status."""
    if signal_name is not None:
        return LaunchState.FAILED, f"the worker was killed by {signal_name}"
    if exit_code is None:
        return LaunchState.ENDED, "the worker's process is gone"
    if exit_code == 0:
        return LaunchState.ENDED, "the worker left"
    return LaunchState.FAILED, f"the worker ended with exit status {exit_code}"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()
