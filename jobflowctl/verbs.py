"""What each verb does: calls in, one answer out through the `Output`, an exit code back.

Rule: verbs never print and never parse a command line; `cli.py` does the latter, `Output` the
former. What goes wrong is raised as a `CtlError`.
"""

from __future__ import annotations

import contextlib
import fnmatch
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from jobflowctl import errors
from jobflowctl.client import CALL_TIMEOUT_S, Client
from jobflowctl.output import Output
from jobflowctl.text import count, iso
from jobflowd import api

#: A recorded end older than this is forgotten by `sessions --prune`.
PRUNE_AGE_S: Final = 30 * 86400.0
#: `events --follow` asks this often.
FOLLOW_S: Final = 1.0
#: A million tasks are changed page by page, which takes the daemon half a minute or more.
MANY_TIMEOUT_S: Final = 1800.0

Body = dict[str, Any]


# --- reading ----------------------------------------------------------------------------------


def read(client: Client, output: Output, cmd: str, args: Mapping[str, Any] | None = None) -> int:
    """A read whose answer is one object."""
    output.data(cmd, client.call(cmd, args))
    return 0


def rows(client: Client, output: Output, cmd: str) -> int:
    """A paged read, all pages as one list."""
    found = [row for page in client.pages(cmd, {}, cmd) for row in page]
    output.data(cmd, {cmd: found, "next": None})
    return 0


def tasks(
    client: Client,
    output: Output,
    *,
    state: str | None,
    match: str | None,
    after: str | None,
    limit: int,
    everything: bool,
) -> int:
    """One page of tasks, or all of them; `match` is a glob on ids, applied here."""
    if state is not None and state not in api.TASK_STATES:
        raise errors.UsageError(
            f"There is no task state {state!r}.", f"States: {', '.join(api.TASK_STATES)}."
        )
    args: Body = {"state": state, "after": after}
    if not everything and match is None:
        return read(client, output, "tasks", {**args, "limit": limit})
    found: list[Body] = []
    for page in client.pages("tasks", args, "tasks"):
        found += [
            row
            for row in page
            if match is None or fnmatch.fnmatchcase(str(row.get("task_id")), match)
        ]
        if not everything and len(found) > limit:
            output.say(f"the first {limit} that match; --all shows every one")
            found = found[:limit]
            break
    output.data("tasks", {"tasks": found, "next": None})
    return 0


def events(client: Client, output: Output, *, task_id: str | None, last: int, follow: bool) -> int:
    """The newest events; with `follow`, one a line until the run ends or the reader leaves."""
    args: Body = {"task_id": task_id}
    body = client.call("events", {**args, "last": min(last, api.PAGE_MAX)})
    if not follow:
        output.data("events", body)
        return 0
    from jobflowctl.storyscreens import event_line
    from jobflowctl.waiting import follow as asked_again

    client.open_no_more()
    fresh: Sequence[Body] = body.get("events") or []
    mark = body.get("next")
    while not output.closed:
        for event in fresh:
            output.line("event", event, event_line(event))
        time.sleep(FOLLOW_S)
        following = {**args, "after": mark, "limit": api.PAGE_MAX}
        found = asked_again(client, "events", following, output.say)
        if found is None:
            output.say(f"What came last: jobflowctl -s {client.place.session} events")
            return 0
        fresh, mark = found.get("events") or [], found.get("next", mark)
    return 0


# --- changing ---------------------------------------------------------------------------------


def change(
    client: Client,
    output: Output,
    cmd: str,
    args: Mapping[str, Any],
    *,
    timeout_s: float = CALL_TIMEOUT_S,
) -> int:
    """A change and its answer; ids that the daemon does not know make it exit code 2."""
    body = client.call(cmd, args, timeout_s=timeout_s)
    output.data(cmd, {"ok": True, **body})
    return errors.EXIT_USAGE if body.get("unknown") else 0


def confirmed(output: Output, question: str, yes: bool) -> bool:
    """Ask before what cannot be taken back. Without a terminal nobody is asked."""
    if yes or output.ask(question):
        return True
    output.say("nothing was done")
    return False


def scale(client: Client, output: Output, workers: int, *, now: bool, yes: bool) -> int:
    """Set the pool's size; 0 stops all work and is asked about."""
    if workers == 0 and not confirmed(
        output, f"Let every worker of {client.place.session} go?", yes
    ):
        return errors.EXIT_INTERNAL
    return change(client, output, "scale", {"workers": workers, "now": now})


def cancel(
    client: Client, output: Output, task_ids: Sequence[str], *, everything: bool, yes: bool
) -> int:
    """Cancel tasks by id, or all that have no outcome."""
    _one_way(task_ids, everything, "--all")
    if not everything:
        return change(client, output, "cancel", {"task_ids": list(task_ids)})
    if not yes:
        numbers = client.call("status").get("tasks") or {}
        left = sum(int(numbers.get(word) or 0) for word in ("queued", "assigned", "running"))
        question = f"Cancel {count(left, 'task')} of {client.place.session} for good?"
        if not confirmed(output, question, yes):
            return errors.EXIT_INTERNAL
    return change(client, output, "cancel", {"all": True}, timeout_s=MANY_TIMEOUT_S)


def retry(
    client: Client, output: Output, task_ids: Sequence[str], *, failed: bool, group: int | None
) -> int:
    """Queue tasks again: some, all failed ones, or a group of `failures`."""
    if (group is not None) + failed + bool(task_ids) != 1:
        raise errors.UsageError(
            "Give task ids, --failed or --group N, one of the three.",
            "The groups: jobflowctl failures",
        )
    if task_ids:
        return change(client, output, "retry", {"task_ids": list(task_ids)})
    args: Body = {"failed": True} if failed else {"group": group}
    return change(client, output, "retry", args, timeout_s=MANY_TIMEOUT_S)


def _one_way(task_ids: Sequence[str], flag: bool, name: str) -> None:
    if bool(task_ids) == flag:
        raise errors.UsageError(f"Give task ids or {name}, one of the two.")


def shutdown(client: Client, output: Output, *, now: bool, wait: bool, yes: bool) -> int:
    """End the run; with `wait`, return when it has ended."""
    from jobflowctl.waiting import wait_for_end

    place = client.place
    if not yes:
        numbers = client.call("status").get("tasks") or {}
        left = sum(int(numbers.get(word) or 0) for word in ("queued", "assigned", "running"))
        how = "at once" if now else "after the running tasks"
        if not confirmed(output, f"End {place.session} {how}? {count(left, 'task')} left.", yes):
            return errors.EXIT_INTERNAL
    body = client.call("shutdown", {"now": now})
    if not wait:
        output.data("shutdown", {"ok": True, **body})
        return 0
    output.say(str(body.get("message", "")))
    said = ""

    def tell(status: Body) -> None:
        nonlocal said
        reason = str(status.get("state_reason") or "")
        if reason and reason != said:
            said = reason
            output.say(reason)

    outcome = wait_for_end(place, on_status=tell)
    words = f"Session {place.session} has ended: {outcome.state}."
    output.data("shutdown", {"ok": True, **body, "message": words, "ended": outcome.body()})
    return 0


def wait(place: api.SessionPlace, output: Output, *, timeout_s: float | None) -> int:
    """Return when the run has ended: 0, 3 or 4; 124 after the time-out."""
    from jobflowctl.waiting import wait_for_end

    outcome = wait_for_end(place, timeout_s=timeout_s)
    output.data("wait", outcome.body())
    if outcome.daemon_code not in (None, outcome.code):
        output.say(f"the daemon ended with code {outcome.daemon_code}; its log says why")
    return outcome.code


# --- sessions ---------------------------------------------------------------------------------


def sessions(output: Output, *, prune: bool, wall: float) -> int:
    """List the user's sessions; with `prune`, forget those that are gone or ended long ago."""
    found: list[Body] = []
    for place in api.list_sessions():
        state = session_state(place)
        ended = place.ended()
        if prune and _forgettable(state, ended, wall):
            with contextlib.suppress(OSError):
                (api.pointers_dir() / f"{place.session}.json").unlink()
                output.say(f"forgot {place.session}; its directory is untouched: {place.dir}")
                continue
        found.append(
            {
                "session": place.session,
                "state": state,
                "host": place.host,
                "pid": place.pid if state == "live" else None,
                "dir": str(place.dir),
                "started_at": iso(place.started_at),
                "ended_at": iso(ended.ended_at if ended else None),
                "code": ended.code if ended else None,
            }
        )
    output.data("sessions", {"sessions": found})
    return 0


def session_state(place: api.SessionPlace) -> str:
    """live, ended, elsewhere (another host runs it), down (it died without an end), missing."""
    if not place.dir.is_dir():
        return "missing"
    if place.ended() is not None:
        return "ended"
    if place.here and place.answers():
        return "live"
    return "down" if place.here else "elsewhere"


def _forgettable(state: str, ended: api.Ended | None, wall: float) -> bool:
    if state == "missing":
        return True
    return state == "ended" and ended is not None and wall - ended.ended_at > PRUNE_AGE_S
