"""LSF as text: the forms of `tests/cluster/LSF.md`, ugly ones included."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launcher_contexts import context

from jobflowd.launchers.base import Accepted, Answer, NoEvidence, Refused, Unknown
from jobflowd.launchers.lsf import STATES, Lsf
from jobflowd.model import LaunchState

lsf = Lsf()
HEADER = "JOBID^STAT^EXIT_CODE^JOB_NAME^EXIT_REASON^PEND_REASON"


def answer(*lines: str, rc: int = 0) -> Answer:
    found = lsf.parse_query(rc, "".join(f"{line}\n" for line in (HEADER, *lines)), "")
    assert isinstance(found, Answer)
    return found


def test_the_script_is_what_the_settings_say() -> None:
    options = {"queue": "long", "nproc": 10, "mem": 20 * 10**9, "time": 5400.0}
    text = lsf.script(context(options=options, exclude_hosts=("h1",), env_scripts=("/x/e.sh",)))
    lines = [line.removeprefix("#BSUB ") for line in text.splitlines() if "#BSUB" in line]
    assert lines == [
        "-J jf-abc-1",
        '-Jd "jobflow t1 jf-abc-1"',
        '-o "/data/t1/launches/jf-abc-1/output"',
        '-cwd "/home/u"',
        "-rn",
        '-R "span[hosts=1]"',
        "-q long",
        "-n 10",
        "-M 19074MB",
        '-R "rusage[mem=19074MB]"',
        "-W 1:30",
        "-wt 2",
        "-wa USR2",
        "-R \"select[hname!='h1']\"",
    ]
    assert "\n. /x/e.sh\n" in text


@pytest.mark.parametrize(
    "out",
    [
        "Job <68628> is submitted to queue <short>.\n",
        "Job <68628> is submitted to default queue <normal>.\n",
        "esub: welcome\nCannot connect to LSF. Please wait ...\n"
        "Job <68628> is submitted to queue <x>.\n",
    ],
)
def test_the_id_wherever_it_stands(out: str) -> None:
    assert lsf.parse_submit(0, out, "") == Accepted("68628")
    assert lsf.parse_submit(0, "", out) == Accepted("68628")


@pytest.mark.parametrize(
    ("text", "limited"),
    [
        ("rhel7: No such queue. Job not submitted.", False),
        ("Too many processors requested. Job not submitted.", False),
        ("Bad job name. Job not submitted.", False),
        ("q: Queue has been closed. Job not submitted.", True),
        ("The destination queue has reached its job limit. Job not submitted.", True),
        ("Pending job threshold reached. Retrying in 60 seconds...", True),
        ("Request from non-LSF host rejected. Job not submitted.", False),
    ],
)
def test_refusals(text: str, limited: bool) -> None:
    found = lsf.parse_submit(255, "", text + "\n")
    assert isinstance(found, Refused)
    assert found.limited is limited
    assert text in found.reason


@pytest.mark.parametrize(
    ("rc", "out", "err"),
    [
        (0, "", ""),
        (None, "", "LSF is down. Please wait ..."),
        (255, "", "Failed in an LSF library call: A socket operation has failed."),
        (-9, "", ""),
    ],
)
def test_what_leaves_the_fate_open(rc: int | None, out: str, err: str) -> None:
    assert isinstance(lsf.parse_submit(rc, out, err), Unknown)


@pytest.mark.parametrize("word", sorted(STATES))
def test_every_state_word(word: str) -> None:
    (job,) = answer(f"7^{word}^-^jf-a-1^-^-").jobs
    assert job.state is STATES[word]


def test_ends_that_are_nobodys_fault() -> None:
    killed = "7^EXIT^140^jf-a-1^TERM_RUNLIMIT: job killed after reaching LSF run time limit^-"
    (job,) = answer(killed).jobs
    assert job.state is LaunchState.ENDED
    (job,) = answer("7^EXIT^1^jf-a-1^-^-").jobs
    assert job.state is LaunchState.FAILED
    assert job.reason == "the job ended with status 1"
    (job,) = answer("7^EXIT^-^jf-a-1^-^-").jobs
    assert job.state is LaunchState.FAILED


def test_absence_needs_a_good_status() -> None:
    line = "7^RUN^-^jf-a-1^-^-"
    assert answer(line).whole
    assert not answer(line, rc=255).whole
    assert answer(line, rc=255).jobs == answer(line).jobs
    assert lsf.parse_query(0, "", "No unfinished job found\n") == Answer(())
    assert isinstance(lsf.parse_query(0, "", ""), NoEvidence)
    assert isinstance(lsf.parse_query(255, "", "LSF is down. Please wait ..."), NoEvidence)


def test_status_255_for_jobs_not_found_is_good() -> None:
    """Where sites want that status for an unknown id, nothing else is wrong with the answer."""
    out = "JOBID^STAT^EXIT_CODE^JOB_NAME^EXIT_REASON^PEND_REASON\n7^RUN^-^jf-a-1^-^-\n"

    def whole(err: str, out: str = out) -> bool:
        said = lsf.parse_query(255, out, err)
        assert isinstance(said, Answer)
        return said.whole

    assert whole("Job <9> is not found\nJob <12[3]> is not found\n")
    assert not whole("Job <9> is not found\nLSF is down. Please wait ...\n")
    assert not whole("")
    assert not whole("Job <9> is not found\n", out[:-4])


def test_reasons_may_hold_anything_but_a_newline() -> None:
    (job,) = answer("7^PEND^-^jf-a-1^-^New job ^ is waiting; for scheduling").jobs
    assert job.reason == "New job ^ is waiting; for scheduling"


def test_an_element_of_an_array_is_its_array() -> None:
    assert answer("123[7]^RUN^-^x^-^-").jobs[0].batch_job_id == "123"


def test_a_job_that_is_over_is_a_kill_that_worked() -> None:
    assert lsf.parse_cancel(255, "", "Job <1>: Job has already finished\n") == ""
    assert lsf.parse_cancel(0, "Job <1> is being terminated\n", "") == ""
    assert "permission denied" in lsf.parse_cancel(255, "", "Job <1>: User permission denied\n")


@pytest.mark.parametrize("arg", ["-J x", "-o /x", "-K", "-I", "-w done(1)", "x", "", '-R "a'])
def test_what_is_ours_is_refused(arg: str) -> None:
    assert lsf.problems(context(args=(arg,)))


@given(st.one_of(st.none(), st.integers(-20, 255)), st.text(), st.text())
def test_the_parsers_are_total(rc: int | None, out: str, err: str) -> None:
    for text in (out, f"{HEADER}\n{out}"):
        lsf.parse_submit(rc, text, err)
        lsf.parse_query(rc, text, err)
        lsf.parse_cancel(rc, text, err)
