"""What can go wrong for a person at a terminal, each with its exit code (SPEC.md).

`message` says what and why, `hint` what to do; both are shown through `text.safe`.
"""

from __future__ import annotations

from typing import Final

EXIT_INTERNAL: Final = 1
EXIT_USAGE: Final = 2
EXIT_TASKS_FAILED: Final = 3
EXIT_WORK_LEFT: Final = 4
EXIT_NO_SESSION: Final = 5
EXIT_PERMISSION: Final = 77
EXIT_CONFLICT: Final = 78
EXIT_TIMEOUT: Final = 124
EXIT_INTERRUPTED: Final = 130


class CtlError(Exception):
    """Ends the command with a sentence and an exit code."""

    exit_code = EXIT_INTERNAL

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(CtlError):
    """The command line asks for something that there is not."""

    exit_code = EXIT_USAGE


class NoSession(CtlError):
    """There is no such session, or nobody answers for it here."""

    exit_code = EXIT_NO_SESSION


class DaemonBusy(CtlError):
    """The daemon is there and did not answer in time."""


class NotAllowed(CtlError):
    """The socket or its directory is not to be trusted, or is somebody else's."""

    exit_code = EXIT_PERMISSION


class Refused(CtlError):
    """The daemon said no; `code` is one of `api.ERROR_CODES`."""

    _EXITS: Final = {
        "usage": EXIT_USAGE,
        "not_found": EXIT_USAGE,
        "version": EXIT_CONFLICT,
    }

    def __init__(self, code: str, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code
        self.exit_code = self._EXITS.get(code, EXIT_INTERNAL)
