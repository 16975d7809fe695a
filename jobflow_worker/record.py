"""Frozen records: to their users, and to mypy, `dataclass(frozen=True, slots=True)`.

Rules
-----
* Made for starting fast. A frozen dataclass has its methods written and compiled when it is
  imported, 0.8 ms each, and `dataclasses` brings `inspect` along; a worker needs fifty of them
  before it can say its first word, a thousand workers start at once. All records share theirs.
* `class Ack(Record): epoch: int; ...`: every annotation is a field, in order, and what is assigned
  there is its default, shared by all. Records do not derive from each other.
* Two are equal if they are of the very same class with equal fields.

Pure. Modules with records say `from __future__ import annotations`, as all of ours do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

if TYPE_CHECKING:
    from typing_extensions import dataclass_transform
else:

    def dataclass_transform(**_):
        """PEP 681 for type checkers; Python has it from 3.11 on."""
        return lambda one: one


@dataclass_transform(frozen_default=True)
class _RecordType(type):
    """Turns annotations into slots. `unshown`: fields that no `repr` may show, for secrets."""

    __match_args__: tuple[str, ...]
    _defaults: dict[str, Any]
    _unshown: tuple[str, ...]

    def __new__(
        cls, name: str, bases: tuple[type, ...], body: dict[str, Any], unshown: tuple[str, ...] = ()
    ) -> _RecordType:
        fields = tuple(body.get("__annotations__", ()))
        defaults = {one: body.pop(one) for one in fields if one in body}
        own = {"__slots__": fields, "__match_args__": fields}
        made = super().__new__(cls, name, bases, {**body, **own})
        made._defaults = defaults
        made._unshown = unshown
        return made


_set = object.__setattr__


class Record(metaclass=_RecordType):
    """The base of all records. Missing and unknown fields raise TypeError."""

    def __init__(self, *args: Any, **named: Any) -> None:
        names = type(self).__match_args__
        if named or len(args) != len(names):
            args = _complete(type(self), args, named)
        for name, value in zip(names, args, strict=True):
            _set(self, name, value)

    def __setattr__(self, name: str, value: Any) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} is frozen")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"{type(self).__name__}.{name} is frozen")

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return _values(self) == _values(other)

    def __hash__(self) -> int:
        return hash(_values(self))

    def __repr__(self) -> str:
        secret = type(self)._unshown
        fields = [f"{name}={it!r}" for name, it in as_dict(self).items() if name not in secret]
        return f"{type(self).__qualname__}({', '.join(fields)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), _values(self)


_T = TypeVar("_T")


def replace(one: _T, **changes: Any) -> _T:
    """The same with other values in some fields; takes plain dataclasses, too. Raises TypeError."""
    values = [changes.pop(name) if name in changes else it for name, it in as_dict(one).items()]
    if changes:
        raise TypeError(f"{type(one).__name__} has no {', '.join(changes)}")
    return type(one)(*values)


def as_dict(one: Any) -> dict[str, Any]:
    """Its fields by name, in order. What they hold is not copied."""
    return {name: getattr(one, name) for name in type(one).__match_args__}


def _values(one: Any) -> tuple[Any, ...]:
    return tuple([getattr(one, name) for name in type(one).__match_args__])


def _complete(kind: _RecordType, args: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, ...]:
    """All values in order, from what was given and the defaults."""
    names = kind.__match_args__
    rest = names[len(args) :]
    wrong = [name for name in named if name not in rest]
    if len(args) > len(names) or wrong:
        raise TypeError(f"{kind.__name__} takes {', '.join(names)} once each, not {wrong or args}")
    values = {**kind._defaults, **named}
    missing = [name for name in rest if name not in values]
    if missing:
        raise TypeError(f"{kind.__name__} needs {', '.join(missing)}")
    return (*args, *[values[name] for name in rest])
