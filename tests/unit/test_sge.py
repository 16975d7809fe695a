"""Grid Engine as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from launcher_contexts import context

from jobflowd.launchers.base import Accepted, Answer, NoEvidence, Refused, Unknown
from jobflowd.launchers.sge import Sge
from jobflowd.model import LaunchState

sge = Sge()


def xml(*jobs: tuple[str, str, str]) -> str:
    rows = "".join(
        f'<job_list state="running"><JB_job_number>{number}</JB_job_number>'
        f"<JB_name>{name}</JB_name><state>{state}</state></job_list>"
        for number, name, state in jobs
    )
    return f"<?xml version='1.0'?>\n<job_info><queue_info>{rows}</queue_info></job_info>\n"


def test_the_script_is_what_the_settings_say() -> None:
    options = {"queue": "all.q", "pe": "smp:4", "time": 5400.0}
    text = sge.script(context(options=options, args=("-p -10",)))
    for line in ("-N jf-abc-1", "-notify", "-pe smp 4", "-l h_rt=5400,s_rt=5280", "-p -10"):
        assert f"\n#$ {line}\n" in text


@pytest.mark.parametrize("arg", ["-N x", "-t 1-3", "-o /x", "-sync y", "N", ""])
def test_what_is_ours_is_refused(arg: str) -> None:
    assert sge.problems(context(args=(arg,)))


def test_a_blank_in_a_directive_is_refused() -> None:
    assert "blank" in sge.problems(context(output_path="/a b"))[0]


@pytest.mark.parametrize(
    ("letters", "state"),
    [
        ("qw", LaunchState.PENDING),
        ("hqw", LaunchState.PENDING),
        ("Eqw", LaunchState.PENDING),
        ("r", LaunchState.RUNNING),
        ("t", LaunchState.RUNNING),
        ("Rr", LaunchState.RUNNING),
        ("Rq", LaunchState.PENDING),
        ("s", LaunchState.RUNNING),
        ("S", LaunchState.RUNNING),
        ("dr", LaunchState.STALE),
        ("", LaunchState.STALE),
        ("?", LaunchState.STALE),
    ],
)
def test_state_letters(letters: str, state: LaunchState) -> None:
    found = sge.parse_query(0, xml(("7", "jf-a-1", letters)), "")
    assert isinstance(found, Answer)
    assert found.jobs[0].state is state


def test_a_document_that_does_not_close_is_no_evidence() -> None:
    whole = xml(("7", "jf-a-1", "r"))
    assert isinstance(sge.parse_query(0, whole[:-20], ""), NoEvidence)
    assert isinstance(sge.parse_query(0, "", ""), NoEvidence)
    assert isinstance(sge.parse_query(1, whole, ""), NoEvidence)
    assert sge.parse_query(0, xml(), "") == Answer(())


def test_submissions() -> None:
    assert sge.parse_submit(0, "12\n", "") == Accepted("12")
    refused = sge.parse_submit(1, "", 'Unable to run job: unknown queue "x".\nExiting.\n')
    assert isinstance(refused, Refused)
    assert isinstance(sge.parse_submit(None, "", ""), Unknown)
    assert isinstance(sge.parse_submit(1, "", "error: commlib error: got select error"), Unknown)


@given(st.one_of(st.none(), st.integers(-20, 255)), st.text(), st.text())
def test_the_parsers_are_total(rc: int | None, out: str, err: str) -> None:
    for text in (out, xml((out, err, out))):
        sge.parse_submit(rc, text, err)
        sge.parse_query(rc, text, err)
        sge.parse_history(rc, text, err)
        sge.parse_cancel(rc, text, err)
