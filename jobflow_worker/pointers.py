"""Where a user's sessions are found by name: the state directory and its pointers.

Every start of a daemon leaves `<state>/pointers/<session>.json` naming the session's directory.
The one place that knows these paths, for worker, daemon and client.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def state_dir() -> Path:
    """The user's state directory: pointers to sessions, and sessions without a --shared-dir."""
    own = os.environ.get("JOBFLOW_STATE_DIR")
    if own:
        return Path(own).expanduser().absolute()
    base = os.environ.get("XDG_STATE_HOME", "")
    if base.startswith("/"):
        return Path(base) / "jobflow"
    return Path.home() / ".local" / "state" / "jobflow"


def pointers_dir() -> Path:
    """Where every start leaves `<session-id>.json`."""
    return state_dir() / "pointers"


def session_directory(name_or_dir: str) -> Path | None:
    """The directory of a session given by name or by path, None if there is none.

    A name is looked up among the pointers first; anything else must be a session directory.
    """
    if _NAME.fullmatch(name_or_dir):
        try:
            record = json.loads((pointers_dir() / f"{name_or_dir}.json").read_bytes())
            return Path(record["dir"])
        except (OSError, ValueError, KeyError, TypeError):
            pass  # No pointer, or a damaged one: it may still be a directory.
    directory = Path(name_or_dir).expanduser().absolute()
    return directory if (directory / "session.json").is_file() else None
