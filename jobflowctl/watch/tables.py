"""The lists of the view: their columns, and what is said about one row."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from jobflowctl.style import local, moment
from jobflowctl.text import duration, safe, safe_lines
from jobflowctl.watch.drawing import STATE_STYLES, heartbeat_style
from jobflowctl.watch.overview import event_style
from jobflowctl.watch.rows import Field, RowList

Body = Mapping[str, Any]

_ID_FIELDS: Final = ("task_id", "worker_id", "launch_id")


def make_lists() -> dict[str, RowList]:
    """The lists by the name of their screen."""
    return {
        "tasks": RowList(_tasks(), _key("task_id"), nothing="no such tasks", id="tasks"),
        "workers": RowList(
            _workers(), _key("worker_id"), nothing="no worker is connected", id="workers"
        ),
        "launches": RowList(
            _launches(), _key("launch_id"), nothing="nothing was launched", id="launches"
        ),
        "failures": RowList(
            _failures(), _key("signature"), nothing="nothing has failed", id="failures"
        ),
        "log": RowList(_log(), _event_key, nothing="nothing happened yet", id="log"),
    }


def matches(row: Body, text: str) -> bool:
    """Whether the text is in any field of the row, in any case."""
    wanted = text.casefold()
    return any(wanted in str(one).casefold() for one in row.values() if one not in (None, ""))


def detail_lines(row: Body) -> list[str]:
    """Everything that a row says, one field a line, long texts below their name."""
    lines: list[str] = []
    for name, value in row.items():
        if value in (None, "", [], {}):
            continue
        if isinstance(value, dict | list):
            value = json.dumps(value, indent=2, ensure_ascii=False, default=str)
        if str(name).endswith("_at"):
            value = f"{local(value)}"
        if str(name).endswith("_s") and isinstance(value, int | float):
            value = duration(value)
        found = safe_lines(value) or [""]
        if len(found) == 1:
            lines.append(f"{safe(name):<18}{found[0]}")
        else:
            lines += [safe(name), *(f"    {one}" for one in found)]
    return lines


# --- columns ------------------------------------------------------------------------------------


def _key(name: str) -> Any:
    return lambda row: row.get(name)


def _event_key(row: Body) -> object:
    return (row.get("at"), row.get("kind"), *(row.get(name) for name in _ID_FIELDS))


def _plain(title: str, name: str, *, right: bool = False, middle: bool = False) -> Field:
    return Field(title, _key(name), _key(name), right=right, middle=middle)


def _state(row: Body) -> str:
    return STATE_STYLES.get(str(row.get("state")), "")


def _first_line(row: Body) -> str:
    return (safe_lines(row.get("error") or "") or [""])[0]


def _took_s(row: Body) -> float | None:
    begun, ended = moment(row.get("started_at")), moment(row.get("finished_at"))
    return None if begun is None or ended is None else max(0.0, ended - begun)


def _tasks() -> list[Field]:
    def share(row: Body) -> str | None:
        fraction = row.get("progress")
        return f"{100 * fraction:.0f} %" if isinstance(fraction, int | float) else None

    def took(row: Body) -> str | None:
        seconds = _took_s(row)
        return None if seconds is None else duration(seconds)

    return [
        _plain("TASK", "task_id", middle=True),
        Field("STATE", _key("state"), _key("state"), _state),
        _plain("TRIES", "attempts", right=True),
        Field("DONE", share, _key("progress"), right=True),
        Field("TOOK", took, _took_s, right=True),
        _plain("WORKER", "worker_id", middle=True),
        Field("ERROR", _first_line, _first_line, lambda _: "red"),
    ]


def _workers() -> list[Field]:
    def heard(row: Body) -> str | None:
        age = row.get("heartbeat_age_s")
        return duration(age) if isinstance(age, int | float) else None

    def left(row: Body) -> str | None:
        seconds = row.get("time_left_s")
        return duration(seconds) if isinstance(seconds, int | float) else None

    def runs(row: Body) -> str:
        found = [str(one) for one in row.get("running") or ()]
        progress = row.get("progress") or {}
        fraction = progress.get(found[0]) if found else None
        share = f" {100 * fraction:.0f} %" if isinstance(fraction, int | float) else ""
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        return f"{found[0]}{share}{more}" if found else ""

    return [
        _plain("WORKER", "worker_id", middle=True),
        Field("STATE", _key("state"), _key("state"), _state),
        _plain("HOST", "host"),
        Field(
            "HEARD",
            heard,
            _key("heartbeat_age_s"),
            lambda row: heartbeat_style(row.get("heartbeat_age_s")),
            right=True,
        ),
        _plain("DONE", "done", right=True),
        _plain("FAILED", "failed", right=True),
        Field("LEFT", left, _key("time_left_s"), right=True),
        _plain("JOB", "batch_job_id"),
        Field("RUNNING", runs, runs),
    ]


def _launches() -> list[Field]:
    return [
        _plain("LAUNCH", "launch_id", middle=True),
        _plain("SYSTEM", "system"),
        Field("STATE", _key("state"), _key("state"), _state),
        _plain("JOB", "batch_job_id"),
        Field("SUBMITTED", lambda row: local(row.get("submitted_at"))[5:], _key("submitted_at")),
        _plain("WORKER", "worker_id", middle=True),
        Field("REASON", _key("reason"), _key("reason"), lambda _: "yellow"),
    ]


def _failures() -> list[Field]:
    def hosts(row: Body) -> str:
        found = row.get("hosts") or ()
        return ", ".join(str(one) for one in found) if isinstance(found, list) else str(found)

    return [
        Field("COUNT", _key("count"), _key("count"), lambda _: "red", right=True),
        _plain("WHAT THEY HAVE IN COMMON", "signature"),
        _plain("FOR EXAMPLE", "example_task_id", middle=True),
        Field("HOSTS", hosts, hosts),
        Field("LAST", lambda row: local(row.get("last_at"))[5:], _key("last_at")),
    ]


def _log() -> list[Field]:
    def who(row: Body) -> str:
        return " ".join(str(row[name]) for name in _ID_FIELDS if row.get(name))

    return [
        Field("WHEN", lambda row: local(row.get("at"))[5:], _key("at")),
        Field("WHAT", _key("kind"), _key("kind"), lambda row: event_style(str(row.get("kind")))),
        Field("WHO", who, who, middle=True),
        _plain("WORDS", "text"),
    ]
