"""Run the simulator.

    python -m tests.sim --seeds 0:2000       # a range; the last line is a JSON summary
    python -m tests.sim --seed 17 --trace    # one history, told event by event
    python -m tests.sim --planted            # known bugs, each found at which seed

Exit code 1 if a promise was broken; the command that replays it is printed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from typing import Any

from tests.sim.run import Outcome, run_seed


def summary(outcomes: list[Outcome], seconds: float) -> dict[str, Any]:
    """The figures of many seeds."""
    stats: Counter[str] = Counter()
    faults: Counter[str] = Counter()
    for one in outcomes:
        stats.update(one.stats)
        faults.update(one.faults)
    tasks = sum(one.tasks for one in outcomes)
    return {
        "seeds": len(outcomes),
        "violations": [one.seed for one in outcomes if one.error],
        "kinds": dict(sorted(Counter(one.kind for one in outcomes).items())),
        "seconds": round(seconds, 1),
        "seconds_per_1000_seeds": round(1000 * seconds / max(1, len(outcomes)), 1),
        "turns": stats["turns"],
        "session_turns": stats["session_turns"],
        "simulated_hours": round(sum(one.seconds for one in outcomes) / 3600, 1),
        "tasks": tasks,
        "executions_per_task": round(stats["executions"] / max(1, tasks), 3),
        "manager_lives": stats["lives"],
        "quarantines": stats["quarantines"],
        "faults": dict(sorted(faults.items())),
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim")
    parser.add_argument("--seeds", default="0:200", help="first:last, the last one excluded")
    parser.add_argument("--seed", type=int)
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--planted", action="store_true")
    parser.add_argument("--only", help="one planted bug by name")
    parser.add_argument("--keep-going", action="store_true", help="do not stop at a violation")
    args = parser.parse_args()
    if args.planted:
        from tests.sim.planted import table

        return table(args.only)
    if args.seed is not None:
        seeds = range(args.seed, args.seed + 1)
    else:
        first, _, last = args.seeds.partition(":")
        seeds = range(int(first), int(last))
    outcomes = []
    began = time.perf_counter()
    for seed in seeds:
        outcome = run_seed(seed, keep_trace=args.trace)
        outcomes.append(outcome)
        for line in outcome.lines:
            sys.stdout.write(f"{line}\n")
        if outcome.error:
            sys.stdout.write(f"seed {seed} ({outcome.kind}): {outcome.error}\n")
            sys.stdout.write(f"replay: python -m tests.sim --seed {seed} --trace\n")
            if not args.keep_going:
                break
    found = summary(outcomes, time.perf_counter() - began)
    if args.trace:
        sys.stdout.write(f"trace {outcomes[-1].digest}\n")
    sys.stdout.write(json.dumps(found) + "\n")
    return 1 if found["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
