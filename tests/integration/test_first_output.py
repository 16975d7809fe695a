"""What commands load before they say something: a budget in modules, which no machine can blur.

How long it takes is measured by `python -m bench.first_output`.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from stub_daemon import StubDaemon, write_session

from jobflowctl import cli as ctl
from jobflowd import api, exitcodes, parsing
from jobflowd import cli as daemon_cli
from jobflowd.flags import SETTINGS

#: Each of them costs as much as a verb does, or more.
HEAVY = frozenset(
    (
        *("asyncio", "click", "email", "logging", "msgpack", "psutil", "pydantic", "rich"),
        *("sqlite3", "textual", "tomllib", "zmq"),
    )
)
#: The versions of these are known to nobody else; what they load comes with them.
OF_VERSION = frozenset(("zmq", "sqlite3", "asyncio", "logging"))
#: Of everything, the interpreter's own and the parser's among it; 182 when this was written.
MODULES_MAX = 215
_RUN = (
    "import json, sys; from {0} import main; sys.argv = {1!r}\n"
    "try:\n    code = main()\nexcept SystemExit as end:\n    code = end.code\n"
    "print('code', code, json.dumps(list(sys.modules)), file=sys.stderr)"
)


@pytest.fixture
def daemon(
    session_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[StubDaemon]:
    for name, value in session_env.items():
        monkeypatch.setenv(name, value)
    place = write_session(tmp_path / "runs" / "t1")
    with StubDaemon(api.socket_path(place.dir)) as daemon:
        yield daemon


def loaded(main: str, *words: str) -> set[str]:
    """The modules of a process that has run this command with success."""
    argv = [main.partition(".")[0], *words]
    done = subprocess.run(
        [sys.executable, "-c", _RUN.format(main, argv)], capture_output=True, text=True, check=False
    )
    _, code, modules = done.stderr.splitlines()[-1].split(" ", 2)
    assert code in ("0", "None"), done.stderr
    assert done.stdout
    return set(json.loads(modules))


@pytest.mark.parametrize(
    "words",
    [
        "status",
        "status --json",
        "tasks --limit 5 --state failed",
        "task scan-0001",
        "workers",
        "launches",
        "events -n 5",
        "snapshot",
        "watch --once",
        "scale 3",
        "shutdown --yes",
        "pause",
        "resume",
        "drain w-busy",
        "cancel a b",
        "retry a b",
        "release launcher",
        "sessions",
        "--version",
        "--help",
        "retry --help",
    ],
)
def test_a_verb_of_the_client_loads_what_it_needs(daemon: StubDaemon, words: str) -> None:
    found = loaded("jobflowctl.cli", *words.split())
    assert {one.partition(".")[0] for one in found} & HEAVY == set()
    assert len(found) <= MODULES_MAX, len(found)


@pytest.mark.parametrize(("words", "needed"), [("--help", frozenset()), ("--version", OF_VERSION)])
def test_so_does_the_daemons_own_command(words: str, needed: frozenset[str]) -> None:
    found = {one.partition(".")[0] for one in loaded("jobflowd.cli", words)}
    assert found & (HEAVY - needed) == set()


# --- the parser -------------------------------------------------------------------------------


def test_only_the_verb_of_the_line_is_made() -> None:
    made = parsing.parser(ctl.app, ["-s", "status", "workers"])
    assert set(made.commands) == {"status", "workers"}
    everything = {parsing.name(one) for one in ctl.app.registered_commands}
    for words in ([], ["-s", "x"], ["--help", "status"], ["statsu"]):
        assert set(parsing.parser(ctl.app, words).commands) == everything


def test_the_flags_of_start_are_made_for_start() -> None:
    named = daemon_cli.command(["start", "--workers", "3"])
    assert {one.name for one in named.commands["start"].params} >= set(SETTINGS)
    assert [one.name for one in daemon_cli.command(["--help"]).commands["start"].params] == []


def made_app(seen: list[Any]) -> typer.Typer:
    app = typer.Typer(rich_markup_mode=None)
    app.callback()(lambda: None)

    @app.command()
    def one(number: int = typer.Option(3, min=1, max=9), file: Path = Path("f")) -> None:
        seen.append((number, file))

    @app.command()
    def other(names: list[str]) -> None:
        seen.append(names)

    return app


@pytest.mark.parametrize(
    ("words", "got"),
    [
        (["one"], (3, Path("f"))),
        (["one", "--number", "9", "--file", "a/b"], (9, Path("a/b"))),
        (["one", "--number", " 4 "], (4, Path("f"))),
        (["other", "a", "b c"], ["a", "b c"]),
        (["one", "--number", "0"], None),
        (["one", "--number", "10"], None),
        (["one", "--number", "x"], None),
        (["one", "--number", "9" * 30], None),
        (["one", "--number", "-1"], None),
    ],
)
def test_values_are_what_they_were_with_the_checks_in_place(words: list[str], got: Any) -> None:
    outcomes = []
    for parse in (lambda app: parsing.parser(app, words), typer.main.get_command):
        seen: list[Any] = []
        try:
            parse(made_app(seen)).main(words, standalone_mode=False)
        except Exception as error:
            seen.append(type(error).__name__)
        outcomes.append(seen)
    assert outcomes[0] == outcomes[1]
    if got is not None:
        assert outcomes[0] == [got]
    else:
        assert outcomes[0] != [(3, Path("f"))]


# --- help -------------------------------------------------------------------------------------


def test_every_program_shows_its_exit_codes_and_examples() -> None:
    for program in ("jobflowd", "jobflow", "jobflowctl"):
        script = str(Path(sys.executable).parent / program)
        help_text = subprocess.run(
            [script, "--help"], capture_output=True, text=True, check=True
        ).stdout
        told = re.findall(r"^ +(\d+)  +(.+)$", help_text, re.MULTILINE)
        rows = exitcodes.rows(program)
        assert [(one.code, one.means) for one in rows] == [(int(n), text) for n, text in told]
        assert "Examples:" in help_text


def test_the_page_of_codes_has_every_one() -> None:
    page = (Path(__file__).parents[2] / "docs" / "codes.md").read_text()
    table = page.partition("## Exit codes")[2].partition("\n## ")[0]
    verbs = {"`jobflowctl`", "`wait`", "`replay`", "`doctor`"}
    on_page = {
        (int(code), program)
        for codes, of in re.findall(r"^\| ([\d, ]+) \| ([^|]+) \|", table, re.MULTILINE)
        for code in codes.split(",")
        for program in ("jobflowd", "jobflow", "jobflowctl")
        if of == "all"
        or f"`{program}`" in of
        or (program == "jobflowctl" and verbs & set(of.split(", ")))
    }
    told = {(one.code, name) for one in exitcodes.EXIT_CODES for name in one.programs.split()}
    assert told - on_page == set()


def lines_of(epilog: str | None) -> list[list[str]]:
    """The words of each example, without what a shell or a reader makes of its end."""
    text = re.split(r"Exit codes:", (epilog or "").partition("Examples:")[2])[0]
    lines = [re.split(r" [|>&]|  +", line.strip())[0] for line in text.splitlines()]
    return [shlex.split(line) for line in lines if line.startswith("jobflow")]


def parsed(group: Any, words: list[str]) -> str:
    """Parse a command line as far as its verb's own options; the verb's name."""
    context = group.make_context(words[0], words[1:])
    rest = [*getattr(context, "_protected_args", ()), *context.args]
    name, verb, rest = group.resolve_command(context, rest)
    if hasattr(verb, "commands"):
        return parsed(verb, [str(name), *rest])
    verb.make_context(name, rest, parent=context)
    return str(name)


@pytest.mark.parametrize("program", ["jobflowctl", "jobflowd"])
def test_every_example_of_every_help_can_be_typed(program: str) -> None:
    group = parsing.parser(ctl.app) if program == "jobflowctl" else daemon_cli.command()
    everything = [group, *group.commands.values()]
    everything += [one for verb in group.commands.values() for one in _below(verb)]
    found = [words for one in everything for words in lines_of(one.epilog)]
    assert len(found) > (40 if program == "jobflowctl" else 8)
    for words in found:
        assert words[0] == program, words
        assert parsed(group, words), words


def _below(verb: Any) -> list[Any]:
    return list(getattr(verb, "commands", {}).values())


def test_every_verb_of_the_daemons_command_has_examples() -> None:
    commands = daemon_cli.command().commands
    below = [*commands.values(), *commands["config"].commands.values()]
    leaves = [one for one in below if not hasattr(one, "commands")]
    assert [one.name for one in leaves if "Examples:" not in (one.epilog or "")] == []


@pytest.mark.parametrize(
    ("program", "line", "offered"),
    [
        ("jobflowctl", "jobflowctl ex", "explain"),
        ("jobflowctl", "jobflowctl tasks --st", "--state"),
        ("jobflowctl", "jobflowctl -s t", "t1"),
        ("jobflowctl", "jobflowctl tasks --state q", "queued"),
        ("jobflowd", "jobflowd st", "start"),
        ("jobflowd", "jobflowd start --work", "--workers"),
        ("jobflowd", "jobflowd config s", "show"),
    ],
)
def test_the_shell_completes_what_the_fast_parser_leaves_out(
    daemon: StubDaemon, program: str, line: str, offered: str
) -> None:
    asked = {f"_{program.upper()}_COMPLETE": "complete_bash", "COMP_WORDS": line}
    done = subprocess.run(
        [str(Path(sys.executable).parent / program)],
        env={**os.environ, **asked, "COMP_CWORD": str(len(line.split()) - 1)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert offered in done.stdout.split(), done.stderr


@pytest.mark.parametrize(("columns", "no_color"), [("40", ""), ("200", "1")])
def test_help_of_start_is_plain_where_headings_would_harm(columns: str, no_color: str) -> None:
    """Narrow columns cut the names of flags; without colour there is no bold either."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "jobflowd"), "start", "--help"],
        env={**os.environ, "COLUMNS": columns, "NO_COLOR": no_color, "FORCE_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "\x1b" not in done.stdout
    assert [one.flag for one in SETTINGS.values() if one.flag not in done.stdout] == []
