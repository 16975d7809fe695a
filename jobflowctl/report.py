"""`jobflowctl report`: asks for everything that was recorded of a run, and writes one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobflowctl import errors
from jobflowctl.client import Client
from jobflowctl.output import Output
from jobflowctl.reportdata import ledger, read_run
from jobflowctl.reportpage import page
from jobflowctl.text import count, iso

Body = dict[str, Any]


def report(client: Client, output: Output, file: Path | None, *, wall: float) -> int:
    """Write the page; `file` is `<session>-report.html` here if it is not named."""
    status = client.call("status")
    groups = client.call("failures").get("groups") or []
    fleet = [row for rows in client.pages("fleet", {}, "fleet") for row in rows]
    attempts = [row for rows in client.pages("attempts", {}, "attempts") for row in rows]
    run = read_run(attempts, fleet, wall)
    target = Path(f"{client.place.session}-report.html") if file is None else file
    text = page(status, groups, run, iso(wall) or "")
    # Knows every message, which reading a run does not need.
    from jobflow_worker.sessionfiles import write_private

    try:
        write_private(target.absolute(), text.encode())
    except OSError as error:
        raise errors.UsageError(
            f"{target} cannot be written: {error.strerror}.", "Name another place: --output FILE"
        ) from None
    lines = [{"what": word, "slot_s": round(seconds, 3)} for word, seconds in ledger(run)]
    body: Body = {
        "session": status.get("session"),
        "file": str(target.absolute()),
        "attempts": len(run.spans),
        "workers": len(run.lives),
        "slot_s": round(sum(one.slot_s for one in run.lives), 3),
        "ledger": lines,
        "message": f"{target}: {count(len(run.spans), 'attempt')} of "
        f"{count(len(run.lives), 'worker')}; open it in a browser",
    }
    output.data("report", body)
    return 0
