"""What the shell offers when Tab is pressed: sessions, tasks, workers, launches, words.

Rule: never slow and never an error. Who does not answer in a moment offers nothing, and no ended
session is opened for it.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import typer

#: A shell waits for this, so it is short. Seconds.
PATIENCE_S: Final = 0.3
_OFFERS_MAX: Final = 200


def session_names(incomplete: str) -> list[str]:
    """Names of the user's sessions."""
    with contextlib.suppress(Exception):
        from jobflowd import api

        return [one.session for one in api.list_sessions() if one.session.startswith(incomplete)]
    return []


def task_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the first thousand tasks."""
    return _rows(ctx, "tasks", "task_id", incomplete)


def worker_ids(ctx: typer.Context, incomplete: str) -> list[str]:
    """Ids of the connected workers."""
    return _rows(ctx, "workers", "worker_id", incomplete)


def names_of_logs(ctx: typer.Context, incomplete: str) -> list[str]:
    """Workers, launches and tasks."""
    found = worker_ids(ctx, incomplete)
    found += _rows(ctx, "launches", "launch_id", incomplete)
    return (found + task_ids(ctx, incomplete))[:_OFFERS_MAX]


def task_states(incomplete: str) -> list[str]:
    """The words for `--state`."""
    from jobflowd import api

    return [word for word in api.TASK_STATES if word.startswith(incomplete)]


def _rows(ctx: typer.Context, cmd: str, field: str, incomplete: str) -> list[str]:
    with contextlib.suppress(Exception):
        from jobflowctl.client import Client, choose_session
        from jobflowd import api

        with Client(choose_session(_session(ctx))) as client:
            body = client.call(cmd, {"limit": api.PAGE_MAX}, timeout_s=PATIENCE_S)
        names = [str(row.get(field)) for row in body.get(cmd) or ()]
        return [one for one in names if one.startswith(incomplete)][:_OFFERS_MAX]
    return []


def _session(ctx: Any) -> str | None:
    """What was said with -s, before or after the verb."""
    while ctx is not None:
        if ctx.params.get("session"):
            return str(ctx.params["session"])
        ctx = ctx.parent
    return None
