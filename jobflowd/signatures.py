"""What failed attempts have in common: the text by which failures are grouped.

Pure. A signature names the cause and the place, and leaves out what differs from task to task:
numbers, quoted words, paths, addresses. Two tasks with the same bug get the same text; two bugs in
one function get two, because their lines differ. Used by `store.py` when an attempt is written.
"""

from __future__ import annotations

import re
from typing import Final

from jobflowd.model import AttemptRow

#: So many different texts are kept; a program whose messages never repeat is grouped by type and
#: place from then on.
SIGNATURES_MAX: Final = 500
#: Characters of a signature, and how much of a message is looked at for it.
TEXT_MAX: Final = 200
_MESSAGE_MAX: Final = 300
_TRACEBACK_MAX: Final = 20_000

#: What varies, and the word that stands for it; the order matters.
_VARYING: Final = (
    (re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`"), "'...'"),
    (re.compile(r"(?:[A-Za-z]:)?(?:[\w.~-]*/)+[\w.~-]*"), "PATH"),
    (re.compile(r"\b0x[0-9a-fA-F]+\b|\b[0-9a-f]{8,}(?:-[0-9a-f]{4,})*\b"), "HEX"),
    (re.compile(r"[-+]?\d+(?:[.,:_-]?\d+)*(?:[eE][-+]?\d+)?"), "N"),
)
_FRAME: Final = re.compile(r'^  File "([^"\n]+)", line (\d+)(?:, in (\S+))?', re.MULTILINE)
#: Frames of these places are a library's: the last frame outside them is where to look.
_LIBRARY: Final = ("/site-packages/", "/dist-packages/", "/lib/python", "<frozen ")

#: What attempts that ended without an error of the program are called.
_LOST: Final = "worker lost"


def signature(attempt: AttemptRow, *, brief: bool = False) -> str:
    """The cause and place of an attempt that did not succeed, at most `TEXT_MAX` characters.

    `brief` leaves the message of an exception out, so that there are few texts.
    """
    if attempt.outcome in ("lost", "unknown"):
        text = f"{_LOST}: {_plain(attempt.cause)}"
    elif attempt.cause == "crash" and attempt.exit_signal:
        text = f"{attempt.cause}: {attempt.exit_signal}"
    elif attempt.cause == "crash" and attempt.exit_code is not None:
        text = f"{attempt.cause}: exit code {attempt.exit_code}"
    elif attempt.traceback:
        text = _exception(attempt, brief)
    elif attempt.error and not brief:
        text = f"{attempt.cause}: {_plain(attempt.error)}"
    else:
        text = f"{attempt.outcome}: {attempt.cause}"
    return text[:TEXT_MAX]


def _exception(attempt: AttemptRow, brief: bool) -> str:
    name, _, message = attempt.error.partition(":")
    text = name.strip() or attempt.cause
    if message.strip() and not brief:
        text += f": {_plain(message)}"
    where = place(attempt.traceback)
    if where:
        # The place is the better half: a long message gives way.
        text = f"{text[: TEXT_MAX - len(where) - 4]} at {where}"
    return text


def _plain(message: str) -> str:
    """One line without what varies."""
    text = message[:_MESSAGE_MAX]
    for pattern, word in _VARYING:
        text = pattern.sub(word, text)
    return " ".join(text.split())


def place(traceback: str) -> str:
    """`file.py:12 in function` of the last frame in the user's own code, else of the last one.

    "" if the text holds no frame.
    """
    frames = _FRAME.findall(traceback[-_TRACEBACK_MAX:])
    if not frames:
        return ""
    own = [frame for frame in frames if not any(part in frame[0] for part in _LIBRARY)]
    path, line, function = (own or frames)[-1]
    name = f"{path.rpartition('/')[2]}:{line}"
    return f"{name} in {function}" if function else name


class Signatures:
    """Names signatures, and bounds how many different texts one daemon's life may add."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def learn(self, texts: list[str]) -> None:
        """These are in the database already."""
        self._known.update(texts)

    def of(self, attempt: AttemptRow) -> str:
        """The attempt's signature; brief once there are too many."""
        text = signature(attempt)
        if text in self._known:
            return text
        if len(self._known) >= SIGNATURES_MAX:
            return signature(attempt, brief=True)
        self._known.add(text)
        return text
