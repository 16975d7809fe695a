"""Records are what frozen, slotted dataclasses are, without their cost."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest

from jobflow_worker.record import Record, as_dict, replace


class Point(Record):
    """Two fields, one with a default."""

    x: int
    y: int = 2

    @property
    def both(self) -> tuple[int, int]:
        return self.x, self.y


class Other(Record):
    x: int
    y: int = 2


class Nothing(Record):
    """No field at all."""


class Key(Record, unshown=("secret",)):
    name: str
    secret: str


@dataclass(frozen=True, slots=True)
class Plain:
    x: int
    y: int = 2


def test_fields_by_place_by_name_and_by_default() -> None:
    assert Point(1).both == (1, 2)
    assert Point(1, 3) == Point(1, y=3) == Point(y=3, x=1)
    assert Point.__match_args__ == ("x", "y")
    match Point(5, 6):
        case Point(x, y=6):
            assert x == 5
        case _:
            pytest.fail("a record matches by place and name")


@pytest.mark.parametrize(
    ("args", "named"),
    [((), {}), ((), {"y": 1}), ((1, 2, 3), {}), ((1,), {"z": 1}), ((1,), {"x": 1})],
)
def test_what_does_not_fit_is_a_type_error(args: tuple[int, ...], named: dict[str, int]) -> None:
    with pytest.raises(TypeError, match="Point"):
        Point(*args, **named)


def test_only_the_same_kind_with_the_same_fields_is_equal() -> None:
    assert Point(1) == Point(1, 2) != Point(1, 3)
    assert hash(Point(1)) == hash(Point(1, 2))
    assert Point(1) != Other(1)
    assert Point(1) != (1, 2)
    assert Nothing() == Nothing()
    assert bool(Nothing()), "a tuple without items would be false"


def test_frozen_and_slotted() -> None:
    one = Point(1)
    with pytest.raises(AttributeError):
        one.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError):
        one.z = 2  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        del one.x
    assert not hasattr(one, "__dict__")


def test_secrets_are_not_shown() -> None:
    assert repr(Point(1)) == "Point(x=1, y=2)"
    assert repr(Key("a", "xyzzy")) == "Key(name='a')"
    assert Key("a", "b") != Key("a", "c")


def test_replace_and_copies() -> None:
    assert replace(Point(1), y=9) == Point(1, 9)
    assert replace(Plain(1), y=9) == Plain(1, 9)
    with pytest.raises(TypeError, match="Point has no z"):
        replace(Point(1), z=1)
    assert as_dict(Point(1)) == {"x": 1, "y": 2}
    assert copy.deepcopy(Point(1)) == Point(1) == pickle.loads(pickle.dumps(Point(1)))  # noqa: S301
