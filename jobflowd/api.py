"""PUBLISHED: the admin protocol and where to find a session. All that jobflowctl may import.

One JSON object a line over the session's Unix socket, one line back:

    {"v": 1, "id": 7, "cmd": "scale", "args": {"workers": 20}}
    {"id": 7, "ok": true, ...body}     or     {"id": 7, "error": {"code", "message", "hint"}}

Rules
-----
* `v`, `id` and `args` may be left out, so that the daemon can be driven by hand with socat.
  Unknown fields beside them are ignored; an unknown command or argument is a "usage" error.
* `COMMANDS` is the whole table. Each argument has a type and bounds; nothing from a line is
  looked up anywhere else. `changes` separates what acts from what only reads.
* Lines are ASCII: data can never carry a control character to somebody's terminal.
* Only the standard library, and few modules of it: every verb of jobflowctl pays for this import.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from jobflow_worker.pointers import pointers_dir, state_dir
from jobflowd.places import (
    Ended,
    NoSuchSession,
    NotOurs,
    SessionPlace,
    check_private_directory,
    connect_unix,
    find_session,
    is_session_name,
    list_sessions,
    runtime_dirs,
    socket_path,
    socket_paths,
    this_host,
)

__all__ = [
    "COMMANDS",
    "ERROR_CODES",
    "LINE_BYTES_MAX",
    "LOG_BYTES_MAX",
    "PAGE_MAX",
    "READS",
    "TASK_STATES",
    "VERSION",
    "BadRequest",
    "Call",
    "Command",
    "Ended",
    "NoSuchSession",
    "NotOurs",
    "SessionPlace",
    "check_body",
    "check_private_directory",
    "configuration_text",
    "connect_unix",
    "decode_body",
    "encode_answer",
    "encode_call",
    "encode_error",
    "find_session",
    "is_session_name",
    "list_sessions",
    "parse_call",
    "pointers_dir",
    "program_text",
    "readable_body",
    "runtime_dirs",
    "schema",
    "socket_path",
    "socket_paths",
    "state_dir",
    "this_host",
]

VERSION: Final = 1
#: One request line. The longest sensible one cancels ten thousand tasks by name.
LINE_BYTES_MAX: Final = 1024 * 1024
#: Rows of one page of any read.
PAGE_MAX: Final = 1000
#: One piece of a log.
LOG_BYTES_MAX: Final = 256 * 1024
_IDS_MAX: Final = 10_000
_WORD_MAX: Final = 255
_PATH_MAX: Final = 4096

#: Every code that an error may carry, and what it means.
ERROR_CODES: Final[dict[str, str]] = {
    "usage": "the request is not one that the daemon knows; nothing was done",
    "version": "the request speaks another protocol version",
    "not_found": "the named task, worker or launch does not exist",
    "conflict": "it cannot be done in the present state of the run; nothing was done",
    "busy": "too many clients, or the answer would be too large; ask again or for less",
    "degraded": "the database cannot be written now, so nothing can be changed",
    "internal": "a fault of the daemon; its log has the details",
}

#: `held` tasks are queued ones that wait for a survivor of a restart.
TASK_STATES: Final = (
    "queued",
    "assigned",
    "running",
    "succeeded",
    "failed",
    "canceled",
    "held",
)


class BadRequest(ValueError):
    """A line that is not a valid request; carries what the error answer needs."""

    def __init__(self, code: str, message: str, hint: str = "", call_id: Any = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.call_id = call_id


@dataclass(frozen=True, slots=True)
class Call:
    """A valid request: `args` holds checked values, absent optional ones are absent."""

    call_id: int | str | None
    cmd: str
    args: dict[str, Any]


# --- argument types: a JSON value in, the same value out, or ValueError saying what is wanted --

_Check = Callable[[Any], Any]


def _whole(low: int, high: int) -> _Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return value

    return check


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError("true or false")
    return value


def _text(value: Any) -> str:
    if type(value) is not str or not 1 <= len(value) <= _WORD_MAX:
        raise ValueError(f"a text of 1 to {_WORD_MAX} characters")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("a text without lone surrogates") from None
    return value


def _path(value: Any) -> str:
    if type(value) is not str or not 1 < len(value) <= _PATH_MAX or value[0] != "/":
        raise ValueError(f"an absolute path of at most {_PATH_MAX} characters")
    if "\0" in value:
        raise ValueError("a path without NUL")
    return value


def _place(value: Any) -> str:
    # A place in a log: which file, and how far into it.
    parts = value.split(":") if type(value) is str else []
    if len(parts) != 2 or not all(p.isascii() and p.isdigit() and len(p) <= 20 for p in parts):
        raise ValueError("the `next` of the piece before")
    return str(value)


def _mark(value: Any) -> str:
    # What queries.py counts in; eighteen digits are below what SQLite can compare.
    if type(value) is not str or not (value.isascii() and value.isdigit() and len(value) <= 18):
        raise ValueError("the `next` of the page before")
    return value


def _choice(*words: str) -> _Check:
    def check(value: Any) -> str:
        if type(value) is not str or value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return value

    return check


def _texts(value: Any) -> list[str]:
    if type(value) is not list or not 1 <= len(value) <= _IDS_MAX:
        raise ValueError(f"a list of 1 to {_IDS_MAX} texts")
    return [_text(one) for one in value]


@dataclass(frozen=True, slots=True)
class Command:
    """One row of the table. `one_of`: exactly one of these arguments must be given."""

    changes: bool
    what: str
    args: Mapping[str, _Check]
    required: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()


_LIMIT: Final = _whole(1, PAGE_MAX)
_PAGE: Final[dict[str, _Check]] = {"after": _mark, "limit": _LIMIT}

COMMANDS: Final[dict[str, Command]] = {
    "ping": Command(False, "Is anybody there?", {}),
    "status": Command(False, "The whole run on one screen.", {}),
    "tasks": Command(
        False,
        "One page of tasks; `after` is the `next` of the page before.",
        {"state": _choice(*TASK_STATES), **_PAGE},
    ),
    "task": Command(False, "Everything about one task.", {"task_id": _text}, required=("task_id",)),
    "explain": Command(
        False,
        "The story of one task: what it waits for, who has it, what is left of its budgets.",
        {"task_id": _text},
        required=("task_id",),
    ),
    "spec": Command(
        False,
        "A task's spec as the bytes that a worker gets, for `replay`.",
        {"task_id": _text},
        required=("task_id",),
    ),
    "failures": Command(False, "Failed tasks, grouped by cause.", {}),
    "results": Command(False, "One page of results.", dict(_PAGE)),
    "workers": Command(False, "The connected workers.", {"after": _text, "limit": _LIMIT}),
    "launches": Command(False, "What was submitted to bring workers.", dict(_PAGE)),
    "events": Command(
        False,
        "History, oldest first, of everything or of one task; `next` also serves to follow.",
        {"task_id": _text, "last": _LIMIT, **_PAGE},
    ),
    "logs": Command(
        False,
        "A piece of a log: of the daemon, a worker, a launch, or a task's attempts. Without `after`"
        " its end; `next` serves to follow.",
        {
            "of": _choice("daemon", "worker", "launch", "task"),
            "name": _text,
            "after": _place,
            "bytes": _whole(1, LOG_BYTES_MAX),
        },
        required=("of",),
    ),
    "attempts": Command(False, "One page of all ended attempts, for a report.", dict(_PAGE)),
    "fleet": Command(False, "One page of all workers that ever registered.", dict(_PAGE)),
    "metrics": Command(False, "Counters and gauges as OpenMetrics text.", {}),
    "backup": Command(
        False,
        "Write a complete copy of the database to a new file.",
        {"path": _path},
        required=("path",),
    ),
    "snapshot": Command(False, "Status, workers and launches at one moment.", {}),
    "scale": Command(
        True,
        "Set the wanted number of workers; `now` does not wait for running tasks.",
        {"workers": _whole(0, 100_000), "now": _flag},
        required=("workers",),
    ),
    "shutdown": Command(
        True, "End the run; `now` does not wait for running tasks.", {"now": _flag}
    ),
    "pause": Command(True, "Hand out no new tasks; running ones go on.", {}),
    "resume": Command(True, "Hand out tasks again.", {}),
    "drain": Command(
        True, "Let one worker finish and leave.", {"worker": _text}, required=("worker",)
    ),
    "cancel": Command(
        True,
        "Cancel tasks by id, or every task that has no outcome yet.",
        {"task_ids": _texts, "all": _flag},
        one_of=("task_ids", "all"),
    ),
    "retry": Command(
        True,
        "Queue failed or canceled tasks again, by id, all failed ones, or a group of `failures`.",
        {"task_ids": _texts, "failed": _flag, "group": _whole(0, 2**31)},
        one_of=("task_ids", "failed", "group"),
    ),
    "yield": Command(
        True,
        "Leave the session to a start: what `jobflowd serve` does at once, and a run never.",
        {},
    ),
    "release": Command(
        True,
        "Lift a quarantine (a worker id) or the pause of the launcher (`launcher`).",
        {"what": _text},
        required=("what",),
    ),
}

#: The commands that only read.
READS: Final = frozenset(name for name, command in COMMANDS.items() if not command.changes)


def schema(verb: str) -> str:
    """The schema name that the JSON output of a verb carries."""
    return f"jobflow.{verb}/1"


# --- the beginning of a project ---------------------------------------------------------------


def program_text() -> str:
    """A program that runs as it is, to be changed."""
    from jobflowd.template import PROGRAM

    return PROGRAM


def configuration_text(values: Mapping[str, Any], flags: Sequence[str]) -> str:
    """A commented jobflow.toml with these settings, and those of the flags of `jobflowd start`.

    Raises ValueError with a sentence for a flag or a value that a start would not take.
    """
    from jobflowd.template import configuration, parse_flags

    return configuration({**values, **parse_flags(flags)})


# --- bodies: specs and results as bytes -------------------------------------------------------


def decode_body(body: bytes) -> Any:
    """The spec or result in these bytes, exactly as a worker gets it. Raises ValueError."""
    from jobflow_worker.codec import decode_body as decode

    return decode(body)


def readable_body(body: bytes) -> Any:
    """The same as JSON can carry it: bytes become {"base64": text} and so on."""
    from jobflowd.answers import json_safe

    return json_safe(decode_body(body))


def check_body(value: Any) -> None:
    """Raises TypeError, naming the place, if a worker could not send this as a result."""
    from jobflow_worker.codec import encode_body

    encode_body(value)


# --- lines --------------------------------------------------------------------------------------


def _line(value: Mapping[str, Any]) -> bytes:
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    # JSON leaves DEL as it is; it is the one control character that ASCII output still has.
    return text.replace("\x7f", "\\u007f").encode("ascii") + b"\n"


def encode_call(call_id: int, cmd: str, args: Mapping[str, Any] | None = None) -> bytes:
    """A request line. Raises `BadRequest` (usage) if the line would be too long."""
    line = _line({"v": VERSION, "id": call_id, "cmd": cmd, "args": dict(args or {})})
    if len(line) > LINE_BYTES_MAX:
        raise BadRequest("usage", "The request is longer than 1 MiB.", "Name fewer tasks at once.")
    return line


def encode_answer(call_id: Any, body: Mapping[str, Any]) -> bytes:
    """The line of a good answer. Raises TypeError or ValueError if the body is not JSON."""
    return _line({"id": call_id, "ok": True, **body})


def encode_error(call_id: Any, code: str, message: str, hint: str = "") -> bytes:
    """The line of a refusal."""
    return _line({"id": call_id, "error": {"code": code, "message": message, "hint": hint}})


def parse_call(line: bytes) -> Call:
    """Read one request line, without its newline. Raises `BadRequest` and nothing else."""
    try:
        value = json.loads(line.decode("utf-8"), parse_int=_short_int, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise BadRequest("usage", "The line is not JSON.", _SHAPE) from None
    if type(value) is not dict:
        raise BadRequest("usage", "A request is a JSON object.", _SHAPE)
    call_id = value.get("id")
    if not _is_call_id(call_id):
        raise BadRequest("usage", "`id` is a whole number or a short text.", _SHAPE)
    version = value.get("v", VERSION)
    if type(version) is not int or version != VERSION:
        raise BadRequest(
            "version",
            f"This daemon speaks version {VERSION} of the admin protocol only.",
            "Use the jobflowctl of the same installation as the daemon.",
            call_id,
        )
    cmd = value.get("cmd")
    command = COMMANDS.get(cmd) if type(cmd) is str else None
    if command is None or type(cmd) is not str:
        hint = f"Commands: {', '.join(COMMANDS)}."
        raise BadRequest("usage", "Unknown command.", hint, call_id)
    args = value.get("args", {})
    if type(args) is not dict:
        raise BadRequest("usage", "`args` is a JSON object.", _SHAPE, call_id)
    return Call(call_id, cmd, _checked(cmd, command, args, call_id))


def _short_int(digits: str) -> int:
    # Old Pythons take seconds for an integer of a million digits.
    if len(digits) > 20:
        raise ValueError("an integer beyond 64 bits")
    return int(digits)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_SHAPE: Final = 'One request a line: {"v": 1, "id": 1, "cmd": "status", "args": {}}'


def _is_call_id(value: Any) -> bool:
    if value is None:
        return True
    if type(value) is str:
        return len(value) <= _WORD_MAX
    return type(value) is int and abs(value) < 2**63


def _checked(cmd: str, command: Command, args: dict[str, Any], call_id: Any) -> dict[str, Any]:
    """The arguments, each judged by its own check; null counts as not given."""
    known = ", ".join(command.args) or "none"
    values: dict[str, Any] = {}
    for name, value in args.items():
        check = command.args.get(name)
        if check is None:
            hint = f"Its arguments: {known}."
            raise BadRequest("usage", f"{cmd} has no argument {name[:40]!a}.", hint, call_id)
        if value is None:
            continue
        try:
            values[name] = check(value)
        except ValueError as error:
            raise BadRequest("usage", f"{cmd}: {name} is {error}.", "", call_id) from None
    for name in command.required:
        if name not in values:
            hint = f"Its arguments: {known}."
            raise BadRequest("usage", f"{cmd} needs {name}.", hint, call_id)
    # `all: false` is the same as not saying it.
    given = [name for name in command.one_of if name in values and values[name] is not False]
    if command.one_of and len(given) != 1:
        wanted = " or ".join(command.one_of)
        raise BadRequest("usage", f"{cmd} needs exactly one of {wanted}.", "", call_id)
    return values
