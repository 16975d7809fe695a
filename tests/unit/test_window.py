"""The window against the obvious: a sorted list of everything that is ready."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jobflowd import window
from jobflowd.model import Task, TaskState
from jobflowd.window import Window

MOST, PAGE = 6, 3


def make(row: int, priority: int = 0) -> Task:
    return Task(row, f"t{row}", TaskState.QUEUED, priority, row)


class WindowMachine(RuleBasedStateMachine):
    """`disk` holds every ready task; the window must always show its head."""

    def __init__(self) -> None:
        super().__init__()
        self.window = Window(MOST)
        self.window.expect_disk()
        self.disk: dict[str, Task] = {}
        self.row = 0
        self.read()

    def read(self) -> None:
        """What a turn does first: one page, if the window asks for it."""
        after = self.window.hungry
        if after is not None:
            beyond = sorted((one for one in self.disk.values() if one.key > after), key=key)
            self.window.absorb(beyond[:PAGE], PAGE)

    @rule(priority=st.integers(-2, 2))
    def a_task_becomes_ready(self, priority: int) -> None:
        self.row += 1
        task = make(self.row, priority)
        self.disk[task.task_id] = task
        self.window.offer(task)
        self.read()

    @precondition(lambda self: self.disk)
    @rule()
    def the_first_is_taken(self) -> None:
        self.read()
        task = self.window.pop()
        if task is None:
            assert self.window.hungry is not None
            return
        assert task is min(self.disk.values(), key=key)
        del self.disk[task.task_id]

    @precondition(lambda self: self.disk)
    @rule(data=st.data())
    def any_is_taken_out_of_turn(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.disk)))
        found = self.window.remove(name)
        assert found in (None, self.disk[name])
        del self.disk[name]
        self.read()

    @precondition(lambda self: self.disk)
    @rule(data=st.data())
    def one_goes_to_the_back(self, data: st.DataObject) -> None:
        task = self.disk[data.draw(st.sampled_from(sorted(self.disk)))]
        self.window.remove(task.task_id)
        self.row += 1
        task.order_no = self.row
        self.window.offer(task)
        self.read()

    @invariant()
    def what_is_before_the_tail_is_here(self) -> None:
        for task in self.disk.values():
            if self.window.complete or task.key <= self.window._tail:  # type: ignore[operator]
                assert self.window.get(task.task_id) is task

    @invariant()
    def it_stays_small(self) -> None:
        assert len(self.window) <= 2 * MOST
        assert len(self.window._line) + len(self.window._heap) <= 4 * MOST + 1


def key(task: Task) -> tuple[int, int]:
    return task.key


TestWindow = WindowMachine.TestCase


@given(st.lists(st.integers(-3, 3), max_size=40))
def test_everything_comes_out_in_order_page_by_page(priorities: list[int]) -> None:
    disk = sorted((make(row, one) for row, one in enumerate(priorities)), key=key)
    ready = Window(MOST)
    ready.expect_disk()
    taken: list[Task] = []
    while len(taken) < len(disk):
        after = ready.hungry
        if after is not None:
            ready.absorb([one for one in disk if one.key > after][:PAGE], PAGE)
        task = ready.pop()
        if task is not None:
            taken.append(task)
    assert taken == disk


def test_a_complete_window_takes_all_until_it_is_full() -> None:
    ready = Window(MOST)
    assert all(ready.offer(make(row)) for row in range(MOST))
    assert ready.complete
    assert not ready.offer(make(99))
    assert not ready.complete
    assert ready.offer(make(98, priority=1))


def test_the_limits_fit_each_other() -> None:
    assert window.PAGE <= window.WINDOW_LOW <= window.WINDOW_MAX
