"""An idle daemon with four idle workers: what a login node pays for nothing.

    python -m bench.idle [--mode zmq | fs] [--seconds S]

CPU of the daemon and of its process for mailboxes, in % of a core, over a minute, while the
generator blocks. `details` has its share and that of the workers, and in fs mode
the calls with a file name of an idle worker's agent, counted by strace over half a minute:
`metadata_per_s` is judged, too.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import Result, Target, arguments, emit, parse
from bench.rig import Rig

_WORKERS = 4


def file_calls(strace_summary: str) -> dict[str, int]:
    """Calls by name from the table that `strace -c` writes."""
    rows = re.findall(
        r"^\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z]\w+)$", strace_summary, re.MULTILINE
    )
    return {name: int(count) for count, name in rows if name != "total"}


def count_file_calls(pid: int, seconds: float, out: Path, below: Path) -> dict[str, int]:
    """Calls that name a file below this directory, by a running process; {} without strace.

    Those on /proc, by which it measures itself, cost no file server anything.
    """
    strace = shutil.which("strace")
    if strace is None:
        return {}
    command = [strace, "-f", "-e", "trace=%file", "-o", str(out), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as tracing:
        time.sleep(seconds)
        tracing.send_signal(signal.SIGINT)
    named = (line for line in out.read_text().splitlines() if str(below) in line)
    return dict(Counter(line.split(maxsplit=1)[1].partition("(")[0] for line in named))


def one_run(mode: str, seconds: float, result: Result) -> None:
    """Add one run to the result."""
    rig = Rig("bell", workers=_WORKERS, mode=mode)
    os.mkfifo(rig.place / "bell", 0o600)
    with rig, open(rig.place / "bell", "w", buffering=1) as bell:
        # Without work there are no workers, and for one task there is one.
        bell.write("ring\n" * 200)
        rig.wait_for_tasks("succeeded", 200, 60.0)
        online = rig.online()
        time.sleep(min(15.0, seconds))
        before, began = rig.cpu(), time.monotonic()
        time.sleep(seconds)
        cost = (rig.cpu() - before).per(time.monotonic() - began, 100, 4)
        result.details["online"].append(online)
        result.details["cpu_percent"].append(cost)
        if mode == "fs":
            _count(rig, seconds / 2, result)
        result.add(cost["daemon"] + cost["mail"])


def _count(rig: Rig, seconds: float, result: Result) -> None:
    calls = count_file_calls(rig.agents()[0], seconds, rig.place / "strace", rig.session)
    per_s = sum(calls.values()) / seconds
    details: dict[str, Any] = result.details
    details.setdefault("metadata_calls", []).append(calls)
    details.setdefault("metadata_per_s", []).append(round(per_s, 3))
    result.also_ok = result.also_ok and per_s <= 1.0


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--mode", choices=("zmq", "fs"), default="zmq")
    parser.add_argument("--seconds", type=float, default=None)
    args = parse(parser, argv)
    seconds = args.seconds or (2.0 if args.quick else 60.0)
    text = "under 0.3 % of a core" + (
        "; at most 1 metadata call a second each" * (args.mode == "fs")
    )
    result = Result(f"idle-{args.mode}", "% of a core", Target(text, at_most=0.3))
    result.details = {"workers": _WORKERS, "seconds": seconds, "online": [], "cpu_percent": []}
    for _ in range(args.runs):
        one_run(args.mode, seconds, result)
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
