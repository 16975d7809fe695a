"""A daemon with a thousand connected workers: what they cost when idle, and how soon it answers.

    python -m bench.connected [--workers N]

Simulated workers (`agents.py`) over real TCP sockets with CURVE and heartbeats of 10 s, in two
processes. A value is the daemon's CPU in % of a core over a minute without tasks. `status_*_ms`
are round trips of `status` asked every 50 ms: with nobody working, and while all of them do no-op
tasks as fast as the daemon hands them out, so that both cores are more than full. `load_daemon_us`
is the daemon's CPU for one of these tasks.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from bench.measure import Result, Target, arguments, emit, parse, quantile, say
from bench.rig import Rig, cpu_of

STATUS_S = 0.05
_STATUS_MS_MAX = 50.0


@contextmanager
def swarm(rig: Rig, workers: int, mode: str, processes: int = 2) -> Iterator[list[int]]:
    """So many simulated workers in so many processes; yields their process ids."""
    command = [sys.executable, "-m", "bench.agents", str(rig.session)]
    each = workers // processes
    running = [
        subprocess.Popen([*command, str(each), mode], stdout=subprocess.DEVNULL)
        for _ in range(processes)
    ]
    try:
        yield [one.pid for one in running]
    finally:
        for one in running:
            one.kill()
            one.wait()


def status_ms(rig: Rig, seconds: float, until: float = float("inf")) -> list[float]:
    """Round trips of `status` for so long, or until so many tasks have succeeded."""
    found = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.monotonic()
        answer = rig.ask("status")
        found.append(1000 * (time.monotonic() - began))
        if answer["tasks"]["succeeded"] >= until:
            break
        time.sleep(STATUS_S)
    return found


def one_run(workers: int, seconds: float, tasks: int, result: Result) -> None:
    """Add one run to the result."""
    args = {"n": tasks, "warm": 1}
    with (
        Rig("noop", args, launcher="none") as rig,
        swarm(rig, workers, "zmq") as pids,
    ):
        began = time.monotonic()
        rig.wait(lambda: rig.online() >= workers, f"{workers} workers", 120.0, 0.1)
        joined_s = time.monotonic() - began
        rig.wait_for_tasks("succeeded", 1)
        say(f"connected: {workers} workers after {joined_s:.1f} s")
        time.sleep(min(5.0, seconds))
        before, before_swarm = rig.cpu(), sum(cpu_of(pid) for pid in pids)
        began = time.monotonic()
        time.sleep(seconds)
        wall = time.monotonic() - began
        idle = (rig.cpu() - before).daemon / wall * 100
        idle_swarm = (sum(cpu_of(pid) for pid in pids) - before_swarm) / wall * 100
        at_rest = status_ms(rig, min(10.0, seconds))
        online = rig.online()
        before = rig.cpu()
        began = rig.go()
        under_load = status_ms(rig, 300.0, 1 + tasks)
        rate = (rig.tasks("succeeded") - 1) / (time.monotonic() - began)
        cost = (rig.cpu() - before).per(tasks)
        details = result.details
        details["joined_s"].append(round(joined_s, 2))
        details["online"].append(online)
        details["swarm_cpu_percent"].append(round(idle_swarm, 2))
        details["status_idle_p99_ms"].append(round(quantile(at_rest, 0.99), 2))
        details["status_load_p99_ms"].append(round(quantile(under_load, 0.99), 2))
        details["status_load_p50_ms"].append(round(quantile(under_load, 0.5), 2))
        details["load_tasks_per_s"].append(round(rate))
        details["load_daemon_us"].append(cost["daemon"])
        details["daemon_mib"].append(round(rig.memory().daemon / 2**20, 1))
        result.add(idle)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--workers", type=int, default=None)
    args = parse(parser, argv)
    workers = args.workers or (40 if args.quick else 1000)
    target = Target("idle under 10 % of a core; status p99 under 50 ms, also at load", at_most=10.0)
    result = Result("connected-workers", "% of a core", target)
    names: tuple[str, ...] = (
        "joined_s",
        "online",
        "swarm_cpu_percent",
        "status_idle_p99_ms",
        "status_load_p99_ms",
    )
    names += ("status_load_p50_ms", "load_tasks_per_s", "load_daemon_us", "daemon_mib")
    result.details = {"workers": workers, **{name: [] for name in names}}
    for _ in range(args.runs):
        one_run(workers, 2.0 if args.quick else 60.0, 2_000 if args.quick else 200_000, result)
    worst = [quantile(result.details[f"status_{when}_p99_ms"], 0.5) for when in ("idle", "load")]
    result.also_ok = max(worst) <= _STATUS_MS_MAX
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
