"""`jobflowctl doctor`: would a run work? Of a configuration, or of a session that exists.

Rule: where workers are batch jobs, the work is `jobflowd check`; here it is only started. Where
they are processes of this machine there is no node to ask, and what can be wrong is the program:
it is loaded and asked for its first task, here. Each finding is a line: `ok` or `FAIL`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from jobflowctl.errors import CtlError
from jobflowctl.text import safe

if TYPE_CHECKING:
    from jobflow_worker.program import ProgramRef
    from jobflowctl.output import Output
    from jobflowd.api import SessionPlace

#: What `jobflowd check` ends with if something is to mend.
_TO_MEND: Final = 69
_ON_NODES: Final = ("slurm", "lsf", "sge")


def of_session(place: SessionPlace, output: Output) -> int:
    """Check what a session has on record; the exit code. Raises `CtlError`."""
    from jobflowctl.replaying import on_record

    record, ref = on_record(place)
    if record.settings.get("launcher") in _ON_NODES:
        words = ("--session-id", place.session, "--shared-dir", place.dir.parent)
        return _told(output, *_check(*words))
    return _here(output, place.dir, lambda: _recorded(ref, dict(record.program_args)))


def of_configuration(file: Path, output: Output) -> int:
    """Check what a start with this configuration would run; the exit code. Raises `CtlError`."""
    settings = _settings(file)
    if settings.get("launcher") in _ON_NODES:
        return _told(output, *_check("--config", file))
    return _here(output, file, lambda: _program(settings))


def _here(output: Output, read: Path, look: Callable[[], list[str]]) -> int:
    """Where workers are processes of this machine: `look` finds the rest; the exit code."""
    from jobflow_worker.program import ProgramError

    lines = [f"ok    {read} can be read"]
    try:
        lines += look()
    except ProgramError as error:
        lines += [f"FAIL  {safe(error.sentence)}", *_detail(error.detail)]
    bad = sum(line.startswith("FAIL") for line in lines)
    if not bad:
        lines.append("ok    workers run on this machine: there is no other to check")
    lines.append(f"{bad} to mend" if bad else "everything is as it should be")
    return _told(output, lines, _TO_MEND if bad else 0)


def _check(*words: str | Path) -> tuple[list[str], int]:
    argv = [sys.executable, "-m", "jobflowd", "check", *map(str, words)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    return done.stdout.splitlines(), done.returncode


def _settings(file: Path) -> dict[str, Any]:
    """The settings of a start with this file, as `jobflowd` reads them."""
    argv = [sys.executable, "-m", "jobflowd", "config", "show", "--json", "--config", str(file)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        error = CtlError(done.stderr.strip().removeprefix("jobflowd: error: ") or "no answer")
        error.exit_code = done.returncode
        raise error
    return {str(row["name"]): row["value"] for row in json.loads(done.stdout)["settings"]}


def _program(settings: Mapping[str, Any]) -> list[str]:
    from jobflow_worker.program import resolve_program

    named = settings.get("program")
    if not named:
        return ["FAIL  no program is named; give one in the configuration: program = 'FILE.py'"]
    args = settings.get("program_args")
    ref = resolve_program(str(named), Path.cwd())
    return _first_task(ref, dict(args) if isinstance(args, Mapping) else {})


def _recorded(ref: ProgramRef, args: dict[str, Any]) -> list[str]:
    try:
        os.chdir(ref.cwd)
    except OSError as error:
        return [f"FAIL  {ref.cwd}, where the run was started, cannot be entered: {error.strerror}"]
    return _first_task(ref, args)


def _first_task(ref: ProgramRef, args: dict[str, Any]) -> list[str]:
    from jobflow_worker.program import describe, load_program, make_program

    program = make_program(load_program(ref), args)
    lines = [f"ok    the program {safe(describe(ref))} can be loaded, with python {sys.executable}"]
    try:
        first = next(iter(program.generate_tasks()), None)
    except Exception as error:
        import traceback

        # The first frame is ours.
        frame = error.__traceback__.tb_next if error.__traceback__ is not None else None
        text = "".join(traceback.format_exception(type(error), error, frame))
        return [*lines, f"FAIL  generate_tasks() raised {type(error).__name__}", *_detail(text)]
    if first is None:
        where = safe(os.getcwd())
        return [*lines, f"FAIL  generate_tasks() names no task; relative paths begin at {where}"]
    return [*lines, f"ok    generate_tasks() names a first task, {safe(first.task_id)!r}"]


def _detail(text: str) -> list[str]:
    return [f"      {safe(line)}" for line in text.rstrip().splitlines()]


def _told(output: Output, lines: list[str], code: int) -> int:
    output.line("doctor", {"findings": lines, "exit_code": code}, "\n".join(lines))
    return code
