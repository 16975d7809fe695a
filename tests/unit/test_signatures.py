"""Failures with one cause get one text, whatever differs from task to task."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflowd.model import AttemptRow
from jobflowd.signatures import SIGNATURES_MAX, TEXT_MAX, Signatures, place, signature

FRAME = '  File "{path}", line {line}, in {name}\n    code()\n'


def trace(*frames: tuple[str, int, str], last: str = "ValueError: no") -> str:
    lines = "".join(FRAME.format(path=path, line=line, name=name) for path, line, name in frames)
    return f"Traceback (most recent call last):\n{lines}{last}\n"


def failed(error: str, traceback: str = "", **values: object) -> AttemptRow:
    row = AttemptRow(1, 1, 1, 1.0, 2.0, "failed", "exception", "retries")
    return row._replace(error=error, traceback=traceback, **values)  # type: ignore[arg-type]


OWN = ("/home/me/conv.py", 31, "execute_task")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ValueError: bad input 3", "ValueError: bad input 23"),
        ("KeyError: 'a'", "KeyError: 'b c'"),
        ("OSError: /data/a/1.npy is short", "OSError: /scratch/b/2.npy is short"),
        ("ValueError: shape (1, 2, 3)", "ValueError: shape (44, -5.5, 6e3)"),
        ("RuntimeError: object at 0x7f12ab", "RuntimeError: object at 0x7f99ff"),
    ],
)
def test_what_varies_is_left_out(one: str, other: str) -> None:
    assert signature(failed(one, trace(OWN))) == signature(failed(other, trace(OWN)))


def test_two_lines_are_two_bugs() -> None:
    here, there = trace(OWN), trace(("/home/me/conv.py", 32, "execute_task"))
    assert signature(failed("ValueError: no", here)) != signature(failed("ValueError: no", there))
    assert signature(failed("ValueError: no", here)).endswith("at conv.py:31 in execute_task")


def test_the_place_is_in_the_users_own_code() -> None:
    library = ("/v/lib/python3.11/site-packages/numpy/core.py", 7, "load")
    assert place(trace(OWN, library)) == "conv.py:31 in execute_task"
    assert place(trace(library)) == "core.py:7 in load"
    assert place("no frames") == ""


@pytest.mark.parametrize(
    ("attempt", "text"),
    [
        (failed("its process ended", cause="crash", exit_signal="SIGSEGV"), "crash: SIGSEGV"),
        (failed("it left", cause="crash", exit_code=7), "crash: exit code 7"),
        (
            failed("it ran longer than 0.5 s", cause="timeout", exit_signal="SIGKILL"),
            "timeout: it ran longer than N s",
        ),
        (failed("", outcome="lost", cause="lease 7 ended"), "worker lost: lease N ended"),
        (failed("", outcome="returned", cause="walltime"), "returned: walltime"),
    ],
)
def test_causes_without_a_traceback(attempt: AttemptRow, text: str) -> None:
    assert signature(attempt) == text


@given(st.text(max_size=3000), st.text(max_size=3000))
def test_any_text_gives_a_short_one_soon(error: str, traceback: str) -> None:
    began = time.perf_counter()
    found = signature(failed(error, traceback))
    assert len(found) <= TEXT_MAX
    assert time.perf_counter() - began < 0.5


@pytest.mark.parametrize("text", ["a" * 5000, "/a" * 3000, "'" * 5000, "1" * 5000, "a.b-" * 2000])
def test_hostile_messages_cost_little(text: str) -> None:
    began = time.perf_counter()
    signature(failed(f"E: {text}", trace(OWN)))
    assert time.perf_counter() - began < 0.2


def test_messages_that_never_repeat_are_grouped_by_type_and_place() -> None:
    names = Signatures()
    words = [f"E: {chr(97 + n % 26)}{'x' * (n // 26)}" for n in range(2 * SIGNATURES_MAX)]
    texts = {names.of(failed(word, trace(OWN))) for word in words}
    assert len(texts) == SIGNATURES_MAX + 1
    assert "E at conv.py:31 in execute_task" in texts
    again = Signatures()
    again.learn(sorted(texts))
    assert again.of(failed(words[0], trace(OWN))) in texts
