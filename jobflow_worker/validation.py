"""Strict validation of what a peer sent, and the wire form of an envelope.

Rules
-----
* Validation is total: `from_wire` returns an `Envelope` or raises `Malformed`, nothing else. The
  envelope is judged first, then each item of a list by itself: a bad item is dropped and counted
  in `Envelope.bad_items`, its neighbours live.
* Unknown payload fields are ignored (a newer peer may add optional ones); unknown types are not.
* The tables here and the classes in `messages.py` change together; a test compares them.

Only `codec.py` calls `to_wire` and `from_wire`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Final

from jobflow_worker import limits
from jobflow_worker.messages import (
    FAILURE_CAUSES,
    MANAGER,
    REJECT_CODES,
    RETURN_CAUSES,
    SHUTDOWN_REASONS,
    VERDICTS,
    VERSION,
    WORKER,
    Ack,
    Assign,
    Assignment,
    Cancel,
    Envelope,
    Failed,
    Finished,
    Heartbeat,
    Held,
    Malformed,
    Progress,
    Register,
    Reject,
    Report,
    RequestWork,
    ResultFile,
    Returned,
    Shutdown,
    ShutdownAck,
    TaskFailed,
    TaskFinished,
    TaskReturned,
    Usage,
    Verdict,
    Welcome,
    is_label,
    is_worker_id,
)

# --- checks: a value in, the value out, or Malformed -----------------------------------------

Check = Callable[[Any], Any]


def _int(low: int, high: int) -> Check:
    def check(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise Malformed(f"not a whole number from {low} to {high}")
        return value

    return check


_SECONDS_MAX: Final = 1e12


def _number(low: float = 0.0, high: float = _SECONDS_MAX) -> Check:
    def check(value: Any) -> float:
        if type(value) not in (int, float) or not (math.isfinite(value) and low <= value <= high):
            raise Malformed(f"not a number from {low} to {high}")
        return float(value)

    return check


def _text(limit: int, *, empty: bool = True) -> Check:
    def check(value: Any) -> str:
        if type(value) is not str or len(value) > limit or not (empty or value):
            raise Malformed(f"not a text of at most {limit} characters")
        return value

    return check


def _blob(limit: int) -> Check:
    def check(value: Any) -> bytes:
        if type(value) is not bytes or len(value) > limit:
            raise Malformed(f"not bytes, at most {limit}")
        return value

    return check


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise Malformed("not true or false")
    return value


def _one_of(words: tuple[str, ...]) -> Check:
    def check(value: Any) -> str:
        if value not in words:
            raise Malformed(f"not one of {', '.join(words)}")
        return str(value)

    return check


def _maybe(inner: Check) -> Check:
    return lambda value: None if value is None else inner(value)


def _label_check(value: Any) -> str:
    if type(value) is not str or not is_label(value):
        raise Malformed("not a plain name")
    return value


def _tuple_of(kind: Callable[..., Any], *checks: Check) -> Check:
    size = len(checks)

    def check(value: Any) -> Any:
        if type(value) is not list or len(value) != size:
            raise Malformed(f"not a list of {size} fields")
        return kind(*[one(field) for one, field in zip(checks, value, strict=True)])

    return check


_U63 = _int(0, 2**63 - 1)
_ATTEMPT = _int(1, 2**31)
_WORD = _text(limits.WORD_CHARS_MAX)
_TASK_ID = _text(limits.TASK_ID_CHARS_MAX, empty=False)
_SECONDS = _number()
_TAIL = _text(limits.OUTPUT_TAIL_BYTES_MAX)
_ERROR = _text(limits.ERROR_CHARS_MAX)

_HELD_SLOW = _tuple_of(Held, _TASK_ID, _ATTEMPT)
_USAGE = _tuple_of(Usage, _SECONDS, _SECONDS, _U63)
_FILE = _tuple_of(ResultFile, _label_check, _int(0, limits.RESULT_BYTES_MAX), _text(64))
_ASSIGNMENT_SLOW = _tuple_of(
    Assignment,
    _TASK_ID,
    _ATTEMPT,
    _blob(limits.SPEC_BYTES_MAX),
    _maybe(_SECONDS),
    _maybe(_U63),
)
_FINISHED_SLOW = _tuple_of(
    Finished,
    _TASK_ID,
    _ATTEMPT,
    _maybe(_blob(limits.RESULT_INLINE_BYTES_MAX)),
    _maybe(_FILE),
    _USAGE,
    _TAIL,
)
_FAILED = _tuple_of(
    Failed,
    _TASK_ID,
    _ATTEMPT,
    _one_of(FAILURE_CAUSES),
    _ERROR,
    _text(limits.TRACEBACK_CHARS_MAX),
    _maybe(_WORD),
    _maybe(_int(-(2**31), 2**31)),
    _USAGE,
    _TAIL,
)
_RETURNED = _tuple_of(Returned, _TASK_ID, _ATTEMPT, _one_of(RETURN_CAUSES), _bool)
_PROGRESS = _tuple_of(
    Progress,
    _TASK_ID,
    _ATTEMPT,
    _number(0.0, 1.0),
    _maybe(_blob(limits.PROGRESS_INFO_BYTES_MAX)),
)
_VERDICT = _tuple_of(Verdict, _U63, _one_of(VERDICTS))


# The items of which a run has millions, in their common shape: one look at each field. Whatever is
# not of that shape is judged by the tables above, which also have the words for it.


def _is_name(task_id: Any, attempt: Any) -> bool:
    return (
        type(task_id) is str
        and 0 < len(task_id) <= limits.TASK_ID_CHARS_MAX
        and type(attempt) is int
        and 0 < attempt <= 2**31
    )


def _held(value: Any) -> Any:
    if type(value) is list and len(value) == 2 and _is_name(value[0], value[1]):
        return Held(value[0], value[1])
    return _HELD_SLOW(value)


def _assignment(value: Any) -> Any:
    if type(value) is list and len(value) == 5:
        task_id, attempt, spec, timeout_s, memory_bytes = value
        if (
            timeout_s is None
            and memory_bytes is None
            and type(spec) is bytes
            and len(spec) <= limits.SPEC_BYTES_MAX
            and _is_name(task_id, attempt)
        ):
            return Assignment(task_id, attempt, spec, None, None)
    return _ASSIGNMENT_SLOW(value)


def _is_usage(value: Any) -> bool:
    if type(value) is not list or len(value) != 3:
        return False
    duration_s, cpu_s, rss = value
    return (
        type(duration_s) is float
        and 0.0 <= duration_s <= _SECONDS_MAX
        and type(cpu_s) is float
        and 0.0 <= cpu_s <= _SECONDS_MAX
        and type(rss) is int
        and 0 <= rss < 2**63
    )


def _finished(value: Any) -> Any:
    if type(value) is list and len(value) == 6:
        task_id, attempt, result, file, usage, tail = value
        if (
            file is None
            and type(result) is bytes
            and len(result) <= limits.RESULT_INLINE_BYTES_MAX
            and type(tail) is str
            and len(tail) <= limits.OUTPUT_TAIL_BYTES_MAX
            and _is_usage(usage)
            and _is_name(task_id, attempt)
        ):
            return Finished(task_id, attempt, result, None, Usage(*usage), tail)
    return _exactly_one_result(value)


class _Items:
    """A list whose bad items are dropped and counted, each judged by itself."""

    def __init__(self, item: Check, most: int = limits.ITEMS_PER_MESSAGE_MAX) -> None:
        self.item = item
        self.most = most

    def sift(self, value: Any) -> tuple[tuple[Any, ...], int]:
        if type(value) is not list or len(value) > self.most:
            raise Malformed(f"not a list of at most {self.most} items")
        good, bad, item = [], 0, self.item
        for one in value:
            try:
                good.append(item(one))
            except Malformed:
                bad += 1
        return tuple(good), bad


def _exactly_one_result(value: Any) -> Finished:
    item: Finished = _FINISHED_SLOW(value)
    if (item.result is None) == (item.file is None):
        raise Malformed("a result is either inline or a file")
    return item


_HELD_LIST = _Items(_held, limits.ATTEMPTS_PER_WORKER_MAX)
_ANSWER = {"epoch": _U63, "seq": _U63, "base": _U63}

_REPORT: dict[str, Check | _Items] = {
    "epoch": _U63,
    "hb_seq": _U63,
    "seen": _U63,
    "floor": _U63,
    "credit": _int(0, limits.ATTEMPTS_PER_WORKER_MAX),
    "running": _HELD_LIST,
    "waiting": _HELD_LIST,
    "settled": _HELD_LIST,
    "progress": _Items(_PROGRESS, limits.ATTEMPTS_PER_WORKER_MAX),
    "same": _bool,
    "gap": _bool,
    "leaving": _maybe(_one_of(RETURN_CAUSES)),
    "rss_bytes": _U63,
    "load": _number(),
    "time_left_s": _maybe(_SECONDS),
    "brief": _bool,
}

_FIELDS: dict[type[Any], dict[str, Check | _Items]] = {
    Register: {
        "protocol_min": _int(0, 10_000),
        "protocol_max": _int(0, 10_000),
        "version": _WORD,
        "python": _WORD,
        "host": _WORD,
        "pid": _U63,
        "slots": _int(1, limits.SLOTS_MAX),
        "transport": _one_of(("zmq", "fs")),
        "program_hash": _WORD,
        "floor": _U63,
        "launch_id": _maybe(_label_check),
        "batch_job_id": _maybe(_WORD),
        "held": _HELD_LIST,
        "time_left_s": _maybe(_SECONDS),
    },
    Heartbeat: _REPORT,
    RequestWork: _REPORT,
    TaskFinished: {"floor": _U63, "items": _Items(_finished)},
    TaskFailed: {"floor": _U63, "items": _Items(_FAILED)},
    TaskReturned: {"floor": _U63, "items": _Items(_RETURNED)},
    ShutdownAck: {"reason": _WORD},
    Welcome: {
        **_ANSWER,
        "session": _WORD,
        "heartbeat_s": _SECONDS,
        "lease_s": _SECONDS,
        "again": _bool,
        "idle_timeout_s": _maybe(_SECONDS),
        "manager_timeout_s": _SECONDS,
    },
    Assign: {**_ANSWER, "items": _Items(_assignment)},
    Ack: {**_ANSWER, "hb_seq": _U63, "verdicts": _Items(_VERDICT, 10_000), "want_full": _bool},
    Cancel: {
        **_ANSWER,
        "items": _Items(_held, limits.ATTEMPTS_PER_WORKER_MAX),
        "reason": _WORD,
    },
    Shutdown: {
        **_ANSWER,
        "now": _bool,
        "reason": _one_of(SHUTDOWN_REASONS),
        "grace_s": _SECONDS,
    },
    Reject: {**_ANSWER, "code": _one_of(REJECT_CODES), "sentence": _ERROR},
}

_BY_SENDER: Final[dict[str, dict[str, type[Any]]]] = {
    WORKER: {
        kind.__name__: kind
        for kind in (
            Register,
            Heartbeat,
            RequestWork,
            TaskFinished,
            TaskFailed,
            TaskReturned,
            ShutdownAck,
        )
    },
    MANAGER: {kind.__name__: kind for kind in (Welcome, Assign, Ack, Cancel, Shutdown, Reject)},
}

_OTHER: Final = {WORKER: MANAGER, MANAGER: WORKER}


def _payload(kind: type[Any], payload: Mapping[str, Any]) -> tuple[Any, int]:
    """Build the message; returns it with the number of dropped list items."""
    values: dict[str, Any] = {}
    bad = 0
    for name, check in _FIELDS[kind].items():
        if name not in payload:
            continue
        try:
            if isinstance(check, _Items):
                values[name], dropped = check.sift(payload[name])
                bad += dropped
            else:
                values[name] = check(payload[name])
        except Malformed as error:
            raise Malformed(f"{kind.__name__}.{name}: {error}") from None
    try:
        if kind is Heartbeat or kind is RequestWork:
            return kind(Report(**values)), bad
        return kind(**values), bad
    except TypeError:
        raise Malformed(f"{kind.__name__}: a required field is missing") from None


def to_wire(envelope: Envelope) -> dict[str, Any]:
    """The map that travels. Assumes a valid message: senders build them by these classes."""
    message = envelope.message
    kind = type(message)
    body: Any = message.report if isinstance(message, Heartbeat | RequestWork) else message
    return {
        "v": VERSION,
        "msg_id": f"{envelope.sender}:{envelope.counter}",
        "ts": envelope.ts,
        "src": {"role": envelope.role, "id": envelope.sender},
        "dst": {"role": _OTHER[envelope.role], "id": envelope.recipient},
        "type": kind.__name__,
        "payload": {name: getattr(body, name) for name in _FIELDS[kind]},
    }


def _address(value: Any, name: str) -> tuple[str, str]:
    if type(value) is not dict or type(value.get("id")) is not str:
        raise Malformed(f"{name} is not an address")
    role, who = value.get("role"), value["id"]
    if type(role) is not str or role not in _OTHER or len(who) > limits.WORD_CHARS_MAX:
        raise Malformed(f"{name} is not an address")
    if role == WORKER and who and not is_worker_id(who):
        raise Malformed(f"{name} is not a worker id")
    return role, who


def _shown(value: Any) -> str:
    """A peer's value for a complaint. Never the text of a structure: that may take seconds."""
    return repr(value[:40]) if type(value) is str else type(value).__name__


def from_wire(value: Any, *, sent_by: str) -> Envelope:
    """Validate one decoded map, coming from the given role.

    Raises `Malformed` for everything that is not a valid message in that direction.
    """
    if type(value) is not dict:
        raise Malformed("an envelope is a map")
    if value.get("v") != VERSION:
        version = value.get("v")
        shown = str(version) if type(version) is int else _shown(version)
        raise Malformed(f"version {shown} is not {VERSION}")
    role, sender = _address(value.get("src"), "src")
    other, recipient = _address(value.get("dst"), "dst")
    if role != sent_by or other != _OTHER[sent_by]:
        raise Malformed("wrong direction")
    if not sender:
        raise Malformed("src is not an address")
    msg_id = value.get("msg_id")
    prefix, _, number = msg_id.rpartition(":") if type(msg_id) is str else ("", "", "")
    if prefix != sender or not (number.isascii() and number.isdigit() and len(number) < 19):
        raise Malformed("msg_id is not the sender's id and a counter")
    name = value.get("type")
    kind = _BY_SENDER[sent_by].get(name) if type(name) is str else None
    if kind is None:
        raise Malformed(f"unknown type {_shown(name)}")
    payload = value.get("payload")
    if type(payload) is not dict:
        raise Malformed("payload is not a map")
    message, bad = _payload(kind, payload)
    ts = _number(-1e12)(value.get("ts"))
    return Envelope(role, sender, recipient, int(number), ts, message, bad)
