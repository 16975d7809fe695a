"""What the source itself promises: who may hold a key, and what nobody does (T8, T10, T13)."""

from __future__ import annotations

import ast
import re
import sys
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
    "jobflowd/mailchild.py",
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


#: Each looks up the fields of a class of ours, or settings, by the names in a table of ours.
OWN_NAMES = {
    "jobflow_worker/__init__.py",
    "jobflow_worker/program.py",
    "jobflow_worker/record.py",
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


#: Modules that expand what somebody else compressed; zlib is there for its checksum.
EXPANDERS = {"bz2", "gzip", "lzma", "tarfile", "zipfile", "zipimport", "zstandard", "lz4"}


def test_nothing_is_decompressed() -> None:
    """T12: what has no decompressor cannot be made to swell."""
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        found += [f"{name_of(path)}: {name}" for name in EXPANDERS & set(imported(tree))]
        found += [
            f"{name_of(path)}: zlib.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "zlib"
            and node.attr != "crc32"
        ]
        found += [
            f"{name_of(path)}: {name}"
            for name in imported(tree)
            if name.startswith("zlib.") and name != "zlib.crc32"
        ]
    assert not found


def declared() -> set[str]:
    """Names of the packages that pyproject.toml asks for, extras of the dashboard included."""
    text = (ROOT / "pyproject.toml").read_text()
    needed = re.search(r"^dependencies = \[\n(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    extra = re.search(r"^dashboard = \[(.*?)\]", text, re.MULTILINE)
    assert needed
    assert extra
    return set(re.findall(r'"([A-Za-z0-9_-]+)[^"]*"', needed[1] + extra[1]))


def test_what_is_imported_is_declared() -> None:
    """T23: a name that nobody declared is one that somebody else may come to own."""
    packages = {"zmq": "pyzmq"}
    own = {"jobflow_worker", "jobflowd", "jobflowctl"}
    names = declared()
    assert names == {"pyzmq", "msgpack", "psutil", "typer", "tomli", "textual"}
    # Packages that come with those, and are part of what they promise.
    names |= {"rich", "click"}
    # Read by type checkers only, which bring it along: record.py has its own at run time.
    assert (
        "if TYPE_CHECKING:\n    from typing_extensions"
        in (ROOT / "jobflow_worker/record.py").read_text()
    )
    names |= {"typing_extensions"}
    foreign = {
        (name_of(path), top)
        for path in SOURCES
        for name in imported(ast.parse(path.read_text()))
        if (top := name.partition(".")[0]) not in sys.stdlib_module_names | own | {"__future__"}
        and packages.get(top, top) not in names
    }
    assert not foreign


def test_dependencies_are_names_and_versions_only() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert not re.search(r"://|\s@\s|git\+|index-url|find-links", text.partition("[tool")[0])


#: What could bring in code from elsewhere while a daemon or a job runs.
FETCHERS = {"pip", "ensurepip", "venv", "urllib.request", "http.client", "ftplib", "xmlrpc"}


def test_nothing_is_fetched_or_installed() -> None:
    """T23: no install at the start of a job, nothing downloaded at any time."""
    found = []
    for path in SOURCES:
        tree = ast.parse(path.read_text())
        found += [f"{name_of(path)}: {name}" for name in FETCHERS & set(imported(tree))]
        found += [
            f"{name_of(path)}:{node.lineno}: {node.value!r:.60}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node.value in ("pip", "conda", "curl", "wget", "uv")
        ]
    assert not found
