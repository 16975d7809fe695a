"""What bare processes reach on this machine now: the ceiling for tasks that work or sleep.

No queue, no pool: each process does its share in a loop. On a shared machine two cores are
seldom two whole cores, so `cpu_tasks` and `sleeps` are compared with this, in the same run.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

from bench.programs.sleeper import compute

WORK: dict[str, Callable[[float], None]] = {"busy_s": compute, "sleep_s": time.sleep}


def _loop(pipe: Connection, kind: str, seconds: float, count: int) -> None:
    work = WORK[kind]
    pipe.recv()
    began = time.monotonic()
    for _ in range(count):
        work(seconds)
    pipe.send((began, time.monotonic()))


def bare_rate(kind: str, seconds: float, count: int, processes: int) -> float:
    """Rounds a second of `count` rounds shared by so many processes, each of so many seconds."""
    context = multiprocessing.get_context("fork")
    pairs = []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        child = context.Process(target=_loop, args=(theirs, kind, seconds, count // processes))
        child.start()
        pairs.append((ours, child))
    for pipe, _ in pairs:
        pipe.send("go")
    times = [pipe.recv() for pipe, _ in pairs]
    for _, child in pairs:
        child.join()
    took: float = max(ended for _, ended in times) - min(began for began, _ in times)
    return count // processes * processes / took
