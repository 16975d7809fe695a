"""The daemon's memory with many queued tasks: it must not grow with their number.

    python -m bench.memory [--full]

Resident memory of the daemon's process, at its peak, with a million queued tasks and no workers;
the yardstick is the same with ten thousand, so the ratio is the growth. `--full` adds ten million.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.measure import Result, Target, arguments, emit, parse
from bench.rig import Rig, peak_memory_of

_SMALL = 10_000
_MIB = 2.0**20
#: What counts as "the same": caches fill up with the first tens of thousands.
_FLAT = 1.25


def one_run(tasks: int) -> dict[str, float]:
    """MiB of a daemon with so many queued tasks: at its peak, and at rest after it."""
    with Rig("noop", {"n": tasks}, workers=0, launcher="none") as rig:
        rig.wait(
            lambda: rig.ask("status")["tasks"]["total"] >= tasks, f"{tasks} tasks", 1200.0, 0.25
        )
        return {
            "tasks": tasks,
            "peak_mib": round(peak_memory_of(rig.pid) / _MIB, 1),
            "rest_mib": round(rig.memory().daemon / _MIB, 1),
        }


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--full", action="store_true", help="ten million tasks as well")
    args = parse(parser, argv)
    large = 50_000 if args.quick else 1_000_000
    target = Target("flat, and under 150 MiB", at_most=150.0)
    what = f"the same with {_SMALL} tasks"
    result = Result("memory-queued", "MiB", target, yardstick_is=what)
    result.details = {"runs": []}
    for _ in range(args.runs):
        small, big = one_run(_SMALL), one_run(large)
        result.details["runs"] += [small, big]
        result.add(big["peak_mib"], small["peak_mib"])
    result.also_ok = max(result.ratios()) <= _FLAT
    if args.full:
        huge = one_run(10_000_000)
        result.details["runs"].append(huge)
        result.add(huge["peak_mib"], result.yardstick[-1])
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
