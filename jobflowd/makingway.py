"""Taking a session from a daemon that only answers questions about it.

`jobflowd serve` leaves at once when a start asks for its session; a daemon with a run never does.
Used by `sessiondir.py` in place of `ownership.take`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from jobflow_worker.sessionfiles import SessionPaths
from jobflowd import ownership
from jobflowd.api import connect_unix, encode_call, socket_paths
from jobflowd.ownership import EXIT_OWNED, Ownership, SessionError

#: How long a serving daemon may take to close its database and be gone.
PATIENCE_S: Final = 10.0
_LOOK_S: Final = 0.02
_ANSWER_BYTES_MAX: Final = 64 * 1024


def take(
    paths: SessionPaths,
    *,
    name: str,
    takeover: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Ownership:
    """As `ownership.take`, but a daemon that only serves makes way. Raises what that raises."""
    try:
        return ownership.take(paths, name=name, takeover=takeover, say=say)
    except SessionError as error:
        if error.exit_code != EXIT_OWNED or not ask_to_leave(paths.root):
            raise
    give_up_at = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ownership.take(paths, name=name, takeover=takeover, say=say)
        except SessionError as error:
            if error.exit_code != EXIT_OWNED or time.monotonic() >= give_up_at:
                raise
        time.sleep(_LOOK_S)


def ask_to_leave(root: Path) -> bool:
    """Ask the daemon of this session to make way; True if it says that it does."""
    for path in socket_paths(root):
        try:
            connection = connect_unix(path, timeout_s=PATIENCE_S)
        except OSError:
            continue
        with connection:
            try:
                connection.sendall(encode_call(1, "yield"))
                with connection.makefile("rb") as lines:
                    answer = json.loads(lines.readline(_ANSWER_BYTES_MAX))
            except (OSError, ValueError):
                return False
            return isinstance(answer, dict) and answer.get("ok") is True
    return False
