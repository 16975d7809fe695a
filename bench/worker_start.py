"""What starting a worker costs: the imports of an agent, and the calls that a file server sees.

    python -m bench.worker_start

Each value is the wall time of importing all that an agent needs, measured inside a fresh
interpreter after its own start. The yardstick is the same for what no agent of this kind does
without: pyzmq, msgpack and OpenSSL's digests. Modules are compiled, as an installation leaves them,
whatever PYTHONDONTWRITEBYTECODE says here, and nothing of an editable installation, which loads
modules of its own at each start, is timed. `details` has the wall time and the CPU of whole
processes with and without the imports, the same for an agent that uses files (`--mode fs`) and for
a task's child, and calls with a file name by strace, beyond those of `python -c pass` here.
"""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from bench.idle import file_calls
from bench.measure import Result, Target, arguments, emit, parse

#: The last three are imported where they are used, but at each start.
_AGENT = (
    "import jobflow_worker.cli; jobflow_worker.cli.collector.stop();"
    " import jobflow_worker.batchjob, jobflow_worker.agent,"
    " jobflow_worker.keyfile, jobflow_worker.transport.{}, hashlib"
)
AGENT, FILES_AGENT = _AGENT.format("zmq"), _AGENT.format("fs")
CHILD = "import jobflow_worker.child"
NEEDED = "import zmq, msgpack, hashlib"
#: Instead of what `site` does: where this project and its dependencies are.
_PLACES = [str(Path(__file__).parents[1]), *site.getsitepackages()]
_FIND = f"import sys; sys.path += {_PLACES!r}; "
_TIMED = "import time; t = time.perf_counter(); {}; print(time.perf_counter() - t)"
_CPU = "{}; import time; print(time.process_time())"


@contextmanager
def compiled() -> Iterator[dict[str, str]]:
    """An environment in which each module is compiled once, into a directory of its own."""
    kept = {name: it for name, it in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory(prefix="jf-bench-") as place:
        yield {**kept, "PYTHONPYCACHEPREFIX": place}


def run(code: str, env: dict[str, str]) -> tuple[float, float]:
    """The number that this code prints in a fresh interpreter, and that one's wall time in ms."""
    began = time.perf_counter()
    words = [sys.executable, "-S", "-c", _FIND + code]
    done = subprocess.run(words, env=env, capture_output=True, check=True)
    return float(done.stdout), 1000 * (time.perf_counter() - began)


def metadata_calls(code: str, env: dict[str, str]) -> dict[str, int]:
    """Calls with a file name of a fresh interpreter that runs this again; {} without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="jf-bench-") as place:
        out = Path(place, "strace")
        traced = [strace, "-f", "-c", "-e", "trace=%file", "-o", str(out), sys.executable]
        subprocess.run([sys.executable, "-c", code], env=env, check=True)
        subprocess.run([*traced, "-c", code], env=env, check=True, capture_output=True)
        return file_calls(out.read_text())


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(arguments(__doc__, runs=20), argv)
    result = Result(
        "worker-start",
        "ms",
        Target("imports under 60 ms", at_most=60.0),
        yardstick_is="importing pyzmq, msgpack and hashlib, ms",
    )
    codes = {"pass": "pass", "agent": AGENT, "files_agent": FILES_AGENT, "child": CHILD}
    cpu: dict[str, list[float]] = {name: [] for name in codes}
    wall: dict[str, list[float]] = {name: [] for name in codes}
    with compiled() as env:
        for code in (*codes.values(), NEEDED):
            run(_TIMED.format(code), env)
        for _ in range(args.runs):
            agent_s, needed_s = (run(_TIMED.format(one), env)[0] for one in (AGENT, NEEDED))
            result.add(1000 * agent_s, 1000 * needed_s)
            for name, code in codes.items():
                used_s, took_ms = run(_CPU.format(code), env)
                cpu[name].append(1000 * used_s)
                wall[name].append(took_ms)
        calls = {name: metadata_calls(code, env) for name, code in codes.items()}
    bare = sum(calls["pass"].values())
    result.details = {
        "process_ms": {name: round(median(found), 2) for name, found in wall.items()},
        "process_cpu_ms": {name: round(median(found), 2) for name, found in cpu.items()},
        "metadata_calls_bare_python": bare,
        "metadata_calls_agent_imports": sum(calls["agent"].values()) - bare,
        "metadata_calls_files_agent_imports": sum(calls["files_agent"].values()) - bare,
        "metadata_calls_child_imports": sum(calls["child"].values()) - bare,
        "metadata_calls_agent_by_name": calls["agent"],
    }
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
