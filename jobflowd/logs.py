"""The daemon's log: `event key=value` lines in a file beside the database, and short on stderr.

Rules
-----
* One event is one line, whatever a peer put into a value: control characters are escaped, so that
  nobody forges a line or sends codes to a terminal. Only a traceback adds lines, indented.
* Logging never raises and never stops the daemon: a full disk is counted, and told when the next
  line can be written again.
* The file is 0600 from its first instant, rotates by its own size, and is opened anew on HUP.

Use `get(__name__)` and `log.info("worker.registered", worker_id=..., host=...)`. The pure modules
do not log.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import stat
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

ROTATE_BYTES: Final = 20_000_000
ROTATE_FILES: Final = 5
#: A warning that comes again and again is written once in this time, with its count.
REPEAT_S: Final = 60.0
#: Different kinds of repeated warnings that are remembered; the oldest is forgotten first.
REPEAT_KINDS_MAX: Final = 256
VALUE_CHARS_MAX: Final = 4096

_ROOT: Final = "jobflowd"
_FIELDS: Final = "jobflow_fields"
_PLAIN_EXTRA: Final = frozenset("-_./:+,@%[]{}()<>*~#?&;^|!$")


# Until `start` is called (errors before there is a log, tests) events go nowhere, not to stderr.
logging.getLogger(_ROOT).addHandler(logging.NullHandler())


# --- writing ---------------------------------------------------------------------------------


class EventLog:
    """A named logger of events with fields."""

    __slots__ = ("_clock", "_logger", "_seen")

    def __init__(self, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logging.getLogger(name)
        self._clock = clock
        #: (event, key) -> [when it was last written, how often it came since]
        self._seen: dict[tuple[str, str], list[float]] = {}

    def debug(self, event: str, **fields: Any) -> None:
        self._write(logging.DEBUG, event, fields)

    def info(self, event: str, **fields: Any) -> None:
        self._write(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._write(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._write(logging.ERROR, event, fields)

    def exception(self, event: str, **fields: Any) -> None:
        """An error with the traceback of the exception that is being handled."""
        self._write(logging.ERROR, event, fields, exc_info=True)

    def write(self, level: str, event: str, **fields: Any) -> None:
        """An event of a level that is data ("info", "warning", ...); an unknown one is info."""
        number = logging.getLevelName(level.upper())
        self._write(number if isinstance(number, int) else logging.INFO, event, fields)

    def repeated(self, event: str, key: str = "", **fields: Any) -> None:
        """A warning at most once a minute per event and key, with `times` since the last line."""
        now = self._clock()
        last = self._seen.pop((event, key), None)
        if last is not None and now - last[0] < REPEAT_S:
            last[1] += 1
            self._seen[event, key] = last
            return
        self._seen[event, key] = [now, 0]
        while len(self._seen) > REPEAT_KINDS_MAX:
            del self._seen[next(iter(self._seen))]
        if last is not None and last[1]:
            fields["times"] = int(last[1]) + 1
        self._write(logging.WARNING, event, fields)

    def _write(
        self, level: int, event: str, fields: dict[str, Any], exc_info: bool = False
    ) -> None:
        if self._logger.isEnabledFor(level):
            self._logger.log(level, "%s", event, extra={_FIELDS: fields}, exc_info=exc_info)


def get(name: str) -> EventLog:
    """The log of a module; pass `__name__`."""
    return EventLog(name if name.startswith(_ROOT) else f"{_ROOT}.{name}")


# --- form ------------------------------------------------------------------------------------


def sanitised(text: str) -> str:
    """The text on one line: control characters, line separators and lone surrogates escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escape(c) for c in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def _word(value: Any) -> str:
    """A value behind `key=`: bare if that cannot be misread, else quoted."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = str(value)
    if len(text) > VALUE_CHARS_MAX:
        text = f"{text[:VALUE_CHARS_MAX]}...({len(text)} characters)"
    if text and all((c.isalnum() and c.isascii()) or c in _PLAIN_EXTRA for c in text):
        return text
    return '"' + sanitised(text.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def timestamp(seconds: float) -> str:
    """Wall-clock seconds as `2026-11-22T16:00:00.123Z`."""
    millis = int(seconds * 1000)
    whole = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(millis // 1000))
    return f"{whole}.{millis % 1000:03d}Z"


def _line(record: logging.LogRecord, shorten: Callable[[Any], Any] | None = None) -> str:
    fields: Mapping[str, Any] = getattr(record, _FIELDS, {})
    parts = [sanitised(record.getMessage())]
    for key, value in fields.items():
        if value is not None:
            parts.append(f"{key}={_word(shorten(value) if shorten is not None else value)}")
    return " ".join(parts)


def _first_line(value: Any) -> Any:
    """Of a text with a traceback in it, what comes before."""
    if isinstance(value, str) and "\n" in value:
        return value.partition("\n")[0] + " ..."
    return value


def _traceback(record: logging.LogRecord) -> list[str]:
    if not record.exc_info or record.exc_info[1] is None:
        return []
    return [
        sanitised(line)
        for part in traceback.format_exception(record.exc_info[1])
        for line in part.rstrip("\n").split("\n")
    ]


class TextForm(logging.Formatter):
    """`2026-11-22T16:00:00.123Z INFO event key=value`."""

    def format(self, record: logging.LogRecord) -> str:
        line = f"{timestamp(record.created)} {record.levelname} {_line(record)}"
        return "\n    | ".join([line, *_traceback(record)])


class JsonForm(logging.Formatter):
    """One JSON object a line: `at`, `level`, `event`, the fields, and `traceback`."""

    def format(self, record: logging.LogRecord) -> str:
        entry: dict[str, Any] = {
            "at": timestamp(record.created),
            "level": record.levelname,
            "event": record.getMessage(),
        }
        fields: Mapping[str, Any] = getattr(record, _FIELDS, {})
        for key, value in fields.items():
            plain = value is None or isinstance(value, bool | int | float)
            # A field never replaces what the line itself says.
            entry[f"{key}_" if key in entry else key] = value if plain else str(value)
        trace = _traceback(record)
        if trace:
            entry["traceback"] = trace
        return json.dumps(entry, default=str)


class ConsoleForm(logging.Formatter):
    """Short lines for a terminal; tracebacks are in the file."""

    def format(self, record: logging.LogRecord) -> str:
        level = "" if record.levelno == logging.INFO else f"{record.levelname} "
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        return f"{at} {level}{_line(record, _first_line)}"


class JournalForm(logging.Formatter):
    """Lines for systemd: `<N>` is the priority, and the journal has the time itself."""

    _PRIORITY: Final = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))

    def format(self, record: logging.LogRecord) -> str:
        priority = next((n for level, n in self._PRIORITY if record.levelno >= level), 7)
        return f"<{priority}>{_line(record)}"


# --- where to --------------------------------------------------------------------------------


class LogFile(logging.Handler):
    """Appends to a file that rotates by size: `x.log`, `x.log.1` ... `x.log.5`.

    `dropped` counts the lines that could not be written. With `take_stdio` the process's own
    stdout and stderr follow the file, so that the last words of a crashing library are kept.
    """

    def __init__(
        self,
        path: Path,
        *,
        rotate_bytes: int = ROTATE_BYTES,
        rotate_files: int = ROTATE_FILES,
        take_stdio: bool = False,
    ) -> None:
        super().__init__()
        self.path = path
        self.dropped = 0
        self._told = 0
        self._rotate_bytes = rotate_bytes
        self._rotate_files = rotate_files
        self._take_stdio = take_stdio
        self._fd = -1
        self._size = 0
        self._torn = False

    def open(self) -> None:
        """Open the file anew, wherever it was; also after a HUP. Raises `OSError`."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        # NONBLOCK: a FIFO planted under this name must not hang the open.
        fd = os.open(self.path, flags | os.O_NONBLOCK, 0o600)
        about = os.fstat(fd)
        if not stat.S_ISREG(about.st_mode):
            os.close(fd)
            raise FileExistsError(f"{self.path} is not a regular file")
        self._close_fd()
        self._fd, self._size = fd, about.st_size
        if self._take_stdio:
            for number in (1, 2):
                os.dup2(fd, number)

    def reopen(self) -> None:
        """`open` for a signal's sake: keeps the old file if the new one cannot be had."""
        with contextlib.suppress(OSError):
            self.open()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            data = (self.format(record) + "\n").encode("utf-8", "backslashreplace")
        except Exception:
            # A value whose str() raises costs its line, not the daemon.
            self.dropped += 1
            return
        if self._size + len(data) > self._rotate_bytes:
            self._rotate()
        lost = self.dropped - self._told
        if lost:
            note = f"{timestamp(record.created)} WARNING log.lines_lost count={lost}\n"
            if not self._put(note.encode()):
                self.dropped += 1
                return
            self._told += lost
        if not self._put(data):
            self.dropped += 1

    def _put(self, data: bytes) -> bool:
        # A line torn by a full disk must not be continued by the next one.
        whole = b"\n" + data if self._torn else data
        try:
            written = os.write(self._fd, whole)
        except OSError:
            return False
        self._size += written
        self._torn = written < len(whole)
        return not self._torn

    def _rotate(self) -> None:
        # If it fails, the file goes on and the next try comes one file's length later; trying
        # again at each line would push the older files out.
        self._size = 0
        with contextlib.suppress(OSError):
            for number in range(self._rotate_files - 1, 0, -1):
                older = f"{self.path}.{number}"
                if os.path.lexists(older):
                    os.replace(older, f"{self.path}.{number + 1}")
            os.replace(self.path, f"{self.path}.1")
            self.open()

    def _close_fd(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.close(self._fd)
            self._fd = -1

    def close(self) -> None:
        self._close_fd()
        super().close()


class Stderr(logging.Handler):
    """Lines on stderr; a terminal that went away is nobody's problem."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            sys.stderr.write(self.format(record) + "\n")
            sys.stderr.flush()
        except Exception:
            # OSError of a closed terminal, ValueError of a closed file, or a value's own str():
            # the log file has the line or has counted it.
            return


class Say(logging.Handler):
    """Lines by way of a function that knows what else is on the terminal."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self._say = say

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._say(self.format(record))
        except Exception:
            # As for `Stderr`: the log file has the line or has counted it.
            return


def under_systemd(environ: Mapping[str, str] | None = None) -> bool:
    """Whether stderr goes to the journal, checked by the device and inode that systemd names."""
    stream = (os.environ if environ is None else environ).get("JOURNAL_STREAM", "")
    try:
        about = os.fstat(2)
    except OSError:
        return False
    return stream == f"{about.st_dev}:{about.st_ino}"


class Logging:
    """The handlers of this process. `reopen` on HUP; `close` at the end."""

    def __init__(self, file: LogFile, handlers: tuple[logging.Handler, ...]) -> None:
        self.file = file
        self._handlers = handlers

    @property
    def dropped(self) -> int:
        """Lines that could not be written to the file."""
        return self.file.dropped

    def reopen(self) -> None:
        self.file.reopen()

    def mute(self) -> None:
        """From now on only the file gets lines: what is left to say is said by other means."""
        for handler in self._handlers:
            if handler is not self.file:
                logging.getLogger(_ROOT).removeHandler(handler)

    def close(self) -> None:
        logger = logging.getLogger(_ROOT)
        for handler in self._handlers:
            logger.removeHandler(handler)
            handler.close()


def start(
    path: Path,
    *,
    level: str,
    form: str,
    console: bool = True,
    say: Callable[[str], None] | None = None,
) -> Logging:
    """Log to `path` (`form`: "text" or "json") and, with `console`, to stderr from INFO up.

    With `say`, a terminal shows how the run goes by other means: it gets warnings and worse only.
    Without `console` the process is in the background and its stdout and stderr follow the file.
    Raises `OSError` if the file cannot be opened.
    """
    logging.raiseExceptions = False
    logger = logging.getLogger(_ROOT)
    # The root logger belongs to libraries; what they do with it must not double our lines.
    logger.propagate = False
    logger.setLevel(level)
    file = LogFile(path, take_stdio=not console)
    file.setFormatter(JsonForm() if form == "json" else TextForm())
    file.open()
    handlers: list[logging.Handler] = [file]
    if console and say is not None:
        terminal = Say(say)
        terminal.setLevel(logging.WARNING)
        terminal.setFormatter(ConsoleForm())
        handlers.append(terminal)
    elif console:
        stderr = Stderr()
        stderr.setLevel(max(logging.INFO, logger.level))
        stderr.setFormatter(JournalForm() if under_systemd() else ConsoleForm())
        handlers.append(stderr)
    for handler in handlers:
        logger.addHandler(handler)
    return Logging(file, tuple(handlers))
