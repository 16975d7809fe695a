"""docs/SECURITY.md: every threat names its control, and tests that exist."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "SECURITY.md").read_text()
#: `| T1 | threat | control | tests |`
ROW = re.compile(r"^\| (T\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = {number: (threat, control, tests) for number, threat, control, tests in ROW.findall(PAGE)}


def functions(name: str) -> list[str]:
    """The tests in the file of that name, wherever it is under tests/."""
    (path,) = (ROOT / "tests").rglob(f"{name}.py")
    return [
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def test_the_catalogue_is_whole() -> None:
    assert list(ROWS) == [f"T{n}" for n in range(1, 25)]


@pytest.mark.parametrize("number", ROWS)
def test_a_threat_has_a_control_and_tests_that_exist(number: str) -> None:
    threat, control, tests = ROWS[number]
    assert len(threat) > 3
    assert len(control) > 3
    named = re.findall(r"`([^`]+)`", tests)
    assert named, f"{number} names no test"
    for one in named:
        file, _, function = one.partition("::")
        there = functions(file)
        if function.endswith("…"):
            assert [name for name in there if name.startswith(function[:-1])], one
        elif function:
            assert function in there, one
        else:
            assert there, one


def test_the_left_open_are_said() -> None:
    """Nobody must have to guess what is missing."""
    left = PAGE.partition("## Left open")[2]
    for number in ("T15", "T23"):
        assert number in left
