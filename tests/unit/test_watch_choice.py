"""Full screen or lines: a question of the terminal, the extra and the wish."""

from __future__ import annotations

import io

import pytest

from jobflowctl import watch
from jobflowctl.output import Output


@pytest.mark.parametrize(
    ("mode", "terminal", "extra", "once", "plain", "full", "hint"),
    [
        ("human", True, True, False, False, True, False),
        ("human", True, False, False, False, False, True),
        ("human", False, True, False, False, False, False),
        ("human", True, True, True, False, False, False),
        ("human", True, True, False, True, False, False),
        ("json", True, True, False, False, False, False),
        ("quiet", True, True, False, False, False, False),
    ],
)
def test_full_screen_or_lines(
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    terminal: bool,
    extra: bool,
    once: bool,
    plain: bool,
    full: bool,
    hint: bool,
) -> None:
    monkeypatch.setattr(watch, "can_draw", lambda: terminal)
    monkeypatch.setattr(watch, "has_textual", lambda: extra)
    said = io.StringIO()
    output = Output(mode, stdout=io.StringIO(), stderr=said)
    assert watch._full_screen(output, once=once, plain=plain) is full
    assert ("jobflowd[dashboard]" in said.getvalue()) is hint


def test_a_dumb_terminal_is_not_drawn_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdin", "stdout", "stderr"):
        stream = io.StringIO()
        monkeypatch.setattr(stream, "isatty", lambda: True)
        monkeypatch.setattr(f"jobflowctl.watch.sys.{name}", stream)
    monkeypatch.setenv("TERM", "dumb")
    assert not watch.can_draw()
    monkeypatch.setenv("TERM", "xterm")
    assert watch.can_draw()
