"""What a batch system is to the daemon: text in, text out.

Rule: a launcher starts nothing, reads no file and keeps no state. It builds a script and argument
lists from a `LaunchContext`, and reads what the site's commands printed. It is total: whatever a
command prints becomes one of the values below, never an exception. `commands.py` runs what is
built here, `batchdesk.py` joins both; the coordinator decides what to do with the answers.

How a new system fits in: one module with a class that satisfies `Launcher`, named in
`systems.py`. `launch_id` is the batch job's name, so that a job whose submission timed out is
found again by the same query that asks for the state of all others.

Processes on this host are not commands; they are `multiprocess.py` and `processes.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

from jobflowd.model import LaunchState

#: How long before its end a worker is warned, so that it hands its tasks back: seconds.
WARNING_S: Final = 120
#: The variable by which a script tells its worker when the time limit will end it (epoch seconds).
END_VARIABLE: Final = "JOBFLOW_END_AT"


def warning_before(limit_s: float | None) -> int:
    """Seconds before its end at which a worker with this time limit is warned."""
    return WARNING_S if limit_s is None else max(1, min(WARNING_S, int(limit_s) // 4))


@dataclass(frozen=True, slots=True)
class LaunchContext:
    """One launch, spelled out. Paths are absolute; nothing here is quoted yet.

    `worker_argv` starts the worker and is complete (it names the session and the launch, never
    program arguments); `start_dir` is where tasks run. `options` are the system's typed settings by
    their names without the system's prefix: times in seconds, sizes in bytes. `args` are further
    arguments of the submitting command, `skip` directives to leave out. `env_scripts` are sourced
    and `prologue` lines run before the worker. `restore` are variables of the user that the
    submission itself runs without (None: unset); `umask` is the user's.
    """

    session: str
    session_dir: str
    launch_id: str
    worker_argv: tuple[str, ...]
    start_dir: str
    script_path: str
    output_path: str
    options: Mapping[str, str | int | float] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    exclude_hosts: tuple[str, ...] = ()
    env_scripts: tuple[str, ...] = ()
    prologue: tuple[str, ...] = ()
    restore: Mapping[str, str | None] = field(default_factory=dict)
    umask: int = 0o022
    version: str = ""


@dataclass(frozen=True, slots=True)
class Accepted:
    """The system took the job."""

    batch_job_id: str


@dataclass(frozen=True, slots=True)
class Refused:
    """The system said no, in its own words; nothing was queued. `limited`: it may say yes once
    others of our jobs have ended, so that trying again at once is only a burden to it."""

    reason: str
    limited: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """The job may or may not exist (time-out, cut connection, no id in the answer): STALE."""

    reason: str


@dataclass(frozen=True, slots=True)
class JobSeen:
    """One batch job in an answer. `name` is the launch id if it is one of ours. `blameless`: the
    site ended it for a reason that is no task's (a failed node, preemption, its time limit)."""

    batch_job_id: str
    name: str
    state: LaunchState
    reason: str = ""
    time_left_s: float | None = None
    blameless: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """A good answer. `whole`: what is not in it is not there; else it proves no absence."""

    jobs: tuple[JobSeen, ...]
    whole: bool = True


@dataclass(frozen=True, slots=True)
class NoEvidence:
    """The answer proves nothing, not even absence: the command failed or was cut short.
    `never`: this system will not answer that question at all (accounting is off)."""

    reason: str
    never: bool = False


class Launcher(Protocol):
    """A batch system. `rc` None means that the command was killed by its time-out, a negative one
    that a signal ended it."""

    #: The word of `--launcher` and of the launches table.
    name: str
    #: Variables that its commands need, or (None) must not have.
    environment: Mapping[str, str | None]

    def problems(self, ctx: LaunchContext) -> list[str]:
        """Why this launch cannot be written down (control characters, an argument that is ours):
        sentences for the user. Empty: the methods below will work."""

    def script(self, ctx: LaunchContext) -> str:
        """The text to be kept at `ctx.script_path`."""

    def submit_argv(self, ctx: LaunchContext) -> list[str]:
        """The command that submits it. It gets the script on its standard input as well."""

    def parse_submit(self, rc: int | None, out: str, err: str) -> Accepted | Refused | Unknown:
        """What that command said."""

    def query_argv(self, user: str) -> list[str]:
        """One command that tells the state of all queued and running jobs of `user`."""

    def parse_query(self, rc: int | None, out: str, err: str) -> Answer | NoEvidence:
        """What it said."""

    def history_argv(self, user: str, names: Sequence[str]) -> list[str] | None:
        """One command that also knows jobs of these names which ended, where the query forgets
        them; None if there is none worth asking."""

    def parse_history(self, rc: int | None, out: str, err: str) -> Answer | NoEvidence:
        """What it said."""

    def cancel_argv(self, batch_job_ids: Sequence[str]) -> list[str]:
        """The command that takes jobs away; harmless for jobs that are over. Never empty ids."""

    def cancel_named_argv(self, user: str, name: str) -> list[str]:
        """The same for a job whose id is not known."""

    def parse_cancel(self, rc: int | None, out: str, err: str) -> str:
        """Why jobs could not be taken away; empty if they were, or were not there any more."""
