"""The store in memory: what is committed is what is loaded, and nothing else."""

from __future__ import annotations

import copy
import errno
import sqlite3
from collections.abc import Iterator

import pytest

from jobflow_worker.messages import Held
from jobflowd import dbfile, rows, store
from jobflowd.dbfile import ReadOnly
from jobflowd.model import (
    AttemptRow,
    Changes,
    Definition,
    Facts,
    LaunchRecord,
    LaunchState,
    NewTask,
    PastAttempt,
    Questions,
    ResultRow,
    Story,
    Task,
    TaskState,
    Worker,
    WorkerState,
)
from jobflowd.store import ChangesRefused, DiskFull, Store, StoreBroken, StoreError

START = (-(2**63), -1)


@pytest.fixture
def memory() -> Iterator[Store]:
    opened = Store(":memory:")
    opened.open()
    opened.begin_epoch(wall=0.0)
    yield opened
    opened.close()


def define(task_id: str, *, priority: int = 0, spec: bytes = b"spec") -> Definition:
    return Definition(task_id, spec, b"h" * 16, 2, priority, 60.0, None, 2**33)


def new_tasks(*priorities: int) -> Changes:
    changes = Changes()
    changes.new_tasks = [
        NewTask(row, row, define(f"t{row}", priority=priority))
        for row, priority in enumerate(priorities, 1)
    ]
    changes.workers[1] = Worker(1, "w-1", "zmq", "host", 7, 2)
    return changes


def task_of(memory: Store, task_id: str) -> Task:
    return memory.lookup(Questions(tasks=[task_id])).tasks[task_id]


def change(memory: Store, task: Task, **values: object) -> Task:
    for name, value in values.items():
        setattr(task, name, value)
    changes = Changes()
    changes.tasks[task.row] = task
    memory.commit(changes)
    return task


def ready(memory: Store, after: tuple[int, int] = START, limit: int = 100) -> list[str]:
    found = memory.lookup(Questions(ready_after=after, ready_limit=limit)).ready
    return [task.task_id for task in found]


# --- look-ups -----------------------------------------------------------------------------------


def test_a_new_task_is_found_with_all_that_was_defined(memory: Store) -> None:
    memory.commit(new_tasks(5))
    assert task_of(memory, "t1") == Task(
        1, "t1", TaskState.QUEUED, 5, 1, timeout_s=60.0, memory_bytes=2**33, spec_bytes=4
    )
    facts = memory.lookup(Questions(definitions=["t1", "other"], tasks=["other"]))
    assert facts.known == {"t1": (1, b"h" * 16, TaskState.QUEUED)}
    assert facts.tasks == {}
    assert memory.specs([1, 2]) == {1: b"spec"}


def test_states_and_flags_come_back_as_their_types(memory: Store) -> None:
    memory.commit(new_tasks(0))
    change(memory, task_of(memory, "t1"), state=TaskState.RUNNING, worker=1, solo=2)
    found = task_of(memory, "t1")
    assert type(found.state) is TaskState
    assert (type(found.held), found.solo) == (bool, 2)


@pytest.mark.parametrize("count", [0, 1, 2, 8, 9, 63, 65, 511, 512, 513, 1500])
def test_any_number_of_keys_is_looked_up(memory: Store, count: int) -> None:
    memory.commit(new_tasks(*[0] * count))
    ids = [f"t{row}" for row in range(1, count + 1)]
    facts = memory.lookup(Questions(tasks=[*ids, "no"], definitions=[*ids, "no"]))
    assert sorted(facts.tasks) == sorted(facts.known) == sorted(ids)
    assert len(memory.specs(range(1, count + 2))) == count


def test_attempts_are_found_by_task_and_number(memory: Store) -> None:
    changes = new_tasks(*[0] * 100)
    changes.attempts = [
        AttemptRow(row, number, 1, None, 1.0, "lost", "lease", "losses")
        for row in range(1, 101)
        for number in (1, 2)
    ]
    memory.commit(changes)
    wanted = [Held(f"t{row}", 2) for row in range(1, 101)]
    facts = memory.lookup(Questions(attempts=[*wanted, Held("t1", 3), Held("no", 1)]))
    assert facts.attempts == dict.fromkeys(wanted, PastAttempt(1, "lost", "losses"))


def test_the_ready_queue_is_paged_by_key(memory: Store) -> None:
    memory.commit(new_tasks(0, 9, 0, -3, 9))
    assert ready(memory) == ["t2", "t5", "t1", "t3", "t4"]
    assert ready(memory, limit=2) == ["t2", "t5"]
    assert ready(memory, after=(-9, 5), limit=2) == ["t1", "t3"]
    assert ready(memory, after=(3, 4)) == []


def test_only_what_can_be_assigned_now_is_ready(memory: Store) -> None:
    memory.commit(new_tasks(0, 0, 0, 0))
    change(memory, task_of(memory, "t1"), state=TaskState.ASSIGNED, worker=1)
    change(memory, task_of(memory, "t2"), held=True)
    change(memory, task_of(memory, "t3"), due=100.0)
    assert ready(memory) == ["t4"]


def test_delayed_tasks_come_when_due_earliest_first(memory: Store) -> None:
    memory.commit(new_tasks(0, 0, 0))
    for task_id, due in (("t1", 30.0), ("t2", 10.0), ("t3", 20.0)):
        change(memory, task_of(memory, task_id), due=due)
    facts = memory.lookup(Questions(due_before=20.0, due_limit=10))
    assert [task.task_id for task in facts.due] == ["t2", "t3"]
    assert len(memory.lookup(Questions(due_before=99.0, due_limit=1)).due) == 1
    assert memory.load().delayed == 3


def test_nothing_asked_is_nothing_answered(memory: Store) -> None:
    memory.commit(new_tasks(0))
    assert memory.lookup(Questions()) == Facts()


@pytest.mark.parametrize("sql", [rows.READY_PAGE, rows.DUE_PAGE])
def test_the_queue_is_read_from_an_index_in_order(memory: Store, sql: str) -> None:
    marks = (0,) * sql.count("?")
    plan = " ".join(str(step[-1]) for step in memory.read(f"EXPLAIN QUERY PLAN {sql}", marks))
    assert "SEARCH tasks USING INDEX" in plan
    assert "TEMP B-TREE" not in plan


# --- commits ------------------------------------------------------------------------------------


def test_a_second_definition_of_a_task_is_a_bug_and_writes_nothing(memory: Store) -> None:
    memory.commit(new_tasks(0))
    changes = Changes(meta={"seen": True})
    changes.new_tasks = [NewTask(2, 2, define("t2")), NewTask(3, 3, define("t1"))]
    with pytest.raises(ChangesRefused) as caught:
        memory.commit(changes)
    assert caught.value.exit_code == 70
    assert "task_id" in caught.value.sentence
    assert ready(memory) == ["t1"]
    assert "seen" not in memory.load().meta


def test_a_second_result_of_a_task_is_refused(memory: Store) -> None:
    changes = new_tasks(0)
    changes.results = [ResultRow(1, 1, b"first", None, None, None)]
    memory.commit(changes)
    with pytest.raises(ChangesRefused):
        memory.commit(Changes(results=[ResultRow(1, 2, b"second", None, None, None)]))
    assert memory.read("SELECT body FROM task_results") == [(b"first",)]


@pytest.mark.parametrize("count", [1, 59, 60, 61, 133])
def test_any_number_of_rows_is_written_together(memory: Store, count: int) -> None:
    memory.commit(new_tasks(*[0] * count))
    every = range(1, count + 1)
    attempts = [AttemptRow(row, 1, 1, 0.5, 2.0, "succeeded", "", "") for row in every]
    results = [ResultRow(row, 1, b"%d" % row, None, None, None) for row in every]
    memory.commit(Changes(attempts=attempts, results=results))
    assert memory.read("SELECT task, attempt FROM attempts") == [(row, 1) for row in every]
    assert memory.read("SELECT * FROM task_results") == [tuple(one) for one in results]
    with pytest.raises(ChangesRefused):
        memory.commit(Changes(attempts=[attempts[0]._replace(attempt=9)], results=results[-1:]))
    assert memory.read("SELECT count(*) FROM attempts") == [(count,)]


def test_a_change_of_a_row_that_is_not_there_is_refused(memory: Store) -> None:
    with pytest.raises(ChangesRefused):
        change(memory, Task(9, "t9", TaskState.QUEUED, 0, 9))


@pytest.mark.parametrize("value", [2**63, "\ud800", object(), "word"])
def test_a_value_that_no_column_takes_is_refused_and_the_store_lives(
    memory: Store, value: object
) -> None:
    memory.commit(new_tasks(0))
    with pytest.raises(ChangesRefused):
        memory.commit(Changes(processed=[(value, 1, "accepted")]))  # type: ignore[list-item]
    memory.commit(Changes(processed=[(1, 1, "accepted")]))


def test_text_that_is_not_unicode_is_kept_readable(memory: Store) -> None:
    changes = Changes(stories=[Story(1.0, "k", None, None, None, "bad \udce4 byte")])
    changes.launches[1] = LaunchRecord(1, "l", "slurm", LaunchState.FAILED, reason="\udcff")
    memory.commit(changes)
    assert memory.read("SELECT text FROM events") == [("bad ? byte",)]
    assert memory.read("SELECT reason FROM launches") == [("?",)]


def test_changes_without_anything_do_not_touch_the_database(memory: Store) -> None:
    before = memory.read("SELECT total_changes()")
    memory.commit(Changes())
    assert memory.read("SELECT total_changes()") == before


def test_committing_leaves_the_changes_as_they_are(memory: Store) -> None:
    changes = new_tasks(0, 1)
    changes.tasks[1] = Task(1, "t1", TaskState.RUNNING, 0, 1, 1, 1, worker=1)
    before = copy.deepcopy(changes)
    memory.commit(changes)
    assert changes == before


def test_a_new_spec_replaces_the_old_one(memory: Store) -> None:
    memory.commit(new_tasks(0))
    task = task_of(memory, "t1")
    changes = Changes(new_specs=[(1, b"n" * 16, b"a new spec")])
    changes.tasks[1] = task
    memory.commit(changes)
    assert memory.specs([1]) == {1: b"a new spec"}
    assert memory.lookup(Questions(definitions=["t1"])).known["t1"].spec_hash == b"n" * 16
    assert task_of(memory, "t1").spec_bytes == len(b"a new spec")


def test_a_late_outcome_replaces_the_unknown_one(memory: Store) -> None:
    changes = new_tasks(0)
    changes.attempts = [AttemptRow(1, 1, 1, None, 1.0, "unknown", "lease", "losses")]
    memory.commit(changes)
    memory.commit(Changes(attempts=[AttemptRow(1, 1, 1, 0.5, 2.0, "succeeded", "", "")]))
    facts = memory.lookup(Questions(attempts=[Held("t1", 1)]))
    assert facts.attempts[Held("t1", 1)] == PastAttempt(1, "succeeded", "")


def test_floors_prune_the_message_ids_and_never_fall(memory: Store) -> None:
    changes = new_tasks(0)
    changes.processed = [(1, counter, "accepted") for counter in range(1, 6)]
    memory.commit(changes)
    memory.commit(Changes(processed=[(1, 6, "late")], floors={1: 5}))
    memory.commit(Changes(floors={1: 3}))
    (worker,) = memory.load().workers
    assert worker.floor == 5
    assert worker.verdicts == {5: "accepted", 6: "late"}


def test_a_worker_written_again_keeps_its_floor(memory: Store) -> None:
    memory.commit(new_tasks(0))
    memory.commit(Changes(floors={1: 5}))
    memory.commit(Changes(workers={1: Worker(1, "w-1", "zmq", "host", 7, 2, done=3)}))
    (worker,) = memory.load().workers
    assert (worker.floor, worker.done) == (5, 3)


def test_history_is_bounded(memory: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "STORIES_MAX", 50)
    monkeypatch.setattr(store, "STORIES_PRUNE_EVERY", 10)
    for at in range(200):
        memory.commit(Changes(stories=[Story(float(at), "k", None, None, None, "text")]))
    (oldest, newest, count) = memory.read("SELECT min(at), max(at), count(*) FROM events")[0]
    assert newest == 199.0
    assert 50 <= count < 60
    assert oldest == 200.0 - count


def test_meta_keeps_any_json_value(memory: Store) -> None:
    meta = {"a": [1, None, {"b": "ü"}], "paused": True, "wanted": 10}
    memory.commit(Changes(meta=meta))
    assert memory.load().meta == {"epoch": 1, **meta}


# --- epochs -------------------------------------------------------------------------------------


def in_flight(memory: Store) -> None:
    """t1 assigned, t2 running, t3 held since an earlier restart, t4 delayed, t5 done."""
    changes = new_tasks(0, 0, 0, 0, 0, 0)
    changes.workers[2] = Worker(2, "w-2", "fs", "host", 8, 1, ended_at=5.0)
    changes.workers[2].state = WorkerState.OFFLINE
    changes.workers[3] = Worker(3, "w-3", "fs", "host", 9, 1, ended_at=5.0)
    changes.tasks = {
        1: Task(1, "t1", TaskState.ASSIGNED, 0, 1, 1, 1, worker=1),
        2: Task(2, "t2", TaskState.RUNNING, 0, 2, 3, 2, worker=2, started_at=4.0),
        3: Task(3, "t3", TaskState.QUEUED, 0, 3, 1, 1, worker=1, held=True),
        4: Task(4, "t4", TaskState.QUEUED, 0, 4, 1, due=1e6),
        5: Task(5, "t5", TaskState.SUCCEEDED, 0, 5, 1, 1),
    }
    memory.commit(changes)


def test_load_in_the_middle_of_a_life_gives_all_that_is_in_flight(memory: Store) -> None:
    in_flight(memory)
    loaded = memory.load()
    assert [(task.task_id, task.state) for task in loaded.held] == [
        ("t1", TaskState.ASSIGNED),
        ("t2", TaskState.RUNNING),
        ("t3", TaskState.QUEUED),
    ]
    assert loaded.delayed == 1
    assert loaded.counts == {
        TaskState.QUEUED: 3,
        TaskState.ASSIGNED: 1,
        TaskState.RUNNING: 1,
        TaskState.SUCCEEDED: 1,
    }
    # An ended worker matters as long as a task names it.
    assert [worker.row for worker in loaded.workers] == [1, 2]
    assert (loaded.next_task_row, loaded.next_order_no, loaded.next_worker_row) == (7, 7, 4)


def test_a_restart_holds_what_was_in_flight_for_its_worker(memory: Store) -> None:
    in_flight(memory)
    opened = memory.begin_epoch("adopt")
    assert opened.meta["epoch"] == 2
    assert [(t.task_id, t.state, t.held, t.current, t.worker) for t in opened.held] == [
        ("t1", TaskState.QUEUED, True, 1, 1),
        ("t2", TaskState.QUEUED, True, 2, 2),
        ("t3", TaskState.QUEUED, True, 1, 1),
    ]
    assert opened.counts == {TaskState.QUEUED: 5, TaskState.SUCCEEDED: 1}
    assert opened.delayed == 0
    assert ready(memory) == ["t4", "t6"]


def test_a_plain_restart_frees_them_and_notes_the_attempts(memory: Store) -> None:
    in_flight(memory)
    opened = memory.begin_epoch("requeue", wall=50.0)
    assert opened.held == []
    assert ready(memory) == ["t1", "t2", "t3", "t4", "t6"]
    assert task_of(memory, "t2") == Task(
        2, "t2", TaskState.QUEUED, 0, 2, 3, started_at=4.0, spec_bytes=4
    )
    facts = memory.lookup(Questions(attempts=[Held("t1", 1), Held("t2", 2), Held("t3", 1)]))
    assert facts.attempts[Held("t2", 2)] == PastAttempt(2, "unknown", "")
    assert len(facts.attempts) == 3


def test_a_restart_finds_workers_offline_and_launches_unresolved(memory: Store) -> None:
    changes = new_tasks(0)
    changes.workers[2] = Worker(2, "w-2", "fs", "host", 8, 1, ended_at=9.0)
    changes.workers[3] = Worker(3, "w-3", "fs", "host", 8, 1, ended_at=9.0)
    for row, state in enumerate(LaunchState, 1):
        worker = 3 if state is LaunchState.ONLINE else None
        changes.launches[row] = LaunchRecord(row, f"l{row}", "slurm", state, worker=worker)
    memory.commit(changes)
    opened = memory.begin_epoch()
    assert {worker.worker_id: worker.state for worker in opened.workers} == {
        "w-1": WorkerState.OFFLINE,
        "w-3": WorkerState.ONLINE,
    }
    assert {launch.state for launch in opened.launches} == {LaunchState.STALE}
    assert [launch.row for launch in opened.launches] == [1, 2, 3, 4, 5, 9]
    assert opened.next_launch_row == 10


def test_verdicts_of_workers_long_gone_are_forgotten(memory: Store) -> None:
    changes = new_tasks(0)
    changes.workers[2] = Worker(2, "w-2", "fs", "host", 8, 1, ended_at=100.0)
    changes.processed = [(1, 1, "accepted"), (2, 1, "accepted")]
    memory.commit(changes)
    memory.begin_epoch(wall=101.0)
    assert memory.read("SELECT count(*) FROM processed_messages") == [(2,)]
    memory.begin_epoch(wall=200.0 + store.VERDICTS_KEPT_S)
    assert memory.read("SELECT worker FROM processed_messages") == [(1,)]


def test_an_empty_database_loads(memory: Store) -> None:
    loaded = memory.load()
    assert loaded.meta == {"epoch": 1}
    assert (loaded.counts, loaded.held, loaded.workers, loaded.launches) == ({}, [], [], [])
    assert (loaded.next_task_row, loaded.next_worker_row) == (1, 1)
    assert (loaded.next_launch_row, loaded.next_order_no) == (1, 1)


# --- errors -------------------------------------------------------------------------------------


def sqlite_error(code: int, text: str) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(text)
    error.sqlite_errorcode = code  # type: ignore[attr-defined, unused-ignore]
    return error


@pytest.mark.parametrize(
    ("code", "text", "kind", "exit_code"),
    [
        (13, "database or disk is full", DiskFull, 74),
        (1034, "disk I/O error", StoreBroken, 74),
        (778, "disk I/O error", StoreBroken, 74),
        (11, "database disk image is malformed", StoreBroken, 74),
        (1032, "attempt to write a readonly database", StoreBroken, 74),
        (5, "database is locked", StoreBroken, 75),
        (2067, "UNIQUE constraint failed: tasks.task_id", ChangesRefused, 70),
        (1, "no such table: tasks", ChangesRefused, 70),
    ],
)
def test_a_failure_while_running_is_one_of_three(
    code: int, text: str, kind: type[StoreError], exit_code: int
) -> None:
    for error in (sqlite_error(code, text), sqlite3.OperationalError(text)):  # 3.11, and 3.10
        told = dbfile.running_error("/some/where/manager.db", error)
        assert type(told) is kind
        assert told.exit_code == exit_code


@pytest.mark.parametrize(("number", "kind"), [(errno.EROFS, ReadOnly), (errno.EIO, StoreBroken)])
def test_a_write_error_on_a_read_only_file_system_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, number: int, kind: type[StoreError]
) -> None:
    monkeypatch.setattr(dbfile, "write_error", lambda _: number)
    for code, text in ((778, "disk I/O error"), (8, "attempt to write a readonly database")):
        told = dbfile.running_error("/some/manager.db", sqlite_error(code, text))
        assert type(told) is kind


def test_a_write_error_on_a_full_quota_is_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dbfile, "write_error", {"/some": errno.EDQUOT}.get)
    told = dbfile.running_error("/some/manager.db", sqlite_error(778, "disk I/O error"))
    assert type(told) is DiskFull


@pytest.mark.parametrize(
    ("code", "text", "exit_code", "words"),
    [
        (5, "database is locked", 75, "another process"),
        (13, "database or disk is full", 74, "no space"),
        (8, "attempt to write a readonly database", 77, "permission"),
        (14, "unable to open database file", 77, "permission"),
        (26, "file is not a database", 74, "--fresh"),
        (3850, "disk I/O error", 74, "--db-path"),
        (1, "something else", 74, "something else"),
    ],
)
def test_a_failure_to_open_says_what_to_do(
    code: int, text: str, exit_code: int, words: str
) -> None:
    told = dbfile.opening_error("/x/manager.db", sqlite_error(code, text))
    assert told.exit_code == exit_code
    assert "/x/manager.db" in told.sentence
    assert words in told.sentence


def test_an_old_sqlite_is_told_from_a_damaged_file(monkeypatch: pytest.MonkeyPatch) -> None:
    error = sqlite_error(11, "malformed database schema (meta) - near STRICT")
    assert dbfile.opening_error("/x", error).exit_code == 74
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 0))
    assert dbfile.opening_error("/x", error).exit_code == 78


def test_the_schema_without_strict_tables_is_valid_sql() -> None:
    db = sqlite3.connect(":memory:")
    for sql in dbfile.migrations().values():
        old = dbfile.dialect(sql, (3, 36, 0))
        assert "STRICT;" not in old
        db.executescript(old)
    tables = db.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()
    db.close()
    assert tables == (12,)


def test_a_store_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        Store(":memory:").load()
