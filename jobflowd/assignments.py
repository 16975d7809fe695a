"""Assignments: durable as lists at first, in their tasks' rows only where it matters.

Rules
-----
* Most tasks are over before anybody reads their rows. So a turn's assignments are one row, a list,
  and a task's own row is written when something happens to it: one update for a task, not two.
* An item holds if its attempt is above the row's `issued`; every other write of a task that has
  been assigned raises that column. So an item that is out of date changes nothing, however old.
* `settle` writes what holds into the rows. Whoever reads tasks by their state settles first.

All of it is SQL; the transaction is the caller's, `store.py`.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Collection
from typing import Final

from jobflow_worker.codec import decode_body, encode_body
from jobflowd import rows
from jobflowd.model import Task

#: Items in lists at most. Then the older half is settled: about 10 ms, once in so many tasks.
ITEMS_MAX: Final = 16_384

_INSERT: Final = "INSERT INTO assignments (items) VALUES (?)"
_OLDEST: Final = "SELECT id, items FROM assignments ORDER BY id"
_DELETE: Final = "DELETE FROM assignments WHERE id <= ?"
#: Nearly all tasks of an old list have ended: those are passed over at a third of an update's cost.
_UNTOUCHED: Final = rows.by_keys("SELECT id FROM tasks WHERE state = 0 AND id IN {keys}")
_APPLY: Final = (
    "UPDATE tasks SET state = 1, issued = ?2, current = ?2, worker = ?3"
    " WHERE id = ?1 AND issued < ?2"
)


def note(cursor: sqlite3.Cursor, assigned: Collection[Task], waiting: int) -> int:
    """Add a list to the `waiting` items. Returns by how many they have become more, or less."""
    items = [value for task in assigned for value in (task.row, task.current, task.worker)]
    cursor.execute(_INSERT, (encode_body(items),))
    more = len(assigned)
    if waiting + more > ITEMS_MAX:
        more -= settle(cursor, (waiting + more) // 2)
    return more


def settle(cursor: sqlite3.Cursor, at_least: float = math.inf) -> int:
    """Write what holds of the oldest lists, with so many items or all, and delete them.

    Returns how many items are gone.
    """
    items: list[tuple[int, int, int]] = []
    upto = 0
    for number, packed in cursor.execute(_OLDEST):
        upto = number
        flat = iter(decode_body(packed))
        items.extend(zip(flat, flat, flat, strict=True))
        if len(items) >= at_least:
            break
    untouched: set[int] = set()
    for sql, keys in rows.chunks([item[0] for item in items], _UNTOUCHED):
        untouched.update(row for (row,) in cursor.execute(sql, keys))
    if items:
        cursor.executemany(_APPLY, [item for item in items if item[0] in untouched])
        cursor.execute(_DELETE, (upto,))
    return len(items)
