"""What the source itself promises: who may hold a key, and what nobody does (T8, T10, T13)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for package in ("jobflow_worker", "jobflowd", "jobflowctl")
    for path in sorted((ROOT / package).rglob("*.py"))
]
KEY_MODULES = {"jobflowd.keys", "jobflow_worker.keyfile"}
#: Whoever makes commands, scripts, answers or log lines is not in this list, and must not be.
KEY_HOLDERS = {
    "jobflow_worker/agent.py",
    "jobflow_worker/cli.py",
    "jobflow_worker/transport/auto.py",
    "jobflow_worker/transport/base.py",
    "jobflow_worker/transport/fs.py",
    "jobflow_worker/transport/zmq.py",
    "jobflowd/keys.py",
    "jobflowd/opening.py",
    "jobflowd/performer.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_keys_are_in_few_hands() -> None:
    holders = {
        name_of(path)
        for path in SOURCES
        if KEY_MODULES & set(imported(ast.parse(path.read_text())))
    }
    assert holders <= KEY_HOLDERS


def looked_up(tree: ast.AST) -> Iterator[str]:
    """`getattr(x, name)` and `globals()[name]` with a name that is not written there."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in ("globals", "locals", "vars"):
            yield f"{node.lineno}: {node.func.id}()"
        elif node.func.id in ("getattr", "setattr") and not _is_written(node.args[1]):
            yield f"{node.lineno}: {ast.unparse(node)}"


def _is_written(name: ast.expr) -> bool:
    return isinstance(name, ast.Constant) or (isinstance(name, ast.Name) and name.id.isupper())


#: Each looks up the fields of a dataclass of ours, or settings, by the names in a table of ours.
OWN_NAMES = {
    "jobflow_worker/program.py",
    "jobflow_worker/validation.py",
    "jobflowd/batchopening.py",
    "jobflowd/cli.py",
    "jobflowd/config.py",
    "jobflowd/console.py",
    "jobflowd/generatechild.py",
    "jobflowd/metrics.py",
}


def test_no_name_from_outside_is_looked_up() -> None:
    """supervisord and Salt were taken over by names from the wire: ours go through tables."""
    found = {
        name_of(path): list(looked_up(ast.parse(path.read_text())))
        for path in SOURCES
        if name_of(path) not in OWN_NAMES
    }
    assert not {name: lines for name, lines in found.items() if lines}


@pytest.mark.parametrize(
    "snippet", ["getattr(x, name)", "globals()[name]()", "setattr(x, key, 1)", "vars(x)"]
)
def test_the_check_finds_what_it_is_for(snippet: str) -> None:
    assert list(looked_up(ast.parse(snippet)))
