"""The program author's API: what `from jobflow_worker import ...` gives.

Rule: light. This is what `import jobflow_worker` brings into a user's process, so the rest of the
standard library is imported where it is used, and nothing else of ours but `limits`.
"""

from __future__ import annotations

import math
import operator
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from jobflow_worker.limits import TASK_ID_CHARS_MAX


class NonRetryable(Exception):
    """Raise it, or a subclass, in `execute_task` to fail the task at once, without retries."""


class ProgressCallback(Protocol):
    """What `execute_task` gets to tell how far it is. Cheap: call it as often as you like."""

    def __call__(self, fraction: float, info: dict[str, Any] | None = None) -> None:
        """`fraction` from 0 to 1; `info` is a small dict shown beside it."""


def _whole(name: str, value: Any, low: int, high: int) -> int:
    """A whole number of any kind (numpy's too) as an int; raises TypeError or ValueError."""
    if isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be a whole number, not {value!r:.80}") from None
    if not low <= number <= high:
        raise ValueError(f"{name} must be from {low} to {high}, not {number}")
    return number


def _seconds(name: str, value: Any) -> float:
    if isinstance(value, bool | str | bytes):
        raise TypeError(f"{name} must be a number of seconds, not {value!r:.80}")
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} must be a number of seconds, not {value!r:.80}") from None
    if not (math.isfinite(number) and 0 < number <= 1e12):
        raise ValueError(f"{name} must be more than 0 seconds, not {number:g}")
    return number


@dataclass(frozen=True, slots=True)
class TaskDefinition:
    """One unit of work.

    `task_id` names it for ever: it must come out the same at every start (`generate_task_id`
    helps). `spec` is what `execute_task` gets: a dict of plain values. `priority`: higher runs
    sooner. `timeout_s` ends an attempt that runs longer; `time_request_s` is how long one is
    expected to run at most, so that it is not begun too close to a worker's end;
    `memory_limit_bytes` ends an attempt that uses more.

    Raises TypeError or ValueError for values that cannot be meant.
    """

    task_id: str
    spec: dict[str, Any]
    max_retries: int = 2
    priority: int = 0
    timeout_s: float | None = None
    time_request_s: float | None = None
    memory_limit_bytes: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.task_id, str):
            raise TypeError(f"task_id must be a text, not {self.task_id!r:.80}")
        if not 1 <= len(self.task_id) <= TASK_ID_CHARS_MAX:
            raise ValueError(
                f"task_id must have 1 to {TASK_ID_CHARS_MAX} characters, not {len(self.task_id)};"
                " generate_task_id(...) makes a short one"
            )
        if not self.task_id.isprintable():
            raise ValueError(f"task_id must be printable: {self.task_id!r:.80}")
        if not isinstance(self.spec, dict):
            raise TypeError(f"spec of task {self.task_id!r} must be a dict, not {self.spec!r:.80}")
        self._put("max_retries", _whole("max_retries", self.max_retries, 0, 1_000_000))
        self._put("priority", _whole("priority", self.priority, -(2**31), 2**31))
        if self.timeout_s is not None:
            self._put("timeout_s", _seconds("timeout_s", self.timeout_s))
        if self.time_request_s is not None:
            self._put("time_request_s", _seconds("time_request_s", self.time_request_s))
        if self.memory_limit_bytes is not None:
            limit = _whole("memory_limit_bytes", self.memory_limit_bytes, 1, 2**63 - 1)
            self._put("memory_limit_bytes", limit)

    def _put(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


class TaskProgram(ABC):
    """A user's program: what the tasks are, and how one is done.

    One instance is made per process, once; it generates or executes. `self.program_args` is the
    dict given with `--program-args`.
    """

    def __init__(self, *, program_args: dict[str, Any] | None = None) -> None:
        self.program_args: dict[str, Any] = dict(program_args or {})

    @classmethod
    def name(cls) -> str:
        """How people call this program."""
        return cls.__name__

    @abstractmethod
    def generate_tasks(self) -> Iterable[TaskDefinition]:
        """All tasks, as a list or one by one. Runs at every start of the manager."""

    @abstractmethod
    def execute_task(self, spec: dict[str, Any], progress_cb: ProgressCallback) -> Any:
        """Do one task; returns a dict of plain values. What it raises is the task's failure."""


def generate_task_id(value: Any) -> str:
    """A short stable id: 16 hex digits over a text, a path, or any value that JSON can carry.

    The order of keys does not matter. Raises TypeError or ValueError for other values.
    """
    import hashlib
    import json

    text = json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=os.fspath
    )
    return hashlib.sha256(text.encode("ascii")).hexdigest()[:16]


# --- inside a task ----------------------------------------------------------------------------


class CurrentAttempt:
    """The attempt that this process is running, as its program sees it."""

    __slots__ = ("_make_scratch", "_scratch", "_seconds_left", "attempt", "task_id", "worker_id")

    def __init__(
        self,
        task_id: str,
        attempt: int,
        worker_id: str,
        make_scratch: Callable[[], Path],
        seconds_left: Callable[[], float | None],
    ) -> None:
        self.task_id = task_id
        self.attempt = attempt
        self.worker_id = worker_id
        self._scratch: Path | None = None
        self._make_scratch = make_scratch
        self._seconds_left = seconds_left

    @property
    def scratch(self) -> Path:
        """An empty directory of this attempt's own, removed after it."""
        if self._scratch is None:
            self._scratch = self._make_scratch()
        return self._scratch

    @property
    def scratch_made(self) -> bool:
        """Whether there is something to remove."""
        return self._scratch is not None

    @property
    def seconds_left(self) -> float | None:
        """Until the time-out of this attempt or the end of the worker; None if unknown."""
        return self._seconds_left()


_current: CurrentAttempt | None = None


def current_attempt() -> CurrentAttempt:
    """The attempt that is being executed. Raises RuntimeError outside of `execute_task`."""
    if _current is None:
        raise RuntimeError("current_attempt() works only while execute_task runs on a worker")
    return _current


def set_current_attempt(attempt: CurrentAttempt | None) -> None:
    """For what runs tasks (child.py) only."""
    global _current
    _current = attempt
