"""`init`: the first two files of a project, and what to type next."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from jobflowctl import errors
from jobflowctl.output import Output
from jobflowctl.text import safe
from jobflowd import api


def begin(output: Output, program: Path, config: Path, flags: Sequence[str]) -> int:
    """Write the program and the configuration; what is there already stays as it is.

    Raises `UsageError` for a flag that `jobflowd start` would not take.
    """
    if program.suffix != ".py":
        raise errors.UsageError(f"{program} is not the name of a Python file.", "Use tasks.py.")
    try:
        text = api.configuration_text({"program": str(program)}, flags)
    except ValueError as error:
        raise errors.UsageError(str(error), "See: jobflowd start --help") from None
    written: list[str] = []
    kept: list[str] = []
    for path, content in ((program, api.program_text()), (config, text)):
        (written if _write(path, content) else kept).append(str(path))
    # The program is found from where the start is typed.
    start = f"jobflowd start --config {shlex.quote(str(config))}"
    lines = [f"wrote {safe(name)}" for name in written]
    lines += [f"kept {safe(name)}, which is there already" for name in kept]
    doctor = f"jobflowctl doctor --config {shlex.quote(str(config))}"
    lines += ["", f"try   {safe(doctor)}", f"next  {safe(start)}", "then  jobflowctl watch"]
    body = {"ok": True, "written": written, "kept": kept, "next": start}
    output.line("init", body, "\n".join(lines))
    return 0


def _write(path: Path, text: str) -> bool:
    """Create a file; False if there is one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        return False
    except OSError as error:
        raise errors.CtlError(f"{path} cannot be written: {error.strerror or error}.") from None
    return True
