"""tests/faults/CATALOGUE.md: every fault has its row, its behaviour, and tests that exist."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = (TESTS / "faults" / "CATALOGUE.md").read_text()
#: `| M1 | fault | behaviour | tests |`
ROW = re.compile(r"^\| ([A-Z]\d+) \| (.+?) \| (.+?) \| (.+?) \|$", re.MULTILINE)
ROWS = {number: (fault, right, tests) for number, fault, right, tests in ROW.findall(PAGE)}
#: How many rows each table of the reliability catalogue has.
SIZES = {"M": 11, "W": 17, "R": 10, "X": 9, "D": 16, "B": 17, "F": 9}


@cache
def functions(name: str) -> frozenset[str]:
    """The tests in the file of that name, wherever it is under tests/."""
    (path,) = TESTS.rglob(f"{name}.py")
    return frozenset(
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    )


def test_the_catalogue_is_whole() -> None:
    assert list(ROWS) == [f"{table}{n}" for table in SIZES for n in range(1, SIZES[table] + 1)]


@pytest.mark.parametrize("number", ROWS)
def test_a_fault_has_a_behaviour_and_tests_that_exist(number: str) -> None:
    fault, behaviour, tests = ROWS[number]
    assert len(fault) > 3
    assert len(behaviour) >= 2
    named = re.findall(r"`(\w+)::(\w+)`", tests)
    assert named, f"{number} names no test"
    assert len(named) == tests.count("`") // 2, tests
    for file, function in named:
        assert function in functions(file), f"{file}::{function}"
