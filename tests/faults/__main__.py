"""`python -m tests.faults`: faults at the system calls of a real daemon, one run for each.

python -m tests.faults --every 10          # a sample
python -m tests.faults --all --jobs 2      # every call, every fault: about an hour
python -m tests.faults --at fdatasync 20 EIO
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from .injection import CALLS, FAULTS, Outcome, Point, count_calls, points, try_point


def main() -> int:
    """Returns 0 if every promise was kept at every point."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("--every", type=int, default=10, help="take every Nth point")
    parser.add_argument("--all", action="store_true", help="take every point")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time")
    parser.add_argument("--calls", default=",".join(CALLS))
    parser.add_argument("--faults", default=",".join(FAULTS))
    parser.add_argument("--minutes", type=float, help="stop after so long")
    parser.add_argument("--at", nargs=3, metavar=("CALL", "N", "FAULT"), help="only this point")
    parser.add_argument("--keep", type=Path, help="where failed sessions are left to look at")
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="jf-faults-")) if options.keep is None else options.keep
    root.mkdir(exist_ok=True)
    if options.at:
        call, number, fault = options.at
        chosen = [Point(call, int(number), fault)]
    else:
        counts = count_calls(root)
        counts = {call: n for call, n in counts.items() if call in options.calls.split(",")}
        chosen = points(counts, 1 if options.all else options.every, options.faults.split(","))
        print(f"calls in an undisturbed run: {counts}; {len(chosen)} points", flush=True)
    outcomes = _run(root, chosen, options.jobs, options.minutes)
    return _report(root, outcomes)


def _run(root: Path, chosen: list[Point], jobs: int, minutes: float | None) -> list[Outcome]:
    stop_at = time.monotonic() + 60 * minutes if minutes else float("inf")
    outcomes = []
    with ThreadPoolExecutor(jobs) as pool:
        pending = {pool.submit(try_point, root, one) for one in chosen}
        for done in as_completed(pending):
            if done.cancelled():
                continue
            outcomes.append(done.result())
            for problem in outcomes[-1].problems:
                print(f"FAILED {outcomes[-1].point}: {outcomes[-1].met}\n{problem}", flush=True)
            if time.monotonic() > stop_at:
                for one in pending:
                    one.cancel()
    return outcomes


def _report(root: Path, outcomes: list[Outcome]) -> int:
    codes = Counter(f"{one.point.fault}: {one.code}" for one in outcomes)
    failed = [str(one.point) for one in outcomes if one.problems]
    summary = {
        "points": len(outcomes),
        "met": sum(bool(one.met) for one in outcomes),
        "failed": failed,
        "exit_codes": dict(sorted(codes.items())),
        "seconds_each": round(sum(one.seconds for one in outcomes) / max(1, len(outcomes)), 2),
    }
    print(json.dumps(summary, indent=1))
    if failed:
        print(f"look at {root}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
