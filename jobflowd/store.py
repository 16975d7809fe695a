"""The one owner of the database: look up, commit, load.

Rule: exactly one connection for the life of the daemon; a turn is one transaction, and it is
durable when `commit` returns. Only `daemon.py` (and the simulator, on ":memory:") holds a Store;
reads for people go through `queries.py`. How the file is opened, and what its errors mean, is
`dbfile.py`'s; what the SQL says is `rows.py`'s.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Any, Final, Literal

from jobflow_worker.messages import Held
from jobflowd import assignments, dbfile, rows
from jobflowd.dbfile import (
    EXIT_IO,
    EXIT_PERMISSION,
    MEMORY,
    PATIENCE_S,
    ChangesRefused,
    DiskFull,
    StoreBroken,
    StoreError,
)
from jobflowd.model import (
    Changes,
    Facts,
    Known,
    LaunchRecord,
    LaunchState,
    PastAttempt,
    Questions,
    Snapshot,
    Task,
    TaskState,
    Worker,
    WorkerState,
)
from jobflowd.signatures import SIGNATURES_MAX, Signatures
from jobflowd.wording import count

__all__ = ["ChangesRefused", "DiskFull", "Recovery", "Store", "StoreBroken", "StoreError"]

Recovery = Literal["adopt", "requeue"]

#: Lines of history that are kept, and how many new ones may come before old ones are deleted.
STORIES_MAX: Final = 100_000
STORIES_PRUNE_EVERY: Final = 1_000
#: Message verdicts of an ended worker are kept this long: its spool may still come in. Seconds.
VERDICTS_KEPT_S: Final = 86_400.0
#: Commits between looks at the size of the write-ahead log.
LOG_LOOK_EVERY: Final = 256

_IN_FLIGHT: Final = "state IN (1, 2)"
_OPEN_LAUNCH: Final = "state NOT IN (5, 6, 7)"
#: Workers that memory must know: alive, or named by a task or launch that is not over.
_WORKERS_THAT_MATTER: Final = (
    "ended_at IS NULL"
    f" OR id IN (SELECT worker FROM tasks WHERE {_IN_FLIGHT})"
    " OR id IN (SELECT worker FROM tasks WHERE held = 1)"
    f" OR id IN (SELECT worker FROM launches WHERE {_OPEN_LAUNCH})"
)


_RECORD_UNKNOWN: Final = (
    "INSERT OR IGNORE INTO attempts (task, attempt, worker, started_at, ended_at, outcome, cause,"
    " charged, error, traceback, output_tail) SELECT id, current, worker, started_at, ?, 'unknown',"
    " 'manager restart', '', '', '', '' FROM tasks WHERE worker IS NOT NULL AND current > 0 AND "
)
_SET_FREE: Final = "UPDATE tasks SET state = 0, held = 0, current = 0, worker = NULL WHERE "
_REQUEUE: Final = (
    (_RECORD_UNKNOWN + _IN_FLIGHT, _SET_FREE + _IN_FLIGHT),
    (_RECORD_UNKNOWN + "held = 1", _SET_FREE + "held = 1"),
)


class Store:
    """The database of one session. `path` may be ":memory:" where nothing need survive.

    Every method raises `StoreError` or one of its three kinds, see `dbfile.py`. After a
    `StoreBroken` all of them do, and the process should leave by `os._exit`: an orderly close
    would write to a disk that has just lied.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        text = os.fspath(path)
        self.path = text if text == MEMORY else os.path.abspath(text)
        self._db: sqlite3.Connection | None = None
        self._broken: StoreBroken | None = None
        self._stories = 0
        self._commits = 0
        self._unsettled = 0
        self._signatures = Signatures()

    def open(self, *, patience_s: float = PATIENCE_S) -> None:
        """Open, lock, check and migrate the file. `patience_s`: how long to wait for its lock."""
        if self._db is None:
            self._db = dbfile.connect(self.path, patience_s)
            known = self.read("SELECT text FROM signatures LIMIT ?", (SIGNATURES_MAX,))
            self._signatures.learn([text for (text,) in known])
            ((self._unsettled,),) = self.read("SELECT count(*) FROM assignments")
            self.settle()

    def close(self) -> None:
        """Bring everything into the one file and let go of it. Does nothing when broken."""
        if self._db is None or self._broken is not None:
            return
        db, self._db = self._db, None
        try:
            db.execute("PRAGMA wal_checkpoint (TRUNCATE)")
        except sqlite3.Error:
            # What was committed is safe in the log; the next start takes it in.
            pass
        finally:
            db.close()

    def size_bytes(self) -> int:
        """Bytes of the database and its log."""
        ((pages,),) = self.read("PRAGMA page_count")
        ((page_bytes,),) = self.read("PRAGMA page_size")
        log_bytes = 0
        with contextlib.suppress(OSError):
            log_bytes = os.stat(f"{self.path}-wal").st_size
        return int(pages * page_bytes + log_bytes)

    def backup(self, path: str | os.PathLike[str]) -> None:
        """Write a complete copy to `path` (replaced if there); blocks for about 3 s per GB.

        A failure leaves this database and an older copy at `path` as they were.
        """
        target = os.path.abspath(os.fspath(path))
        if os.path.realpath(target) == os.path.realpath(self.path):
            raise StoreError(
                f"The backup {target} would replace the database itself. Name another file.",
                EXIT_PERMISSION,
            )
        try:
            dbfile.copy(self._connection(), target)
        except (sqlite3.Error, OSError) as error:
            raise StoreError(
                f"The backup {target} could not be written: {error}. Check space and permissions"
                " there, or name another place. The database itself is unharmed.",
                EXIT_IO,
            ) from error

    # --- writing ------------------------------------------------------------------------------

    def commit(self, changes: Changes) -> None:
        """Make a turn durable in one transaction. When it raises, nothing of it was written."""
        if changes.empty:
            return
        # Closed in any case: a cursor that lives on in a traceback keeps the file locked.
        with self._transaction() as db, contextlib.closing(db.cursor()) as cursor:
            for sql, values in rows.statements(changes, self._signatures):
                _run(cursor, sql, values)
                if sql.startswith("UPDATE") and cursor.rowcount != len(values):
                    raise ChangesRefused(
                        f"{count(len(values), 'row')} to change, but {cursor.rowcount:,} there:"
                        f" {sql[:40]}... This is a bug."
                    )
            unsettled = self._unsettled
            if changes.assigned:
                unsettled += assignments.note(cursor, changes.assigned.values(), unsettled)
            self._stories += len(changes.stories)
            if self._stories >= STORIES_PRUNE_EVERY:
                self._prune_stories(db)
        self._unsettled = unsettled
        self._commits += 1
        if self._commits % LOG_LOOK_EVERY == 0 and self.path != MEMORY:
            self._look_at_log()

    def settle(self) -> None:
        """Bring every assignment into its task's row, for those who read tasks by their state.

        On a full disk the rows stay as they are: such tasks are still called queued there.
        """
        if self._unsettled:
            with contextlib.suppress(DiskFull):
                with self._transaction() as db, contextlib.closing(db.cursor()) as cursor:
                    assignments.settle(cursor)
                self._unsettled = 0

    def _look_at_log(self) -> None:
        """Leave if the log is not brought into the database any more.

        SQLite does that by itself after a thousand pages and is silent if it fails: after a file
        server's restart the database may be dead to us while its log is not. Then nothing is lost,
        but the log grows for ever; the next start takes it in.
        """
        try:
            if os.stat(f"{self.path}-wal").st_size <= dbfile.WAL_BYTES_KEPT:
                return
            self._connection().execute("PRAGMA wal_checkpoint (PASSIVE)").fetchall()
        except OSError:
            return
        except sqlite3.Error as error:
            told = self._failed(error)
            if isinstance(told, StoreBroken):
                raise told from error

    def begin_epoch(self, recovery: Recovery = "adopt", *, wall: float | None = None) -> Snapshot:
        """Start a daemon's life, in one transaction; then `load`.

        The epoch rises by one; delays end; workers that have not ended are OFFLINE until they are
        heard of; launches that are not over are STALE. In-flight tasks are queued again: with
        "adopt" held for their worker, which keeps the attempt; with "requeue" free at once, and
        the attempt is recorded as unknown, since it may still bring its result. `wall` is the
        wall clock in seconds, now by default.
        """
        wall = time.time() if wall is None else wall
        with self._transaction() as db, contextlib.closing(db.cursor()) as cursor:
            assignments.settle(cursor)
            epoch = int(self._meta(db).get("epoch", 0)) + 1
            db.execute(rows.META_REPLACE, ("epoch", json.dumps(epoch)))
            db.execute("UPDATE tasks SET due = NULL WHERE due IS NOT NULL")
            if recovery == "adopt":
                db.execute(f"UPDATE tasks SET state = 0, held = 1 WHERE {_IN_FLIGHT}")
            else:
                self._requeue(db, wall)
            db.execute(
                "UPDATE workers SET state = ? WHERE ended_at IS NULL", (WorkerState.OFFLINE.value,)
            )
            db.execute(
                f"UPDATE launches SET state = ? WHERE {_OPEN_LAUNCH}", (LaunchState.STALE.value,)
            )
            db.execute(
                "DELETE FROM processed_messages WHERE worker IN"
                " (SELECT id FROM workers WHERE ended_at < ?)",
                (wall - VERDICTS_KEPT_S,),
            )
            self._prune_stories(db)
        self._unsettled = 0
        return self.load()

    def _requeue(self, db: sqlite3.Connection, wall: float) -> None:
        # One pair of statements for each of the two: an OR would scan the table.
        for record, free in _REQUEUE:
            db.execute(record, (wall,))
            db.execute(free)

    def _prune_stories(self, db: sqlite3.Connection) -> None:
        self._stories = 0
        db.execute(
            "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (STORIES_MAX,)
        )

    # --- reading ------------------------------------------------------------------------------

    def load(self) -> Snapshot:
        """All that memory needs, without changing anything.

        `held` lists every held *and* every in-flight task, so that a coordinator can be rebuilt
        in the middle of a life, after a failed commit; after `begin_epoch` no task is in flight.
        `workers` are those that have not ended or that a task of `held` or an open launch names.
        """
        self.settle()
        ((top_task, top_order),) = self.read("SELECT max(id), max(order_no) FROM tasks")
        ((delayed,),) = self.read("SELECT count(*) FROM tasks WHERE due IS NOT NULL")
        return Snapshot(
            meta=self._meta(self._connection()),
            counts=self._counts(),
            held=self._alive(),
            delayed=delayed,
            workers=self._workers(),
            launches=self._launches(),
            next_task_row=(top_task or 0) + 1,
            next_worker_row=self._top("workers") + 1,
            next_launch_row=self._top("launches") + 1,
            next_order_no=(top_order or 0) + 1,
        )

    def lookup(self, questions: Questions) -> Facts:
        """The rows that a turn asks for. The ready page holds what can be assigned now."""
        facts = Facts()
        for row in self._by_keys(questions.tasks, rows.TASKS_BY_ID):
            facts.tasks[row[1]] = rows.task_of(row)
        for row in self._by_keys(questions.attempts, rows.ATTEMPTS_BY_NAME):
            facts.attempts[Held(row[0], row[1])] = PastAttempt(*row[2:])
        for task_id, row_no, spec_hash, state in self._by_keys(
            questions.definitions, rows.KNOWN_BY_ID
        ):
            facts.known[task_id] = Known(row_no, spec_hash, TaskState(state))
        if questions.workers:
            facts.workers = self._workers_by_id(questions.workers)
        if questions.ready_after is not None and questions.ready_limit > 0:
            page = self.read(rows.READY_PAGE, (*questions.ready_after, questions.ready_limit))
            facts.ready = [rows.task_of(row) for row in page]
        if questions.due_before is not None and questions.due_limit > 0:
            page = self.read(rows.DUE_PAGE, (questions.due_before, questions.due_limit))
            facts.due = [rows.task_of(row) for row in page]
        return facts

    def _workers_by_id(self, worker_ids: Sequence[str]) -> dict[str, Worker]:
        found = self._by_keys(worker_ids, rows.WORKERS_BY_ID)
        workers = {row[0]: rows.worker_of(row) for row in found}
        for row, counter, verdict in self._by_keys(list(workers), rows.VERDICTS_BY_WORKER):
            workers[row].verdicts[counter] = verdict
        return {worker.worker_id: worker for worker in workers.values()}

    def specs(self, task_rows: Sequence[int]) -> dict[int, bytes]:
        """The encoded specs of these task rows; an unknown row is absent."""
        return dict(self._by_keys(task_rows, rows.SPECS_BY_ROW))

    def read(self, sql: str, values: Sequence[Any] = ()) -> list[Any]:
        """All rows of one bounded SELECT: how `queries.py` asks."""
        try:
            return self._connection().execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise self._failed(error) from error

    def _by_keys(self, keys: Sequence[Any], texts: dict[int, str]) -> Iterator[Any]:
        for sql, values in rows.chunks(keys, texts):
            yield from self.read(sql, values)

    def _meta(self, db: sqlite3.Connection) -> dict[str, Any]:
        return {key: json.loads(value) for key, value in db.execute("SELECT key, value FROM meta")}

    def _counts(self) -> dict[TaskState, int]:
        found = self.read("SELECT state, count(*) FROM tasks GROUP BY state")
        return {TaskState(state): count for state, count in found}

    def _top(self, table: str) -> int:
        ((top,),) = self.read(f"SELECT max(id) FROM {table}")
        return int(top or 0)

    def _alive(self) -> list[Task]:
        found = self.read(
            f"SELECT {rows.TASK_COLUMNS} FROM tasks WHERE id IN"
            f" (SELECT id FROM tasks WHERE {_IN_FLIGHT}"
            " UNION ALL SELECT id FROM tasks WHERE held = 1) ORDER BY id"
        )
        return [rows.task_of(row) for row in found]

    def _workers(self) -> list[Worker]:
        found = self.read(
            f"SELECT {rows.WORKER_COLUMNS}, floor FROM workers"
            f" WHERE {_WORKERS_THAT_MATTER} ORDER BY id"
        )
        workers = {row[0]: rows.worker_of(row) for row in found}
        for row, counter, verdict in self.read(
            "SELECT worker, counter, verdict FROM processed_messages WHERE worker IN"
            f" (SELECT id FROM workers WHERE {_WORKERS_THAT_MATTER})"
        ):
            workers[row].verdicts[counter] = verdict
        return list(workers.values())

    def _launches(self) -> list[LaunchRecord]:
        found = self.read(
            f"SELECT {rows.LAUNCH_COLUMNS} FROM launches WHERE {_OPEN_LAUNCH} ORDER BY id"
        )
        return [rows.launch_of(row) for row in found]

    # --- the connection -----------------------------------------------------------------------

    def _connection(self) -> sqlite3.Connection:
        if self._broken is not None:
            raise self._broken
        if self._db is None:
            raise RuntimeError("the store is not open")
        return self._db

    def _failed(self, error: sqlite3.Error) -> StoreError:
        """The error in our words; a broken store stays broken."""
        told = dbfile.running_error(self.path, error)
        if isinstance(told, StoreBroken):
            self._broken = told
        return told

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing; when this block is left without an error, it is on the disk."""
        db = self._connection()
        try:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")
        except sqlite3.Error as error:
            self._roll_back(db)
            raise self._failed(error) from error
        except (OverflowError, UnicodeError) as error:
            self._roll_back(db)
            raise ChangesRefused(f"A value that no column takes: {error}. A bug.") from error
        except BaseException:
            self._roll_back(db)
            raise

    def _roll_back(self, db: sqlite3.Connection) -> None:
        # SQLite has rolled back by itself after the worse errors.
        if not db.in_transaction:
            return
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise self._failed(error) from error


def _run(cursor: sqlite3.Cursor, sql: str, values: Sequence[rows.Row]) -> None:
    """One statement for all rows; as few runs of it as its text allows."""
    wide = rows.WIDE.get(sql)
    if wide is not None:
        together = len(values) - len(values) % rows.ROWS_AT_ONCE
        for start in range(0, together, rows.ROWS_AT_ONCE):
            part = values[start : start + rows.ROWS_AT_ONCE]
            cursor.execute(wide, list(chain.from_iterable(part)))
        values = values[together:]
    cursor.executemany(sql, values)
