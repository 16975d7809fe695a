"""What CURVE costs: no-op tasks a second with keys and in the clear, in turns, in one run.

    python bench/curve.py --tasks 20000 --workers 2 --rounds 3

Turns, because a shared machine is never the same twice; the ratio of medians is what counts. The
rate runs from the first worker's arrival to the last task's end, as the daemon's log tells them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path

PROGRAM = """
from jobflow_worker import TaskDefinition, TaskProgram

class Noop(TaskProgram):
    def generate_tasks(self):
        for number in range(self.program_args["n"]):
            yield TaskDefinition(f"t{number:07}", {"i": number})

    def execute_task(self, spec, progress_cb):
        return {}
"""


def rate(place: Path, tasks: int, workers: int, *flags: str) -> float:
    """Tasks a second of one session in a fresh directory."""
    place.mkdir(mode=0o700)
    program = place / "noop.py"
    program.write_text(PROGRAM)
    subprocess.run(
        [
            *(str(Path(sys.executable).parent / "jobflowd"), "start", "--program", str(program)),
            *("--program-args", json.dumps({"n": tasks}), "--workers", str(workers)),
            *("--session-id", "bench", "--mode", "zmq", *flags),
        ],
        env={**os.environ, "JOBFLOW_STATE_DIR": str(place / "state")},
        check=True,
        capture_output=True,
    )
    log = (place / "state" / "sessions" / "bench" / "manager.db.log").read_text()
    online = re.search(r"^(\S+)Z INFO worker_online", log, re.MULTILINE)
    finishing = re.search(r"^(\S+)Z INFO finishing", log, re.MULTILINE)
    assert online is not None, log
    assert finishing is not None, log
    took = datetime.fromisoformat(finishing[1]) - datetime.fromisoformat(online[1])
    return tasks / took.total_seconds()


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="No-op tasks a second with and without CURVE.")
    parser.add_argument("--tasks", type=int, default=20_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    kinds = {"curve": (), "plain": ("--insecure-plaintext",)}
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
    with tempfile.TemporaryDirectory() as place:
        for turn in range(args.rounds):
            for kind, flags in kinds.items():
                directory = Path(place) / f"{kind}-{turn}"
                found[kind].append(rate(directory, args.tasks, args.workers, *flags))
    median = {kind: statistics.median(rates) for kind, rates in found.items()}
    for kind, rates in found.items():
        each = ", ".join(f"{one:,.0f}" for one in rates)
        sys.stdout.write(f"{kind}  {median[kind]:>9,.0f} tasks/s   ({each})\n")
    sys.stdout.write(f"plain / curve = {median['plain'] / median['curve']:.3f}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
