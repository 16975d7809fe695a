"""How long a million tasks take to generate and queue, and when the first of them runs.

    python -m bench.generate [--tasks N]

One warm worker is there and its task never ends, so what is measured is the queueing alone. From
the first yield to the status that counts them all; `first_running_s` from the first yield to the
first line of the first task, by the processes' own stamps.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measure import Result, Target, arguments, emit, parse, quantile
from bench.rig import Rig

_FOREVER_S = 100_000.0


def stamp_of(path: Path) -> float:
    """The time that a program wrote there, monotonic."""
    return float(path.read_text())


def stamped(path: Path) -> bool:
    """Has it?"""
    return path.exists() and bool(path.read_text())


def one_run(tasks: int, result: Result) -> None:
    """Add one run to the result."""
    with Rig("sleeper", {"n": tasks, "warm": 20, "sleep_s": _FOREVER_S}, workers=1) as rig:
        rig.wait_for_tasks("succeeded", 20, 60.0)
        before = rig.cpu()
        rig.go()
        # Whoever asks often shares the loop with the generation.
        rig.wait(lambda: rig.ask("status")["tasks"]["total"] >= 20 + tasks, "all tasks", 300.0, 0.1)
        now = time.monotonic()
        cost = rig.cpu() - before
        yielded = stamp_of(rig.place / "yielded")
        rig.wait(lambda: stamped(rig.place / "running"), "the first task", 60.0)
        details = result.details
        details["first_running_s"].append(round(stamp_of(rig.place / "running") - yielded, 4))
        details["cpu_us_per_task"].append(cost.per(tasks))
        details["daemon_mib"].append(round(rig.memory().daemon / 2**20, 1))
        details["commits"].append(rig.metric("jobflow_store_commit_seconds_count"))
        result.add(now - yielded)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--tasks", type=int, default=None)
    args = parse(parser, argv)
    tasks = args.tasks or (20_000 if args.quick else 1_000_000)
    target = Target("1M under 10 s; first running within 1 s", at_most=tasks / 1e6 * 10)
    result = Result("generate", "s", target)
    result.details = {
        "tasks": tasks,
        "first_running_s": [],
        "cpu_us_per_task": [],
        "daemon_mib": [],
        "commits": [],
    }
    for _ in range(args.runs):
        one_run(tasks, result)
    first = result.details["first_running_s"]
    result.also_ok = quantile(first, 0.5) <= 1.0
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
