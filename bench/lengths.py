"""Tasks of a known length: how much of the ideal is left over for them.

    python -m bench.lengths --kind busy     1 ms of CPU each, 2 workers: % of the two cores
    python -m bench.lengths --kind sleep    10 ms of sleep each, 8 workers: % of ideal

A value is useful seconds / (wall seconds x workers) in %. The yardstick is the same figure of bare
loops in as many processes just after, for half as long: what the machine had to give. The busy
target is judged by the ratio, because what other users of the cores take is not ours; the sleeping
one by the value.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

from bench.measure import Result, Target, arguments, emit, parse
from bench.processes import bare_rate
from bench.rig import Rig


class Kind(NamedTuple):
    """What the tasks do, how long, where, and what is asked for."""

    key: str
    seconds: float
    workers: int
    tasks: int
    target: Target


#: A run has 0.15 s of start and end that no task fills: these are long enough to show what is lost
#: between tasks instead.
KINDS = {
    "busy": Kind(
        "busy_s", 0.001, 2, 60_000, Target("at least 90 % of two cores", 0.90, of_ratio=True)
    ),
    "sleep": Kind("sleep_s", 0.010, 8, 48_000, Target("at least 97 % of ideal", at_least=97.0)),
}


def one_run(kind: Kind, tasks: int) -> tuple[float, dict[str, float]]:
    """Per cent of the ideal, and CPU microseconds a task."""
    # Workers hold as much as the last tasks' length suggests: the first ones must be as long.
    args = {"n": tasks, "warm": 20 * kind.workers, "alike": True, kind.key: kind.seconds}
    with Rig("sleeper", args, workers=kind.workers) as rig:
        rig.wait(lambda: rig.online() >= kind.workers, f"{kind.workers} workers", 120.0)
        rig.wait_for_tasks("succeeded", 20 * kind.workers, 60.0)
        before = rig.cpu()
        began = rig.go()
        rig.wait_for_tasks("succeeded", 20 * kind.workers + tasks)
        took = time.monotonic() - began
        cost = (rig.cpu() - before).per(tasks)
    return 100 * tasks * kind.seconds / (took * kind.workers), cost


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--kind", choices=tuple(KINDS), default="busy")
    args = parse(parser, argv)
    kind = KINDS[args.kind]
    tasks = kind.tasks // (10 if args.quick else 1)
    what = f"{kind.workers} bare loops in processes of their own, the same figure"
    result = Result(f"{args.kind}-tasks", "% of ideal", kind.target, yardstick_is=what)
    result.details = {"tasks": tasks, "task_s": kind.seconds, "workers": kind.workers}
    result.details["cpu_us_per_task"] = []
    for _ in range(args.runs):
        share, cost = one_run(kind, tasks)
        bare = bare_rate(kind.key, kind.seconds, tasks // 2, kind.workers)
        result.details["cpu_us_per_task"].append(cost)
        result.add(share, 100 * bare * kind.seconds / kind.workers)
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
