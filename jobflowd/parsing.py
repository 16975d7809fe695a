"""PUBLISHED: makes the parser of a command line, and only as much of it as that line needs.

A parser of all verbs costs more time than most verbs take, and a check of texts that are to stay
texts loads a validation library which costs more still. So only the verbs that a line names are
made, and values that need no check get none. Older versions of typer check nothing that way, and
are left as they are.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import typer

#: What is longer is left to the real check.
_DIGITS_MAX: Final = 18
_HELP: Final = frozenset(("--help", "-h"))


def examples(*lines: str) -> str:
    """An epilog that help shows line by line."""
    return "\b\nExamples:\n" + "\n".join(f"  {line}" for line in lines)


def completing() -> bool:
    """Whether the shell asks for completion: the command line is in the environment then."""
    return any(one.startswith("_JOBFLOW") and one.endswith("_COMPLETE") for one in os.environ)


def parser(app: typer.Typer, words: Sequence[str] = ()) -> Any:
    """The command of an app, for these words; without words, or with --help: of all its verbs.

    A verb that no word names cannot be meant. A word may be the name of a session, too: then there
    is one verb more than needed.
    """
    # Or typer would take a single verb for the whole program.
    assert app.registered_callback is not None
    every = app.registered_commands
    named = [one for one in every if name(one) in words]
    if _HELP.intersection(words) or not named:
        named = every
    # The version is told before any verb is looked at.
    app.registered_commands = named[:1] if "--version" in words else named
    try:
        return _hastened(typer.main.get_command(app))
    finally:
        app.registered_commands = every


def name(verb: Any) -> str:
    """The name of a registered verb."""
    return str(verb.name or verb.callback.__name__)


def _plain(value: Any, kind: Any, info: Any) -> Any:
    """The value as the verb gets it, or None if that is not for us to say."""
    if kind in (str, int, bool) and type(value) is kind:
        return value
    if type(value) is str and kind is Path:
        return None if info.exists or info.resolve_path else Path(value)
    if type(value) is str and kind is int and value.isascii() and value.isdigit():
        number = int(value) if len(value) < _DIGITS_MAX else -1
        low, high = info.min or 0, math.inf if info.max is None else info.max
        return number if low <= number <= high else None
    if kind == list[str] and isinstance(value, list | tuple):
        return list(value) if all(type(one) is str for one in value) else None
    return None


class _Passing:
    """Stands where typer keeps its checker; makes the real one when it is needed."""

    def __init__(self, descriptor: Any) -> None:
        self._kind = getattr(descriptor, "annotation", None)
        self._info = getattr(descriptor, "parameter_info", None)
        self._real: Any = None

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as the verb gets it."""
        if value is None:
            return None
        plain = _plain(value, self._kind, self._info)
        if plain is not None:
            return plain
        if self._real is None:
            param._runtime_param = None
            self._real = param.get_runtime_param()
            param._runtime_param = self
        return self._real.coerce(value, param=param, ctx=ctx)


def _hastened(command: Any) -> Any:
    """The same command, and every one below it, without needless checks."""
    command.get_params = _passing_params(command.get_params)
    for below in getattr(command, "commands", {}).values():
        _hastened(below)
    return command


def _passing_params(get_params: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    """The parameters of a command, --help among them, each with its check put off."""

    def passing(ctx: Any) -> list[Any]:
        params = get_params(ctx)
        for param in params:
            if getattr(param, "_runtime_param", 0) is None:
                param._runtime_param = _Passing(getattr(param, "type_descriptor", None))
        return params

    return passing
