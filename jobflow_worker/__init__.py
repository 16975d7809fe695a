"""What a program author imports: `from jobflow_worker import TaskProgram, TaskDefinition`.

Rule: light. This package is imported on every node from a shared file system and inside users'
own processes, so nothing here brings zmq, psutil or msgpack along.
"""

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
