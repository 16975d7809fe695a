"""No-op tasks a second, end to end: generated, queued, run by 2 workers, results durable.

    python -m bench.throughput --mode zmq | fs | plaintext

Workers and program are warm; the clock runs from the generator's first yield to the status that
knows of the last success. `details` tells CPU microseconds a task by kind of process: `daemon` is
the manager's with generation at the same time. `plaintext` is zmq without CURVE.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

from bench.measure import Result, Target, arguments, emit, parse
from bench.rig import Rig
from bench.yardstick import WHAT, Pairs

_WARM = 20
_TARGETS = {
    "zmq": Target("at least 2 x the yardstick", at_least=2.0, of_ratio=True),
    "fs": Target("at least 1 x the yardstick", at_least=1.0, of_ratio=True),
    "plaintext": None,
}
MODE_FLAGS: dict[str, tuple[str, ...]] = {
    "zmq": (),
    "fs": (),
    "plaintext": ("--insecure-plaintext",),
}


class Run(NamedTuple):
    """One run: tasks a second, CPU microseconds a task, and the largest daemon in MiB."""

    rate: float
    cpu_us: dict[str, float]
    daemon_mib: float


def one_run(
    tasks: int,
    mode: str = "zmq",
    workers: int = 2,
    *,
    size: int = 0,
    flags: Sequence[str] = (),
    wrap: Sequence[str] = (),
) -> Run:
    """Run so many no-op tasks in a fresh session."""
    transport = "fs" if mode == "fs" else "zmq"
    args: dict[str, Any] = {"n": tasks, "warm": _WARM, "size": size}
    both = (*MODE_FLAGS[mode], *flags)
    with Rig("noop", args, workers=workers, mode=transport, flags=both, wrap=wrap) as rig:
        rig.wait(lambda: rig.online() >= workers, f"{workers} workers", 60.0)
        rig.wait_for_tasks("succeeded", _WARM, 60.0)
        before = rig.cpu()
        began = rig.go()
        rig.wait_for_tasks("succeeded", _WARM + tasks)
        took = time.monotonic() - began
        cost = rig.cpu() - before
        return Run(tasks / took, cost.per(tasks), rig.memory().daemon / 2**20)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--mode", choices=tuple(_TARGETS), default="zmq")
    parser.add_argument("--tasks", type=int, default=None)
    args = parse(parser, argv)
    tasks = args.tasks or (2_000 if args.quick else 50_000 if args.mode == "fs" else 100_000)
    result = Result(f"throughput-{args.mode}", "tasks/s", _TARGETS[args.mode], yardstick_is=WHAT)
    result.details = {"tasks": tasks, "workers": 2, "cpu_us_per_task": []}
    pairs = Pairs(quick=args.quick)
    for _ in range(args.runs):
        run = one_run(tasks, args.mode)
        result.details["cpu_us_per_task"].append(run.cpu_us)
        result.add(run.rate, pairs.after())
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
