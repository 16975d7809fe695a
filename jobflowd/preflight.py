"""`jobflowd check`: is everything as it must be, seen from here and from a compute node?

Rules
-----
* One small job through the chosen launcher, with the same script, prologue and options as a
  worker's; it runs `jobflow_worker.probe` and leaves an answer.
* What is found is a list of lines, each with its fix. Nothing of the check stays behind: neither
  its directory nor its job.
* Reading the answer is apart from getting it: `judge` is pure.

Not part of the daemon. It may wait.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from jobflow_worker import __version__, probe
from jobflow_worker.sessionfiles import (
    SessionFileError,
    make_private_dir,
    read_beacon,
    write_private,
)
from jobflowd.batchdesk import submit_environment
from jobflowd.batchopening import check_available, launch_context, package_home, user_name
from jobflowd.commands import Commands, Finished
from jobflowd.config import BATCH_LAUNCHERS, EXIT_USAGE, ConfigError, StartConfig
from jobflowd.launchers.base import Accepted, Answer, LaunchContext, Launcher, warning_before
from jobflowd.launchers.multiprocess import boot_code
from jobflowd.launchers.systems import SYSTEMS
from jobflowd.model import LAUNCH_OVER
from jobflowd.opening import own_hosts
from jobflowd.processes import read_tail
from jobflowd.sessiondir import foresee

#: A login node's clients are slow at times; the queue may be long.
WAIT_S: Final = 300.0
ASK_EVERY_S: Final = 5.0
#: Below this, tens of open files of libraries and of the worker itself do not fit.
FILES_MIN: Final = 256
ECHO_S_MAX: Final = 10.0
SKEW_S_MAX: Final = 60.0
#: What the job prints before anything that could fail. Without it, its output never arrived here.
BEGAN: Final = "jobflowd check: the job has begun"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: what was found and, unless it is `good`, what to do."""

    good: bool
    text: str
    fix: str = ""

    def line(self) -> str:
        """As printed."""
        return f"ok    {self.text}" if self.good else f"FAIL  {self.text}; {self.fix}"


class CheckFailed(Exception):
    """The check ends here; `finding` says why."""

    def __init__(self, text: str, fix: str) -> None:
        super().__init__(text)
        self.finding = Finding(False, text, fix)


Say = Callable[[str], None]


def check(config: StartConfig, say: Say, *, wait_s: float = WAIT_S) -> int:
    """Look at everything and say each finding; the number of those that are not good."""
    plan = foresee(config)
    config = plan.config
    if config.launcher not in BATCH_LAUNCHERS:
        raise ConfigError(
            f"--launcher {config.launcher} has no compute nodes to check; give --launcher slurm, "
            "lsf or sge",
            EXIT_USAGE,
        )
    place = plan.paths.root.parent / f".jobflow-check-{os.urandom(4).hex()}"
    launcher = SYSTEMS[config.launcher]()
    umask = os.umask(0o077)
    cwd = str(plan.old.cwd if plan.old is not None else Path.cwd())
    context = launch_context(
        config,
        launcher,
        place.name[1:],
        session=plan.name,
        session_dir=plan.paths.root,
        start_dir=cwd,
        umask=umask,
        environ=os.environ,
    )
    argv = (sys.executable, "-c", boot_code("jobflow_worker.probe", "main", package_home()))
    context = replace(
        context,
        worker_argv=(*argv, str(place)),
        script_path=str(place / "script"),
        output_path=str(place / "output"),
    )
    beacon = read_beacon(plan.paths.beacon)
    endpoints = beacon.endpoints if beacon is not None and beacon.state == "open" else ()
    question = {"program": plan.program.to_json(), "cwd": cwd}
    try:
        check_available(launcher, context)
        say(Finding(True, f"the commands of {launcher.name} are here").line())
        make_private_dir(place, parents=True)
        answer = _Job(launcher, context, place, config).ask(question, endpoints, wait_s)
    except ConfigError as error:
        what, _, fix = error.sentence.partition("; ")
        findings = [Finding(False, what, fix or "mend the setting")]
    except CheckFailed as failed:
        findings = [failed.finding]
    except (OSError, SessionFileError) as error:
        findings = [Finding(False, f"{place.parent}: {error}", "give another --shared-dir")]
    else:
        findings = judge(answer, config, plan.text_hash, time.time())
    finally:
        shutil.rmtree(place, ignore_errors=True)
    for finding in findings:
        say(finding.line())
    return sum(1 for finding in findings if not finding.good)


# --- getting the answer -----------------------------------------------------------------------


class _Job:
    """The check's own job, from its submission to its end."""

    def __init__(
        self, launcher: Launcher, context: LaunchContext, place: Path, config: StartConfig
    ) -> None:
        self._launcher = launcher
        self._context = context
        self._place = place
        self._config = config
        self._env = submit_environment(launcher, os.environ)
        self._why = ""

    def ask(
        self, question: Mapping[str, Any], endpoints: tuple[str, ...], wait_s: float
    ) -> dict[str, Any]:
        """Submit, answer its hello, and return its answer. Raises `CheckFailed`."""
        with socket.socket() as listener:
            if not endpoints:
                endpoints = self._listen(listener)
            content = json.dumps({**question, "endpoints": endpoints}).encode()
            write_private(self._place / probe.QUESTION, content)
            text = marked(self._launcher.script(self._context))
            script = text.encode("utf-8", "surrogateescape")
            write_private(Path(self._context.script_path), script)
            job_id = self._submit(script)
            try:
                return self._await(job_id, wait_s)
            finally:
                self._run(self._launcher.cancel_argv((job_id,)))

    def _listen(self, listener: socket.socket) -> tuple[str, ...]:
        """No daemon runs: a socket as it would open one stands in for it."""
        config = self._config
        try:
            listener.bind((config.bind_host, config.port))
        except OSError as error:
            raise CheckFailed(
                f"the port {config.port} on {config.bind_host} cannot be opened: {error.strerror}",
                "give another --port, or none",
            ) from None
        listener.listen(16)
        hosts = [config.manager_host] if config.manager_host else own_hosts(config.bind_host)
        return tuple(f"tcp://{host}:{listener.getsockname()[1]}" for host in hosts)

    def _submit(self, script: bytes) -> str:
        done = self._run(self._launcher.submit_argv(self._context), script)
        said = self._launcher.parse_submit(done.rc, done.out, done.err)
        if not isinstance(said, Accepted):
            raise CheckFailed(
                f"{self._launcher.name} takes no such job: {said.reason}",
                f"mend what it names by the --{self._launcher.name}-... flags",
            )
        return said.batch_job_id

    def _await(self, job_id: str, wait_s: float) -> dict[str, Any]:
        give_up_at = time.monotonic() + wait_s
        ask_at = time.monotonic() + 1.0
        over = 0
        while time.monotonic() < give_up_at:
            names = os.listdir(self._place)
            if probe.HELLO in names and probe.ECHO not in names:
                write_private(self._place / probe.ECHO, b"")
            if probe.ANSWER in names:
                found: dict[str, Any] = json.loads((self._place / probe.ANSWER).read_text())
                return found
            if time.monotonic() >= ask_at:
                ask_at = time.monotonic() + ASK_EVERY_S
                over = over + 1 if self._is_over(job_id) else 0
            if over >= 2:
                break
            time.sleep(0.05)
        tail = read_tail(self._context.output_path).strip().splitlines()
        last = f": {tail[-1]}" if tail and tail[-1] != BEGAN else ""
        if over >= 2 and not tail:
            raise CheckFailed(
                f"nothing of the job is seen in the session's directory {self._place.parent} "
                f"({self._why})",
                "give a --shared-dir that the nodes see under the same path, and may write",
            )
        if over >= 2:
            raise CheckFailed(
                f"the job gave no answer ({self._why}){last}",
                "mend what its output says: interpreter, --prologue or --env-script",
            )
        raise CheckFailed(
            f"the job did not answer within {wait_s:g} s, the last word was: "
            f"{self._why or 'nothing'}{last}",
            "choose a partition or queue that starts jobs, or ask for less",
        )

    def _is_over(self, job_id: str) -> bool:
        done = self._run(self._launcher.query_argv(user_name()))
        answer = self._launcher.parse_query(done.rc, done.out, done.err)
        if not isinstance(answer, Answer):
            return False
        for job in answer.jobs:
            if job.batch_job_id == job_id:
                over = job.state in LAUNCH_OVER
                told = f"{job.state.word} {job.reason}".strip()
                self._why = (job.reason or told) if over else told
                return over
        self._why = "it is in the queue no more"
        return answer.whole

    def _run(self, argv: list[str], stdin: bytes | None = None) -> Finished:
        commands = Commands()
        try:
            commands.start(
                argv, stdin=stdin, timeout_s=self._config.launcher_command_timeout, env=self._env
            )
            while True:
                for finished in commands.service(time.monotonic()):
                    return finished
                time.sleep(0.02)
        finally:
            commands.close()


def marked(script: str) -> str:
    """The job's script, which says that it has begun before it does anything else."""
    lines = script.splitlines()
    first = next((at for at, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return "\n".join([*lines[:first], f"echo {shlex.quote(BEGAN)}", *lines[first:]]) + "\n"


# --- what it means ----------------------------------------------------------------------------


def judge(
    answer: Mapping[str, Any], config: StartConfig, text_hash: str, now: float
) -> list[Finding]:
    """The findings of an answer. `now` is the wall clock here, at its arrival."""
    node = f"on {answer['host']}"
    found = [Finding(True, f"a job ran {node}, with Python {answer['python']}")]

    def expect(good: bool, well: str, badly: str, fix: str) -> None:
        found.append(Finding(True, well) if good else Finding(False, f"{badly} {node}", fix))

    expect(
        answer["version"] == __version__,
        f"it runs the same jobflowd, {__version__}",
        f"jobflowd is {answer['version']} and here {__version__}",
        "take the other installation out of PYTHONPATH or the environment script",
    )
    program = answer["program"]
    expect(
        "error" not in program,
        "the program can be imported",
        f"the program cannot be imported: {program.get('error')}",
        "install what it needs for the nodes, by --env-script or --prologue",
    )
    if "hash" in program:
        expect(
            program["hash"] == text_hash,
            "the program has the same text",
            "the program's file has another text",
            "put it on the shared file system",
        )
    expect(
        not answer["cwd"],
        "the start directory is there",
        f"the start directory cannot be entered: {answer['cwd']}",
        "start in a directory that the nodes see",
    )
    echo_s = answer["echo_s"]
    expect(
        echo_s is not None and echo_s <= ECHO_S_MAX,
        f"the session's file system shows changes within {echo_s or 0:.1f} s",
        "files of the manager are seen late or never"
        + ("" if echo_s is None else f" ({echo_s:.0f} s)"),
        "give a --shared-dir on a file system that all hosts share",
    )
    skew = abs(now - answer["at"] - (echo_s or 0.0))
    expect(
        skew <= SKEW_S_MAX, "the clocks agree", f"the clock is {skew:.0f} s off", "set the clock"
    )
    found += _connections(answer["endpoints"], node, config)
    found += _room(answer, node, config)
    return found


def _connections(
    endpoints: Mapping[str, str | None], node: str, config: StartConfig
) -> list[Finding]:
    good = [one for one, error in endpoints.items() if error is None]
    bad = [f"{one} ({error})" for one, error in endpoints.items() if error is not None]
    if good:
        return [Finding(True, f"the manager is reached at {good[0]}")]
    fix = "give --manager-host an address that the nodes reach"
    if config.mode == "auto":
        fix += ", or live with files, to which workers fall back by themselves"
    return [Finding(False, f"the manager is not reached {node}: {', '.join(bad[:3])}", fix)]


def _room(answer: Mapping[str, Any], node: str, config: StartConfig) -> list[Finding]:
    """Time, files, processors and scratch space."""
    found = []
    left = answer["time_left_s"]
    if left is not None:
        work_s = left - warning_before(left)
        enough = work_s >= 60.0
        text = f"a worker has {left:.0f} s, of which {work_s:.0f} s for tasks"
        fix = f"give a longer --{config.launcher}-time"
        found.append(Finding(enough, text if enough else f"{text}, {node}", fix))
    if answer["scratch"]:
        text = f"temporary files cannot be written {node}: {answer['scratch']}"
        found.append(Finding(False, text, "set TMPDIR by --prologue to a directory that exists"))
    if 0 <= answer["files"] < FILES_MIN:
        text = f"only {answer['files']} open files are allowed {node}"
        found.append(Finding(False, text, "raise it by --prologue 'ulimit -n 1024'"))
    asked = max(config.slots, 1)
    if answer["cpus"] < asked:
        text = f"{asked} slots share {answer['cpus']} processors {node}"
        found.append(Finding(False, text, "ask for more processors, or give fewer --slots"))
    return found
