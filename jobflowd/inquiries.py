"""Questions that go deeper than a listing: explain, failures, results, logs, metrics, backup.

Each returns the body of its answer, or a refusal (code, message, hint). Bounded, like every answer:
pages, pieces of logs, groups. Used by `reading.py` alone, between turns.
"""

from __future__ import annotations

import base64
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from jobflow_worker.sessionfiles import SessionPaths
from jobflowd import answers, api, explaining, logreading, queries, reportqueries
from jobflowd.census import Census, Here
from jobflowd.coordinator import Coordinator
from jobflowd.dbfile import StoreBroken, StoreError
from jobflowd.metrics import Metrics
from jobflowd.model import TASK_IN_FLIGHT, Questions, Task, TaskState
from jobflowd.runningoutput import output_files
from jobflowd.store import Store

Body = dict[str, Any]
Refusal = tuple[str, str, str]

#: Lines of history in a story.
STORY_LINES: Final = 50
_LOG_BYTES: Final = 64 * 1024
#: Counting failures that takes longer than this is not done at every question.
COUNTING_S: Final = 0.1

#: The commands that are answered here.
CMDS: Final = frozenset(
    (
        "attempts",
        "backup",
        "explain",
        "failures",
        "fleet",
        "logs",
        "metrics",
        "results",
        "spec",
    )
)


class Inquiries:
    """Answers from the store, the session's files and the coordinator's memory."""

    def __init__(self, store: Store, paths: SessionPaths, log_path: Path, metrics: Metrics) -> None:
        self._store = store
        self._paths = paths
        self._log_path = log_path
        self._metrics = metrics
        self._groups: Body = {}
        self._groups_key: tuple[int, int] | None = None
        self._groups_until = 0.0

    def ask(
        self,
        cmd: str,
        args: Mapping[str, Any],
        coordinator: Coordinator,
        census: Callable[[], Census],
        here: Callable[[], Here],
    ) -> Body | Refusal:
        """The answer to one of `CMDS`."""
        match cmd:
            case "explain":
                return self._explain(str(args["task_id"]), coordinator)
            case "spec":
                return self._spec(str(args["task_id"]))
            case "failures":
                return self._failures(coordinator)
            case "results":
                limit = int(args.get("limit") or queries.PAGE_MAX)
                return answers.results(queries.result_page(self._store, args.get("after"), limit))
            case "attempts" | "fleet":
                return self._history(cmd, args)
            case "logs":
                return self._logs(args, coordinator)
            case "metrics":
                return {"text": self._metrics.text(census(), here())}
            case _:
                return self._backup(str(args["path"]))

    def _failures(self, coordinator: Coordinator) -> Body:
        """Counting a million failed tasks takes a second: never more than a part of the time."""
        book = coordinator.book
        key = (book.counts[TaskState.FAILED], book.completed)
        began = time.monotonic()
        if key != self._groups_key and began >= self._groups_until:
            self._groups = answers.failures(queries.failure_groups(self._store))
            self._groups_key = key
            took = time.monotonic() - began
            self._groups_until = began + (20 * took if took > COUNTING_S else 0.0)
        return self._groups

    def _history(self, cmd: str, args: Mapping[str, Any]) -> Body:
        limit = int(args.get("limit") or reportqueries.PAGE_MAX)
        page = reportqueries.attempt_page if cmd == "attempts" else reportqueries.fleet_page
        return answers.history(cmd, page(self._store, args.get("after"), limit))

    # --- one task -------------------------------------------------------------------------------

    def _explain(self, task_id: str, coordinator: Coordinator) -> Body | Refusal:
        book = coordinator.book
        losses = book.settings.max_losses
        detail = queries.task_detail(self._store, task_id, max_losses=losses)
        task = self._task(coordinator, task_id)
        if detail is None or task is None:
            return _no_task(task_id)
        before = queries.ready_before(self._store, task_id) if book.ready_count else 0
        why = explaining.reasons(coordinator, task, before)
        events, _ = queries.last_events(self._store, STORY_LINES, task_id)
        body = answers.task(detail)
        account = explaining.accounts(task, detail["attempts"])
        return {
            "task_id": task_id,
            "state": "held" if task.held else task.state.word,
            "story": explaining.tale(detail, account, why),
            "reasons": why,
            "holder": answers.json_safe(explaining.holder(book, task)),
            "before": before if task.state.word == "queued" else None,
            "budgets": explaining.budgets(task, book),
            "charged": account,
            "attempts": [_brief(one) for one in body["attempts"]],
            "events": answers.events((events, None))["events"],
        }

    def _task(self, coordinator: Coordinator, task_id: str) -> Task | None:
        if coordinator.book.knows(task_id):
            return coordinator.book.find(task_id)
        return self._store.lookup(Questions(tasks=[task_id])).tasks.get(task_id)

    def _spec(self, task_id: str) -> Body | Refusal:
        found = queries.spec_of(self._store, task_id)
        if found is None:
            return _no_task(task_id)
        spec, attempt = found
        return {
            "task_id": task_id,
            "attempt": attempt,
            "spec": base64.b64encode(spec).decode("ascii"),
        }

    # --- logs -----------------------------------------------------------------------------------

    def _logs(self, args: Mapping[str, Any], coordinator: Coordinator) -> Body | Refusal:
        kind, name = str(args["of"]), str(args.get("name") or "")
        if kind != "daemon" and not name:
            return ("usage", f"logs of a {kind} need a name.", "")
        if kind == "task":
            return self._task_output(name, args, coordinator)
        found = self._log_path if kind == "daemon" else self._output_of(kind, name)
        if not isinstance(found, Path):
            return found
        most = min(int(args.get("bytes") or _LOG_BYTES), api.LOG_BYTES_MAX)
        try:
            return logreading.read_piece(found, args.get("after"), most)
        except logreading.NoLog as error:
            return ("not_found", f"No log of {kind} {name}: {error}.".replace(" :", ":"), "")

    def _output_of(self, kind: str, name: str) -> Path | Refusal:
        """What a launched worker printed: the file of its launch."""
        launch_id = name
        if kind == "worker":
            worker = queries.worker_named(self._store, name)
            if worker is None:
                return ("not_found", f"There is no worker {name!r}.", "See: jobflowctl workers")
            if worker["launch_id"] is None:
                return (
                    "not_found",
                    f"Worker {name} was started by hand on {worker['host']}: what it says is in "
                    "the terminal or file where that was done.",
                    "",
                )
            launch_id = worker["launch_id"]
        launch = queries.launch_named(self._store, launch_id)
        if launch is None:
            return ("not_found", f"There is no launch {launch_id!r}.", "See: jobflowctl launches")
        # Only inside the session, whatever a row may say.
        own = self._paths.launches / os.path.basename(launch_id) / "output"
        said = Path(launch["output"]) if launch["output"] else own
        return said if self._paths.root in said.parents and ".." not in said.parts else own

    def _task_output(
        self, task_id: str, args: Mapping[str, Any], coordinator: Coordinator
    ) -> Body | Refusal:
        """What the attempts of a task printed, as far as it is kept: the end of each.

        Of one that runs there is who has it and, if that is on this host, the text so far.
        """
        detail = queries.task_detail(self._store, task_id, max_losses=0)
        if detail is None:
            return _no_task(task_id)
        texts = queries.tracebacks(self._store, task_id)
        attempts = []
        for one in answers.task(detail)["attempts"]:
            kept = {key: one[key] for key in _OUTPUT_FIELDS}
            attempts.append({**kept, "traceback": texts.get(one["attempt"], "")})
        body: Body = {"task_id": task_id, "state": detail["state"], "attempts": attempts}
        task = coordinator.book.find(task_id) if coordinator.book.knows(task_id) else None
        if task is not None and task.state in TASK_IN_FLIGHT:
            body["running"] = self._running(task, args, coordinator)
        return body

    def _running(self, task: Task, args: Mapping[str, Any], coordinator: Coordinator) -> Body:
        book, task_id = coordinator.book, task.task_id
        held = explaining.holder(book, task)
        worker = book.by_row.get(task.worker if task.worker is not None else -1)
        if held is None or worker is None:
            return {"why_not": "its worker is not known any more"}
        if task.state is not TaskState.RUNNING:
            # What its slot prints now may be another task's.
            return {**held, "why_not": "it has not said yet that it runs"}
        attempting = worker.attempts.get(task_id)
        since = attempting.started_at if attempting is not None else None
        body: Body = {**held, "running_s": max(0.0, time.time() - since) if since else None}
        here = worker.host == socket.gethostname()
        files = output_files(worker.pid) if here else []
        if not here:
            body["why_not"] = f"it is on {worker.host}"
        elif len(files) != 1:
            body["why_not"] = "its worker runs several tasks" if files else "it cannot be seen"
        else:
            most = min(int(args.get("bytes") or _LOG_BYTES), api.LOG_BYTES_MAX)
            try:
                body |= logreading.read_piece(files[0], args.get("after"), most)
            except logreading.NoLog as error:
                body["why_not"] = str(error)
        return {key: answers.json_safe(value) for key, value in body.items()}

    # --- copies ---------------------------------------------------------------------------------

    def _backup(self, path: str) -> Body | Refusal:
        if os.path.lexists(path):
            return ("conflict", f"{path} is there already.", "Name a file that does not exist.")
        try:
            self._store.backup(path)
            size = os.stat(path).st_size
        except StoreBroken:
            raise
        except (StoreError, OSError) as error:
            return ("conflict", str(error), "")
        return {
            "message": f"The database was copied to {path} ({size:,} bytes).",
            "path": path,
            "size_bytes": size,
        }


_OUTPUT_FIELDS: Final = ("attempt", "worker_id", "host", "outcome", "cause", "error", "output_tail")
_BRIEF_FIELDS: Final = (
    "attempt",
    "worker_id",
    "host",
    "started_at",
    "ended_at",
    "outcome",
    "cause",
    "charged",
    "exit_signal",
    "error",
)


def _brief(attempt: Mapping[str, Any]) -> Body:
    return {key: attempt[key] for key in _BRIEF_FIELDS}


def _no_task(task_id: str) -> Refusal:
    return (
        "not_found",
        f"There is no task {task_id!r} in this session.",
        "List tasks with: jobflowctl tasks",
    )
