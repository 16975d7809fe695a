"""Who may import whom, read from the source: DESIGN.md section 3 as a test.

A new module needs no entry here unless it is pure or published; then it gets the promise by being
named.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
#: The straight line: each package may import those to its left.
PACKAGES = ("jobflow_worker", "jobflowd", "jobflowctl")

#: No clock, no randomness, no I/O: what is decided here depends on what comes in, only.
PURE = frozenset(
    f"jobflowd.{name}"
    for name in (
        "book",
        "census",
        "company",
        "coordinator",
        "deadlines",
        "effects",
        "events",
        "forecast",
        "launching",
        "model",
        "operators",
        "outbound",
        "outcomes",
        "pool",
        "quarantine",
        "reports",
        "schedule",
        "walltime",
        "window",
        "wording",
    )
) | frozenset(
    f"jobflow_worker.{name}"
    for name in (
        "limits",
        "messages",
        "outbox",
        "record",
        "reporter",
        "session",
        "slotevents",
        "vocabulary",
        "workload",
    )
)
PURE_NEVER = frozenset(
    (
        "asyncio", "datetime", "io", "logging", "multiprocessing", "os", "pathlib", "psutil",
        "random", "secrets", "select", "selectors", "signal", "socket", "sqlite3", "subprocess",
        "tempfile", "threading", "time", "uuid", "zmq",
    )
)  # fmt: skip

#: What the leaf must not bring to a thousand nodes.
WORKER_NEVER = frozenset(("sqlite3", "typer", "rich", "textual", "click", "asyncio"))
#: What the client may use of ours besides its own modules.
PUBLISHED = frozenset(
    (
        *("jobflowd.api", "jobflowd.exitcodes", "jobflowd.parsing", "jobflowd.wording"),
        *("jobflow_worker", "jobflow_worker.program", "jobflow_worker.sessionfiles"),
    )
)


class Import(NamedTuple):
    """One imported module; `lazy` if inside a function or for type checkers only."""

    name: str
    line: int
    lazy: bool


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports_of(source: str, own: str) -> Iterator[Import]:
    yield from _walk(ast.parse(source), own, False)


def _walk(node: ast.AST, own: str, lazy: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        inside = lazy or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            inside = True
        if isinstance(child, ast.Import):
            for alias in child.names:
                yield Import(alias.name, child.lineno, inside)
        elif isinstance(child, ast.ImportFrom):
            base = child.module or ""
            if child.level:
                raise AssertionError(f"{own}:{child.lineno}: relative import; write the whole name")
            for alias in child.names:
                # `from jobflowd import logs` imports a module, `from jobflowd.api import X` a name.
                full = f"{base}.{alias.name}"
                yield Import(full if full in MODULES else base, child.lineno, inside)
        yield from _walk(child, own, inside)


IMPORTS = {name: list(imports_of(path.read_text(), name)) for name, path in MODULES.items()}


def offences(name: str, never: frozenset[str]) -> list[str]:
    return [
        f"{name}:{one.line} imports {one.name}"
        for one in IMPORTS[name]
        if one.name.partition(".")[0] in never
    ]


def package_of(name: str) -> str:
    return name.partition(".")[0]


def test_packages_import_in_one_straight_line() -> None:
    wrong = [
        f"{name}:{one.line} imports {one.name}"
        for name, found in IMPORTS.items()
        for one in found
        if package_of(one.name) in PACKAGES
        and PACKAGES.index(package_of(one.name)) > PACKAGES.index(package_of(name))
    ]
    assert not wrong


def test_the_worker_stays_light() -> None:
    names = [name for name in MODULES if package_of(name) == "jobflow_worker"]
    assert names
    assert not [wrong for name in names for wrong in offences(name, WORKER_NEVER)]


def test_the_client_uses_only_what_is_published() -> None:
    wrong = [
        f"{name}:{one.line} imports {one.name}"
        for name, found in IMPORTS.items()
        if package_of(name) == "jobflowctl"
        for one in found
        if package_of(one.name) in ("jobflowd", "jobflow_worker") and one.name not in PUBLISHED
    ]
    assert not wrong


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_modules_do_no_io(name: str) -> None:
    assert name in MODULES, f"{name} is promised to be pure and does not exist"
    assert not offences(name, PURE_NEVER)
    # Purity does not end at the next module.
    reached = {one.name for one in IMPORTS[name] if one.name in MODULES and not one.lazy}
    impure = reached - PURE - {"jobflow_worker", "jobflowd"}
    assert not impure, f"{name} imports {impure}, which are not promised to be pure"


def test_one_codec() -> None:
    users = {name for name in MODULES if offences(name, frozenset(("msgpack",)))}
    assert users <= {"jobflow_worker.body", "jobflow_worker.codec"}


def test_no_cycles() -> None:
    graph = {
        name: {one.name for one in found if not one.lazy and one.name in MODULES}
        for name, found in IMPORTS.items()
    }
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*path, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize(
    ("module", "never"),
    [
        ("jobflow_worker", ("zmq", "psutil", "msgpack", "typer", "rich", "sqlite3", "jobflowd")),
        ("jobflow_worker.sessionfiles", ("zmq", "psutil", "msgpack", "typer", "sqlite3")),
        ("jobflow_worker.child", ("zmq", "jobflow_worker.messages", "jobflow_worker.validation")),
        ("jobflow_worker.agent", ("zmq", "dataclasses", "inspect", "jobflow_worker.author")),
        ("jobflow_worker.cli", ("typer", "rich", "sqlite3", "jobflowd", "asyncio")),
        ("jobflowd.api", ("zmq", "psutil", "msgpack", "typer", "rich", "sqlite3", "asyncio")),
        ("jobflowd.cli", ("zmq", "psutil", "msgpack", "sqlite3", "jobflowd.daemon")),
    ],
)
def test_heavy_modules_come_only_when_needed(module: str, never: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print('\\n'.join(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert not set(done.stdout.split()) & set(never)


def test_the_reader_of_imports_sees_all_kinds() -> None:
    source = (
        "import time\n"
        "from jobflowd import model\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import socket\n"
        "def f():\n    import os.path\n"
    )
    assert list(imports_of(source, "x")) == [
        ("time", 1, False),
        ("jobflowd.model", 2, False),
        ("typing", 3, False),
        ("socket", 5, True),
        ("os.path", 7, True),
    ]
