"""Keeps the parser from loading a validation library for values that need no validation.

Recent versions of typer check every value with pydantic, whose import costs more than all the rest
of a verb. Texts that are to stay texts, and defaults, need no check: here they pass, and only what
is left loads it. Older versions of typer have none of this, and are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class _Passing:
    """Stands where typer keeps its checker; makes the real one when it is needed."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._real: Any = None

    def coerce(self, value: Any, param: Any, ctx: Any) -> Any:
        """The value as the verb gets it."""
        if value is None or (self._kind in (str, int, bool) and type(value) is self._kind):
            return value
        if self._real is None:
            param._runtime_param = None
            self._real = param.get_runtime_param()
            param._runtime_param = self
        return self._real.coerce(value, param=param, ctx=ctx)


def hasten(command: Any) -> Any:
    """The same command (a group with its verbs), without needless checks."""
    for one in (command, *getattr(command, "commands", {}).values()):
        one.get_params = _passing_params(one.get_params)
    return command


def _passing_params(get_params: Callable[[Any], list[Any]]) -> Callable[[Any], list[Any]]:
    """The parameters of a command, --help among them, each with its check put off."""

    def passing(ctx: Any) -> list[Any]:
        params = get_params(ctx)
        for param in params:
            if getattr(param, "_runtime_param", 0) is None:
                kind = getattr(getattr(param, "type_descriptor", None), "annotation", None)
                param._runtime_param = _Passing(kind)
        return params

    return passing
