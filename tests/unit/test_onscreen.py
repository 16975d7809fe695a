"""When a start becomes the wrapper, and what it hands over."""

from __future__ import annotations

import os
import sys
from typing import Any

import pytest

from jobflowd import onscreen
from jobflowd.config import ConfigError, load


class Stream:
    """A stream that is a terminal or is none."""

    def __init__(self, terminal: bool) -> None:
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


def at(monkeypatch: pytest.MonkeyPatch, terminal: bool, term: str = "xterm") -> None:
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(f"jobflowd.onscreen.sys.{name}", Stream(terminal))
    monkeypatch.setenv("TERM", term)


@pytest.mark.parametrize(
    ("flags", "terminal", "term", "shown"),
    [
        ({}, True, "xterm", True),
        ({}, True, "dumb", False),
        ({}, False, "xterm", False),
        ({"dashboard": "off"}, True, "xterm", False),
        ({"detach": True}, True, "xterm", False),
        ({"dashboard": "on"}, True, "xterm", True),
    ],
)
def test_a_view_needs_a_terminal_and_the_wish(
    monkeypatch: pytest.MonkeyPatch, flags: dict[str, Any], terminal: bool, term: str, shown: bool
) -> None:
    config = load({"program": "p.py", **flags})
    at(monkeypatch, terminal, term)
    assert onscreen.wanted(config) is shown


def test_on_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load({"program": "p.py", "dashboard": "on"})
    at(monkeypatch, False)
    with pytest.raises(ConfigError, match="needs a terminal") as caught:
        onscreen.wanted(config)
    assert caught.value.exit_code == 2
    monkeypatch.setattr(onscreen, "_NEEDED", "no_such_package")
    with pytest.raises(ConfigError, match=r"jobflowd\[dashboard\]"):
        onscreen.wanted(config)


def test_without_the_extra_auto_is_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load({"program": "p.py"})
    at(monkeypatch, True)
    monkeypatch.setattr(onscreen, "_NEEDED", "no_such_package")
    assert not onscreen.wanted(config)


def test_the_wrapper_gets_the_same_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load({"program": "p.py", "dashboard_refresh": "3s", "dashboard_log_lines": "9"})
    found: list[list[str]] = []
    monkeypatch.setattr(os, "execv", lambda path, words: found.append(words))
    onscreen.become_wrapper(config, ["--program", "p.py", "-A", '{"a b": 1}'])
    (words,) = found
    assert words[0] == sys.executable
    assert "--external-dashboard-refresh=3" in words
    assert "--external-dashboard-log-lines=9" in words
    assert "--telemetry-mode=off" in words
    assert words[-4:] == ["--program", "p.py", "-A", '{"a b": 1}']
