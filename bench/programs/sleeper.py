"""Tasks that sleep or compute, and say when the first began.

args: `warm` tasks come at once, no-ops or, with `alike`, as long as the others; `n` tasks come when
the file `go` appears in `place`; `sleep_s` or `busy_s` is what each of them does. The files
`yielded` and `running` get the monotonic time of the first yield after `go`, and of the first of
these tasks.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jobflow_worker import TaskDefinition, TaskProgram


def stamp(path: Path) -> None:
    """Write the time into a file, once."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return
    os.write(descriptor, str(time.monotonic()).encode())
    os.close(descriptor)


def compute(seconds: float) -> None:
    """Use the CPU for so long, by this process's own CPU clock."""
    until = time.process_time() + seconds
    while time.process_time() < until:
        pass


class Sleeper(TaskProgram):
    """Tasks of a known length."""

    _stamped = False

    def generate_tasks(self) -> Iterator[TaskDefinition]:
        """Warm-up tasks, a wait for `go`, the tasks that count."""
        args = self.program_args
        place = Path(args["place"])
        spec: dict[str, Any] = {key: args[key] for key in ("sleep_s", "busy_s") if key in args}
        for number in range(args.get("warm", 0)):
            yield TaskDefinition(f"w{number}", spec if args.get("alike") else {"sleep_s": 0.0})
        while not (place / "go").exists():
            time.sleep(0.002)
        stamp(place / "yielded")
        for number in range(args["n"]):
            yield TaskDefinition(f"t{number:07}", {"i": number, **spec})

    def execute_task(
        self, spec: dict[str, Any], progress_cb: Callable[..., None]
    ) -> dict[str, Any]:
        """Sleep or compute."""
        if "i" in spec and not self._stamped:
            self._stamped = True
            stamp(Path(self.program_args["place"], "running"))
        if "busy_s" in spec:
            compute(spec["busy_s"])
        elif spec["sleep_s"]:
            time.sleep(spec["sleep_s"])
        return {}
