"""How soon a command says something: every verb that reads, against a live daemon with tasks.

    python -m bench.first_output [--runs N]

Each value is one command's median, in ms from its start to its first byte; the yardstick is that of
`python -c pass`, to its end, in the same rounds. `details` has by command also the median of its
whole CPU, which other work on the machine blurs less. Byte code is kept between runs, as it is of
an installed package.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import NamedTuple

from bench.measure import Result, Target, arguments, emit, parse
from bench.rig import BIN, Rig

TASKS = 200
MOST_MS = 150.0
_YARDSTICK = "python -c pass"
_BARE = (sys.executable, "-c", "pass")
#: What is asked of the daemon; a task's id is put in place of the word.
VERBS = (
    "status",
    "tasks",
    "task TASK",
    "explain TASK",
    "failures",
    "workers",
    "launches",
    "logs",
    "events",
    "snapshot",
    "metrics",
    "results",
    "report -o FILE",
    "watch --once",
    "pause",
    "resume",
    "scale 2",
    "sessions",
    "--version",
    "--help",
    "status --help",
)
#: What the daemon's own command says without starting anything.
OWN = ("--version", "--help", "config show")


class Cost(NamedTuple):
    """Of one process, in ms."""

    first: float
    cpu: float


def cost(command: Sequence[str], env: Mapping[str, str]) -> Cost:
    """Run a command that must succeed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    with subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, bufsize=0
    ) as running:
        assert running.stdout is not None
        # Nothing but the end of the file comes from one that says nothing.
        running.stdout.read(1)
        first = time.perf_counter() - began
        while running.stdout.read(65536):
            pass
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Cost(1000 * first, 1000 * cpu)


def commands(rig: Rig) -> dict[str, list[str]]:
    """What is measured, by what a person would type."""
    task = str(rig.ask("tasks", limit=1)["tasks"][0]["task_id"])
    words = {"TASK": task, "FILE": str(rig.place / "report.html")}
    ctl, own = str(BIN / "jobflowctl"), str(BIN / "jobflowd")
    found = {}
    for verb in VERBS:
        session = [] if verb.split()[0] in ("sessions", "--version", "--help") else ["-s"]
        where = [*session, *([str(rig.session)] if session else [])]
        typed = [words.get(word, word) for word in verb.split()]
        found[f"jobflowctl {verb}"] = [ctl, *where, *typed]
    return found | {f"jobflowd {verb}": [own, *verb.split()] for verb in OWN}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    args = parse(arguments(__doc__, runs=20), argv)
    target = Target(f"under {MOST_MS:g} ms, every command", at_most=MOST_MS)
    result = Result("first-output", "ms", target, yardstick_is=_YARDSTICK)
    costs: dict[str, list[Cost]] = {}
    with Rig("noop", {"n": TASKS}) as rig:
        rig.wait_for_tasks("succeeded", TASKS, 60.0)
        env = {**os.environ, "PYTHONPYCACHEPREFIX": str(rig.place / "bytecode"), "NO_COLOR": "1"}
        env.pop("PYTHONDONTWRITEBYTECODE", None)
        for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "JOBFLOW_STATE_DIR"):
            env[name] = str(rig.place)
        measured = commands(rig)
        for command in (_BARE, *measured.values()):
            cost(command, env)
        for _ in range(args.runs):
            costs.setdefault(_YARDSTICK, []).append(cost(_BARE, env))
            for name, command in measured.items():
                costs.setdefault(name, []).append(cost(command, env))
    bare = median(one.first for one in costs[_YARDSTICK])
    for name in measured:
        result.add(median(one.first for one in costs[name]), bare)
    result.also_ok = max(result.values) <= MOST_MS
    result.details = {
        name: {
            "first_ms": round(median(one.first for one in found), 1),
            "cpu_ms": round(median(one.cpu for one in found), 1),
        }
        for name, found in costs.items()
    }
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
