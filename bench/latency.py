"""One task on an idle system: from queued to its result committed.

    python -m bench.latency [--mode zmq | fs] [--rings N]

A generator blocks on a pipe and yields one task a line. The session is paused while the task is
queued; the beginning is the wall clock just before `resume` is sent, so the way of that order is
included. The end is the daemon's own `finished_at`, the wall clock of the turn that took the
outcome in, plus the mean duration of a commit from the daemon's metrics. `from_yield_p50_ms` in
`details` is for tasks that nothing holds back, from the generator's clock before its yield: it
includes the time that a yielded task waits for others to be sent with. The yardstick is p50 of one
task at a time through a warm ProcessPoolExecutor. `relay_ms` is what no coordinator gets below with
one worker process between two durable commits: a byte passed on by sleeping processes, one for each
thread that a task wakes up, and two fdatasyncs, with no work in any of them.
"""

from __future__ import annotations

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from typing import NamedTuple, TextIO

from bench.measure import Result, Target, arguments, emit, parse, quantile
from bench.rig import Rig
from bench.yardstick import no_op
from jobflow_worker.codec import decode_body

_PAUSE_S = 0.06
_WARM = 30
#: ZeroMQ's thread and the main one of daemon and agent, the child, and back.
_WAKE_UPS = 8


class Stamps(NamedTuple):
    """Of one task, wall clock: its yield, its run, and the turn that took its outcome in."""

    yielded: float
    ran: float
    finished: float


class Run(NamedTuple):
    """Milliseconds of each task; `commit_ms` is the mean, and included in the first two."""

    queued: list[float]
    yielded: list[float]
    queued_to_run: list[float]
    commit_ms: float


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


def relay_latency(rounds: int) -> float:
    """p50 of a byte through sleeping processes and two fdatasyncs, with the same pauses; ms."""
    pipes = [os.pipe() for _ in range(_WAKE_UPS + 1)]
    runners = []
    for (take, _), (_, give) in pairwise(pipes):
        pid = os.fork()
        if not pid:
            while byte := os.read(take, 1):
                os.write(give, byte)
                if byte == b"e":
                    break
            os._exit(0)
        runners.append(pid)
    found = []
    with tempfile.TemporaryFile() as file:
        for number in range(rounds):
            time.sleep(_PAUSE_S)
            began = time.perf_counter()
            for half in range(2):
                os.pwrite(file.fileno(), bytes(4096), 4096 * (2 * number + half))
                os.fdatasync(file.fileno())
            os.write(pipes[0][1], b"r")
            os.read(pipes[-1][0], 1)
            found.append(time.perf_counter() - began)
    os.write(pipes[0][1], b"e")
    for pid in runners:
        os.waitpid(pid, 0)
    for pair in pipes:
        os.close(pair[0])
        os.close(pair[1])
    return quantile(found, 0.5) * 1000


def one_run(rings: int, mode: str) -> Run:
    """So many tasks of both kinds, one at a time."""
    rig = Rig("bell", mode=mode)
    os.mkfifo(rig.place / "bell", 0o600)
    with rig:
        with open(rig.place / "bell", "w", buffering=1) as bell:
            # Without work there are no workers.
            bell.write("ring\n" * 10)
            rig.wait(lambda: rig.online() >= 2, "2 workers", 60.0)
            _ring(rig, bell, _WARM)
            before = _commits(rig)
            _ring(rig, bell, rings)
            after = _commits(rig)
            resumed = [_held_ring(rig, bell) for _ in range(rings)]
            bell.write("end\n")
        rig.stop()
        rows = _rows(rig)[10 + _WARM :]
    commit_ms = 1000 * (after[0] - before[0]) / max(1.0, after[1] - before[1])
    free, held = rows[:rings], rows[rings:]
    return Run(
        [1000 * (row.finished - at) + commit_ms for at, row in zip(resumed, held, strict=True)],
        [1000 * (row.finished - row.yielded) + commit_ms for row in free],
        [1000 * (row.ran - at) for at, row in zip(resumed, held, strict=True)],
        commit_ms,
    )


def _ring(rig: Rig, bell: TextIO, count: int) -> None:
    done = rig.tasks("succeeded")
    for number in range(count):
        bell.write("ring\n")
        time.sleep(_PAUSE_S)
        # Now and then: who asks all the time is a load.
        if number % 10 == 9:
            rig.wait_for_tasks("succeeded", done + number - 5, 30.0)
    rig.wait_for_tasks("succeeded", done + count, 30.0)


def _held_ring(rig: Rig, bell: TextIO) -> float:
    """Queue a task while the session is paused, let it go; returns when."""
    done = rig.tasks("succeeded")
    rig.ask("pause")
    bell.write("ring\n")
    rig.wait_for_tasks("queued", 1, 30.0, 0.01)
    time.sleep(_PAUSE_S)
    now = time.time()
    rig.ask("resume")
    time.sleep(_PAUSE_S)
    rig.wait_for_tasks("succeeded", done + 1, 30.0)
    return now


def _commits(rig: Rig) -> tuple[float, float]:
    name = "jobflow_store_commit_seconds"
    return rig.metric(f"{name}_sum"), rig.metric(f"{name}_count")


def _rows(rig: Rig) -> list[Stamps]:
    """Of every task, in the order of the queue."""
    db = sqlite3.connect(rig.database)
    try:
        found = db.execute(
            "SELECT spec, body, finished_at FROM tasks JOIN task_specs USING (id)"
            " JOIN task_results USING (id) ORDER BY tasks.id"
        ).fetchall()
    finally:
        db.close()
    return [
        Stamps(decode_body(spec)["at"], decode_body(body)["at"], at) for spec, body, at in found
    ]


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--mode", choices=("zmq", "fs"), default="zmq")
    parser.add_argument("--rings", type=int, default=None)
    args = parse(parser, argv)
    rings = args.rings or (20 if args.quick else 100)
    target = Target("p50 under 1 ms", at_most=1.0) if args.mode == "zmq" else None
    what = "p50 of one task through ProcessPoolExecutor(2), ms"
    result = Result(f"latency-{args.mode}", "ms (p50)", target, yardstick_is=what)
    result.details = {
        "rings": rings,
        "p99_ms": [],
        "queued_to_run_p50_ms": [],
        "from_yield_p50_ms": [],
        "commit_ms": [],
        "relay_ms": [],
    }
    for _ in range(args.runs):
        run = one_run(rings, args.mode)
        result.details["p99_ms"].append(round(quantile(run.queued, 0.99), 3))
        result.details["queued_to_run_p50_ms"].append(round(quantile(run.queued_to_run, 0.5), 3))
        result.details["from_yield_p50_ms"].append(round(quantile(run.yielded, 0.5), 3))
        result.details["commit_ms"].append(round(run.commit_ms, 3))
        result.details["relay_ms"].append(round(relay_latency(rings // 2), 3))
        result.add(quantile(run.queued, 0.5), pool_latency(rings // 2))
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
