"""Pages for a report: every ended attempt and every worker once, whatever the page size."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from jobflowd import reportqueries
from jobflowd.model import (
    AttemptRow,
    Changes,
    Definition,
    LaunchRecord,
    NewTask,
    Task,
    TaskState,
    Worker,
)
from jobflowd.model import LaunchState as State
from jobflowd.store import Store


@pytest.fixture
def memory() -> Iterator[Store]:
    """Three tasks with 1, 3 and 1 attempts; two workers, one of a launch."""
    store = Store(":memory:")
    store.open()
    changes = Changes()
    for row in (1, 2, 3):
        definition = Definition(f"t{row}", b"spec", b"h" * 16, 2, 5, None, None, None)
        changes.new_tasks.append(NewTask(row, row, definition))
        changes.tasks[row] = Task(row, f"t{row}", TaskState.SUCCEEDED, 5, row)
    for row in (1, 2):
        launch = "l1" if row == 1 else None
        changes.workers[row] = Worker(row, f"w{row}", "zmq", "n", row, 4, launch_id=launch)
    changes.launches = {1: LaunchRecord(1, "l1", "slurm", State.ENDED, planned_at=5.0)}
    changes.attempts = [
        AttemptRow(task, attempt, 1, 1.0, 2.0, "succeeded", "", "")
        for task, attempt in ((1, 1), (2, 1), (2, 2), (2, 3), (3, 1))
    ]
    store.commit(changes)
    yield store
    store.close()


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 100])
def test_every_attempt_comes_once(memory: Store, limit: int) -> None:
    found: list[tuple[str, int]] = []
    mark: str | None = None
    while True:
        page, mark = reportqueries.attempt_page(memory, mark, limit)
        assert len(page) <= limit
        found += [(row["task_id"], row["attempt"]) for row in page]
        if mark is None:
            break
    assert found == [("t1", 1), ("t2", 1), ("t2", 2), ("t2", 3), ("t3", 1)]


@pytest.mark.parametrize("limit", [1, 2, 100])
def test_every_worker_comes_once(memory: Store, limit: int) -> None:
    found: list[tuple[str, float | None]] = []
    mark: str | None = None
    while True:
        page, mark = reportqueries.fleet_page(memory, mark, limit)
        found += [(row["worker_id"], row["planned_at"]) for row in page]
        if mark is None:
            break
    assert found == [("w1", 5.0), ("w2", None)]
