"""What a batch system is to the daemon: text in, text out.

Rule: a launcher starts nothing, reads no file and keeps no state. It builds a script and argument
lists from a `LaunchContext`, and reads what the site's commands printed. It is total: whatever a
command prints becomes one of the values below, never an exception. `commands.py` runs what is
built here; the coordinator decides what to do with the answers.

How a new system fits in: one module with a class that satisfies `Launcher`. `launch_id` is in the
batch job's name, so that a job whose submission timed out is found again by the same query that
asks for the state of all others; that is why a `JobSeen` carries both ids.

Processes on this host are not commands; they are `multiprocess.py` and `processes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from jobflowd.model import LaunchState


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """One launch, spelled out. Paths are absolute; nothing here is quoted yet.

    `worker_argv` starts the worker and is complete (it names the session and the launch, never
    program arguments); `start_dir` is where tasks run; `options` are the site's settings
    (partition, memory, ...) by the names of the configuration; `prologue` are shell lines that
    run before the worker.
    """

    session: str
    session_dir: str
    launch_id: str
    worker_argv: tuple[str, ...]
    slots: int
    start_dir: str
    script_path: str
    output_path: str
    options: Mapping[str, str] = field(default_factory=dict)
    prologue: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Accepted:
    """The system took the job."""

    batch_job_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The system said no, in its own words; nothing was queued."""

    reason: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The job may or may not exist (time-out, cut connection, no id in the answer): STALE."""

    reason: str


@dataclass(frozen=True, slots=True)
class JobSeen:
    """One batch job in an answer. `launch_id` is read from its name where the answer has one."""

    batch_job_id: str
    launch_id: str | None
    state: LaunchState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NoEvidence:
    """The answer proves nothing, not even absence: the command failed or was cut short."""

    reason: str


class Launcher(Protocol):
    """A batch system. `rc` None means that the command was killed by its time-out."""

    #: The word of `--launcher` and of the launches table.
    name: str

    def problems(self, ctx: LaunchContext) -> list[str]:
        """Why this launch cannot be written down (control characters, a value out of range):
        sentences for the user. Empty: the methods below will work."""

    def script(self, ctx: LaunchContext) -> str | None:
        """The text to be kept at `ctx.script_path`, or None if the system needs no script."""

    def submit_argv(self, ctx: LaunchContext) -> list[str]:
        """The command that submits it."""

    def parse_submit(self, rc: int | None, out: str, err: str) -> Accepted | Refused | Unknown:
        """What that command said."""

    def query_argv(self, batch_job_ids: Sequence[str]) -> list[str]:
        """One command that tells the state of all our queued and running jobs."""

    def history_argv(self, batch_job_ids: Sequence[str]) -> list[str] | None:
        """One command that also knows jobs which ended, where the first one forgets them."""

    def parse_query(self, rc: int | None, out: str, err: str) -> list[JobSeen] | NoEvidence:
        """What either command said. An empty list is a good answer: none of them is there."""

    def cancel_argv(self, batch_job_ids: Sequence[str]) -> list[str]:
        """The command that takes jobs away; harmless for jobs that are over."""
