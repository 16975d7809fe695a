"""Cost of a no-op attempt in one slot, without any manager: agent's and child's CPU, wall time.

    python -m bench.slots [--attempts N] [--ahead N]

The yardstick is one task at a time through ProcessPoolExecutor(2), as everywhere.
"""

from __future__ import annotations

import os
import select
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from bench.measure import Result, arguments, emit, parse
from bench.rig import PROGRAMS, cpu_of
from bench.yardstick import WHAT, Pairs
from jobflow_worker.codec import encode_body
from jobflow_worker.messages import Assignment
from jobflow_worker.program import resolve_program
from jobflow_worker.slotevents import Settled, SlotReady
from jobflow_worker.slots import ChildSetup, Slot


def one_run(attempts: int, ahead: int) -> tuple[float, dict[str, float]]:
    """Attempts a second, and CPU microseconds of each by process."""
    with tempfile.TemporaryDirectory(prefix="jf-bench-") as folder:
        here = Path(folder)
        program = resolve_program(str(PROGRAMS / "noop.py"), here)
        args = {"n": 0, "place": folder}
        slot = Slot(0, ChildSetup(program, args, here, here, here, "bench-0000000000000000"))
        slot.start()
        try:
            return _feed(slot, attempts, ahead)
        finally:
            slot.close(1.0)


def _feed(slot: Slot, attempts: int, ahead: int) -> tuple[float, dict[str, float]]:
    spec = encode_body({"number": 1})
    todo = [Assignment(f"task-{n}", 1, spec, None, None) for n in range(attempts)]
    poller = select.poll()
    poller.register(slot.fileno(), select.POLLIN)
    done = fed = 0
    started = agent = child = 0.0
    while done < attempts:
        poller.poll(1000)
        for event in slot.drain():
            if isinstance(event, SlotReady):
                started = time.perf_counter()
                agent, child = cpu_of(os.getpid()), cpu_of(slot.pid or 0)
            elif isinstance(event, Settled):
                done += 1
        if started and fed - done <= ahead // 2:
            batch = todo[fed : fed + ahead - (fed - done)]
            slot.feed(batch)
            fed += len(batch)
    wall = time.perf_counter() - started
    cost = {"agent": cpu_of(os.getpid()) - agent, "child": cpu_of(slot.pid or 0) - child}
    return attempts / wall, {name: round(s / attempts * 1e6, 2) for name, s in cost.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--attempts", type=int, default=None)
    parser.add_argument("--ahead", type=int, default=64, help="attempts that the slot holds")
    args = parse(parser, argv)
    attempts = args.attempts or (2_000 if args.quick else 20_000)
    result = Result("slot", "attempts/s", yardstick_is=WHAT)
    result.details = {"attempts": attempts, "ahead": args.ahead, "cpu_us_per_attempt": []}
    pairs = Pairs(quick=args.quick)
    for _ in range(args.runs):
        rate, cost = one_run(attempts, args.ahead)
        result.details["cpu_us_per_attempt"].append(cost)
        result.add(rate, pairs.after())
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
