"""One task on an idle system: from its yield to its result committed.

    python -m bench.latency [--rings N]

A generator blocks on a pipe and yields one task for each line, 20 ms after the one before. The
beginning is the generator's wall clock just before the yield, which is before the task is queued,
so this is an upper bound. The end is the daemon's own `finished_at`, the wall clock of the turn
that took the outcome in, plus the mean duration of a commit from the daemon's metrics. The
yardstick is the mean round trip of one task through a warm ProcessPoolExecutor.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

from bench.measure import Result, Target, arguments, emit, parse, quantile
from bench.rig import Rig
from bench.yardstick import no_op
from jobflow_worker.codec import decode_body

_PAUSE_S = 0.02


def pool_latency(rounds: int) -> float:
    """p50 of one task at a time through a warm pool, with the same pauses; ms."""
    found = []
    with ProcessPoolExecutor(2) as pool:
        for number in range(rounds + 20):
            time.sleep(_PAUSE_S if number >= 20 else 0)
            began = time.perf_counter()
            pool.submit(no_op, {"i": number}).result()
            found.append(time.perf_counter() - began)
    return quantile(found[20:], 0.5) * 1000


def one_run(rings: int, mode: str) -> tuple[list[float], list[float], float]:
    """Milliseconds from yield to the outcome's turn, and to the run; mean commit in ms."""
    warm = 50
    rig = Rig("bell", mode=mode)
    os.mkfifo(rig.place / "bell", 0o600)
    with rig:
        rig.wait(lambda: rig.online() >= 2, "2 workers", 60.0)
        with open(rig.place / "bell", "w", buffering=1) as bell:
            for number in range(warm + rings):
                bell.write("ring\n")
                time.sleep(_PAUSE_S)
                if number == warm:
                    sum_s, count = _commits(rig)
            rig.wait_for_tasks("succeeded", warm + rings, 60.0)
            sum_end, count_end = _commits(rig)
            bell.write("end\n")
        rig.stop()
        rows = _rows(rig)[warm:]
    commit_ms = 1000 * (sum_end - sum_s) / max(1.0, count_end - count)
    ends = [1000 * (finished - yielded) for yielded, _, finished in rows]
    runs = [1000 * (ran - yielded) for yielded, ran, _ in rows]
    return ends, runs, commit_ms


def _commits(rig: Rig) -> tuple[float, float]:
    name = "jobflow_store_commit_seconds"
    return rig.metric(f"{name}_sum"), rig.metric(f"{name}_count")


def _rows(rig: Rig) -> list[tuple[float, float, float]]:
    """Of each task, in order: yielded, ran, finished; wall clock."""
    db = sqlite3.connect(rig.database)
    try:
        found = db.execute(
            "SELECT spec, body, finished_at FROM tasks JOIN task_specs USING (id)"
            " JOIN task_results USING (id) ORDER BY tasks.id"
        ).fetchall()
    finally:
        db.close()
    return [(decode_body(spec)["at"], decode_body(body)["at"], at) for spec, body, at in found]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--mode", choices=("zmq", "fs"), default="zmq")
    parser.add_argument("--rings", type=int, default=None)
    args = parse(parser, argv)
    rings = args.rings or (50 if args.quick else 500)
    target = Target("p50 under 1 ms", at_most=1.0) if args.mode == "zmq" else None
    what = "p50 of one task through ProcessPoolExecutor(2), ms"
    result = Result(f"latency-{args.mode}", "ms (p50)", target, yardstick_is=what)
    result.details = {"rings": rings, "p99_ms": [], "yield_to_run_p50_ms": [], "commit_ms": []}
    for _ in range(args.runs):
        ends, runs, commit_ms = one_run(rings, args.mode)
        result.details["p99_ms"].append(round(quantile(ends, 0.99) + commit_ms, 3))
        result.details["yield_to_run_p50_ms"].append(round(quantile(runs, 0.5), 3))
        result.details["commit_ms"].append(round(commit_ms, 3))
        result.add(quantile(ends, 0.5) + commit_ms, pool_latency(rings // 2))
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
