"""What a program author imports: `from jobflow_worker import TaskProgram, TaskDefinition`.

Rule: light. This package is imported on every node from a shared file system and inside users'
own processes, so nothing here brings zmq, psutil or msgpack along. The agent, which runs no
program, does without `author` and what that brings: it comes when a name is asked for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobflow_worker.author import (
        NonRetryable,
        ProgressCallback,
        TaskDefinition,
        TaskProgram,
        current_attempt,
        generate_task_id,
    )

__version__ = "0.1.0"

__all__ = [
    "NonRetryable",
    "ProgressCallback",
    "TaskDefinition",
    "TaskProgram",
    "__version__",
    "current_attempt",
    "generate_task_id",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jobflow_worker import author

    value = globals()[name] = getattr(author, name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
