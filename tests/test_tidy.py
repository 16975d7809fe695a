"""House rules that a reader of the source can check: sizes, docstrings, banned calls.

Each finding says what to use instead. The checks are tested below on snippets that break them.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("jobflow_worker", "jobflowd", "jobflowctl")

FUNCTION_LINES_MAX = 70
MODULE_LINES_MAX = 500
MODULE_LINES_MAX_OF = {"jobflowd/coordinator.py": 650}
COLUMNS_MAX = 100

#: Where words for people leave the program; everything else returns them.
OUTPUT_MODULES = frozenset(
    (
        "jobflow_worker/cli.py",
        "jobflowd/cli.py",
        "jobflowd/console.py",
        "jobflowctl/output.py",
        "jobflowctl/supervise.py",
    )
)

#: Runs the migrations, whose text is our own files and which cannot have parameters.
SQL_SCRIPT_MODULE = "jobflowd/dbfile.py"

BANNED_CALLS = {
    "eval": "parse the text (json, ast.literal_eval)",
    "exec": "import the module, or write the code",
    "os.system": "jobflowd.commands, or subprocess with a list",
    "os.popen": "jobflowd.commands, or subprocess with a list",
    "tempfile.mktemp": "tempfile.mkstemp, or sessionfiles.write_private",
    "os.getlogin": "os.geteuid; a batch job has no login",
    "__import__": "importlib, in program.py alone",
    "yaml.load": "JSON or TOML",
    "ssl._create_unverified_context": "nothing: we speak CURVE",
}
#: Methods by which bytes of others would become objects, whoever has them.
BANNED_METHODS = {
    "send_pyobj": "codec.py", "recv_pyobj": "codec.py", "recv_json": "codec.py",
    "add_pickle_option": "codec.py",
}  # fmt: skip
BANNED_IMPORTS = {
    "pickle": "msgpack by codec.py, or JSON",
    "marshal": "msgpack by codec.py, or JSON",
    "shelve": "the store",
    "dill": "msgpack by codec.py, or JSON",
    "cloudpickle": "msgpack by codec.py, or JSON",
    "joblib": "msgpack by codec.py, or JSON",
    "yaml": "JSON or TOML",
    "zmq.auth": "jobflowd/keys.py: it writes secret keys with the umask's mode, and runs a thread",
}


def sources(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


OURS = sources(*PACKAGES)
ALL = [*OURS, *sources("tests", "examples", "bench")]


def dotted(node: ast.expr) -> str:
    """`os.path.join` of an attribute chain, "" for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        left = dotted(node.value)
        return f"{left}.{node.attr}" if left else ""
    return ""


# --- the checks: a tree in, findings out ------------------------------------------------------


def long_functions(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            if lines > FUNCTION_LINES_MAX:
                yield f"{node.lineno}: {node.name} has {lines} lines; split it"


def banned(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = dotted(node.func)
            if called in BANNED_CALLS:
                yield f"{node.lineno}: {called}; use {BANNED_CALLS[called]}"
            method = called.rpartition(".")[2]
            if method in BANNED_METHODS:
                yield f"{node.lineno}: {called}; use {BANNED_METHODS[method]}"
            if any(
                word.arg == "shell" and not _is_false(word.value) for word in node.keywords
            ) and called.startswith("subprocess"):
                yield f"{node.lineno}: shell=True; pass a list, nothing needs quoting then"
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            starts = {".".join(name.split(".")[:count]) for count in (1, 2)}
            for known in starts & BANNED_IMPORTS.keys():
                yield f"{node.lineno}: {name}; use {BANNED_IMPORTS[known]}"


def open_to_the_umask(tree: ast.AST) -> Iterator[str]:
    """Files are made with their final mode: what the umask decides, others may read."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        called = dotted(node.func)
        if called == "os.open" and "O_CREAT" in ast.dump(node) and len(node.args) < 3:
            yield f"{node.lineno}: os.open with O_CREAT and no mode; give 0o600"
        elif called == "open" or called.endswith((".open", ".fdopen")):
            mode = _mode_of(node)
            # A descriptor has its mode already.
            place = ast.dump(node.args[0]) if node.args else ""
            descriptor = any(f"id='{name}'" in place for name in ("fd", "number", "_create"))
            if set(mode) & set("wa") and not descriptor:
                yield f"{node.lineno}: open for writing; use sessionfiles.write_private"
        elif isinstance(node.func, ast.Attribute) and node.func.attr in (
            "write_text",
            "write_bytes",
        ):
            texts = [one.value for one in ast.walk(node) if isinstance(one, ast.Constant)]
            if not any(str(text).startswith("/proc/") for text in texts):
                yield f"{node.lineno}: {node.func.attr}; use sessionfiles.write_private"


def _mode_of(node: ast.Call) -> str:
    named = [word.value for word in node.keywords if word.arg == "mode"]
    for one in [*named, *node.args[-1:], *node.args[1:2]]:
        if isinstance(one, ast.Constant) and isinstance(one.value, str):
            text = one.value
            if text and set(text) <= set("rwaxbt+"):
                return text
    return "r"


def _is_false(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is False


def composed_sql(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        is_execute = (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in ("execute", "executemany", "executescript")
        )
        if is_execute and node.args and _is_composed(node.args[0]):
            yield f"{node.lineno}: SQL is composed; use ? parameters and constant text"


def _is_composed(node: ast.expr) -> bool:
    if isinstance(node, ast.JoinedStr):
        first = node.values[0] if node.values else None
        text = first.value if isinstance(first, ast.Constant) else ""
        # A PRAGMA takes no parameters; what is put into it are our own numbers.
        if str(text).upper().startswith("PRAGMA"):
            return False
        parts = [one.value for one in node.values if isinstance(one, ast.FormattedValue)]
        # Named constants are constant text, too.
        return not all(dotted(one).rpartition(".")[2].isupper() for one in parts)
    if isinstance(node, ast.BinOp):
        return isinstance(node.op, ast.Mod | ast.Add)
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "format"
    )


def double_asserts(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Assert)
            and isinstance(node.test, ast.BoolOp)
            and isinstance(node.test.op, ast.And)
        ):
            yield f"{node.lineno}: assert a and b; two asserts tell which one failed"


def prints(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) == "print":
            yield f"{node.lineno}: print; return the words to an output module"


def findings(paths: list[Path], check: Callable[[ast.AST], Iterator[str]]) -> list[str]:
    return [
        f"{name_of(path)}:{finding}"
        for path in paths
        for finding in check(ast.parse(path.read_text()))
    ]


# --- the tests --------------------------------------------------------------------------------


def test_there_is_something_to_read() -> None:
    assert len(OURS) > 20


def test_functions_fit_on_a_screen() -> None:
    assert not findings(OURS, long_functions)


def test_modules_can_be_read_in_one_sitting() -> None:
    too_long = []
    for path in OURS:
        lines = len(path.read_text().splitlines())
        if lines > MODULE_LINES_MAX_OF.get(name_of(path), MODULE_LINES_MAX):
            too_long.append(f"{name_of(path)} has {lines} lines; move a room out of it")
    assert not too_long


def test_lines_fit_a_window() -> None:
    wide = [
        f"{name_of(path)}:{number} has {len(line)} columns"
        for path in ALL
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(line) > COLUMNS_MAX
    ]
    assert not wide


def test_every_module_says_what_it_is() -> None:
    def silent(path: Path) -> bool:
        tree = ast.parse(path.read_text())
        return bool(tree.body) and not ast.get_docstring(tree)

    assert not [name_of(path) for path in ALL if silent(path)]


def test_nothing_banned_is_used() -> None:
    # Tests may use what they prove things about.
    assert not findings([*OURS, *sources("examples", "bench")], banned)


def test_files_are_made_with_their_final_mode() -> None:
    assert not findings(OURS, open_to_the_umask)


def test_sql_is_constant() -> None:
    paths = [path for path in OURS if name_of(path) != SQL_SCRIPT_MODULE]
    assert not findings(paths, composed_sql)


def test_asserts_are_single() -> None:
    assert not findings(ALL, double_asserts)


def test_only_output_modules_print() -> None:
    assert not findings([path for path in OURS if name_of(path) not in OUTPUT_MODULES], prints)


@pytest.mark.parametrize(
    ("check", "snippet"),
    [
        (long_functions, "def f():\n" + "    x = 1\n" * 70),
        (banned, "eval('1')"),
        (banned, "import os\nos.system('ls')"),
        (banned, "import tempfile\ntempfile.mktemp()"),
        (banned, "import pickle"),
        (banned, "from marshal import loads"),
        (banned, "import subprocess\nsubprocess.run('ls', shell=True)"),
        (banned, "from zmq.auth import create_certificates"),
        (banned, "import zmq.auth.thread"),
        (banned, "sock.recv_pyobj()"),
        (banned, "import yaml"),
        (open_to_the_umask, "open(path, 'w')"),
        (open_to_the_umask, "path.open('ab')"),
        (open_to_the_umask, "open(path, mode='w+')"),
        (open_to_the_umask, "path.write_text('x')"),
        (open_to_the_umask, "os.open(path, os.O_WRONLY | os.O_CREAT)"),
        (composed_sql, "db.execute(f'SELECT {x}')"),
        (composed_sql, "db.execute('SELECT %s' % x)"),
        (composed_sql, "db.executemany('SELECT ' + x, [])"),
        (composed_sql, "db.execute('SELECT {}'.format(x))"),
        (double_asserts, "assert a and b"),
        (prints, "print(1)"),
    ],
)
def test_the_checks_find_what_they_are_for(
    check: Callable[[ast.AST], Iterator[str]], snippet: str
) -> None:
    assert list(check(ast.parse(snippet)))


@pytest.mark.parametrize(
    ("check", "snippet"),
    [
        (long_functions, "def f():\n" + "    x = 1\n" * 69),
        (banned, "re.compile('x')\nself.exec()\nsubprocess.run(['ls'], shell=False)"),
        (open_to_the_umask, "open(path, 'rb')\nopen(path)\nopen(fd, 'wb')\nwords.open(path)"),
        (open_to_the_umask, "os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)"),
        (composed_sql, "db.execute('SELECT ?', (x,))\ndb.execute(f'PRAGMA user_version={n}')"),
        (composed_sql, "db.execute(f'SELECT a FROM b WHERE {_OPEN} AND {rows.DONE}')"),
        (double_asserts, "assert a or b\nassert (a, b)"),
    ],
)
def test_the_checks_leave_the_rest_alone(
    check: Callable[[ast.AST], Iterator[str]], snippet: str
) -> None:
    assert not list(check(ast.parse(snippet)))
