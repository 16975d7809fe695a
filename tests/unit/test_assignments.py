"""Assignments in lists: nothing is lost by them, and who asks sees what is true."""

from __future__ import annotations

from pathlib import Path

import pytest
from pairing import Pair

from jobflowd import assignments, queries
from jobflowd import events as ev
from jobflowd.dbfile import DiskFull
from jobflowd.model import Changes, Definition, NewTask, Task, TaskState, Worker
from jobflowd.store import Store


def define(store: Store, count: int) -> dict[int, Task]:
    made = [
        Definition(f"t{row}", b"\x80", b"h" * 16, 2, 0, None, None, None) for row in range(count)
    ]
    new = [NewTask(row, row, one) for row, one in enumerate(made, 1)]
    store.commit(Changes(workers={1: Worker(1, "w-1", "zmq", "h", 1, 1)}, new_tasks=new))
    return {
        one.row: Task(one.row, one.definition.task_id, TaskState.QUEUED, 0, one.row) for one in new
    }


def assign(*tasks: Task) -> Changes:
    for task in tasks:
        task.state, task.worker = TaskState.ASSIGNED, 1
        task.issued = task.current = task.issued + 1
    return Changes(assigned={task.row: task for task in tasks})


def states(store: Store) -> list[int]:
    return [state for (state,) in store.read("SELECT state FROM tasks ORDER BY id")]


def lists(store: Store) -> int:
    ((found,),) = store.read("SELECT count(*) FROM assignments")
    return int(found)


def test_an_assignment_is_durable_before_its_row_is_written(tmp_path: Path) -> None:
    store = Store(tmp_path / "manager.db")
    store.open()
    tasks = define(store, 3)
    store.commit(assign(tasks[2]))
    assert states(store) == [0, 0, 0]
    store._connection().close()  # As by a kill: nothing is tidied up.
    again = Store(tmp_path / "manager.db")
    again.open()
    (held,) = again.begin_epoch(wall=0.0).held
    assert (held.row, held.current, held.issued, held.worker, held.held) == (2, 1, 1, 1, True)
    assert lists(again) == 0
    again.close()


def test_who_asks_sees_the_assigned_as_such(store: Store) -> None:
    tasks = define(store, 3)
    store.commit(assign(tasks[1], tasks[3]))
    page, _ = queries.task_page(store, None, 10, "assigned")
    assert [(row["task_id"], row["worker_id"]) for row in page] == [("t0", "w-1"), ("t2", "w-1")]
    assert queries.counts(store)["queued"] == 1
    store.commit(assign(tasks[2]))
    detail = queries.task_detail(store, "t1", max_losses=3)
    assert detail is not None
    assert detail["state"] == "assigned"


def test_what_was_written_since_stands(store: Store) -> None:
    tasks = define(store, 3)
    store.commit(assign(*tasks.values()))
    done, back, anew = tasks.values()
    done.state, done.worker = TaskState.SUCCEEDED, None
    back.state, back.worker, back.current = TaskState.QUEUED, None, 0
    anew.state, anew.worker, anew.current = TaskState.QUEUED, None, 0
    store.commit(Changes(moved={1: done}, tasks={2: back, 3: anew}))
    store.commit(assign(anew))
    store.settle()
    assert states(store) == [3, 0, 1]
    assert store.read("SELECT issued, current FROM tasks WHERE id = 3") == [(2, 2)]


def test_lists_are_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignments, "ITEMS_MAX", 6)
    tasks = define(store, 40)
    for row in range(1, 41, 2):
        store.commit(assign(tasks[row], tasks[row + 1]))
        assert lists(store) <= 3
    store.settle()
    assert states(store) == [1] * 40


def test_a_full_disk_does_not_keep_anybody_from_asking(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = define(store, 1)
    store.commit(assign(tasks[1]))

    def full(*_: object) -> int:
        raise DiskFull("no space")

    with monkeypatch.context() as patch:
        patch.setattr(assignments, "settle", full)
        assert queries.counts(store)["queued"] == 1
    assert queries.counts(store)["assigned"] == 1


def test_a_list_that_was_not_committed_holds_nothing(store: Store) -> None:
    tasks = define(store, 1)
    changes = assign(tasks[1])
    changes.processed.append((10**6, 1, "accepted"))
    with pytest.raises(Exception, match="FOREIGN KEY"):
        store.commit(changes)
    store.settle()
    assert states(store) == [0]


def test_a_page_of_the_queue_does_not_bring_back_what_was_handed_out(pair: Pair) -> None:
    pair.define("a", "b")
    pair.worker()
    book = pair.coordinator.book
    assert set(book.in_flight) == {"a"}
    book.ready.expect_disk()
    pair.turn()
    assert set(book.in_flight) == {"a"}
    assert [book.ready.get(name) is None for name in ("a", "b")] == [True, False]


def test_the_spec_of_a_task_that_is_out_is_not_changed(pair: Pair) -> None:
    pair.define("a")
    pair.worker()
    other = Definition("a", b"\x81\xa1x\x01", b"other hash 16 by", 2, 0, None, None, None)
    pair.turn(ev.Generated((other,)))
    assert pair.store.specs([1])[1] != other.spec
