"""What everything is compared with: ProcessPoolExecutor(2), the same no-op, one task at a time.

    python -m bench.yardstick

Each task is submitted and its result taken by itself, as jobflowd's tasks are; nothing is stored.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import Any

from bench.measure import Result, arguments, emit, parse

WHAT = "ProcessPoolExecutor(2), no-op tasks/s"
_WORKERS = 2


def no_op(spec: dict[str, int]) -> dict[str, Any]:
    """The function of `programs/noop.py`."""
    return {}


def rate(tasks: int = 20_000) -> float:
    """Tasks a second, from the first submission to the last result; the pool is warm before."""
    with ProcessPoolExecutor(_WORKERS) as pool:
        for future in [pool.submit(no_op, {"i": i}) for i in range(100)]:
            future.result()
        began = time.perf_counter()
        for future in [pool.submit(no_op, {"i": i}) for i in range(tasks)]:
            future.result()
        return tasks / (time.perf_counter() - began)


class Pairs:
    """A yardstick before and after each run: the mean of both belongs to the run between."""

    def __init__(self, *, quick: bool) -> None:
        self._tasks = 3_000 if quick else 20_000
        self._before = rate(self._tasks)

    def after(self) -> float:
        """To be called after each run; what it measures also counts for the next one."""
        before, self._before = self._before, rate(self._tasks)
        return (before + self._before) / 2


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(arguments(__doc__), argv)
    result = Result("yardstick", "tasks/s")
    for _ in range(args.runs):
        result.add(rate(3_000 if args.quick else 20_000))
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
