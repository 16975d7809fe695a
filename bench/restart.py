"""A daemon that starts on a million tasks, half of them done: when does it serve again?

    python -m bench.restart [--tasks N]

A session of a million queued tasks with a running worker is killed (SIGKILL); half the tasks are
made done by SQL, with results and attempts, in its closed database. Then `jobflowd start`: a value
is the time from the start of that process to the first line of a task in a new worker, with the
generator running again beside it. `answering_s` is until `status` has all counts.
"""

from __future__ import annotations

import sqlite3
import sys
import time
from collections.abc import Sequence

from bench.generate import stamp_of, stamped
from bench.measure import Result, Target, arguments, emit, parse, say
from bench.rig import Rig

_FOREVER_S = 100_000.0
_DONE = (
    "INSERT INTO task_results (id, attempt, body)"
    " SELECT tasks.id, 1, (SELECT body FROM task_results LIMIT 1) FROM tasks"
    " WHERE state = 0 AND tasks.id <= :last",
    "INSERT INTO attempts (task, attempt, worker, started_at, ended_at, outcome, cause, charged,"
    " exit_signal, exit_code, duration_s, cpu_s, max_rss_bytes, error, traceback, output_tail)"
    " SELECT tasks.id, one.attempt, one.worker, one.started_at, one.ended_at, one.outcome,"
    " one.cause, one.charged, one.exit_signal, one.exit_code, one.duration_s, one.cpu_s,"
    " one.max_rss_bytes, one.error, one.traceback, one.output_tail"
    " FROM tasks, (SELECT * FROM attempts WHERE outcome = 'succeeded' LIMIT 1) AS one"
    " WHERE state = 0 AND tasks.id <= :last",
    "UPDATE tasks SET state = 3, issued = 1, deliveries = 1, started_at = 1e9, finished_at = 1e9"
    " WHERE state = 0 AND id <= :last",
)


def half_done(rig: Rig, tasks: int) -> int:
    """Finish the first half of the tasks in the database of a session that does not run.

    Returns how many have succeeded then: what the killed worker held is left as it was.
    """
    db = sqlite3.connect(rig.database)
    try:
        with db:
            for statement in _DONE:
                db.execute(statement, {"last": tasks // 2})
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return int(db.execute("SELECT count(*) FROM tasks WHERE state = 3").fetchone()[0])
    finally:
        db.close()


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. All runs start the same database again, after a kill each."""
    parser = arguments(__doc__)
    parser.add_argument("--tasks", type=int, default=None)
    args = parse(parser, argv)
    tasks = args.tasks or (20_000 if args.quick else 1_000_000)
    result = Result("restart", "s", Target("serving within 3 s", at_most=3.0))
    result.details = {"tasks": tasks, "answering_s": [], "daemon_mib": []}
    with Rig("sleeper", {"n": tasks, "warm": 20, "sleep_s": _FOREVER_S}, workers=1) as rig:
        rig.wait_for_tasks("succeeded", 20, 60.0)
        rig.go()
        rig.wait(lambda: rig.ask("status")["tasks"]["total"] >= 20 + tasks, "all tasks", 600.0, 0.2)
        rig.wait(lambda: stamped(rig.place / "running"), "a running task", 60.0)
        rig.kill()
        done = half_done(rig, tasks)
        say("restart: the half-done session is ready")
        for _ in range(args.runs):
            (rig.place / "running").unlink()
            began = time.monotonic()
            rig.start()
            rig.wait(lambda: rig.tasks("succeeded") >= done, "the counts", 60.0, 0.01)
            result.details["answering_s"].append(round(time.monotonic() - began, 3))
            rig.wait(lambda: stamped(rig.place / "running"), "a running task", 60.0)
            result.details["daemon_mib"].append(round(rig.memory().daemon / 2**20, 1))
            result.add(stamp_of(rig.place / "running") - began)
            rig.kill()
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
