"""SLURM as text: sbatch, squeue, sacct, scancel.

Rules
-----
* An answer of squeue is good only if its header line is there and every job line ends with our
  mark: a banner is skipped, a cut line is noticed, and silence is no evidence.
* State words that are not in the table are STALE: unresolved, and asked about again.
* Values after "#SBATCH " are in double quotes where they need it; `%` is doubled in the output's
  path, where it stands for patterns.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from jobflowd.launchers import jobtext
from jobflowd.launchers.base import (
    Accepted,
    Answer,
    JobSeen,
    LaunchContext,
    NoEvidence,
    Refused,
    Unknown,
    warning_before,
)
from jobflowd.model import LaunchState

_MARK: Final = "JF"
_FORMAT: Final = f"{_MARK}|%i|%T|%r|%L|%j|{_MARK}"
_HEADER: Final = f"{_MARK}|JOBID|STATE|REASON|TIME_LEFT|NAME|{_MARK}"
_LINE: Final = re.compile(rf"{_MARK}\|([^|]*)\|([^|]*)\|(.*)\|([^|]*)\|([^|]*)\|{_MARK}")
_JOB_ID: Final = re.compile(r"(\d+)(?:;[\w.-]+)?", re.ASCII)
_CLOCK: Final = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", re.ASCII)

#: Every state of squeue and sacct. ENDED is nobody's fault, FAILED may be the worker's own.
STATES: Final[Mapping[str, LaunchState]] = {
    "PENDING": LaunchState.PENDING,
    "REQUEUED": LaunchState.PENDING,
    "REQUEUE_FED": LaunchState.PENDING,
    "REQUEUE_HOLD": LaunchState.PENDING,
    "RESV_DEL_HOLD": LaunchState.PENDING,
    "SPECIAL_EXIT": LaunchState.PENDING,
    "POWER_UP_NODE": LaunchState.PENDING,
    "CONFIGURING": LaunchState.RUNNING,
    "RUNNING": LaunchState.RUNNING,
    "RESIZING": LaunchState.RUNNING,
    "SIGNALING": LaunchState.RUNNING,
    "STAGE_OUT": LaunchState.RUNNING,
    "STOPPED": LaunchState.RUNNING,
    "SUSPENDED": LaunchState.RUNNING,
    # It may be ending, or about to be queued again under the same id.
    "COMPLETING": LaunchState.STALE,
    "UPDATE_DB": LaunchState.STALE,
    "COMPLETED": LaunchState.ENDED,
    "CANCELLED": LaunchState.ENDED,
    "TIMEOUT": LaunchState.ENDED,
    "DEADLINE": LaunchState.ENDED,
    "PREEMPTED": LaunchState.ENDED,
    "NODE_FAIL": LaunchState.ENDED,
    "BOOT_FAIL": LaunchState.ENDED,
    "REVOKED": LaunchState.ENDED,
    "LAUNCH_FAILED": LaunchState.FAILED,
    "RECONFIG_FAIL": LaunchState.FAILED,
    "FAILED": LaunchState.FAILED,
    "OUT_OF_MEMORY": LaunchState.FAILED,
}
_WORDS: Final[Mapping[str, str]] = {
    "TIMEOUT": "the job reached its time limit",
    "PREEMPTED": "the job was preempted",
    "NODE_FAIL": "the job's node failed",
    "CANCELLED": "the job was cancelled",
    "OUT_OF_MEMORY": "the job used more memory than it asked for",
}

#: What the site did to a job, whatever ran in it. Not CANCELLED: that may have been our own doing.
_BLAMELESS: Final = ("NODE_FAIL", "BOOT_FAIL", "PREEMPTED", "TIMEOUT", "DEADLINE", "REVOKED")

_NAME: Final = "by which it finds its jobs again"
_OWNED: Final[dict[str, str]] = {
    "job-name": _NAME,
    "comment": _NAME,
    "output": "to keep it beside the script",
    "error": "to keep it beside the script",
    "open-mode": "to keep it beside the script",
    "array": "one job is one worker; use --workers",
    "parsable": "to read the answer",
    "quiet": "to read the answer",
    "wrap": "the script is its own",
    "dependency": "a worker depends on no other job",
    "signal": "so that workers hand their tasks back in time",
    "requeue": "a lost job is replaced by a new one",
    "no-requeue": "a lost job is replaced by a new one",
    "nodes": "a worker runs on one node",
    "ntasks": "a worker is one task",
    "chdir": "tasks run where the session was started",
    "wait": "it does not wait for jobs",
    "test-only": "use `jobflowd script`",
    "hold": "a held job brings no worker",
    "exclude": "use --exclude-host",
}
_SHORT: Final[dict[str, str]] = {
    "J": "job-name",
    "o": "output",
    "e": "error",
    "a": "array",
    "d": "dependency",
    "N": "nodes",
    "n": "ntasks",
    "D": "chdir",
    "W": "wait",
    "H": "hold",
    "x": "exclude",
    "Q": "quiet",
}

#: The command's connection broke after the request may have been sent.
_UNSURE: Final = re.compile(
    r"timed out|time-?out|zero bytes|connection reset|broken pipe|unexpected message|"
    r"protocol|communication|transport|interrupted|already in progress",
    re.IGNORECASE,
)
#: The site says not now, for it has enough of our jobs.
_LIMITED: Final = re.compile(
    r"MaxSubmit|MaxJobs|submit(?:ted)? job|job submit limit|QOSPolicy|temporarily unable|"
    r"JobLimit|too many",
    re.IGNORECASE,
)


class Slurm:
    """`--launcher slurm`. See `base.Launcher`."""

    name = "slurm"
    environment: Mapping[str, str | None] = {"SLURM_TIME_FORMAT": "standard"}

    def problems(self, ctx: LaunchContext) -> list[str]:
        found = jobtext.control_problems(ctx)
        found += jobtext.owned_problems(ctx.args, _OWNED, _SHORT, "--slurm-arg")
        found += jobtext.skip_problems(ctx.skip, ("job-name", "output"), "--slurm-skip")
        if any(arg.strip() == ":" for arg in ctx.args):
            found.append("--slurm-arg ':' would make a heterogeneous job; a worker is one job")
        if "\\" in ctx.output_path:
            found.append(f"the path {ctx.output_path!r:.120} has a backslash, which sbatch drops")
        return found

    def script(self, ctx: LaunchContext) -> str:
        limit = ctx.options.get("time")
        lines = ["#!/bin/bash", jobtext.heading(ctx)]
        lines += [f"#SBATCH {one}" for one in _directives(ctx)]
        tail = jobtext.body(ctx, None if limit is None else float(limit))
        return "\n".join(lines) + "\n" + tail

    def submit_argv(self, ctx: LaunchContext) -> list[str]:
        return ["sbatch", "--parsable", ctx.script_path]

    def parse_submit(self, rc: int | None, out: str, err: str) -> Accepted | Refused | Unknown:
        ids = [found[1] for line in out.splitlines() if (found := _JOB_ID.fullmatch(line.strip()))]
        if len(set(ids)) == 1:
            return Accepted(ids[0])
        said = jobtext.no_answer(rc, "sbatch", out, err)
        if rc is None or rc <= 0 or ids:
            return Unknown(said if rc != 0 else f"sbatch gave no job id: {said}")
        if "unable to contact" not in err.lower() and _UNSURE.search(err):
            return Unknown(said)
        return Refused(_reason(err) or said, limited=bool(_LIMITED.search(err)))

    def query_argv(self, user: str) -> list[str]:
        return ["squeue", f"--user={user}", "--states=all", f"--format={_FORMAT}"]

    def parse_query(self, rc: int | None, out: str, err: str) -> Answer | NoEvidence:
        lines = [line.rstrip() for line in out.splitlines()]
        if rc != 0 or _HEADER not in lines:
            return NoEvidence(jobtext.no_answer(rc, "squeue", "", err) if rc != 0 or err else _CUT)
        jobs: dict[str, JobSeen] = {}
        whole = out.endswith("\n")
        for line in lines:
            found = _LINE.fullmatch(line)
            if found is None:
                # A banner is not ours; what begins with our mark and does not end so was cut.
                whole = whole and not line.startswith(f"{_MARK}|")
            elif line != _HEADER:
                job_id, word, reason, left, name = found.groups()
                jobs[job_id] = _job(job_id, word, reason, name, left)
        return Answer(tuple(jobs.values()), whole)

    def history_argv(self, user: str, names: Sequence[str]) -> list[str] | None:
        return [
            "sacct",
            "--allocations",
            "--parsable2",
            f"--user={user}",
            f"--name={','.join(names)}",
            "--starttime=now-30days",
            "--format=jobid,state,exitcode,jobname%64",
        ]

    def parse_history(self, rc: int | None, out: str, err: str) -> Answer | NoEvidence:
        if "accounting storage is disabled" in err.lower() or "not found" in err.lower():
            return NoEvidence("accounting is off", never=True)
        lines = out.splitlines()
        if rc != 0 or not any(line.startswith("JobID|State|") for line in lines):
            return NoEvidence(jobtext.no_answer(rc, "sacct", "", err) if rc != 0 or err else _CUT)
        jobs = []
        for line in lines:
            parts = line.split("|")
            if len(parts) == 4 and _JOB_ID.fullmatch(parts[0]):
                jobs.append(_job(parts[0], parts[1], f"exit code {parts[2]}", parts[3], ""))
        return Answer(tuple(jobs), out.endswith("\n"))

    def cancel_argv(self, batch_job_ids: Sequence[str]) -> list[str]:
        return ["scancel", *batch_job_ids]

    def cancel_named_argv(self, user: str, name: str) -> list[str]:
        return ["scancel", f"--user={user}", f"--name={name}"]

    def parse_cancel(self, rc: int | None, out: str, err: str) -> str:
        gone = "invalid job id" in err.lower() or "already completing" in err.lower()
        return "" if rc == 0 or gone else jobtext.no_answer(rc, "scancel", out, err)


_CUT: Final = "squeue's answer was cut short"


def _directives(ctx: LaunchContext) -> list[str]:
    """The options of sbatch, sorted by name; extra arguments come after ours."""
    options = ctx.options
    given: dict[str, str] = {
        "job-name": ctx.launch_id,
        "comment": f"jobflow {ctx.session} {ctx.launch_id}",
        "output": ctx.output_path.replace("%", "%%"),
        "open-mode": "append",
        "chdir": ctx.start_dir,
        "nodes": "1",
        "ntasks": "1",
    }
    limit = None if options.get("time") is None else float(options["time"])
    given["signal"] = f"B:USR1@{warning_before(limit)}"
    for name in ("partition", "account", "qos", "gres", "constraint"):
        if options.get(name) is not None:
            given[name] = str(options[name])
    if options.get("cpus") is not None:
        given["cpus-per-task"] = str(options["cpus"])
    if options.get("mem") is not None:
        given["mem"] = f"{jobtext.mebibytes(options['mem'])}M"
    if limit is not None:
        given["time"] = jobtext.clock(limit)
    if ctx.exclude_hosts:
        given["exclude"] = ",".join(ctx.exclude_hosts)
    lines = [
        f"--{name}={_quoted(value)}"
        for name, value in sorted(given.items())
        if name not in ctx.skip
    ]
    if "no-requeue" not in ctx.skip:
        lines.append("--no-requeue")
    for arg in ctx.args:
        name, blank, value = arg.strip().partition(" ")
        apart = blank and "=" not in name
        lines.append(f"{name} {_quoted(value.strip())}" if apart else _quoted(arg.strip()))
    return lines


def _quoted(text: str) -> str:
    """For a directive line, where sbatch reads quotes, backslashes, blanks and `#` itself."""
    if re.fullmatch(r"[^\s\"'\\#]+", text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def _job(job_id: str, word: str, reason: str, name: str, left: str) -> JobSeen:
    first = word.split()[0].rstrip("+") if word.strip() else ""
    state = STATES.get(first, LaunchState.STALE)
    if state in (LaunchState.ENDED, LaunchState.FAILED):
        why = _WORDS.get(first, f"the job ended: {first}")
        detail = reason if reason not in ("None", "", first) else ""
        reason = f"{why} ({detail})" if detail else why
    elif state is LaunchState.STALE:
        reason = f"the job's state is {word or 'empty'}"
    else:
        reason = "" if reason == "None" else reason
    found = _JOB_ID.fullmatch(job_id)
    left_s = _seconds(left) if state is LaunchState.RUNNING else None
    number = found[1] if found else job_id
    return JobSeen(number, name, state, reason, left_s, first in _BLAMELESS)


def _seconds(text: str) -> float | None:
    """[D-][H:]MM:SS; None for UNLIMITED, NOT_SET, INVALID and anything else."""
    found = _CLOCK.fullmatch(text.strip())
    if found is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in found.groups())
    return days * 86400.0 + hours * 3600.0 + minutes * 60.0 + seconds


def _reason(err: str) -> str:
    """sbatch's own words: the last line tells what, the ones before it why."""
    lines = [
        re.sub(r"^(?:sbatch|slurm): (?:error|fatal): ", "", line.strip())
        for line in err.splitlines()
        if re.match(r"(?:sbatch|slurm): (?:error|fatal):", line.strip())
    ]
    return jobtext.one_line("\n".join(dict.fromkeys(lines)))
