"""Program arguments that a shell, a script or an argument list would spoil."""

from __future__ import annotations

import pytest

from .bench import Bench

pytestmark = pytest.mark.slow
ODD = [
    "two words",
    'it\'s "quoted"',
    "line one\nline two\ttab\r",
    "$(touch hit) `touch hit` ${HOME} %h %% \\ ; & | > hit",
    "größe 大きさ \u2028 \U0001f600",
    "-" * 3,
    "",
]


@pytest.mark.parametrize("mode", ["zmq", "fs"])
def test_program_arguments_arrive_as_they_were_given(bench: Bench, mode: str) -> None:
    """Known failure 12. They pass through the session directory, never through a command line."""
    echo = {"values": ODD, "nested": {"größe": [1, None, True, 1.5, {"a b": []}]}}
    daemon = bench.start("--workers", "1", mode=mode, n=1, echo=echo)
    assert bench.ended(daemon) == 0, bench.printed()
    assert bench.verdict(1).problems == []
    assert bench.results()["t000000"]["echo"] == echo
    assert not (bench.root / "hit").exists()
