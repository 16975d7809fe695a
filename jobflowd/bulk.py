"""Changes of very many tasks, page by page over turns: `cancel --all`, `retry --failed` and so on.

Rules
-----
* One page of tasks becomes one ordinary request to the coordinator; the next page is read when it
  is committed. So a million tasks hold up nobody, and memory holds one page.
* Tasks are found by their row number, upwards, so each is looked at once: one that fails again
  while the others are queued stays failed.
* The operator gets one answer, when all pages are done, with the numbers of them all. A request
  whose client has left goes on: it was asked for.

Used by `sources.py` (pages in) and `daemon.py` (which gives its replies through here).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from jobflowd import queries
from jobflowd.events import Asked
from jobflowd.store import Store
from jobflowd.wording import count

#: Tasks changed in one turn: some 20 ms of the loop's time, more where the database is large.
PAGE: Final = 500
#: Rows looked at in one turn where no index leads to the right ones.
STRIDE: Final = 10_000

_IN_STATE: Final = (
    "SELECT id, task_id FROM tasks INDEXED BY tasks_state WHERE state = ? AND id > ? AND id <= ?"
    " ORDER BY id LIMIT ?"
)
_OPEN: Final = (
    "SELECT id, task_id FROM tasks WHERE state IN (0, 1, 2) AND id > ? AND id <= ?"
    " ORDER BY id LIMIT ?"
)
_IN_GROUP: Final = (
    "SELECT id, task_id, finished_at FROM tasks INDEXED BY tasks_failed WHERE state = 4"
    " AND signature IS ? AND (finished_at, id) > (?, ?) AND finished_at <= ?"
    " ORDER BY finished_at, id LIMIT ?"
)
_FAILED: Final = 4


class Answering(Protocol):
    """Who takes answers to tickets: the admin server."""

    def answer(self, ticket: int, body: Mapping[str, Any]) -> None: ...

    def refuse(self, ticket: int, code: str, message: str, hint: str = "") -> None: ...


@dataclass(slots=True)
class _Job:
    """One request on its way through the table."""

    ticket: int
    cmd: str
    which: str
    group: int | None
    top: int
    until: float
    mark: int = 0
    at: float = float("-inf")
    waiting: bool = False
    counts: dict[str, int] = field(default_factory=dict)
    note: str = ""


class Bulk:
    """All requests of this kind that are in work; stands before the admin server's answers."""

    def __init__(self, store: Store, admin: Answering) -> None:
        self._store = store
        self._admin = admin
        self._jobs: dict[int, _Job] = {}
        self._tickets = 0

    @property
    def jobs(self) -> int:
        """Requests that are not answered yet."""
        return len(self._jobs)

    @property
    def busy(self) -> bool:
        """Is there a page to be asked for at once?"""
        return any(not job.waiting for job in self._jobs.values())

    def takes(self, ticket: int, cmd: str, args: Mapping[str, Any], wall: float) -> bool:
        """Take a request over if it is one for many tasks. `wall`: now, in seconds."""
        if cmd == "cancel" and args.get("all"):
            which, group = "open", None
        elif cmd == "retry" and args.get("failed"):
            which, group = "failed", None
        elif cmd == "retry" and args.get("group") is not None:
            which, group = "group", int(args["group"])
            known = self._store.read("SELECT 1 FROM signatures WHERE id = ?", (group,))
            if group != queries.NAMELESS and not known:
                self._admin.refuse(
                    ticket,
                    "not_found",
                    f"There is no failure group {group} in this session.",
                    "See: jobflowctl failures",
                )
                return True
        else:
            return False
        ((top,),) = self._store.read("SELECT coalesce(max(id), 0) FROM tasks")
        self._tickets -= 1
        self._jobs[self._tickets] = _Job(ticket, cmd, which, group, top, wall)
        return True

    def events(self) -> list[Asked]:
        """The next page of every request that waits for one."""
        found = []
        for own, job in list(self._jobs.items()):
            if job.waiting:
                continue
            page = self._page(job)
            if page is None:
                del self._jobs[own]
                self._admin.answer(job.ticket, _answer(job))
            elif page:
                job.waiting = True
                found.append(Asked(own, job.cmd, {"task_ids": page, "bulk": True}))
        return found

    def _page(self, job: _Job) -> list[str] | None:
        """Task ids, [] if there are none in this stretch, None at the end."""
        if job.which == "group":
            group = None if job.group == queries.NAMELESS else job.group
            rows = self._store.read(_IN_GROUP, (group, job.at, job.mark, job.until, PAGE))
            if rows:
                job.mark, job.at = rows[-1][0], rows[-1][2]
            return [row[1] for row in rows] or None
        if job.mark >= job.top:
            return None
        if job.which == "failed":
            rows = self._store.read(_IN_STATE, (_FAILED, job.mark, job.top, PAGE))
            job.mark = rows[-1][0] if len(rows) == PAGE else job.top
        else:
            end = min(job.top, job.mark + STRIDE)
            rows = self._store.read(_OPEN, (job.mark, end, PAGE))
            job.mark = rows[-1][0] if len(rows) == PAGE else end
        return [row[1] for row in rows]

    # --- answers --------------------------------------------------------------------------------

    def answer(self, ticket: int, body: Mapping[str, Any]) -> None:
        """The coordinator's reply to anything: a page of ours is counted, the rest passes on."""
        job = self._jobs.get(ticket)
        if job is None:
            self._admin.answer(ticket, body)
            return
        for key in ("canceled", "queued", "unchanged", "unknown"):
            if isinstance(body.get(key), list):
                job.counts[key] = job.counts.get(key, 0) + len(body[key])
        job.note = str(body.get("note", "")) or job.note
        job.waiting = False

    def refuse(self, ticket: int, code: str, message: str, hint: str = "") -> None:
        """A page that was refused ends its request, with what was done before."""
        job = self._jobs.pop(ticket, None)
        if job is None:
            self._admin.refuse(ticket, code, message, hint)
            return
        done = job.counts.get("canceled", 0) + job.counts.get("queued", 0)
        before = f" {count(done, 'task was', 'tasks were')} done before." if done else ""
        self._admin.refuse(job.ticket, code, message + before, hint)


def _answer(job: _Job) -> dict[str, Any]:
    done, word = ("canceled", "canceled") if job.cmd == "cancel" else ("queued", "queued again")
    number = job.counts.get(done, 0)
    where = f" of failure group {job.group}" if job.which == "group" else ""
    text = f"{count(number, 'task')}{where} {word}{job.note}."
    body = {"message": text, done: number, "unchanged": job.counts.get("unchanged", 0)}
    return body if job.group is None else {**body, "group": job.group}
