"""Bytes on disk: of a queued task, of a done one, and what messages leave behind.

    python -m bench.database [--tasks N]

No-op tasks with specs of a few bytes. A value is the bytes of a done task in the checkpointed
file. Message numbers are kept until no duplicate of them can come any more: `message_rows` is what
is left of `messages` in `processed_messages` at the end, `message_bytes_per_million` its pages.
"""

from __future__ import annotations

import sqlite3
import sys
from collections.abc import Sequence
from typing import Any

from bench.measure import Result, arguments, emit, parse
from bench.rig import Rig


def _pages(db: sqlite3.Connection) -> dict[str, int]:
    """Bytes by table and index, where SQLite was built to tell."""
    try:
        rows = db.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name ORDER BY 2 DESC")
        return {str(name): int(size) for name, size in rows}
    except sqlite3.OperationalError:
        return {}


def look(rig: Rig) -> dict[str, Any]:
    """Sizes and counts of the closed database."""
    wal = rig.database.with_name(rig.database.name + "-wal")
    wal_bytes = wal.stat().st_size if wal.exists() else 0
    db = sqlite3.connect(rig.database)
    try:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (rows,) = db.execute("SELECT count(*) FROM processed_messages").fetchone()
        (floor,) = db.execute("SELECT coalesce(sum(floor), 0) FROM workers").fetchone()
        pages = _pages(db)
    finally:
        db.close()
    return {
        "bytes": rig.database.stat().st_size,
        "wal_bytes": wal_bytes,
        "messages": rows + floor,
        "message_rows": rows,
        "bytes_by_table": pages,
    }


def queued(tasks: int) -> dict[str, Any]:
    """Generated and nothing else."""
    with Rig("noop", {"n": tasks}, workers=0, launcher="none") as rig:
        rig.wait(lambda: rig.ask("status")["tasks"]["total"] >= tasks, "all tasks", 300.0, 0.1)
        rig.kill()
        return look(rig)


def done(tasks: int) -> dict[str, Any]:
    """Generated and run by two workers."""
    with Rig("noop", {"n": tasks}) as rig:
        rig.wait_for_tasks("succeeded", tasks, 1200.0, 0.2)
        rig.kill()
        return look(rig)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--tasks", type=int, default=None)
    args = parse(parser, argv)
    tasks = args.tasks or (5_000 if args.quick else 200_000)
    result = Result("database", "bytes/task")
    result.details = {"tasks": tasks, "queued": [], "done": []}
    for _ in range(args.runs):
        before, after = queued(tasks), done(tasks)
        result.details["queued"].append({"bytes_per_task": before["bytes"] / tasks, **before})
        kept = after["bytes_by_table"].get("processed_messages", 0)
        per_million = round(kept * 1e6 / after["messages"]) if after["messages"] else None
        result.details["done"].append({"message_bytes_per_million": per_million, **after})
        result.add(after["bytes"] / tasks)
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
