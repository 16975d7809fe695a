"""How throughput changes with workers, with the size of specs and results, with commit time.

    python -m bench.growth --of workers | size | commit [--mode zmq | fs]

The same measurement as `throughput` at several points, in turns; `details.points` has each point's
median rate, ratio and CPU, and `values` are the rates at the first point, which is the ordinary
case. A disk is made slow by strace, which lets every fdatasync and fsync of the session's
processes return so many milliseconds late.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median
from typing import Any

from bench.measure import Result, arguments, emit, parse, say
from bench.throughput import Run, one_run
from bench.yardstick import WHAT, Pairs

POINTS: dict[str, tuple[int, ...]] = {
    "workers": (2, 1, 4, 8),
    "size": (0, 100, 10_000, 100_000),
    "commit": (0, 1, 5, 20),
}
_UNITS = {"workers": "workers", "size": "bytes a spec and a result", "commit": "ms a commit later"}


def slow_disk(milliseconds: int) -> tuple[str, ...]:
    """The command to put before the daemon's. Only these two calls are slowed down."""
    if not milliseconds:
        return ()
    late = f"inject=fdatasync,fsync:delay_exit={milliseconds * 1000}"
    return (
        *("strace", "-f", "--seccomp-bpf", "-qq", "-o", "/dev/null"),
        *("-e", "trace=fdatasync,fsync", "-e", late),
    )


def measure(of: str, point: int, tasks: int, mode: str) -> Run:
    """One run at one point."""
    if of == "workers":
        return one_run(tasks, mode, point)
    if of == "size":
        # A megabyte is a megabyte: fewer of them take as long.
        fewer = max(1, point // 1_000)
        return one_run(max(200, tasks // fewer), mode, size=point)
    return one_run(tasks, mode, wrap=slow_disk(point))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--of", choices=tuple(POINTS), default="workers")
    parser.add_argument("--mode", choices=("zmq", "fs"), default="zmq")
    parser.add_argument("--tasks", type=int, default=None)
    args = parse(parser, argv)
    tasks = args.tasks or (1_000 if args.quick else 30_000)
    points = POINTS[args.of][:2] if args.quick else POINTS[args.of]
    found: dict[int, list[tuple[Run, float]]] = {point: [] for point in points}
    result = Result(f"growth-{args.of}-{args.mode}", "tasks/s", yardstick_is=WHAT)
    pairs = Pairs(quick=args.quick)
    for _ in range(args.runs):
        for point in points:
            run, yardstick = measure(args.of, point, tasks, args.mode), pairs.after()
            found[point].append((run, yardstick))
            say(f"growth: {point} {_UNITS[args.of]}: {run.rate:,.0f} tasks/s")
            if point == points[0]:
                result.add(run.rate, yardstick)
    result.details = {
        "tasks": tasks,
        "points_are": _UNITS[args.of],
        "points": {str(point): _summary(found[point]) for point in points},
    }
    return emit(result)


def _summary(runs: list[tuple[Run, float]]) -> dict[str, Any]:
    rates = [run.rate for run, _ in runs]
    return {
        "median": round(median(rates)),
        "min": round(min(rates)),
        "max": round(max(rates)),
        "ratio": round(median(run.rate / yardstick for run, yardstick in runs), 3),
        "cpu_us_per_task": runs[-1][0].cpu_us,
        "daemon_mib": round(max(run.daemon_mib for run, _ in runs), 1),
    }


if __name__ == "__main__":
    sys.exit(main())
