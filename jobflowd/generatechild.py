"""What runs inside the generator child: generate_tasks(), and the stream of what it yields.

Rules
-----
* The user's code runs here and nowhere in the daemon; whatever it does, even `os._exit`, ends this
  process only. What it prints goes to this process's output, a log file, never into the stream.
* Items are taken one by one and sent in batches by size; a thread sends the rest, at once after a
  pause and then every FLUSH_S, because a generator may think for an hour after a task. Memory is
  bounded by one batch: ids are not collected, the daemon compares them with its store.
* The stream is a pipe of frames, each a length and an encoded body: `["tasks", column, ...]` with
  the fields of `Definition` as columns (a list, or one value that holds for all), and at last
  `["end", error or None, detail]`.

Started by `generate.py` only.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import Any, Final

from jobflow_worker import limits
from jobflow_worker.codec import Unencodable, encode_body
from jobflow_worker.processes import die_with_parent
from jobflow_worker.program import (
    ProgramError,
    ProgramRef,
    TaskDefinition,
    TaskProgram,
    load_program,
    make_program,
)
from jobflow_worker.sessionfiles import SessionFileError, SessionPaths, SessionRecord

#: A batch is sent at this many definitions or bytes of specs, or so many seconds after the last.
BATCH_COUNT: Final = limits.ITEMS_PER_MESSAGE_MAX
BATCH_BYTES: Final = limits.MIB
FLUSH_S: Final = 0.05
#: Bytes of a frame's length, most significant first.
PREFIX_BYTES: Final = 4

_LEGACY_FIELDS: Final = (
    "max_retries",
    "priority",
    "timeout_s",
    "time_request_s",
    "memory_limit_bytes",
)

Row = tuple[Any, ...]


def _column(values: tuple[Any, ...]) -> Any:
    """One value instead of many equal ones: most programs say the same for all their tasks."""
    first = values[0]
    if isinstance(first, str | bytes) or values.count(first) != len(values):
        return list(values)
    return first


class Unusable(Exception):
    """Something that generate_tasks() gave and that cannot become a task; a sentence."""


class Stream:
    """Batches rows into frames. `put` may be called by one thread; a second one sends by time."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._rows: deque[Row] = deque()
        self._bytes = 0
        self._sending = threading.Lock()
        self._fresh = threading.Event()

    def start(self) -> None:
        """Begin to send by time."""
        threading.Thread(target=self._send_by_time, name="flush", daemon=True).start()

    def put(self, row: Row, size: int) -> None:
        """Take a row. Blocks while the daemon does not read and a batch is full."""
        self._rows.append(row)
        self._bytes += size
        if self._bytes >= BATCH_BYTES or len(self._rows) >= BATCH_COUNT:
            self._bytes = 0
            self.flush()
        elif not self._fresh.is_set():
            self._fresh.set()

    def flush(self) -> None:
        """Send what is there, in order."""
        with self._sending:
            while self._rows:
                columns = zip(*self._take(), strict=True)
                self._send(["tasks", *map(_column, columns)])

    def end(self, error: str | None, detail: str) -> None:
        """Send what is left and the last frame."""
        self.flush()
        with self._sending:
            self._send(["end", error, detail])

    def _take(self) -> list[Row]:
        """The rows of one frame. Another thread may append meanwhile, none takes."""
        rows: list[Row] = []
        size = 0
        while self._rows and len(rows) < BATCH_COUNT and size < BATCH_BYTES:
            row = self._rows.popleft()
            rows.append(row)
            size += len(row[1])
        return rows

    def _send(self, frame: list[Any]) -> None:
        body = encode_body(frame)
        view = memoryview(len(body).to_bytes(PREFIX_BYTES, "big") + body)
        while view:
            view = view[os.write(self._fd, view) :]

    def _send_by_time(self) -> None:
        while self._fresh.wait():
            self._fresh.clear()
            try:
                self.flush()
            except OSError:
                # The daemon has closed the pipe: nobody wants the rest.
                os._exit(1)
            time.sleep(FLUSH_S)


def main() -> int:
    """Entry point: `SESSION_DIR FD PARENT_PID` in argv."""
    session_dir, fd, parent = sys.argv[1:4]
    # A restarted daemon generates anew, so nobody waits for what an orphan yields.
    die_with_parent(int(parent))
    for output in (sys.stdout, sys.stderr):
        # Whatever ends this process, its last line is in the log.
        output.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    os.set_inheritable(int(fd), False)
    stream = Stream(int(fd))
    stream.start()
    error, detail = generate(Path(session_dir), stream)
    try:
        stream.end(error, detail)
    except OSError:
        return 1
    return 0 if error is None else 65


def generate(session_dir: Path, stream: Stream) -> tuple[str | None, str]:
    """Run the session's program into the stream. Returns (None, "") or a line and its detail."""
    try:
        record = SessionRecord.load(SessionPaths(session_dir).session_file)
        os.chdir(record.cwd)
        program = load_program(ProgramRef.from_json(record.program))
        made = make_program(program, dict(record.program_args))
        _stream_tasks(made, stream)
    except ProgramError as error:
        return _clip(error.sentence), _clip_both_ends(error.detail)
    except (Unusable, SessionFileError) as error:
        return _clip(str(error)), ""
    except BaseException as error:
        return _describe(error)
    return None, ""


def _stream_tasks(program: TaskProgram, stream: Stream) -> None:
    given: Any = program.generate_tasks()
    if not isinstance(given, Iterable):
        raise Unusable(
            f"generate_tasks() returned {_kind(given)}; return a list of TaskDefinition, or yield"
            " them one by one"
        )
    put = stream.put
    for number, item in enumerate(given, start=1):
        one = item if isinstance(item, TaskDefinition) else _from_legacy(item, number)
        try:
            spec = encode_body(one.spec)
        except Unencodable as error:
            raise Unusable(_unencodable(one.task_id, str(error))) from None
        if len(spec) > limits.SPEC_BYTES_MAX:
            raise Unusable(_too_large(one.task_id, len(spec)))
        row = (
            one.task_id,
            spec,
            blake2b(spec, digest_size=16).digest(),
            one.max_retries,
            one.priority,
            one.timeout_s,
            one.time_request_s,
            one.memory_limit_bytes,
        )
        put(row, len(spec))


def _from_legacy(item: Any, number: int) -> TaskDefinition:
    """A TaskDefinition from any object that looks like one: programs written for other systems
    bring their own class."""
    try:
        task_id, spec = item.task_id, item.spec
    except AttributeError:
        raise Unusable(
            f"generate_tasks() gave {_kind(item)} as item {number}, not a TaskDefinition"
        ) from None
    extra = {name: getattr(item, name, None) for name in _LEGACY_FIELDS}
    given = {name: value for name, value in extra.items() if value is not None}
    try:
        return TaskDefinition(task_id, spec, **given)
    except (TypeError, ValueError) as error:
        raise Unusable(f"generate_tasks() gave a wrong item {number}: {error}") from None


# --- sentences --------------------------------------------------------------------------------


def _kind(value: Any) -> str:
    return "None" if value is None else f"a value of type {type(value).__qualname__}"


def _unencodable(task_id: str, fault: str) -> str:
    place = "spec" + fault.removeprefix("value")
    return (
        f"task {task_id!r} cannot be stored: {place}; a spec holds texts, numbers, booleans, None,"
        " lists and dicts with text keys"
    )


def _too_large(task_id: str, size: int) -> str:
    return (
        f"the spec of task {task_id!r} has {size} bytes, more than {limits.SPEC_BYTES_MAX}; put the"
        " data into a file and its path into the spec"
    )


def _describe(error: BaseException) -> tuple[str, str]:
    """The user's error in one line, and its traceback without our own frames."""
    try:
        text = " ".join(str(error).split())
    except BaseException:  # A hostile __str__ must not hide the rest.
        text = "(its text cannot be shown)"
    name = type(error).__name__
    line = f"generate_tasks() raised {name}: {text}" if text else f"generate_tasks() raised {name}"
    try:
        frames = _users_frames(error.__traceback__)
        detail = "".join(traceback.format_exception(type(error), error, frames))
    except BaseException:
        detail = ""
    return _clip(line), _clip_both_ends(detail)


def _users_frames(frame: TracebackType | None) -> TracebackType | None:
    while frame is not None and frame.tb_frame.f_code.co_filename == __file__:
        frame = frame.tb_next
    return frame


def _clip(line: str) -> str:
    return _storable(line)[: limits.ERROR_CHARS_MAX]


def _clip_both_ends(text: str) -> str:
    text = _storable(text)
    if len(text) <= limits.TRACEBACK_CHARS_MAX:
        return text
    half = limits.TRACEBACK_CHARS_MAX // 2 - 10
    return f"{text[:half]}\n[...]\n{text[-half:]}"


def _storable(text: str) -> str:
    """File names that are not UTF-8 bring lone surrogates, which no codec takes."""
    return text.encode(errors="backslashreplace").decode()
