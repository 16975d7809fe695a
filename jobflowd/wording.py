"""PUBLISHED: numbers with their words, for every message: `1 task`, `2 tasks`, `1 worker leaves`.

Pure. A test reads the source: no message puts a number before a plural by itself.
"""

from __future__ import annotations


def count(number: int, one: str, many: str | None = None) -> str:
    """`0 tasks`, `1 task`, `50,000 tasks`; `many` if it is not `one` and an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
