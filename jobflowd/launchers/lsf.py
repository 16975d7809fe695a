"""LSF as text: bsub, bjobs, bkill.

Rules
-----
* bsub's exit status tells nothing but success, so its texts are read, wherever they stand.
* bjobs is asked for fields with a delimiter, in one call for all jobs of the user, ended ones
  included. What it prints counts whatever its status is; absence counts only with status 0, or
  where "is not found" is all that it complains of: sites may want status 255 for that.
* `bkill` is never called without ids: it would take the last job, or all of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from jobflowd.launchers import jobtext
from jobflowd.launchers.base import (
    WARNING_S,
    Accepted,
    Answer,
    JobSeen,
    LaunchContext,
    NoEvidence,
    Refused,
    Unknown,
)
from jobflowd.model import LaunchState

_SUBMITTED: Final = re.compile(
    r"^Job <(\d+)> is submitted to (?:default )?queue <[^>]*>", re.MULTILINE | re.ASCII
)
_FIELDS: Final = "jobid stat exit_code job_name exit_reason pend_reason"
_HEADER: Final = "JOBID^STAT^EXIT_CODE^JOB_NAME^EXIT_REASON^PEND_REASON"
_JOB_ID: Final = re.compile(r"(\d+)(?:\[\d+\])?", re.ASCII)
_GONE: Final = re.compile(r"Job <[^>]*> is not found\s*$")
_NONE: Final = re.compile(r"^No (?:unfinished |matching )?jobs? found", re.MULTILINE)

STATES: Final[Mapping[str, LaunchState]] = {
    "PEND": LaunchState.PENDING,
    "PROV": LaunchState.PENDING,
    "PSUSP": LaunchState.PENDING,
    "WAIT": LaunchState.PENDING,
    "RUN": LaunchState.RUNNING,
    "USUSP": LaunchState.RUNNING,
    "SSUSP": LaunchState.RUNNING,
    # The host is out of reach: the job may run on, or be gone. Neither is known.
    "UNKWN": LaunchState.STALE,
    "ZOMBI": LaunchState.STALE,
    "DONE": LaunchState.ENDED,
    "POST_DONE": LaunchState.ENDED,
    "PDONE": LaunchState.ENDED,
    "EXIT": LaunchState.FAILED,
    "POST_ERR": LaunchState.ENDED,
    "PERR": LaunchState.ENDED,
}
#: Ends that are nobody's fault.
_KNOWN_ENDS: Final = re.compile(
    r"TERM_(?:RUNLIMIT|OWNER|ADMIN|PREEMPT|REQUEUE|FORCE|DEADLINE|LOAD|WINDOW|REMOVE_HUNG)"
)
#: Of these, what the site did. An owner's kill may be our own.
_BLAMELESS: Final = re.compile(
    r"TERM_(?:RUNLIMIT|PREEMPT|REQUEUE|DEADLINE|LOAD|WINDOW|REMOVE_HUNG)"
)

#: bsub refused and nothing is queued; what follows "later" in LSF's own list is a limit.
_LIMITED: Final = re.compile(
    r"reached its job limit|does not have enough job slots|Pending job threshold|"
    r"Queue has been closed|pending job limit|job slot limit",
    re.IGNORECASE,
)
_REFUSED: Final = re.compile(
    r"Job not submitted|No such queue|cannot use the queue|Bad |Unknown option|Illegal|"
    r"permission denied|Request from non-LSF host|Too many processors",
    re.IGNORECASE,
)

_OURS: Final = "to keep it beside the script"
_OWNED: Final = {
    "J": "by which it finds its jobs again",
    "Jd": "by which it finds its jobs again",
    "o": _OURS,
    "oo": _OURS,
    "e": _OURS,
    "eo": _OURS,
    "K": "it does not wait for jobs",
    "I": "a worker needs no terminal",
    "Ip": "a worker needs no terminal",
    "Is": "a worker needs no terminal",
    "H": "a held job brings no worker",
    "w": "a worker depends on no other job",
    "r": "a lost job is replaced by a new one",
    "rn": "a lost job is replaced by a new one",
    "wt": "so that workers hand their tasks back in time",
    "wa": "so that workers hand their tasks back in time",
    "cwd": "tasks run where the session was started",
}


class Lsf:
    """`--launcher lsf`. See `base.Launcher`."""

    name = "lsf"
    #: With one try bsub does not sleep for ever over a limit; quiet, it would not tell the id.
    environment: Mapping[str, str | None] = {"LSB_NTRIES": "1", "BSUB_QUIET": None}

    def problems(self, ctx: LaunchContext) -> list[str]:
        found = jobtext.control_problems(ctx)
        for arg in ctx.args:
            word = arg.split()[0][1:] if arg.strip() else ""
            if not arg.startswith("-") or not word:
                found.append(f"--lsf-arg {arg!r:.80}: it must begin with a dash")
            elif word in _OWNED:
                found.append(f"--lsf-arg {arg!r:.80}: jobflowd sets -{word} itself, {_OWNED[word]}")
            elif not _in_line(arg):
                found.append(f"--lsf-arg {arg!r:.80}: quotes in it do not match")
        found += jobtext.skip_problems(ctx.skip, ("J", "o", "cwd"), "--lsf-skip")
        if re.search("%[JI]", ctx.output_path):
            found.append(f"the path {ctx.output_path!r:.120} has %J or %I, which LSF replaces")
        if any('"' in one for one in (ctx.output_path, ctx.start_dir)):
            found.append("a path has a double quote, which a #BSUB line cannot take")
        return found

    def script(self, ctx: LaunchContext) -> str:
        limit = ctx.options.get("time")
        lines = ["#!/bin/bash", jobtext.heading(ctx)]
        lines += [f"#BSUB {one}" for one in _directives(ctx)]
        tail = jobtext.body(ctx, None if limit is None else float(limit))
        return "\n".join(lines) + "\n" + tail

    def submit_argv(self, ctx: LaunchContext) -> list[str]:
        return ["bsub"]

    def parse_submit(self, rc: int | None, out: str, err: str) -> Accepted | Refused | Unknown:
        ids = set(_SUBMITTED.findall(out)) | set(_SUBMITTED.findall(err))
        if len(ids) == 1:
            return Accepted(ids.pop())
        said = jobtext.no_answer(rc, "bsub", out, err)
        if rc is None or rc <= 0 or ids or not _REFUSED.search(err + out):
            limit = rc is not None and rc > 0 and not ids and _LIMITED.search(err + out)
            return Refused(said, limited=True) if limit else Unknown(said)
        return Refused(said, limited=bool(_LIMITED.search(err + out)))

    def query_argv(self, user: str) -> list[str]:
        return ["bjobs", "-a", "-u", user, "-o", f"{_FIELDS} delimiter='^'"]

    def parse_query(self, rc: int | None, out: str, err: str) -> Answer | NoEvidence:
        lines = [line.strip() for line in out.splitlines()]
        if _HEADER not in lines:
            if rc in (0, 255) and (_NONE.search(err) or _NONE.search(out)):
                return Answer(())
            return NoEvidence(jobtext.no_answer(rc, "bjobs", out, err))
        jobs: dict[str, JobSeen] = {}
        complaints = [line for line in err.splitlines() if line.strip()]
        well = rc == 0 or (rc == 255 and bool(complaints) and all(map(_GONE.match, complaints)))
        whole = well and out.endswith("\n")
        for line in lines[lines.index(_HEADER) + 1 :]:
            parts = line.split("^", 5)
            found = _JOB_ID.fullmatch(parts[0])
            if found is None or len(parts) < 6:
                whole = whole and found is None
                continue
            jobs[found[1]] = _job(found[1], *parts[1:])
        return Answer(tuple(jobs.values()), whole)

    def history_argv(self, user: str, names: Sequence[str]) -> list[str] | None:
        # bhist reads the event files of the whole cluster; bjobs -a remembers for an hour.
        return None

    def parse_history(self, rc: int | None, out: str, err: str) -> Answer | NoEvidence:
        return NoEvidence("there is no history", never=True)

    def cancel_argv(self, batch_job_ids: Sequence[str]) -> list[str]:
        return ["bkill", *batch_job_ids]

    def cancel_named_argv(self, user: str, name: str) -> list[str]:
        return ["bkill", "-u", user, "-J", name, "0"]

    def parse_cancel(self, rc: int | None, out: str, err: str) -> str:
        done = re.compile(
            r"is being|already finished|No matching job found|No unfinished job found|"
            r"is not found|Operation is in progress"
        )
        left = [one for one in err.splitlines() if one.strip() and not done.search(one)]
        if rc == 0 or (rc is not None and not left):
            return ""
        return jobtext.no_answer(rc, "bkill", "", "\n".join(left))


def _directives(ctx: LaunchContext) -> list[str]:
    options = ctx.options
    lines = [
        f"-J {ctx.launch_id}",
        f'-Jd "jobflow {ctx.session} {ctx.launch_id}"',
        f'-o "{ctx.output_path}"',
        f'-cwd "{ctx.start_dir}"',
        "-rn",
        '-R "span[hosts=1]"',
    ]
    if options.get("queue") is not None:
        lines.append(f"-q {options['queue']}")
    if options.get("nproc") is not None:
        lines.append(f"-n {options['nproc']}")
    if options.get("mem") is not None:
        size = jobtext.mebibytes(options["mem"])
        lines += [f"-M {size}MB", f'-R "rusage[mem={size}MB]"']
    if options.get("time") is not None:
        minutes = max(1, -int(-float(options["time"]) // 60))
        lines.append(f"-W {minutes // 60}:{minutes % 60:02}")
        if minutes > WARNING_S // 60:
            lines += [f"-wt {WARNING_S // 60}", "-wa USR2"]
    if ctx.exclude_hosts:
        away = " && ".join(f"hname!='{host}'" for host in ctx.exclude_hosts)
        lines.append(f'-R "select[{away}]"')
    kept = [one for one in lines if one.split()[0][1:] not in ctx.skip]
    return [*kept, *ctx.args]


def _job(
    job_id: str, word: str, exit_code: str, name: str, exit_reason: str, pend_reason: str
) -> JobSeen:
    state = STATES.get(word, LaunchState.STALE)
    reason = exit_reason if exit_reason not in ("", "-") else ""
    if state is LaunchState.FAILED:
        if _KNOWN_ENDS.search(reason) or exit_code in ("140", "143", "130"):
            state = LaunchState.ENDED
        reason = reason or (
            "the job ended" if exit_code in ("", "-") else f"the job ended with status {exit_code}"
        )
    elif state is LaunchState.ENDED:
        reason = "the job ended"
    elif state is LaunchState.PENDING:
        reason = pend_reason if pend_reason != "-" else ""
        reason = "held" if word == "PSUSP" and not reason else reason
    elif state is LaunchState.STALE:
        reason = f"the job's state is {word or 'empty'}"
    elif word != "RUN":
        reason = "suspended"
    blameless = state is LaunchState.ENDED and bool(_BLAMELESS.search(exit_reason))
    return JobSeen(job_id, name, state, jobtext.one_line(reason), None, blameless)


def _in_line(arg: str) -> bool:
    return arg.count('"') % 2 == 0 and arg.count("'") % 2 == 0
