"""Random turns: the store always holds exactly what a plain Python model of it holds."""

from __future__ import annotations

import copy

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from pairing import as_stored

from jobflowd.model import (
    LAUNCH_OVER,
    TASK_IN_FLIGHT,
    Changes,
    Definition,
    LaunchRecord,
    LaunchState,
    NewTask,
    Questions,
    Task,
    TaskState,
    Worker,
    WorkerState,
)
from jobflowd.store import ChangesRefused, Store

START = (-(2**63), -1)

words = st.text(max_size=8)
times = st.none() | st.floats(0, 2e9)
numbers = st.integers(0, 2**40)
small = st.integers(0, 5)
specs = st.binary(max_size=40)


class StoreMachine(RuleBasedStateMachine):
    """The model: dicts of the very objects that are committed."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(":memory:")
        self.store.open()
        self.epoch = self.store.begin_epoch(wall=0.0).meta["epoch"]
        self.tasks: dict[int, Task] = {}
        self.specs: dict[int, bytes] = {}
        self.workers: dict[int, Worker] = {}
        self.launches: dict[int, LaunchRecord] = {}
        self.meta: dict[str, object] = {}
        self.order_no = 0

    def teardown(self) -> None:
        self.store.close()

    @initialize()
    def a_worker(self) -> None:
        self.workers[1] = Worker(1, "w-1", "zmq", "h", 1, 1)
        self.store.commit(Changes(workers={1: self.workers[1]}))

    # --- turns ----------------------------------------------------------------------------------

    @rule(data=st.data(), fail=st.booleans())
    def turn(self, data: st.DataObject, fail: bool) -> None:
        """A turn of many kinds of change; with `fail`, its last statement breaks a rule."""
        before = copy.deepcopy((self.tasks, self.specs, self.workers, self.launches, self.meta))
        changes = Changes()
        self._change_workers(data, changes)
        self._add_tasks(data, changes)
        self._change_tasks(data, changes)
        self._change_launches(data, changes)
        if data.draw(st.booleans()):
            key, value = data.draw(words), data.draw(st.none() | numbers | words)
            if key != "epoch":
                self.meta[key] = changes.meta[key] = value
        if not fail:
            self.store.commit(changes)
            return
        changes.processed.append((10**6, 1, "accepted"))
        try:
            self.store.commit(changes)
        except ChangesRefused:
            self.tasks, self.specs, self.workers, self.launches, self.meta = before
        else:
            raise AssertionError("a message of an unknown worker was taken")

    def _add_tasks(self, data: st.DataObject, changes: Changes) -> None:
        for _ in range(data.draw(small)):
            row = max(self.tasks, default=0) + 1
            self.order_no += 1
            made = Definition(
                f"t{row}",
                data.draw(specs),
                b"h" * 16,
                data.draw(small),
                data.draw(st.integers(-3, 3)),
                data.draw(times),
                data.draw(times),
                data.draw(st.none() | numbers),
            )
            changes.new_tasks.append(NewTask(row, self.order_no, made))
            self.specs[row] = made.spec
            self.tasks[row] = Task(
                row,
                made.task_id,
                TaskState.QUEUED,
                made.priority,
                self.order_no,
                max_retries=made.max_retries,
                timeout_s=made.timeout_s,
                time_request_s=made.time_request_s,
                memory_bytes=made.memory_bytes,
                spec_bytes=len(made.spec),
            )

    def _change_tasks(self, data: st.DataObject, changes: Changes) -> None:
        for row in (
            data.draw(st.lists(st.sampled_from(sorted(self.tasks)), max_size=4, unique=True))
            if self.tasks
            else ()
        ):
            task = self.tasks[row]
            waits = task.state is TaskState.QUEUED and not task.held and task.due is None
            if waits and data.draw(st.booleans()):
                task.state, task.worker = TaskState.ASSIGNED, data.draw(self._worker_rows())
                task.issued = task.current = task.issued + 1
                changes.assigned[row] = task
                continue
            changes.tasks[row] = task
            task.state = data.draw(st.sampled_from(TaskState))
            queued = task.state is TaskState.QUEUED
            task.held = queued and data.draw(st.booleans())
            task.due = data.draw(times) if queued and not task.held else None
            in_hand = task.held or task.state in TASK_IN_FLIGHT
            task.worker = data.draw(self._worker_rows()) if in_hand else None
            task.solo = data.draw(st.booleans())
            task.issued, task.current = task.issued + data.draw(small), data.draw(small)
            task.failures, task.losses = data.draw(small), data.draw(small)
            task.deliveries, task.walltimes = data.draw(small), data.draw(small)
            task.started_at, task.finished_at = data.draw(times), data.draw(times)
            task.error = data.draw(st.none() | words)
            if data.draw(st.booleans()):
                self.order_no += 1
                task.order_no = self.order_no
            if data.draw(st.booleans()):
                spec = data.draw(specs)
                changes.new_specs.append((row, b"n" * 16, spec))
                self.specs[row], task.spec_bytes = spec, len(spec)

    def _worker_rows(self) -> st.SearchStrategy[int]:
        return st.sampled_from(sorted(self.workers))

    def _change_workers(self, data: st.DataObject, changes: Changes) -> None:
        for row in data.draw(st.lists(st.integers(1, 4), max_size=2, unique=True)):
            worker = self.workers.get(row)
            if worker is None:
                worker = self.workers[row] = Worker(row, f"w-{row}", "fs", "h", 1, 1)
            changes.workers[row] = worker
            worker.state = data.draw(st.sampled_from(WorkerState))
            worker.ended_at = data.draw(times)
            worker.reason, worker.host = data.draw(words), data.draw(words)
            worker.done, worker.batch_job_id = data.draw(numbers), data.draw(st.none() | words)
        for row in data.draw(st.lists(st.sampled_from(sorted(self.workers)), max_size=2)):
            counter, verdict = data.draw(st.integers(0, 9)), data.draw(words)
            if counter >= self.workers[row].floor:
                changes.processed.append((row, counter, verdict))
                self.workers[row].verdicts[counter] = verdict
        for row in data.draw(st.lists(st.sampled_from(sorted(self.workers)), max_size=1)):
            worker = self.workers[row]
            floor = changes.floors[row] = data.draw(st.integers(0, 9))
            worker.floor = max(worker.floor, floor)
            worker.verdicts = {n: word for n, word in worker.verdicts.items() if n >= floor}

    def _change_launches(self, data: st.DataObject, changes: Changes) -> None:
        for row in data.draw(st.lists(st.integers(1, 4), max_size=2, unique=True)):
            launch = self.launches.setdefault(
                row, LaunchRecord(row, f"l{row}", "slurm", LaunchState.PLANNED)
            )
            changes.launches[row] = launch
            launch.state = data.draw(st.sampled_from(LaunchState))
            launch.worker = data.draw(st.none() | st.sampled_from(sorted(self.workers)))
            launch.submitted_at, launch.reason = data.draw(times), data.draw(words)
            launch.script, launch.ended_at = data.draw(st.none() | words), data.draw(times)

    # --- restarts -------------------------------------------------------------------------------

    @rule(recovery=st.sampled_from(["adopt", "requeue"]))
    def restart(self, recovery: str) -> None:
        """What a daemon finds after a crash, by DESIGN section 7."""
        self.store.begin_epoch("adopt" if recovery == "adopt" else "requeue", wall=0.0)
        self.epoch += 1
        for task in self.tasks.values():
            task.due = None
            if task.held or task.state in TASK_IN_FLIGHT:
                task.state, task.held = TaskState.QUEUED, True
                if recovery == "requeue":
                    task.held, task.current, task.worker = False, 0, None
        for worker in self.workers.values():
            if worker.ended_at is None:
                worker.state = WorkerState.OFFLINE
        for launch in self.launches.values():
            if launch.state not in LAUNCH_OVER:
                launch.state = LaunchState.STALE

    # --- checks ---------------------------------------------------------------------------------

    @rule()
    def what_is_loaded_is_what_was_committed(self) -> None:
        loaded = self.store.load()
        held = [t for t in self.tasks.values() if t.held or t.state in TASK_IN_FLIGHT]
        launches = [one for one in self.launches.values() if one.state not in LAUNCH_OVER]
        named = {task.worker for task in held} | {launch.worker for launch in launches}
        assert loaded.meta == {"epoch": self.epoch, **self.meta}
        assert loaded.held == held
        assert loaded.delayed == sum(task.due is not None for task in self.tasks.values())
        assert loaded.launches == sorted(launches, key=lambda launch: launch.row)
        assert loaded.workers == [
            worker
            for row, worker in sorted(self.workers.items())
            if worker.ended_at is None or row in named
        ]
        states = [task.state for task in self.tasks.values()]
        assert loaded.counts == {state: states.count(state) for state in set(states)}
        assert loaded.next_task_row == len(self.tasks) + 1
        assert loaded.next_worker_row == max(self.workers, default=0) + 1
        top = max((task.order_no for task in self.tasks.values()), default=0)
        assert loaded.next_order_no == top + 1

    @invariant()
    def every_task_is_found_as_it_is(self) -> None:
        ids = [task.task_id for task in self.tasks.values()]
        facts = self.store.lookup(Questions(ids, [], ids, [], START, 1000, 3e9, 1000))
        assert as_stored(self.store, ids) == {task.task_id: task for task in self.tasks.values()}
        assert self.store.specs(list(self.tasks)) == self.specs
        free = [t for t in self.tasks.values() if t.state is TaskState.QUEUED and not t.held]
        ready = [task for task in free if task.due is None]
        found = [one for one in facts.ready if self.tasks[one.row].state is TaskState.QUEUED]
        assert found == sorted(ready, key=lambda task: task.key)
        assert {task.row for task in facts.due} == {t.row for t in free if t.due is not None}


StoreMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=12,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestStoreMachine = StoreMachine.TestCase
