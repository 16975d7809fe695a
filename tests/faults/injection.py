"""A fault at one system call of the daemon: run, restart, judge.

The method is SQLite's: let the Nth call fail, for every N. strace kills the daemon at its Nth call
of a kind, or makes that call fail with EIO or ENOSPC; then the same start is repeated without the
fault, and must find everything. Only the daemon's own thread is traced: workers, the mailbox
process and libzmq's threads stay well.

What a fault may lead to is decided by the file that it met, which strace names:

* KILL: the daemon dies; nothing else is to be judged but the restart.
* EIO at the database: exit 74 at once. ENOSPC there: degraded, then on as if nothing had been;
  74 if the daemon was not serving yet. At fsync both are an I/O error: 74.
* At any other file: the daemon either says why it cannot start (74, 77, 78) or goes on.

It never ends by a bug (1, 70, a traceback), and never with success unless everything is done.
"""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

from .bench import Bench

CALLS: Final = ("write", "pwrite64", "fdatasync", "fsync", "rename", "unlink", "link", "ftruncate")
FAULTS: Final = {"KILL": "signal=KILL", "EIO": "error=EIO", "ENOSPC": "error=ENOSPC"}
TASKS: Final = 16
TASK_S: Final = 0.05
#: A run takes about two seconds; this is for a busy machine.
PATIENCE_S: Final = 60.0
_DATABASE: Final = re.compile(r"manager\.db(-wal|-journal)?>|/manager\.db-journal\"")
_NO_FILE: Final = re.compile(r"^\w+\(\d+<(anon_inode|socket|pipe|UNIX|TCP)")
_SYNC: Final = ("fsync", "fdatasync")


class Point(NamedTuple):
    """The `number`th `call` meets `fault`."""

    call: str
    number: int
    fault: str

    def __str__(self) -> str:
        return f"{self.fault} at {self.call} number {self.number}"


@dataclass(slots=True)
class Outcome:
    """What a point led to. `met` is the file or descriptor, "" if the call never came."""

    point: Point
    met: str
    code: int | None
    problems: list[str]
    seconds: float


def count_calls(root: Path) -> dict[str, int]:
    """How often an undisturbed run makes each call."""
    bench = Bench(root / "count")
    try:
        trace = root / "count" / "trace"
        process = bench.start("--workers", "2", wrapper=_strace(trace), n=TASKS, s=TASK_S)
        assert bench.ended(process, PATIENCE_S) == 0, bench.printed()
        lines = trace.read_text(errors="replace").splitlines()
    finally:
        bench.close()
        shutil.rmtree(root / "count", ignore_errors=True)
    return {call: sum(line.startswith(f"{call}(") for line in lines) for call in CALLS}


def points(
    counts: dict[str, int], every: int, faults: Sequence[str] = tuple(FAULTS)
) -> list[Point]:
    """Every `every`th of all points, spread evenly over calls, faults and time.

    The order is shuffled (always in the same way), so that a run that is cut short has seen a
    sample of everything.
    """
    found = [
        Point(call, number, fault)
        for fault in faults
        for call, count in counts.items()
        for number in range(1, count + 1)
        # Who names no file on disk cannot find it full: a name that is removed makes room.
        if not (fault == "ENOSPC" and call in ("unlink", "ftruncate"))
    ]
    chosen = found[every // 2 :: every]
    random.Random(1).shuffle(chosen)
    return chosen


def try_point(root: Path, point: Point) -> Outcome:
    """Run into the fault, start again, judge. Leaves no process and no file behind."""
    started = time.monotonic()
    place = root / f"{point.call}-{point.number}-{point.fault}"
    bench = Bench(place)
    try:
        outcome = _try(bench, point)
    finally:
        bench.close()
    outcome.seconds = time.monotonic() - started
    if not outcome.problems:
        shutil.rmtree(place, ignore_errors=True)
    return outcome


def _strace(trace: Path, *more: str) -> list[str]:
    return ["strace", "-qq", "-y", "-o", str(trace), "-e", f"trace={','.join(CALLS)}", *more]


def _try(bench: Bench, point: Point) -> Outcome:
    trace = bench.root / "trace"
    inject = f"inject={point.call}:{FAULTS[point.fault]}:when={point.number}"
    flags = ("--workers", "2")
    process = bench.start(*flags, wrapper=_strace(trace, "-e", inject), n=TASKS, s=TASK_S)
    outcome = Outcome(point, "", None, [], 0.0)
    try:
        outcome.code = process.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        outcome.problems.append(f"did not end: {bench.daemon_log()[-3000:]}")
        return outcome
    lines = trace.read_text(errors="replace").splitlines()
    hit = next((index for index, line in enumerate(lines) if "(INJECTED)" in line), None)
    if point.fault == "KILL" and outcome.code not in (0, 3):
        hit = max(i for i, line in enumerate(lines) if line.startswith(point.call))
    if hit is not None:
        outcome.met = lines[hit][:300]
        outcome.problems += _judge_exit(bench, point, outcome, lines[hit + 1 :])
    again = bench.start(*flags, n=TASKS, s=TASK_S)
    try:
        code = again.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        outcome.problems.append(f"the restart did not end: {bench.daemon_log()[-3000:]}")
        return outcome
    if code != 0:
        outcome.problems.append(f"the restart ended with {code}: {bench.printed()[-2000:]}")
    outcome.problems += list(_judge_session(bench))
    return outcome


def _judge_exit(bench: Bench, point: Point, outcome: Outcome, later: list[str]) -> list[str]:
    code, printed = outcome.code, bench.printed()
    problems = []
    if "Traceback" in printed or "turn_failed" in bench.daemon_log():
        problems.append(f"a bug: {printed[-3000:]}")
    if code not in _allowed(point, outcome.met, bench, later):
        problems.append(f"ended with {code}: {printed[-2000:]}")
    return problems


def _allowed(point: Point, met: str, bench: Bench, later: list[str]) -> tuple[int, ...]:
    """The exit codes that keep the promise."""
    if point.fault == "KILL":
        return (-9, 137)
    if _NO_FILE.search(met):
        # The kernel's own; libzmq rightly ends a process that cannot wake its threads.
        return (0, 74, -6, 134)
    if not _DATABASE.search(met):
        return (0, 74, 77, 78)
    log = bench.daemon_log()
    committed_later = any("-wal>" in line and "fdata" in line for line in later[4:])
    if "ended code=0" in log and not committed_later:
        # All was committed; only bringing it into one file failed, which the next start does.
        return (0, 74)
    if point.fault == "ENOSPC" and point.call not in _SYNC:
        return (0,) if "started session" in log else (0, 74)
    return (74,)


def _judge_session(bench: Bench) -> Iterator[str]:
    if not bench.database.exists():
        yield "there is no database"
        return
    verdict = bench.verdict(TASKS)
    yield from verdict.problems
    if verdict.started_again:
        yield f"executed again: {verdict.started_again}\n{bench.daemon_log()[-6000:]}"
    left = bench.clear()
    if left:
        yield f"processes left: {left}"
