"""Answers the reading verbs of the admin socket, from memory and from `queries.py`.

Runs between turns, so what it shows is durable. Every answer is paged.
"""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import time
from collections.abc import Callable
from typing import Any

import psutil

from jobflow_worker import __version__
from jobflowd import answers, inquiries, queries
from jobflowd.admin import AdminServer, Request
from jobflowd.census import Census, Here
from jobflowd.coordinator import Coordinator
from jobflowd.inquiries import Inquiries
from jobflowd.store import Store

Body = dict[str, Any]

#: Rows of a page if the request does not say.
PAGE_ROWS = 100
#: Attempts of a task that are shown with their traceback, the newest: the others say the same.
TRACEBACKS_MAX = 10


class Reader:
    """Everything that only looks."""

    def __init__(
        self,
        store: Store,
        admin: AdminServer,
        inquiries: Inquiries,
        notices: Callable[[], tuple[str, ...]] = tuple,
        *,
        serving: bool = False,
    ) -> None:
        """`notices` are what the transports warn of, as of now.
        `serving`: the run has ended, and is only asked about."""
        self._notices = notices
        self._inquiries = inquiries
        self._serving = serving
        self._store = store
        self._admin = admin
        self._process = psutil.Process()
        self._rss_bytes = self._process.memory_info().rss
        self._host = socket.gethostname()

    def answer(
        self, request: Request, coordinator: Coordinator, census: Callable[[], Census]
    ) -> None:
        """Answer one reading request."""
        ticket, args = request.ticket, request.args
        match request.cmd:
            case "ping":
                body = {"pid": os.getpid(), "version": __version__, "serving": self._serving}
                self._admin.answer(ticket, body)
            case "status":
                body = answers.status(census(), self.here(), time.time())
                self._admin.answer(ticket, body)
            case "snapshot":
                self._admin.answer(ticket, self.snapshot(census()))
            case "workers":
                self._admin.answer(ticket, answers.workers(census(), **_page(args)))
            case "launches":
                page = queries.launch_page(self._store, args.get("after"), _limit(args))
                self._admin.answer(ticket, answers.launches(page))
            case "tasks":
                self._tasks(ticket, args, census())
            case "task":
                self._task(ticket, str(args["task_id"]), coordinator)
            case "events":
                self._admin.answer(ticket, answers.events(self._events(args)))
            case cmd if cmd in inquiries.CMDS:
                found = self._inquiries.ask(cmd, args, coordinator, census, self.here)
                if isinstance(found, tuple):
                    self._admin.refuse(ticket, *found)
                else:
                    self._admin.answer(ticket, found)
            case _:
                self._admin.refuse(ticket, "usage", f"{request.cmd} cannot be answered here.")

    def snapshot(self, census: Census) -> Body:
        """The telemetry snapshot: the same object by socket and by file."""
        return answers.snapshot(census, self.here(), time.time())

    def here(self) -> Here:
        """What this process knows of itself."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        # Out of descriptors: the last known figure, since this question is then the urgent one.
        with contextlib.suppress(OSError):
            self._rss_bytes = self._process.memory_info().rss
        trouble = self._admin.trouble
        return Here(
            pid=os.getpid(),
            host=self._host,
            version=__version__,
            cpu_s=used.ru_utime + used.ru_stime,
            rss_bytes=self._rss_bytes,
            db_bytes=self._store.size_bytes(),
            warnings=(*self._notices(), trouble) if trouble else self._notices(),
        )

    def _events(self, args: Body) -> queries.Page:
        task_id = args.get("task_id")
        if args.get("last") is not None:
            return queries.last_events(self._store, int(args["last"]), task_id)
        return queries.event_page(self._store, args.get("after"), _limit(args), task_id)

    def _tasks(self, ticket: int, args: Body, census: Census) -> None:
        page = queries.task_page(self._store, args.get("after"), _limit(args), args.get("state"))
        self._admin.answer(ticket, answers.tasks(page, answers.progress_of(census)))

    def _task(self, ticket: int, task_id: str, coordinator: Coordinator) -> None:
        losses = coordinator.book.settings.max_losses
        detail = queries.task_detail(self._store, task_id, max_losses=losses)
        if detail is None:
            self._admin.refuse(
                ticket,
                "not_found",
                f"There is no task {task_id!r} in this session.",
                "List tasks with: jobflowctl tasks",
            )
            return
        texts = queries.tracebacks(self._store, task_id)
        for attempt in detail["attempts"][-TRACEBACKS_MAX:]:
            attempt["traceback"] = texts.get(attempt["attempt"], "")
        self._admin.answer(ticket, answers.task(detail))


def _page(args: Body) -> Body:
    return {key: args[key] for key in ("after", "limit") if args.get(key) is not None}


def _limit(args: Body) -> int:
    return int(args.get("limit") or PAGE_ROWS)
