"""jobflowd and its peers on the same tasks, in turns, in one run; prints a Markdown table.

    pip install -e '.[bench]'
    python -m bench.compare [--rounds 3] [--seconds 3] [--only NAME ...] [--json]

Rules: 2 workers, up and warm before the clock starts; the clock runs from the first submission to
the last result, for jobflowd from the word to its generator to the last task's commit. Turns are
A B C A B C, and a ratio divides by the ProcessPoolExecutor of the same turn, because a shared
machine is never the same twice. Each turn of each contestant is a process of its own with a time
limit, in a directory of its own: one that is missing, fails or hangs is a row that says why.
How many tasks make a run of --seconds is found out in each contestant's first turn.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

# So that it can be run by its path, too.
sys.path.insert(0, str(Path(__file__).parent.parent))

from bench.measure import machine, say, versions
from bench.peertasks import BUSY_S, busy, no_op, who
from bench.rig import Rig

ROOT = Path(__file__).parent.parent
YARDSTICK = "ProcessPoolExecutor"
_WORKERS = 2
_WARM = 20
_UP_WITHIN_S = 60.0
_ANSWER = "answer.json"
_TURN = "import sys; from bench.compare import main; sys.exit(main())"
_INSTALL = "pip install -e '.[bench]'"

#: Peers get a name and not the code: the functions are a module's, and it is not __main__.
FUNCTIONS: dict[str, Callable[[dict[str, int]], object]] = {"noop": no_op, "busy": busy, "who": who}
WORKLOADS = {"noop": "no-op", "busy": "1 ms CPU"}
#: Runs so many tasks of a workload; returns the seconds from first submission to last result.
Runner = Callable[[str, int], float]


# --- the contestants: each yields a Runner whose workers are up -----------------------------------


def _runner(submit: Callable[..., Any]) -> Runner:
    """For everything that has futures. Returns only when two processes have answered."""
    deadline = time.monotonic() + _UP_WITHIN_S
    while len({one.result() for one in [submit(who, {"i": i}) for i in range(4)]}) < _WORKERS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{_WORKERS} workers were not up within {_UP_WITHIN_S:g} s")

    def run(workload: str, tasks: int) -> float:
        function = FUNCTIONS[workload]
        began = time.perf_counter()
        for future in [submit(function, {"i": i}) for i in range(tasks)]:
            future.result()
        return time.perf_counter() - began

    return run


@contextmanager
def _process_pool() -> Iterator[Runner]:
    with ProcessPoolExecutor(_WORKERS) as pool:
        yield _runner(pool.submit)


@contextmanager
def _jobflowd() -> Iterator[Runner]:
    def run(workload: str, tasks: int) -> float:
        args: dict[str, Any] = {"n": tasks, "warm": _WARM}
        if workload == "busy":
            args["busy_s"] = BUSY_S
        program = "sleeper" if workload == "busy" else "noop"
        with Rig(program, args, workers=_WORKERS, mode="zmq") as rig:
            rig.wait(lambda: rig.online() >= _WORKERS, f"{_WORKERS} workers", _UP_WITHIN_S)
            rig.wait_for_tasks("succeeded", _WARM, _UP_WITHIN_S)
            began = rig.go()
            rig.wait_for_tasks("succeeded", _WARM + tasks)
            return time.monotonic() - began

    yield run


@contextmanager
def _dask() -> Iterator[Runner]:
    import dask
    from distributed import Client, LocalCluster

    # Without this the scheduler holds short tasks back until a worker has said it is idle.
    dask.config.set({"distributed.scheduler.worker-saturation": float("inf")})
    cluster = LocalCluster(
        processes=True, n_workers=_WORKERS, threads_per_worker=1, dashboard_address=None
    )
    with cluster, Client(cluster) as client:
        client.wait_for_workers(_WORKERS, timeout=_UP_WITHIN_S)
        _runner(lambda function, spec: client.submit(function, spec, pure=False))

        def run(workload: str, tasks: int) -> float:
            began = time.perf_counter()
            specs = [{"i": i} for i in range(tasks)]
            client.gather(client.map(FUNCTIONS[workload], specs, pure=False))
            return time.perf_counter() - began

        yield run


@contextmanager
def _parsl() -> Iterator[Runner]:
    import parsl
    from parsl.config import Config
    from parsl.executors import HighThroughputExecutor
    from parsl.providers import LocalProvider

    executor = HighThroughputExecutor(
        address="127.0.0.1",
        max_workers_per_node=_WORKERS,
        cores_per_worker=1e-6,
        prefetch_capacity=64,
        provider=LocalProvider(init_blocks=1, min_blocks=1, max_blocks=1),
    )
    config = Config(executors=[executor], strategy="none", initialize_logging=False)
    with parsl.load(config):
        apps = {function: parsl.python_app(function) for function in FUNCTIONS.values()}
        yield _runner(lambda function, spec: apps[function](spec))


@contextmanager
def _hyperqueue() -> Iterator[Runner]:
    from hyperqueue import Job, LocalCluster
    from hyperqueue.cluster import WorkerConfig
    from hyperqueue.task.function import PythonEnv

    with LocalCluster(server_dir=str(Path.cwd() / "hq")) as cluster:
        for _ in range(_WORKERS):
            cluster.start_worker(WorkerConfig(cores=1))
        client = cluster.client(python_env=PythonEnv(python_bin=sys.executable))

        def run(workload: str, tasks: int) -> float:
            function = FUNCTIONS[workload]
            began = time.perf_counter()
            job = Job()
            for i in range(tasks):
                job.function(function, args=({"i": i},), stdout=None, stderr=None)
            client.wait_for_jobs([client.submit(job)])
            return time.perf_counter() - began

        run("who", 2 * _WORKERS)
        yield run


@contextmanager
def _executorlib() -> Iterator[Runner]:
    from executorlib import SingleNodeExecutor

    with SingleNodeExecutor(
        max_workers=_WORKERS,
        block_allocation=True,
        hostname_localhost=True,
        disable_dependencies=True,
    ) as executor:
        yield _runner(executor.submit)


@dataclass(frozen=True, slots=True)
class Contestant:
    """`distribution` is what pip calls it, "" for the standard library; `first` tasks to try."""

    open: Callable[[], AbstractContextManager[Runner]]
    distribution: str
    settings: str
    first: int = 100

    def version(self) -> str:
        """Raises PackageNotFoundError if it is not installed."""
        if not self.distribution:
            return f"Python {sys.version.split()[0]}"
        return importlib.metadata.version(self.distribution)


#: The yardstick is first, so that each turn has one.
CONTESTANTS: dict[str, Contestant] = {
    YARDSTICK: Contestant(_process_pool, "", "max_workers=2, one task per submit", 1000),
    "jobflowd": Contestant(
        _jobflowd,
        "jobflowd",
        "real daemon, zmq with CURVE, 2 workers, every result on disk (synchronous=FULL)",
        2000,
    ),
    "Dask distributed": Contestant(
        _dask, "distributed", "LocalCluster, 2 processes of 1 thread, worker-saturation inf, map"
    ),
    "Parsl": Contestant(
        _parsl, "parsl", "HighThroughputExecutor, 2 workers, encrypted (default), prefetch 64"
    ),
    "HyperQueue": Contestant(
        _hyperqueue,
        "hyperqueue",
        "Python LocalCluster, 2 workers of 1 core, one job of functions",
        8,
    ),
    "executorlib": Contestant(
        _executorlib,
        "executorlib",
        "SingleNodeExecutor, 2 workers, block allocation, no dependencies",
    ),
}


# --- one turn, in a process of its own ------------------------------------------------------------


def tasks_for(run: Callable[[int], float], seconds: float, first: int) -> int:
    """How many tasks take about so long: more are tried until a try takes a tenth of it."""
    tasks = first
    while (took := run(tasks)) < seconds / 10 and tasks < 1_000_000:
        tasks *= 4
    return max(first, round(tasks / took * seconds))


def take_turn(name: str, seconds: float, tasks: dict[str, int]) -> None:
    """Run each workload once and write the answer into the working directory after each one."""
    contestant = CONTESTANTS[name]
    answer: dict[str, Any] = {"version": None, "runs": {}, "error": ""}
    try:
        answer["version"] = contestant.version()
        _keep(answer)
        with contestant.open() as run:
            for workload in WORKLOADS:
                count = tasks.get(workload) or tasks_for(
                    lambda n, workload=workload: run(workload, n), seconds, contestant.first
                )
                answer["runs"][workload] = {"tasks": count, "rate": count / run(workload, count)}
                _keep(answer)
    except ImportError as error:
        # Also PackageNotFoundError: a peer that lacks a part is as absent as one that lacks all.
        answer["error"] = f"not installed ({error}); {_INSTALL}"
    except Exception as error:
        answer["error"] = f"{type(error).__name__}: {error}"
    _keep(answer)


def _keep(answer: dict[str, Any]) -> None:
    Path(_ANSWER).write_text(json.dumps(answer))


def turn_of(name: str, seconds: float, tasks: dict[str, int], limit_s: float) -> dict[str, Any]:
    """Take a turn in a process of its own. Whatever happens to it, there is an answer."""
    with tempfile.TemporaryDirectory(prefix="jf-compare-", ignore_cleanup_errors=True) as place:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": place}
        # Parsl looks up its own programs by name.
        env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
        words = [sys.executable, "-c", _TURN, "--turn", name]
        words += ["--seconds", str(seconds), "--tasks", json.dumps(tasks)]
        output = Path(place, "output")
        with output.open("wb") as sink:
            process = subprocess.Popen(
                words, cwd=place, env=env, stdin=subprocess.DEVNULL, stdout=sink, stderr=sink
            )
            error = _await(process, place, limit_s)
        try:
            answer: dict[str, Any] = json.loads(Path(place, _ANSWER).read_text())
        except (OSError, ValueError):
            said = output.read_text(errors="replace").strip().splitlines()
            ended = f"ended with {process.returncode}: {said[-1] if said else 'no word'}"
            return {"version": None, "runs": {}, "error": error or ended}
        answer["error"] = answer["error"] or error
        return answer


def _await(process: subprocess.Popen[bytes], place: str, limit_s: float) -> str:
    """Wait for a turn and end all that is left of it. Returns what is wrong, "" if nothing."""
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return f"not done within {limit_s:g} s"
    finally:
        _end(process, place)
    return f"ended with {process.returncode}" if process.returncode else ""


def _end(process: subprocess.Popen[bytes], place: str) -> None:
    """The turn's own process, then what it left, which has a moment to end by itself."""
    process.kill()
    process.wait()
    # By their environment, because some are nobody's children: a shell put them into background.
    # Again until there are none, because they may start others in their moment.
    deadline = time.monotonic() + 10
    while (left := [one for one in psutil.process_iter() if _lives_in(one, place)]) and (
        time.monotonic() < deadline
    ):
        for one in psutil.wait_procs(left, 1)[1]:
            try:
                one.kill()
            except psutil.NoSuchProcess:
                pass


def _lives_in(process: psutil.Process, place: str) -> bool:
    try:
        return process.environ().get("TMPDIR") == place
    except (psutil.Error, OSError):
        return False


# --- all turns, and what they say -----------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """One contestant. `rates` and `ratios` by workload, one value for each turn that came to it."""

    name: str
    settings: str
    version: str | None = None
    tasks: dict[str, int] = field(default_factory=dict)
    rates: dict[str, list[float]] = field(default_factory=dict)
    ratios: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)

    def take(self, answer: dict[str, Any], yardstick: dict[str, Any]) -> None:
        """One turn's answer, and the yardstick's answer in the same round."""
        self.version = answer["version"] or self.version
        for workload, run in answer["runs"].items():
            self.tasks[workload] = run["tasks"]
            self.rates.setdefault(workload, []).append(run["rate"])
            if workload in yardstick:
                ratio = run["rate"] / yardstick[workload]["rate"]
                self.ratios.setdefault(workload, []).append(ratio)
        if answer["error"]:
            self.errors.append(answer["error"])

    def as_json(self) -> dict[str, Any]:
        """All values, and medians."""
        medians = {name: statistics.median(values) for name, values in self.rates.items()}
        ratio = {name: statistics.median(values) for name, values in self.ratios.items()}
        spread = {name: spread_of(values) for name, values in self.rates.items()}
        return {**asdict(self), "median": medians, "spread": spread, "ratio": ratio}


def spread_of(values: Sequence[float]) -> float:
    """Half the range, as a share of the median."""
    return (max(values) - min(values)) / 2 / statistics.median(values)


def compare(names: Sequence[str], rounds: int, seconds: float, limit_s: float) -> list[Row]:
    """A B C A B C. What is not installed is not tried again."""
    rows = {name: Row(name, CONTESTANTS[name].settings) for name in names}
    for number in range(1, rounds + 1):
        yardstick: dict[str, Any] = {}
        for name, row in rows.items():
            if row.errors and row.version is None:
                continue
            answer = turn_of(name, seconds, row.tasks, limit_s)
            if name == YARDSTICK:
                yardstick = answer["runs"]
            row.take(answer, yardstick)
            rates = [f"{key} {run['rate']:,.0f}/s" for key, run in answer["runs"].items()]
            found = ", ".join([*rates, *([answer["error"]] if answer["error"] else [])])
            say(f"round {number}, {name}: {found}")
    return list(rows.values())


def table(rows: Sequence[Row]) -> str:
    """Markdown: one line each, then how each was set up, then what went wrong."""
    heads = ["contestant", "version"]
    for words in WORKLOADS.values():
        heads += [f"{words} tasks/s", f"x {YARDSTICK}"]
    lines = [f"| {' | '.join(heads)} |", f"| --- | --- |{' ---: |' * (len(heads) - 2)}"]
    for row in rows:
        cells = [row.name, row.version or "not installed"]
        for workload in WORKLOADS:
            cells += _cells(row, workload)
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *(f"- {row.name}: {row.settings}." for row in rows)]
    failed = [(row, error) for row in rows for error in dict.fromkeys(row.errors)]
    if failed:
        lines += ["", "What went wrong:", ""]
        lines += [f"- {row.name}: {' '.join(error.split())[:300]}" for row, error in failed]
    return "\n".join(lines)


def _cells(row: Row, workload: str) -> list[str]:
    rates = row.rates.get(workload)
    if not rates:
        return ["failed" if row.errors and row.version else "-", "-"]
    ratios = row.ratios.get(workload)
    middle = statistics.median(ratios) if ratios else 0.0
    ratio = f"{middle:.3f}" if middle >= 0.01 else f"{middle:.1g}" if ratios else "-"
    return [f"{statistics.median(rates):,.0f} ±{spread_of(rates):.0%}", ratio]


def preamble(rounds: int, seconds: float) -> str:
    """What the figures depend on, as a sentence or two."""
    on, parts = machine(), versions()
    return (
        f"{_WORKERS} workers, {rounds} turns each of about {seconds:g} s; the median, ± half the "
        f"range; the ratio is the median of each turn's. {on['cores']} cores, {on['system']}, load "
        f"{on['load'][0]} at the end; Python {parts['python']}, pyzmq {parts['pyzmq']}, SQLite "
        f"{parts['sqlite']}. {on['cores']} cores can do {on['cores'] / BUSY_S:,.0f} tasks of "
        "1 ms CPU a second.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. The exit code is 0 also if a peer fails: that is a finding."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="turns of each contestant")
    parser.add_argument("--seconds", type=float, default=3.0, help="how long a run should take")
    parser.add_argument("--limit", type=float, default=180.0, help="seconds a turn may take")
    parser.add_argument("--only", nargs="+", choices=tuple(CONTESTANTS), metavar="NAME")
    parser.add_argument("--json", action="store_true", help="JSON instead of the table")
    parser.add_argument("--turn", choices=tuple(CONTESTANTS), help=argparse.SUPPRESS)
    parser.add_argument("--tasks", type=json.loads, default={}, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.seconds <= 0 or args.limit <= 0:
        parser.error("--rounds, --seconds and --limit must be above 0")
    if args.turn:
        take_turn(args.turn, args.seconds, args.tasks)
        return 0
    names = [name for name in CONTESTANTS if not args.only or name in (YARDSTICK, *args.only)]
    rows = compare(names, args.rounds, args.seconds, args.limit)
    if args.json:
        found = {"workers": _WORKERS, "rounds": args.rounds, "seconds": args.seconds}
        found |= {"machine": machine(), "versions": versions()}
        found["contestants"] = [row.as_json() for row in rows]
        sys.stdout.write(json.dumps(found, indent=1) + "\n")
    else:
        sys.stdout.write(f"{preamble(args.rounds, args.seconds)}\n{table(rows)}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
