"""The ready queue's window: the first tasks in memory, the rest on disk.

Pure. Invariant: every ready task whose key is not beyond `tail` is in the window; with `tail`
None the window holds all ready tasks there are. So the head of the window is the head of the
queue, and memory is flat however many tasks wait.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Container, Iterable

from jobflowd.model import Task

#: Tasks kept in memory: ten turns' work, however short the tasks are.
WINDOW_MAX = 10_000
#: Below this many the next page is asked for.
WINDOW_LOW = 5_000
#: Rows in one page: bounds the time of one SELECT.
PAGE = 1_000

Key = tuple[int, int]
#: The row breaks ties of stale entries, so that tasks themselves are never compared.
_Entry = tuple[Key, int, Task]


class Window:
    """A queue by (-priority, order_no) with removal by task id.

    Tasks come nearly always in order: these are a line, whose ends cost nothing. A heap has the
    rest. An entry dies lazily when its task was removed or has another key by now.
    """

    def __init__(self, most: int = WINDOW_MAX) -> None:
        self._most = most
        self._line: deque[_Entry] = deque()
        self._heap: list[_Entry] = []
        self._tasks: dict[str, Task] = {}
        self._tail: Key | None = None

    def __len__(self) -> int:
        return len(self._tasks)

    def get(self, task_id: str) -> Task | None:
        return self._tasks.get(task_id)

    @property
    def complete(self) -> bool:
        """True if no ready task is only on disk."""
        return self._tail is None

    @property
    def hungry(self) -> Key | None:
        """The key after which a page should be read, None if there is no need."""
        return self._tail if len(self._tasks) < min(WINDOW_LOW, self._most) else None

    def expect_disk(self) -> None:
        """All that waits is on disk so far: the state after opening a store."""
        self._tail = (-(2**63), -1)

    def takes(self, key: Key) -> bool:
        """True if a ready task with this key belongs into the window; if not, it stays on disk.

        A full window that was complete learns here that it no longer is.
        """
        if self._tail is None:
            if len(self._tasks) < self._most:
                return True
            self._tail = max(task.key for task in self._tasks.values())
        return key <= self._tail

    def offer(self, task: Task) -> bool:
        """A task became ready: keep it if it sorts into the window. True if kept."""
        if not self.takes(task.key):
            return False
        self._add(task)
        if len(self._tasks) > 2 * self._most:
            self._cut()
        return True

    def absorb(self, page: Iterable[Task], limit: int, assigned: Container[str] = ()) -> None:
        """Take the page that follows the tail; a short page means that nothing is left on disk.

        `assigned`: ids of tasks that have been handed out, whatever their rows say.
        """
        count, last = 0, None
        for task in page:
            count += 1
            last = task.key
            if task.task_id not in self._tasks and task.task_id not in assigned:
                self._add(task)
        self._tail = None if count < limit else last

    def remove(self, task_id: str) -> Task | None:
        """Take a task out of turn; its entry dies lazily."""
        return self._tasks.pop(task_id, None)

    def pop(self) -> Task | None:
        """The first ready task, None if the window is empty."""
        line, heap = self._line, self._heap
        while line or heap:
            if not heap or (line and line[0][:2] <= heap[0][:2]):
                key, _, task = line.popleft()
            else:
                key, _, task = heapq.heappop(heap)
            if self._tasks.get(task.task_id) is task and task.key == key:
                del self._tasks[task.task_id]
                return task
        return None

    def _add(self, task: Task) -> None:
        self._tasks[task.task_id] = task
        entry = (task.key, task.row, task)
        if not self._line or self._line[-1][0] < entry[0]:
            self._line.append(entry)
        else:
            heapq.heappush(self._heap, entry)
        if len(self._line) + len(self._heap) > 4 * self._most:
            self._rebuild(self._tasks.values())

    def _cut(self) -> None:
        keep = heapq.nsmallest(self._most, self._tasks.values(), key=lambda task: task.key)
        self._tasks = {task.task_id: task for task in keep}
        self._tail = keep[-1].key
        self._rebuild(keep)

    def _rebuild(self, tasks: Iterable[Task]) -> None:
        self._line = deque(sorted((task.key, task.row, task) for task in tasks))
        self._heap = []
