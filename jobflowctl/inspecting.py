"""The verbs that look deeper: failures, explain, logs, results, metrics, backup.

Rule: as in `verbs.py`: nothing here prints or parses a command line, and what goes wrong is raised
as a `CtlError`. Everything that can be large is streamed, page by page or piece by piece.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TextIO

from jobflowctl import errors
from jobflowctl.client import Client
from jobflowctl.output import Output
from jobflowctl.text import count, safe
from jobflowctl.waiting import follow as asked_again
from jobflowd import api

Body = dict[str, Any]

_ENDED: Final = ("succeeded", "failed", "canceled")
#: `logs --follow` asks this often.
FOLLOW_S: Final = 0.5
#: A copy of a large database takes its time: about 3 s per GB.
BACKUP_TIMEOUT_S: Final = 1800.0
#: What the largest result may have; the worker's own limit is lower.
_RESULT_BYTES_MAX: Final = 1024 * 1024 * 1024
_RESULT_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,100}", re.ASCII)
#: Columns of a CSV file: more than anybody reads.
COLUMNS_MAX: Final = 2000


# --- logs ---------------------------------------------------------------------------------------


def logs(client: Client, output: Output, *, of: str, name: str | None, follow: bool) -> int:
    """A log's end; with `follow`, line by line until the run ends or the reader leaves."""
    if of == "task":
        return _task_logs(client, output, {"of": of, "name": name}, follow=follow)
    args: Body = {"of": of, "name": name, "bytes": api.LOG_BYTES_MAX}
    rest = ""
    while not output.closed:
        if args.get("after") is None:
            body = client.call("logs", args)
            client.open_no_more()
        else:
            found = asked_again(client, "logs", args, output.say)
            if found is None:
                break
            body = found
        *lines, rest = (rest + str(body.get("text") or "")).split("\n")
        for line in lines:
            output.line("log", {"of": of, "name": name, "line": line}, safe(line))
        args["after"] = body.get("next")
        if body.get("end"):
            if not follow:
                break
            time.sleep(FOLLOW_S)
    if rest:
        output.line("log", {"of": of, "name": name, "line": rest}, safe(rest))
    return 0


def _task_logs(client: Client, output: Output, args: Body, *, follow: bool) -> int:
    """What a task's attempts printed; with `follow`, until it has an outcome."""
    from jobflowctl.storyscreens import printed

    body = client.call("logs", args)
    client.open_no_more()
    if output.mode != "human":
        output.data("logs", body)
        return 0
    for line in printed(body, output.style()):
        output.line("logs", body, line)
    if follow:
        _follow_task(client, output, args, body)
    return 0


def _follow_task(client: Client, output: Output, args: Body, body: Body) -> None:
    """New lines of the running attempt as they come; every later attempt is announced."""
    running = body.get("running") or {}
    seen, place = running.get("attempt"), running.get("next")
    heard = str(running.get("text") or "")
    rest = ""
    while body.get("state") not in _ENDED and not output.closed:
        time.sleep(FOLLOW_S)
        found = asked_again(client, "logs", {**args, "after": place} if place else args, output.say)
        if found is None:
            return
        body = found
        running = body.get("running") or {}
        if running and running.get("attempt") != seen:
            seen, heard, rest = running.get("attempt"), "", ""
            output.line("logs", body, f"attempt {safe(seen)}")
        place = running.get("next") or place
        heard += str(running.get("text") or "")
        rest = _say_lines(output, body, rest + str(running.get("text") or ""))
    # What was printed last, or where nobody here could read it, came with the end.
    attempts = body.get("attempts") or []
    tail = str(attempts[-1].get("output_tail") or "") if attempts else ""
    last = tail[len(heard) :] if tail.startswith(heard) else tail
    _say_lines(output, body, f"{rest}{last}".removesuffix("\n") + "\n" if rest or last else "")
    output.say(f"{args['name']} {body.get('state') or 'ended'}")


def _say_lines(output: Output, body: Body, text: str) -> str:
    """Print every whole line; what is left of the text."""
    *lines, rest = text.split("\n")
    for line in lines:
        output.line("logs", body, f"    {safe(line)}")
    return rest


def kind_of(client: Client, name: str) -> str:
    """What a bare name means: a worker, a launch, else a task."""
    for kind, cmd, rows, field in (
        ("worker", "workers", "workers", "worker_id"),
        ("launch", "launches", "launches", "launch_id"),
    ):
        for page in client.pages(cmd, {}, rows):
            if any(row.get(field) == name for row in page):
                return kind
    return "task"


# --- results ------------------------------------------------------------------------------------


def results(client: Client, output: Output, *, form: str, file: Path | None) -> int:
    """Every result, as JSON lines or CSV, to stdout or into a file that appears when complete."""
    if form not in ("jsonl", "csv"):
        raise errors.UsageError(f"--format {form!r} is not one of jsonl, csv.")
    if file is not None:
        return _results_file(client, output, form, file)
    bad = 0
    lines = _csv(client) if form == "csv" and output.mode != "json" else _json_lines(client)
    for row, text in lines:
        bad += "problem" in row
        shown = text if form == "jsonl" or not output.terminal else safe(text)
        output.line("result", row, shown)
        if output.closed:
            break
    return _judged(output, bad)


def _results_file(client: Client, output: Output, form: str, file: Path) -> int:
    bad = written = 0
    draft = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        # The user's own umask decides who may read what the user asked for.
        with open(draft, "x", encoding="utf-8", newline="") as stream:
            for row, text in _csv(client) if form == "csv" else _json_lines(client):
                stream.write(f"{text}\n")
                written += "task_id" in row
                bad += "problem" in row
            _sync(stream)
        os.replace(draft, file)
    except OSError as error:
        raise errors.CtlError(f"{file} cannot be written: {error.strerror or error}.") from None
    finally:
        with contextlib.suppress(OSError):
            draft.unlink()
    output.say(f"{count(written, 'result')} in {file}")
    return _judged(output, bad)


def _sync(stream: TextIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _judged(output: Output, bad: int) -> int:
    if bad:
        output.say(f"{count(bad, 'result')} could not be read: see `problem` there")
    return errors.EXIT_INTERNAL if bad else 0


def _rows(client: Client) -> Iterator[Body]:
    for page in client.pages("results", {}, "results"):
        for row in page:
            yield _with_file(client.place, row)


def _with_file(place: api.SessionPlace, row: Body) -> Body:
    """A result that was too large for a message is read from its file, and checked."""
    found = row.get("result")
    if not (isinstance(found, dict) and set(found) == {"file", "size_bytes", "sha256"}):
        return row
    # Knows every message, which small results do not need.
    from jobflow_worker.sessionfiles import SessionFileError

    try:
        return {**row, "result": api.readable_body(_checked_file(place, found))}
    except (OSError, ValueError, TypeError, SessionFileError) as error:
        return {**row, "result": None, "file": found.get("file"), "problem": str(error)}


def _checked_file(place: api.SessionPlace, found: Body) -> bytes:
    name = str(found["file"])
    if not _RESULT_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is not the name of a result file")
    from jobflow_worker.sessionfiles import read_private

    data = read_private(place.dir / "results" / name, _RESULT_BYTES_MAX)
    if len(data) != found["size_bytes"]:
        raise ValueError(f"{name} has {len(data)} bytes, not {found['size_bytes']}")
    if hashlib.sha256(data).hexdigest() != found["sha256"]:
        raise ValueError(f"{name} is not what the worker wrote: its checksum differs")
    return data


def _json_lines(client: Client) -> Iterator[tuple[Body, str]]:
    for row in _rows(client):
        yield row, json.dumps(row, default=str)


def _csv(client: Client) -> Iterator[tuple[Body, str]]:
    """The results' own keys as columns: once through for their names, once for the values."""
    names: dict[str, None] = {}
    for row in _rows(client):
        names.update(dict.fromkeys(list(_cells(row))[: COLUMNS_MAX - len(names)]))
    columns = ["task_id", "attempt", *(name for name in names if name != "problem")]
    if "problem" in names:
        columns.append("problem")
    yield {}, _csv_line(columns)
    for row in _rows(client):
        cells = _cells(row)
        values = [row.get("task_id"), row.get("attempt"), *(cells.get(n) for n in columns[2:])]
        yield row, _csv_line([_cell(value) for value in values])


def _cells(row: Body) -> Body:
    result = row.get("result")
    cells = dict(result) if isinstance(result, dict) else {}
    if "problem" in row:
        cells["problem"] = row["problem"]
    return {key: cells[key] for key in cells if key not in ("task_id", "attempt")}


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):
        return value
    return json.dumps(value, default=str)


def _csv_line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(values)
    return text.getvalue()


# --- metrics, backup ----------------------------------------------------------------------------


def metrics(client: Client, output: Output) -> int:
    """The OpenMetrics text as it is."""
    body = client.call("metrics")
    output.line("metrics", body, str(body.get("text", "")).rstrip("\n"))
    return 0


def backup(client: Client, output: Output, file: Path) -> int:
    """A complete copy of the database, made by the daemon."""
    path = os.path.abspath(file)
    body = client.call("backup", {"path": path}, timeout_s=BACKUP_TIMEOUT_S)
    output.data("backup", {"ok": True, **body})
    return 0
