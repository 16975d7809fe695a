"""SLURM as text: scripts, and answers of every kind."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launcher_contexts import ODD, context

from jobflowd.launchers.base import Accepted, Answer, NoEvidence, Refused, Unknown
from jobflowd.launchers.slurm import STATES, Slurm
from jobflowd.model import LaunchState

slurm = Slurm()
HEADER = "JF|JOBID|STATE|REASON|TIME_LEFT|NAME|JF"


def answer(*lines: str) -> Answer:
    found = slurm.parse_query(0, "".join(f"{line}\n" for line in (HEADER, *lines)), "")
    assert isinstance(found, Answer)
    return found


# --- the script -------------------------------------------------------------------------------


def test_the_script_is_what_the_settings_say() -> None:
    options = {"partition": "gpu", "time": 5400.0, "mem": 20 * 10**9, "cpus": 4, "gres": "gpu:1"}
    text = slurm.script(context(options=options, exclude_hosts=("n1", "n2")))
    lines = [line.removeprefix("#SBATCH ") for line in text.splitlines() if "#SBATCH" in line]
    assert lines == [
        "--chdir=/home/u",
        '--comment="jobflow t1 jf-abc-1"',
        "--cpus-per-task=4",
        "--exclude=n1,n2",
        "--gres=gpu:1",
        "--job-name=jf-abc-1",
        "--mem=19074M",
        "--nodes=1",
        "--ntasks=1",
        "--open-mode=append",
        "--output=/data/t1/launches/jf-abc-1/output",
        "--partition=gpu",
        "--signal=B:USR1@120",
        "--time=0-01:30:00",
        "--no-requeue",
    ]
    assert "JOBFLOW_END_AT=$(( $(date +%s) + 5400 ))" in text
    assert text.splitlines()[-1].startswith("exec '/opt/py thon/bin/python' -c")


def test_a_short_limit_is_not_all_warning() -> None:
    assert "--signal=B:USR1@15" in slurm.script(context(options={"time": 60.0}))


def test_percent_signs_are_no_patterns_in_the_output_path() -> None:
    assert '--output="/a 100%% b"' in slurm.script(context(output_path="/a 100% b"))


def test_what_a_shell_would_see() -> None:
    """bash itself is asked: prologue, scripts and words with every odd character."""
    odd = context(
        worker_argv=("printf", "%s|", ODD, "$(x)", "a  b"),
        env_scripts=(),
        prologue=("GREETING=hello",),
        restore={"LC_ALL": None, "LANG": "C.UTF-8"},
    )
    assert slurm.problems(odd) == []
    done = subprocess.run(
        ["bash"], input=slurm.script(odd), capture_output=True, text=True, check=True
    )
    assert done.stdout == f"{ODD}|$(x)|a  b|"


@given(st.text(st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="\u2028\u2029")))
def test_any_text_without_control_characters_is_quoted(text: str) -> None:
    script = slurm.script(context(worker_argv=("w", text)))
    assert shlex.split(script.splitlines()[-1]) == ["exec", "w", text]


def test_directives_can_be_left_out() -> None:
    text = slurm.script(context(options={"mem": 2**30}, skip=("mem", "nodes", "no-requeue")))
    assert "--mem" not in text
    assert "--nodes" not in text
    assert "requeue" not in text


def test_extra_arguments_follow_ours() -> None:
    text = slurm.script(context(args=("--reservation=tue day", "--mail-user you@example", "-X")))
    assert '#SBATCH "--reservation=tue day"' in text
    assert "#SBATCH --mail-user you@example" in text


@pytest.mark.parametrize(
    "arg",
    [
        "--array=1-3",
        "--arr=1",
        "-a1-3",
        "--output=/x",
        "-o /x",
        "--job-name x",
        "-Jx",
        "--parsable",
        "--wrap=ls",
        "--dependency=after:1",
        "--signal=USR2",
        "--requeue",
        "--nodes=2",
        "reservation",
        "",
        ":",
    ],
)
def test_what_is_ours_is_refused_with_a_reason(arg: str) -> None:
    (problem, *_) = slurm.problems(context(args=(arg,)))
    assert "--slurm-arg" in problem


@pytest.mark.parametrize("field", ["session_dir", "start_dir", "output_path", "session"])
def test_control_characters_are_refused(field: str) -> None:
    assert "control character" in slurm.problems(context(**{field: "/a\nb"}))[0]


# --- sbatch's answers -------------------------------------------------------------------------


@pytest.mark.parametrize("out", ["123\n", "123;cluster\n", "Welcome!\n123\n", "123\n123\n"])
def test_an_id_is_an_id(out: str) -> None:
    assert slurm.parse_submit(0, out, "") == Accepted("123")


def test_an_id_counts_even_if_the_command_failed_then() -> None:
    assert slurm.parse_submit(1, "123\n", "sbatch: error: something") == Accepted("123")
    assert slurm.parse_submit(None, "123\n", "") == Accepted("123")


@pytest.mark.parametrize(
    ("rc", "out", "err"),
    [
        (None, "", ""),
        (-9, "", ""),
        (0, "", ""),
        (0, "Submitted\n", ""),
        (0, "12\n13\n", ""),
        (1, "", "sbatch: error: Batch job submission failed: Socket timed out on send/recv"),
        (1, "", "sbatch: error: Batch job submission failed: Zero Bytes were transmitted"),
    ],
)
def test_what_leaves_the_fate_open(rc: int | None, out: str, err: str) -> None:
    assert isinstance(slurm.parse_submit(rc, out, err), Unknown)


def test_a_refusal_is_in_the_sites_words() -> None:
    err = (
        "sbatch: error: invalid partition specified: nosuch\n"
        "sbatch: error: Batch job submission failed: Invalid partition name specified\n"
    )
    found = slurm.parse_submit(1, "", err)
    assert found == Refused(
        "invalid partition specified: nosuch; "
        "Batch job submission failed: Invalid partition name specified"
    )


@pytest.mark.parametrize(
    "line",
    [
        "QOSMaxSubmitJobPerUserLimit",
        "AssocMaxSubmitJobLimit",
        "Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's "
        "size and/or time limits)",
    ],
)
def test_a_limit_is_not_a_mistake(line: str) -> None:
    found = slurm.parse_submit(1, "", f"sbatch: error: {line}\n")
    assert isinstance(found, Refused)
    assert found.limited


def test_an_unreachable_controller_took_nothing() -> None:
    err = "sbatch: error: Batch job submission failed: Unable to contact slurm controller"
    assert isinstance(slurm.parse_submit(1, "", err), Refused)


# --- squeue's answers -------------------------------------------------------------------------


@pytest.mark.parametrize("word", sorted(STATES))
def test_every_state_word(word: str) -> None:
    (job,) = answer(f"JF|7|{word}|None|1:00|jf-a-1|JF").jobs
    assert job.state is STATES[word]


@pytest.mark.parametrize("word", ["", "BRAND_NEW", "running", "☃"])
def test_an_unknown_word_is_unresolved(word: str) -> None:
    (job,) = answer(f"JF|7|{word}|None|1:00|jf-a-1|JF").jobs
    assert job.state is LaunchState.STALE


def test_an_empty_queue_is_an_answer_and_silence_is_not() -> None:
    assert answer() == Answer(())
    assert isinstance(slurm.parse_query(0, "", ""), NoEvidence)
    assert isinstance(slurm.parse_query(1, HEADER + "\n", "squeue: error"), NoEvidence)
    assert isinstance(slurm.parse_query(None, HEADER + "\n", ""), NoEvidence)


def test_banners_are_skipped_and_cuts_are_seen() -> None:
    line = "JF|7|RUNNING|None|1:00|jf-a-1|JF"
    assert answer("*** maintenance | on Monday ***", line, line).whole
    assert len(answer(line, line).jobs) == 1
    cut = slurm.parse_query(0, f"{HEADER}\n{line}\nJF|8|RUNN", "")
    assert isinstance(cut, Answer)
    assert [job.batch_job_id for job in cut.jobs] == ["7"]
    assert not cut.whole


@pytest.mark.parametrize(
    ("left", "seconds"),
    [("1:00", 60.0), ("2-03:04:05", 183845.0), ("1:00:00", 3600.0), ("UNLIMITED", None)],
)
def test_the_time_left(left: str, seconds: float | None) -> None:
    (job,) = answer(f"JF|7|RUNNING|None|{left}|jf-a-1|JF").jobs
    assert job.time_left_s == seconds


def test_reasons_are_for_people() -> None:
    (job,) = answer("JF|7|PENDING|Resources|1:00|jf-a-1|JF").jobs
    assert job.reason == "Resources"
    (job,) = answer("JF|7|TIMEOUT|TimeLimit|0:00|jf-a-1|JF").jobs
    assert job.reason == "the job reached its time limit (TimeLimit)"


@given(st.one_of(st.none(), st.integers(-20, 255)), st.text(), st.text())
def test_the_parsers_are_total(rc: int | None, out: str, err: str) -> None:
    for text in (out, f"{HEADER}\n{out}"):
        slurm.parse_submit(rc, text, err)
        slurm.parse_query(rc, text, err)
        slurm.parse_history(rc, text, err)
        slurm.parse_cancel(rc, text, err)


def test_accounting() -> None:
    out = "JobID|State|ExitCode|JobName\n7|CANCELLED by 0|0:15|jf-a-1\n"
    found = slurm.parse_history(0, out, "")
    assert isinstance(found, Answer)
    assert found.jobs[0].state is LaunchState.ENDED
    off = slurm.parse_history(1, "", "Slurm accounting storage is disabled\n")
    assert isinstance(off, NoEvidence)
    assert off.never


def test_what_jobs_are_found_by_cannot_be_left_out() -> None:
    assert slurm.problems(context(skip=("job-name",)))
    assert slurm.problems(context(skip=("mem",))) == []
