"""Tasks that do nothing: the cost of everything else.

args: `warm` tasks come at once, `n` more when the file `go` appears in `place`; `size` bytes of
text in each spec and each result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobflow_worker import TaskDefinition, TaskProgram


class Noop(TaskProgram):
    """No-op tasks."""

    def generate_tasks(self) -> Iterator[TaskDefinition]:
        """Warm-up tasks, a wait for `go`, the tasks that count."""
        args = self.program_args
        for number in range(args.get("warm", 0)):
            yield TaskDefinition(f"w{number}", {"i": number})
        go = Path(args["place"], "go")
        while args.get("warm") and not go.exists():
            time.sleep(0.002)
        spec: dict[str, Any] = {"text": "x" * args["size"]} if args.get("size") else {}
        for number in range(args["n"]):
            yield TaskDefinition(f"t{number:07}", {"i": number, **spec})

    def execute_task(
        self, spec: dict[str, Any], progress_cb: Callable[..., None]
    ) -> dict[str, Any]:
        """Nothing; the text comes back if there is one."""
        return {"text": spec["text"]} if "text" in spec else {}
