"""One soak: chaos for a time, then healing, then the accounts."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.bench import BIN, Bench, kill

from .again import repetitions
from .killer import EVERYTHING, Blow, Killer

#: Half of the workers are the daemon's own and speak zmq, half are started by hand and use
#: mailboxes: both transports at once, and both ways to come.
TERMS = ("--heartbeat-interval", "1", "--lease-duration", "6", "--worker-idle-timeout", "1h")
#: Kills of healthy workers are charged to the tasks; the budgets are not what is tested here.
BUDGETS = ("--max-losses", "1000", "--max-deliveries", "100000", "--retry-backoff", "0.1")
TASK_S = 2.0
TASKS_PER_S = 18
#: After the chaos everything must end within this.
HEALING_S = 300.0
#: A worker by hand that was started so shortly before the end finds a session that is over, and
#: rightly waits for its next manager.
LATECOMER_S = 15.0


@dataclass(slots=True)
class Plan:
    """What to do: `every_s` makes it a run in which only the manager dies, at that pace."""

    minutes: float
    workers: int = 20
    seed: int = 1
    every_s: float | None = None

    @property
    def tasks(self) -> int:
        return int(self.minutes * 60 * TASKS_PER_S * self.workers / 20)


@dataclass(slots=True)
class Gauge:
    """First, last and largest of what is measured of the daemon."""

    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    most: dict[str, int] = field(default_factory=dict)

    def take(self, pid: int, database: Path) -> None:
        """Measure once; a daemon that is just dying is left out."""
        try:
            status = Path(f"/proc/{pid}/status").read_text()
            rss_kb = next(line for line in status.splitlines() if line.startswith("VmRSS"))
            values = {
                "rss_kb": int(rss_kb.split()[1]),
                "fds": len(list(Path(f"/proc/{pid}/fd").iterdir())),
                "wal_bytes": _size(Path(f"{database}-wal")),
                "db_bytes": _size(database),
            }
        except (OSError, StopIteration):
            return
        self.first = self.first or values
        self.last = values
        self.most = {key: max(value, self.most.get(key, 0)) for key, value in values.items()}


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


class Soak:
    """A session, its manager's guardian, and the killer."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.plan = plan
        self.bench = Bench(root)
        self.hurry = root / "hurry"
        self._random = random.Random(plan.seed)
        self._manager: subprocess.Popen[bytes] | None = None
        self._manager_at = 0.0
        self._by_hand: list[tuple[float, subprocess.Popen[bytes]]] = []
        kinds = EVERYTHING if plan.every_s is None else ()
        self.killer = Killer(self.bench.mark, kinds, plan.seed)
        self.gauge = Gauge()
        self.codes: list[int] = []
        self.ended = False

    # --- the guardian -----------------------------------------------------------------------

    def _keep_manager(self, now: float) -> None:
        """Start the manager when it is not there, a moment after it died."""
        if self._manager is not None:
            code = self._manager.poll()
            if code is None:
                return
            self._manager = None
            if code == 0:
                self.ended = True
                return
            if code != -signal.SIGKILL:
                self.codes.append(code)
            if code in (1, 2, 66, 77, 78):
                raise RuntimeError(f"the manager cannot start: {self.bench.printed()[-2000:]}")
            self._manager_at = now + self._random.uniform(0.0, 2.0)
        if now >= self._manager_at and not self.ended:
            half = self.plan.workers // 2
            self._manager_at = now
            self._manager = self.bench.start(
                *("--workers", str(half), *TERMS, *BUDGETS, "--dashboard", "off"),
                mode="auto",
                n=self.plan.tasks,
                s=TASK_S,
                spread=0.95,
                hurry=str(self.hurry),
            )

    def _keep_workers(self) -> None:
        """As many workers by hand as are wanted; those that were killed are replaced."""
        if self.ended or not (self.bench.session / "beacon.json").exists():
            return
        self._by_hand = [one for one in self._by_hand if one[1].poll() is None]
        while len(self._by_hand) < self.plan.workers - self.plan.workers // 2:
            worker = self.bench.spawn(
                *(str(BIN / "jobflow-worker"), "--session", str(self.bench.session)),
                *("--mode", "fs"),
            )
            self._by_hand.append((time.monotonic(), worker))

    # --- the phases ---------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Chaos, healing, accounts. Leaves no process behind, whatever happens."""
        began = time.monotonic()
        try:
            self._chaos(began + 60 * self.plan.minutes)
            self._heal()
            seconds = time.monotonic() - began
            leaked = self.bench.clear(10.0)
        finally:
            self.bench.close()
        return self._accounts(seconds, leaked)

    def _chaos(self, until: float) -> None:
        gauge_at = 0.0
        say_at = time.monotonic() + 30.0
        kill_at = time.monotonic() + (self.plan.every_s or 0.0)
        while (now := time.monotonic()) < until and not self.ended:
            self._keep_manager(now)
            self._keep_workers()
            self.killer.strike()
            if self.plan.every_s is not None and now >= kill_at and self._manager is not None:
                kill_at = now + self.plan.every_s
                self._kill_manager(now)
            settled = self._manager is not None and now >= self._manager_at + 5.0
            if now >= gauge_at and settled and self._manager is not None:
                gauge_at = now + 2.0
                self.gauge.take(self._manager.pid, self.bench.database)
            if now >= say_at:
                say_at = now + 30.0
                sys.stderr.write(f"{until - now:4.0f} s left: {dict(self.killer.counts())}\n")
            time.sleep(0.05)

    def _kill_manager(self, now: float) -> None:
        assert self._manager is not None
        if kill(self._manager.pid, signal.SIGKILL):
            blow = Blow("manager", self._manager.pid, signal.SIGKILL, now)
            self.killer.blows.append(blow)

    def _heal(self) -> None:
        """No more violence; tasks that are left end at once."""
        self.killer.calm()
        self.hurry.touch()
        deadline = time.monotonic() + HEALING_S
        while not self.ended and time.monotonic() < deadline:
            self._keep_manager(time.monotonic())
            time.sleep(0.1)
        latest = time.monotonic() - LATECOMER_S
        for started_at, worker in self._by_hand:
            if started_at > latest and worker.poll() is None:
                worker.terminate()
        if not self.ended:
            sys.stderr.write(f"no end: {self.bench.daemon_log()[-4000:]}\n")

    # --- the accounts ---------------------------------------------------------------------------

    def _accounts(self, seconds: float, leaked: dict[int, str]) -> dict[str, Any]:
        notes = self.bench.notes()
        verdict = self.bench.verdict(self.plan.tasks)
        again = repetitions(notes, self.killer.blows)
        blows = [
            (one.role, one.pid, one.number.name, one.at, one.until) for one in self.killer.blows
        ]
        (self.bench.root / "blows.json").write_text(json.dumps(blows))
        counts = self.killer.counts()
        executions = sum(one.word == "start" for one in notes)
        return {
            "tasks": self.plan.tasks,
            "lost": verdict.lost,
            "ended_twice": verdict.ended_twice,
            "manager_kills": counts["manager_kills"],
            "worker_kills": counts["agent_kills"],
            "leaked_processes": len(leaked),
            "executed_again_although_finished": len(again.although_finished),
            "executed_again_although_running": len(again.although_running),
            "executed_again_for_cause": again.excused,
            "executions": executions,
            "seconds": round(seconds, 1),
            "ended": self.ended,
            "states": verdict.states,
            "blows": dict(counts),
            "unexpected_exit_codes": self.codes,
            "daemon_first": self.gauge.first,
            "daemon_last": self.gauge.last,
            "daemon_most": self.gauge.most,
            "bugs_survived": self.bench.daemon_log().count("turn_failed"),
            "seed": self.plan.seed,
            "problems": [
                *verdict.problems,
                *(f"executed again although finished: {one}" for one in again.although_finished),
                *(f"executed again although running: {one}" for one in again.although_running),
                *(f"leaked: {pid} {command}" for pid, command in leaked.items()),
            ][:50],
        }
