"""`start --detach`: the same command again in the background, and the word that it is ready.

The parent starts the command anew in a session of its own, with a pipe named by JOBFLOW_READY_FD,
and waits. The daemon writes JSON lines into it: `{"waiting": text}` while it starts, then
`{"session", "dir", "pid", "log"}` when it serves, or `{"error", "code"}`. So the command returns
when its answer is known, with the daemon's own words and exit code. No double fork, no pid file.

Used by `cli.py` (parent and errors) and `daemon.py` (`announce_*`). Nothing here prints.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from jobflowd import notify

READY_VARIABLE: Final = "JOBFLOW_READY_FD"
#: A command that takes longer says what it is waiting for.
PATIENCE_S: Final = 1.0
#: The end of what a failed start wrote is enough to read, and bounds memory.
OUTPUT_BYTES_MAX: Final = 64 * 1024

_SCRIPTS: Final = ("jobflowd", "jobflow-manager")
#: Without the current directory, from which `-c` and `-m` would import before anything else.
_STARTER: Final = (
    "import sys; sys.path[:] = [p for p in sys.path if p]; "
    "from jobflowd.cli import {entry}; sys.exit({entry}())"
)

_ready_fd: int | None = None
_background = False


# --- in the daemon ---------------------------------------------------------------------------


def adopt_pipe() -> bool:
    """Take the pipe that a detaching parent left in the environment; True if there is one.

    Called once, first thing: from then on no child of the daemon inherits the pipe or its name.
    """
    global _ready_fd, _background
    text = os.environ.pop(READY_VARIABLE, "")
    if _ready_fd is None and text.isascii() and text.isdigit():
        with contextlib.suppress(OSError, OverflowError):
            fd = int(text)
            # Some other program's file under this number must not be written to.
            if stat.S_ISFIFO(os.fstat(fd).st_mode):
                os.set_inheritable(fd, False)
                _ready_fd = fd
                _background = True
    return _ready_fd is not None


def detached() -> bool:
    """Whether a parent still waits for this process to be ready."""
    return _ready_fd is not None


def in_background() -> bool:
    """Whether this process was started into the background: nobody sees what it prints."""
    return _background


def announce_waiting(text: str) -> None:
    """Tell who waits for the start what takes long, as words that follow "waiting for"."""
    notify.status(f"starting: {text}")
    _send({"waiting": text})


def announce_ready(session: str, directory: Path | str, pid: int, log: Path | str) -> None:
    """The daemon serves: tell systemd, and let a detaching parent return."""
    notify.ready(f"session {session}")
    _send({"session": session, "dir": str(directory), "pid": pid, "log": str(log)}, last=True)


def announce_failure(sentence: str, code: int) -> bool:
    """The start failed; True if a parent was told and will show the sentence."""
    return _send({"error": sentence, "code": code}, last=True)


def _send(message: dict[str, Any], *, last: bool = False) -> bool:
    global _ready_fd
    if _ready_fd is None:
        return False
    line = json.dumps(message).encode() + b"\n"
    sent = False
    # The parent may have been interrupted; the daemon goes on without it.
    with contextlib.suppress(OSError):
        sent = os.write(_ready_fd, line) == len(line)
    if last:
        os.close(_ready_fd)
        _ready_fd = None
    return sent


# --- in the parent ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ready:
    """The daemon serves."""

    session: str
    directory: str
    pid: int
    log: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The daemon ended before it served: its exit code and what it said."""

    code: int
    text: str


def start_detached(say: Callable[[str], None]) -> Ready | Ended:
    """Run this same command in the background and wait until it is ready or has ended.

    `say` gets one line when the wait exceeds a second, and one whenever its reason changes.
    """
    with tempfile.TemporaryFile() as output:
        read_fd, write_fd = os.pipe()
        try:
            process = _spawn(output, write_fd)
        except BaseException:
            os.close(read_fd)
            raise
        finally:
            os.close(write_fd)
        with open(read_fd, "rb", buffering=0) as pipe:
            try:
                answer = _wait(pipe, say)
            except KeyboardInterrupt:
                process.send_signal(signal.SIGINT)
                process.wait()
                return Ended(130, "interrupted while starting; the daemon was told to stop")
        return _judge(answer, process, output)


def _command() -> list[str]:
    script = sys.argv[0]
    if os.path.basename(script) in _SCRIPTS and os.path.isfile(script):
        return [sys.executable, os.path.abspath(script), *sys.argv[1:]]
    entry = "main_start" if os.path.basename(script) == "jobflow-manager" else "main"
    return [sys.executable, "-c", _STARTER.format(entry=entry), *sys.argv[1:]]


def _spawn(output: IO[bytes], write_fd: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        _command(),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output,
        start_new_session=True,
        pass_fds=(write_fd,),
        env={**os.environ, READY_VARIABLE: str(write_fd)},
    )


def _wait(pipe: IO[bytes], say: Callable[[str], None]) -> dict[str, Any]:
    """The last message, or {} if the pipe ended without one."""
    reason, said, data = "the daemon to open the session", "", b""
    speak_at = time.monotonic() + PATIENCE_S
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        while True:
            now = time.monotonic()
            if now >= speak_at and said != reason:
                say(f"waiting for {reason} ...")
                said = reason
            # Once it has spoken, only the pipe can change anything.
            if not selector.select(speak_at - now if now < speak_at else None):
                continue
            chunk = pipe.read(65536)
            if not chunk:
                return {}
            data += chunk
            *lines, data = data.split(b"\n")
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                if "waiting" not in message:
                    return message
                reason = str(message["waiting"])


def _judge(
    answer: dict[str, Any], process: subprocess.Popen[bytes], output: IO[bytes]
) -> Ready | Ended:
    if "session" in answer:
        # Nobody waits for the process any more, which is what detaching means; without this the
        # interpreter would warn that it is still running.
        process.returncode = 0
        return Ready(answer["session"], answer["dir"], answer["pid"], answer["log"])
    if "error" in answer:
        process.wait()
        return Ended(answer["code"], answer["error"])
    code = process.wait()
    size = output.seek(0, os.SEEK_END)
    output.seek(max(0, size - OUTPUT_BYTES_MAX))
    text = output.read().decode("utf-8", "replace").strip()
    if code < 0:
        name = signal.Signals(-code).name
        return Ended(128 - code, f"{text}\nthe daemon was ended by {name} while starting".strip())
    return Ended(code, text)
