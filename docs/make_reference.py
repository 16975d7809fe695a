"""Makes docs/reference.md from the code: `python docs/make_reference.py`.

A test compares the file with what this makes, so that the page cannot fall behind.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jobflowctl import cli as ctl
from jobflowd import api, census
from jobflowd import cli as daemon
from jobflowd.flags import SETTINGS
from jobflowd.model import LaunchState, WorkerState
from jobflowd.parsing import parser

PAGE = Path(__file__).resolve().parent / "reference.md"
HEAD = "Made from the code by `docs/make_reference.py`."


def main() -> None:
    """Write the page."""
    PAGE.write_text(text(), encoding="utf-8")


def text() -> str:
    """The whole page."""
    lines = ["# Flags and commands", "", HEAD, ""]
    commands = {"jobflowd": daemon.command(), "jobflowctl": parser(ctl.app)}
    for part in (_start(), *(_commands(group, name) for name, group in commands.items())):
        lines += [*part, ""]
    lines += [*_words(), "", *_protocol(), ""]
    return "\n".join(lines)


def _cell(words: object) -> str:
    return str(words).replace("|", "\\|").replace("\n", " ").replace("<", "&lt;").strip()


def _table(titles: list[str], rows: Iterator[list[Any]]) -> list[str]:
    rule = "| " + " | ".join("---" for _ in titles) + " |"
    head = "| " + " | ".join(titles) + " |"
    return [head, rule, *("| " + " | ".join(_cell(one) for one in row) + " |" for row in rows)]


def _start() -> Iterator[str]:
    yield "## Flags of `jobflowd start`"
    yield ""
    yield "Each is also a variable, `JOBFLOW_` and the name in capitals, and a key in a TOML file;"
    yield "a flag wins over a variable, a variable over a file. `jobflowd config show` tells."
    panels = dict.fromkeys(one.panel for one in SETTINGS.values())
    for panel in panels:
        yield ""
        yield f"### {panel}"
        yield ""
        rows = (
            [f"`{one.flag}`" + (f", `{one.short}`" if one.short else ""), _default(one), _help(one)]
            for one in SETTINGS.values()
            if one.panel == panel
        )
        yield from _table(["flag", "default", ""], rows)


def _default(one: Any) -> str:
    if one.shown is not None:
        return str(one.shown)
    if one.kind == "switch":
        return "on" if one.default else "off"
    if one.default in (None, ()):
        return "none"
    return f"{one.default:g}" if isinstance(one.default, float) else str(one.default)


def _help(one: Any) -> str:
    return f"{one.help} ({', '.join(one.choices)})" if one.choices else str(one.help)


def _commands(group: Any, program: str) -> Iterator[str]:
    yield f"## Commands of `{program}`"
    yield ""
    rows = (
        [f"`{name}{_arguments(command)}`", _first(command.help)]
        for name, command in group.commands.items()
        if not command.hidden
    )
    yield from _table(["command", ""], rows)


def _arguments(command: Any) -> str:
    words = []
    for one in command.params:
        if one.param_type_name == "argument":
            name = (one.metavar or one.name).upper()
            words.append(name if one.required else f"[{name}]")
    return "".join(f" {word}" for word in words)


def _first(words: str | None) -> str:
    return (words or "").split("\n\n")[0].split("\f")[0].replace("\n", " ")


def _words() -> Iterator[str]:
    yield "## States"
    yield ""
    yield "### Of a run"
    yield ""
    yield from _table(["state", ""], ([f"`{word}`", what] for word, what in census.STATES.items()))
    yield ""
    yield f"Tasks: {', '.join(f'`{word}`' for word in api.TASK_STATES)}."
    yield f"Workers: {', '.join(f'`{one.word}`' for one in WorkerState)}, shown as `idle` or"
    yield f"`busy` while online. Launches: {', '.join(f'`{one.word}`' for one in LaunchState)}."


def _protocol() -> Iterator[str]:
    yield "## The admin socket"
    yield ""
    yield "One JSON object a line each way; `jobflowctl` is its client, and socat will do."
    yield ""
    yield from _table(
        ["command", "changes", "arguments", ""],
        (
            [f"`{name}`", "yes" if one.changes else "", ", ".join(one.args), one.what]
            for name, one in api.COMMANDS.items()
        ),
    )
    yield ""
    yield "### Refusals"
    yield ""
    yield from _table(["code", ""], ([f"`{code}`", what] for code, what in api.ERROR_CODES.items()))


if __name__ == "__main__":
    main()
