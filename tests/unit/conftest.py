"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pairing import Pair

from jobflowd.store import Store


@pytest.fixture
def store() -> Iterator[Store]:
    """An empty store in memory."""
    opened = Store(":memory:")
    opened.open()
    yield opened
    opened.close()


@pytest.fixture
def make_pair() -> Iterator[Callable[..., Pair]]:
    """`make_pair(max_losses=0)`: a manager with settings; its book is checked at the end."""
    made: list[Pair] = []

    def make(**settings: Any) -> Pair:
        made.append(Pair(**settings))
        return made[-1]

    yield make
    for pair in made:
        pair.close()


@pytest.fixture
def pair(make_pair: Callable[..., Pair]) -> Pair:
    """A manager, and workers that tests seat beside it; see `pairing.py`."""
    return make_pair()
