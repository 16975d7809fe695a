"""`replay TASK`: that task's spec once more, here, in the foreground, where one can look at it.

Runs the user's code in this very process, in the directory where the run was started, with the
session's own program and arguments. Nothing of it is recorded: the task's state stays as it is.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from jobflow_worker.program import (
    CurrentAttempt,
    ProgramError,
    ProgramRef,
    TaskProgram,
    load_program,
    make_program,
    set_current_attempt,
)
from jobflow_worker.sessionfiles import SessionFileError, SessionPaths, SessionRecord
from jobflowctl import errors
from jobflowctl.client import Client
from jobflowctl.output import Output
from jobflowctl.text import duration
from jobflowd import api

#: Progress is shown at most this often, in seconds.
_SHOW_S: Final = 0.5


class _TaskFailed(errors.CtlError):
    exit_code = errors.EXIT_TASKS_FAILED


class _ProgramFault(errors.CtlError):
    def __init__(self, error: ProgramError) -> None:
        detail = f"\n{error.detail.rstrip()}" if error.detail else ""
        super().__init__(f"{error.sentence}{detail}")
        self.exit_code = error.exit_code


class _Progress:
    """What the task's `progress_cb` says, now and then, on stderr."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._shown_at = float("-inf")

    def __call__(self, fraction: float, info: dict[str, Any] | None = None) -> None:
        now = time.monotonic()
        if now - self._shown_at >= _SHOW_S or fraction >= 1:
            self._shown_at = now
            words = f" {json.dumps(info, default=str)}" if info else ""
            self._output.say(f"{100 * fraction:.0f} %{words}")


def replay(client: Client, output: Output, task_id: str, *, pdb: bool) -> int:
    """Run the task; 0 if it succeeds, 3 if it fails. Raises `CtlError`."""
    body = client.call("spec", {"task_id": task_id})
    spec = api.decode_body(base64.b64decode(body["spec"]))
    # The daemon has said all that is needed; it need not keep a line open while the task runs.
    client.close()
    program = _program(client.place)
    scratch = Path(tempfile.gettempdir()) / f"jobflow-replay-{os.getpid()}"
    began = time.monotonic()

    def make_scratch() -> Path:
        scratch.mkdir(mode=0o700)
        return scratch

    set_current_attempt(
        CurrentAttempt(task_id, int(body["attempt"]), "replay", make_scratch, lambda: None)
    )
    output.say(f"replaying {task_id}, pid {os.getpid()}, in {os.getcwd()}")
    try:
        with _aside(output):
            result = program.execute_task(spec, _Progress(output))
        result = result if isinstance(result, dict) else {"result": result}
        api.check_body(result)
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        failure = _failed(output, error, began, pdb=pdb)
        if output.mode == "json":
            output.data("replay", _told(task_id, began, error))
        raise failure from None
    finally:
        set_current_attempt(None)
        shutil.rmtree(scratch, ignore_errors=True)
    took = time.monotonic() - began
    output.say(f"succeeded after {duration(took)}")
    output.line(
        "replay",
        {"ok": True, "task_id": task_id, "duration_s": round(took, 3), "result": result},
        json.dumps(result, default=str),
    )
    return 0


@contextlib.contextmanager
def _aside(output: Output) -> Iterator[None]:
    """What the task prints goes to stderr where stdout is to be one JSON object."""
    if output.mode != "json":
        yield
        return
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def _told(task_id: str, began: float, error: BaseException) -> dict[str, Any]:
    took = round(time.monotonic() - began, 3)
    text = f"{type(error).__name__}: {error}"
    return {"ok": False, "task_id": task_id, "duration_s": took, "error": text}


def on_record(place: api.SessionPlace) -> tuple[SessionRecord, ProgramRef]:
    """What a session was started with. Raises `CtlError`."""
    try:
        record = SessionRecord.load(SessionPaths(place.dir).session_file)
        return record, ProgramRef.from_json(record.program)
    except (SessionFileError, ValueError) as error:
        raise errors.CtlError(str(error)) from None


def _program(place: api.SessionPlace) -> TaskProgram:
    """The session's program, made as a worker makes it."""
    record, ref = on_record(place)
    try:
        os.chdir(ref.cwd)
    except OSError as error:
        raise errors.CtlError(
            f"{ref.cwd}, where the run was started, cannot be entered: {error.strerror}."
        ) from None
    try:
        return make_program(load_program(ref), dict(record.program_args))
    except ProgramError as error:
        raise _ProgramFault(error) from None


def _failed(output: Output, error: BaseException, began: float, *, pdb: bool) -> _TaskFailed:
    took = duration(time.monotonic() - began)
    frame = error.__traceback__
    # The first frame is ours.
    frame = frame.tb_next if frame is not None else None
    output.say("".join(traceback.format_exception(type(error), error, frame)).rstrip())
    if pdb and frame is not None:
        import pdb as debugger

        debugger.post_mortem(frame)
    hint = "" if pdb or not sys.stdin.isatty() else "`--pdb` opens the debugger where it failed."
    return _TaskFailed(f"It failed after {took}: {type(error).__name__}.", hint)
