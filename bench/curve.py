"""What CURVE costs: no-op tasks a second with keys and in the clear, in turns, in one run.

    python -m bench.curve [--tasks N] [--runs N]

Turns, because a shared machine is never the same twice: the yardstick of each encrypted run is the
run in the clear just after it, and the ratio is what counts.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

# So that it can be run by its path, too.
sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import Result, arguments, emit, parse
from bench.throughput import one_run


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--tasks", type=int, default=None)
    args = parse(parser, argv)
    tasks = args.tasks or (2_000 if args.quick else 40_000)
    result = Result("curve", "tasks/s", yardstick_is="the same with --insecure-plaintext, tasks/s")
    result.details = {"tasks": tasks, "cpu_us_curve": [], "cpu_us_plaintext": []}
    for _ in range(args.runs):
        curve, plain = one_run(tasks, "zmq"), one_run(tasks, "plaintext")
        result.details["cpu_us_curve"].append(curve.cpu_us)
        result.details["cpu_us_plaintext"].append(plain.cpu_us)
        result.add(curve.rate, plain.rate)
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
