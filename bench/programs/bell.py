"""One no-op task for each line that comes through a pipe: for an idle system, at no cost.

args: `bell` in `place` is the pipe; the line "end" ends the generation. The spec carries the wall
clock of the yield, the result that of the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobflow_worker import TaskDefinition, TaskProgram


class Bell(TaskProgram):
    """A task a ring."""

    def generate_tasks(self) -> Iterator[TaskDefinition]:
        """Blocks until somebody opens the other end."""
        with Path(self.program_args["place"], "bell").open() as bell:
            for number, line in enumerate(bell):
                if line == "end\n":
                    return
                yield TaskDefinition(f"t{number:07}", {"at": time.time()})

    def execute_task(
        self, spec: dict[str, Any], progress_cb: Callable[..., None]
    ) -> dict[str, Any]:
        """Only says when."""
        return {"at": time.time()}
