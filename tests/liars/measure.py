"""The figures of the batch launchers: `python tests/liars/measure.py [times]`.

Crashes at each point around a submission (a hundred times each), and queries per hour with 5 and
with 500 launches. Prints one line for each.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from rig import POINTS, Rig, calls, live_jobs, stand_in
from test_crashes import crash_and_count, start_and_scale

from jobflowd.launchers.slurm import Slurm


def main() -> int:
    """Run all measurements; 1 if a job was missing or there was one too many."""
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    bad = 0
    for system in ("slurm", "lsf"):
        for point in POINTS:
            found: Counter[int] = Counter()
            for _ in range(times):
                with tempfile.TemporaryDirectory(prefix="jf-") as name:
                    root = Path(name)
                    env = {**stand_in(root), "FAKEBATCH_HOLD": "yes"}
                    fake = root / "fakebatch"
                    found[crash_and_count(root / "t1", fake, env, system, point)] += 1
            missing = found[0]
            extra = sum((jobs - 1) * n for jobs, n in found.items() if jobs > 1)
            bad += missing + extra
            print(f"{system}, crash {point}, {times} times: {extra} extra, {missing} missing")
    worst = [0, 0]
    for seed in range(times):
        with tempfile.TemporaryDirectory(prefix="jf-") as name:
            root = Path(name)
            over, missing = start_and_scale(
                root / "t1",
                root / "fakebatch",
                {**stand_in(root), "FAKEBATCH_HOLD": "yes"},
                seed,
            )
            worst = [max(worst[0], over), worst[1] + missing]
    bad += sum(worst)
    print(f"{times} starts with six scalings: {worst[0]} jobs over, {worst[1]} missing")
    for launches in (5, 500):
        with tempfile.TemporaryDirectory(prefix="jf-") as name:
            root = Path(name)
            env = {**stand_in(root), "FAKEBATCH_HOLD": "yes"}
            (root / "t1").mkdir()
            rig = Rig(root / "t1", Slurm(), env, wanted=launches)
            with rig.one_life():
                rig.run_for(900.0)
                before = calls(root / "fakebatch")
                rig.run_for(3600.0)
            found = calls(root / "fakebatch") - before
            jobs = sum(live_jobs(root / "fakebatch").values())
            print(f"{launches} launches ({jobs} jobs): {dict(found)} calls in an hour")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
