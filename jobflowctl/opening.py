"""Opening an ended session by `jobflowd serve`, so that questions about it can be answered.

The daemon is a process of its own: it outlives this command, answers the next ones at once, and
leaves when nobody has asked for ten minutes.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from jobflowctl.errors import CtlError, NoSession
from jobflowd import api

#: How long opening may take: its database is checked, which takes seconds per GB.
PATIENCE_S: Final = 60.0
#: Somebody else may be opening it, or has just queued tasks again.
_MEANWHILE_S: Final = 10.0
_OWNED: Final = 75
_READY_VARIABLE: Final = "JOBFLOW_READY_FD"
#: Without the current directory on the path, from which `-c` would import before anything else.
_STARTER: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from jobflowd.cli import main; sys.exit(main())"
)


def open_ended(
    place: api.SessionPlace, say: Callable[[str], None], found: Callable[[], bool]
) -> None:
    """Start a serving daemon and return when it answers. Raises `CtlError`.

    `found` tries to connect.
    """
    say(f"{place.session} has ended; opening it for questions")
    answer = _start(place)
    code, sentence = answer.get("code"), str(answer.get("error") or "")
    if sentence and code != _OWNED:
        words = sentence.removeprefix("jobflowd: error: ")
        raise NoSession(f"It cannot be opened for questions: {words}")
    deadline = time.monotonic() + _MEANWHILE_S
    while not found():
        if time.monotonic() >= deadline:
            raise CtlError(
                f"Session {place.session} was opened and nobody answers.",
                f"Look at its log in {place.dir}.",
            )
        time.sleep(0.02)


def _start(place: api.SessionPlace) -> dict[str, Any]:
    reading, writing = os.pipe()
    try:
        process = subprocess.Popen(
            [sys.executable, "-c", _STARTER, "serve", str(place.dir)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            pass_fds=(writing,),
            env={**os.environ, _READY_VARIABLE: str(writing)},
        )
    finally:
        os.close(writing)
    with open(reading, "rb", buffering=0) as pipe:
        answer = _last_word(pipe)
    # Nobody waits for it any more; without this the interpreter would warn that it still runs.
    process.returncode = 0
    return answer


def _last_word(pipe: Any) -> dict[str, Any]:
    """What it says when it is ready or has failed; {} if it said nothing in time."""
    import select

    deadline, data = time.monotonic() + PATIENCE_S, b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not select.select([pipe], [], [], left)[0]:
            return {}
        chunk = pipe.read(65536)
        if not chunk:
            return {"error": "its daemon ended without a word"}
        *lines, data = (data + chunk).split(b"\n")
        for line in lines:
            with contextlib.suppress(ValueError):
                message = json.loads(line)
                if isinstance(message, dict) and "waiting" not in message:
                    return message
