"""What starting a worker costs: the imports of an agent, and the calls that a file server sees.

    python -m bench.worker_start

Each value is the wall time of importing all that an agent needs, measured inside a fresh
interpreter after its own start. `details` has CPU of whole processes with and without the imports,
the same for a task's child, and calls with a file name by strace, beyond those of `python -c pass`.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from bench.idle import file_calls
from bench.measure import Result, Target, arguments, emit, parse

#: The last three are imported where they are used, but at each start.
AGENT = (
    "import jobflow_worker.cli; jobflow_worker.cli.collector.stop();"
    " import jobflow_worker.batchjob, jobflow_worker.agent,"
    " jobflow_worker.keyfile, jobflow_worker.transport.zmq, hashlib"
)
CHILD = "import jobflow_worker.child"
_TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
_CPU = "{}; import time; print(time.process_time())"


def run(code: str) -> float:
    """The number that this code prints in a fresh interpreter."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    return float(done.stdout)


def metadata_calls(code: str) -> dict[str, int]:
    """Calls with a file name of a fresh interpreter that runs this; {} without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="jf-bench-") as place:
        out = Path(place, "strace")
        traced = [strace, "-f", "-c", "-e", "trace=%file", "-o", str(out), sys.executable]
        subprocess.run([*traced, "-c", code], check=True, capture_output=True)
        return file_calls(out.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(arguments(__doc__, runs=20), argv)
    result = Result("worker-start", "ms", Target("imports under 60 ms", at_most=60.0))
    cpu: dict[str, list[float]] = {"pass": [], "agent": [], "child": []}
    run(_TIMED.format(AGENT))
    for _ in range(args.runs):
        result.add(1000 * run(_TIMED.format(AGENT)))
        for name, code in (("pass", "pass"), ("agent", AGENT), ("child", CHILD)):
            cpu[name].append(1000 * run(_CPU.format(code)))
    bare = sum(metadata_calls("pass").values())
    agent, child = metadata_calls(AGENT), metadata_calls(CHILD)
    result.details = {
        "process_cpu_ms": {name: round(median(found), 2) for name, found in cpu.items()},
        "metadata_calls_bare_python": bare,
        "metadata_calls_agent_imports": sum(agent.values()) - bare,
        "metadata_calls_child_imports": sum(child.values()) - bare,
        "metadata_calls_agent_by_name": agent,
    }
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
