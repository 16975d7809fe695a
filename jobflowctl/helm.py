"""What the full-screen view may do with the daemon of the wrapper: stop it, and see that it ended.

Used by `supervise.py`; the view knows it as `watch.app.Steering`.
"""

from __future__ import annotations

import os
import subprocess
from typing import IO, TYPE_CHECKING, Final

from jobflowctl import errors

if TYPE_CHECKING:
    from jobflowctl.supervise import Supervisor

STOPPING: Final = (
    "stopping: workers finish their tasks; Ctrl-C again stops now, what is unfinished "
    "remains for the next start"
)
STOPPING_NOW: Final = "stopping now; Ctrl-C again leaves the daemon to it"


class Helm:
    """What the full-screen view may do with the daemon."""

    def __init__(
        self, supervisor: Supervisor, process: subprocess.Popen[bytes], printed: IO[bytes]
    ) -> None:
        self._supervisor = supervisor
        self._process = process
        self._printed = printed

    def stop(self) -> str:
        """One more wish to stop."""
        return STOPPING if self._supervisor.ask_to_stop() == 1 else STOPPING_NOW

    def ended(self) -> bool:
        """The daemon has ended, or is to be left."""
        if self._supervisor.hung_up:
            # The terminal is gone: nothing is to be put back, and drawing on it fails.
            os._exit(errors.EXIT_INTERRUPTED)
        left = self._supervisor.heed(self._process, self._printed)
        return left or self._process.poll() is not None
