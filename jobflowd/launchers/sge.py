"""Grid Engine as text: qsub, qstat, qacct, qdel.

Rules
-----
* qstat is asked for XML: its table cuts names to ten characters. An answer that does not close its
  document is no evidence. Ended jobs are in no answer: absence is how they end, and qacct says how.
* Directive lines begin with `#$`. Grid Engine splits them at blanks and knows no quotes, so a text
  with a blank in it is refused.
"""

from __future__ import annotations

import html
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

_JOB: Final = re.compile(r"<job_list\b.*?</job_list>", re.DOTALL)
_FIELD: Final = re.compile(r"<(JB_job_number|JB_name|state)\b[^>]*>([^<]*)<")
_JOB_ID: Final = re.compile(r"\d+", re.ASCII)
_UNSURE: Final = re.compile(r"commlib|unable to (?:send|receive)|timeout|timed out", re.IGNORECASE)
_LIMITED: Final = re.compile(r"job limit|max_u_jobs|max_jobs|not allowed to (?:have|submit) more")

_OURS: Final = "to keep it beside the script"
_OWNED: Final = {
    "N": "by which it finds its jobs again",
    "o": _OURS,
    "e": _OURS,
    "j": _OURS,
    "t": "one job is one worker; use --workers",
    "terse": "to read the answer",
    "wd": "tasks run where the session was started",
    "cwd": "tasks run where the session was started",
    "sync": "it does not wait for jobs",
    "hold_jid": "a worker depends on no other job",
    "h": "a held job brings no worker",
    "r": "a lost job is replaced by a new one",
    "notify": "so that workers hand their tasks back in time",
    "b": "the script is its own",
    "S": "the script is for /bin/bash",
}


class Sge:
    """`--launcher sge`. See `base.Launcher`."""

    name = "sge"
    environment: Mapping[str, str | None] = {}

    def problems(self, ctx: LaunchContext) -> list[str]:
        found = jobtext.control_problems(ctx)
        for arg in ctx.args:
            word = arg.split()[0].lstrip("-") if arg.strip() else ""
            if not arg.startswith("-") or not word:
                found.append(f"--sge-arg {arg!r:.80}: it must begin with a dash")
            elif word in _OWNED:
                found.append(f"--sge-arg {arg!r:.80}: jobflowd sets -{word} itself, {_OWNED[word]}")
        paths = {"output": ctx.output_path, "start directory": ctx.start_dir}
        texts = {**paths, **{f"option {k}": str(v) for k, v in ctx.options.items()}}
        found += [
            f"the {what} {text!r:.120} has a blank, which Grid Engine cannot take"
            for what, text in texts.items()
            if " " in text
        ]
        if re.search("[$:,]", ctx.output_path):
            found.append(
                f"the path {ctx.output_path!r:.120} has one of $ : and a comma, which Grid Engine "
                "reads in its own way"
            )
        found += jobtext.skip_problems(ctx.skip, ("N", "o", "j", "wd"), "--sge-skip")
        return found

    def script(self, ctx: LaunchContext) -> str:
        limit = ctx.options.get("time")
        lines = ["#!/bin/bash", jobtext.heading(ctx), *(f"#$ {one}" for one in _directives(ctx))]
        tail = jobtext.body(ctx, None if limit is None else float(limit))
        return "\n".join(lines) + "\n" + tail

    def submit_argv(self, ctx: LaunchContext) -> list[str]:
        return ["qsub", "-terse", ctx.script_path]

    def parse_submit(self, rc: int | None, out: str, err: str) -> Accepted | Refused | Unknown:
        ids = {one.strip() for one in out.splitlines() if _JOB_ID.fullmatch(one.strip())}
        if len(ids) == 1:
            return Accepted(ids.pop())
        said = jobtext.no_answer(rc, "qsub", out, err)
        if rc is None or rc <= 0 or ids or _UNSURE.search(err):
            return Unknown(said)
        return Refused(said, limited=bool(_LIMITED.search(err + out)))

    def query_argv(self, user: str) -> list[str]:
        return ["qstat", "-u", user, "-xml"]

    def parse_query(self, rc: int | None, out: str, err: str) -> Answer | NoEvidence:
        if rc != 0:
            return NoEvidence(jobtext.no_answer(rc, "qstat", out, err))
        if "<job_info" not in out or not out.rstrip().endswith("</job_info>"):
            return NoEvidence("qstat's answer was cut short")
        jobs: dict[str, JobSeen] = {}
        for block in _JOB.findall(out):
            fields = {name: html.unescape(text).strip() for name, text in _FIELD.findall(block)}
            job_id = fields.get("JB_job_number", "")
            if job_id:
                state, reason = _state(fields.get("state", ""))
                jobs[job_id] = JobSeen(job_id, fields.get("JB_name", ""), state, reason)
        return Answer(tuple(jobs.values()))

    def history_argv(self, user: str, names: Sequence[str]) -> list[str] | None:
        # It takes one pattern: what all names begin with.
        return ["qacct", "-o", user, "-j", names[0].rpartition("-")[0] + "-*"]

    def parse_history(self, rc: int | None, out: str, err: str) -> Answer | NoEvidence:
        if rc == 1 and re.search(r"not found|no jobs|No such file", err + out):
            return Answer(())
        if rc != 0:
            return NoEvidence(jobtext.no_answer(rc, "qacct", out, err))
        jobs = []
        for block in re.split(r"^={10,}$", out, flags=re.MULTILINE):
            fields = dict(re.findall(r"^(\w+) +(.*?) *$", block, flags=re.MULTILINE))
            if "jobnumber" in fields:
                failed, status = fields.get("failed", "0"), fields.get("exit_status", "")
                good = failed.split(":")[0].strip() == "0" and status.split()[:1] == ["0"]
                reason = "the job ended" if good else f"the job ended: status {status}"
                reason += "" if failed.strip() == "0" else f", failed {failed}"
                # 37 and 100: over its limit, or ended by a signal, our qdel's among them.
                mild = good or failed.split(":")[0].strip() in ("37", "100")
                state = LaunchState.ENDED if mild else LaunchState.FAILED
                jobs.append(JobSeen(fields["jobnumber"], fields.get("jobname", ""), state, reason))
        return Answer(tuple(jobs))

    def cancel_argv(self, batch_job_ids: Sequence[str]) -> list[str]:
        return ["qdel", *batch_job_ids]

    def cancel_named_argv(self, user: str, name: str) -> list[str]:
        return ["qdel", "-u", user, name]

    def parse_cancel(self, rc: int | None, out: str, err: str) -> str:
        gone = re.search(r"does not exist|already in deletion", out + err)
        return "" if rc == 0 or gone else jobtext.no_answer(rc, "qdel", out, err)


def _directives(ctx: LaunchContext) -> list[str]:
    options = ctx.options
    lines = [
        f"-N {ctx.launch_id}",
        f"-ac jobflow={ctx.session}",
        "-S /bin/bash",
        f"-wd {ctx.start_dir}",
        f"-o {ctx.output_path}",
        "-j y",
        "-r n",
        "-V",
        "-notify",
    ]
    if options.get("queue") is not None:
        lines.append(f"-q {options['queue']}")
    if options.get("pe") is not None:
        lines.append(f"-pe {str(options['pe']).replace(':', ' ')}")
    if options.get("mem") is not None:
        lines.append(f"-l h_vmem={jobtext.mebibytes(options['mem'])}M")
    if options.get("time") is not None:
        limit = int(float(options["time"]))
        # The soft limit's signal is the warning. It needs room below the hard one.
        lines.append(f"-l h_rt={limit},s_rt={max(1, limit - warning_before(limit))}")
    if ctx.exclude_hosts:
        lines.append(f"-l h=!({'|'.join(ctx.exclude_hosts)})")
    kept = [one for one in lines if one.split()[0].lstrip("-") not in ctx.skip]
    return [*kept, *ctx.args]


def _state(text: str) -> tuple[LaunchState, str]:
    """qstat's letters: E error, d deletion, h hold, s S T suspended, u host unknown, q w r t R."""
    letters = set(text)
    unknown = letters - set("EdhsSTNurtRqwPz")
    if unknown or not text:
        return LaunchState.STALE, f"the job's state is {text or 'empty'}"
    if "d" in letters:
        return LaunchState.STALE, "the job is being deleted"
    if "E" in letters:
        return LaunchState.PENDING, "the job is in error; qstat -j tells why, qmod -cj clears it"
    if "q" in letters or "w" in letters:
        return LaunchState.PENDING, "held" if "h" in letters else ""
    if "u" in letters:
        return LaunchState.STALE, "the job's host is not heard of"
    if letters & set("rtR"):
        return LaunchState.RUNNING, "suspended" if letters & set("sST") else ""
    return LaunchState.RUNNING, "suspended"
