"""Manager CPU for one no-op task: everything that one core of a login node pays.

    python -m bench.manager_cpu

All tasks are queued and committed while the session is paused, with warm workers connected; then
`resume`. CPU time of all threads of the daemon's process, CURVE included, per task. `generating`
in `details` is the same with generation at the same time, as in `throughput`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from bench.measure import Result, Target, arguments, emit, parse
from bench.rig import Rig
from bench.throughput import one_run
from bench.yardstick import rate

_WARM = 20


def queued_before(tasks: int, workers: int = 2) -> dict[str, float]:
    """CPU microseconds a task by kind of process, generation not counted."""
    with Rig("noop", {"n": tasks, "warm": _WARM}, workers=workers) as rig:
        rig.wait(lambda: rig.online() >= workers, f"{workers} workers", 60.0)
        rig.wait_for_tasks("succeeded", _WARM, 60.0)
        rig.ask("pause")
        rig.go()
        rig.wait_for_tasks("queued", tasks)
        before = rig.cpu()
        rig.ask("resume")
        rig.wait_for_tasks("succeeded", _WARM + tasks, every_s=0.1)
        return (rig.cpu() - before).per(tasks)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--tasks", type=int, default=None)
    args = parse(parser, argv)
    tasks = args.tasks or (2_000 if args.quick else 100_000)
    result = Result("manager-cpu", "us/task", Target("under 25 us", at_most=25.0))
    result.details = {"tasks": tasks, "queued_before": [], "generating": [], "yardstick_rate": []}
    for _ in range(args.runs):
        cost = queued_before(tasks)
        result.details["queued_before"].append(cost)
        result.details["generating"].append(one_run(tasks).cpu_us)
        result.details["yardstick_rate"].append(round(rate(3_000 if args.quick else 20_000)))
        result.add(cost["daemon"])
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
