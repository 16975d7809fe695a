"""What a preflight job looks at from a compute node. Started like a worker, ends by itself.

Rule: reads `question.json` of the directory that it is given and writes `hello.json`, then
`answer.json`, there, each at once. Every look is bounded in time and says what it saw; what that
means is for `jobflowd/preflight.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import resource
import socket
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from jobflow_worker import __version__, batchjob
from jobflow_worker.program import ProgramError, ProgramRef, load_program, program_hash
from jobflow_worker.sessionfiles import write_private

QUESTION: Final = "question.json"
HELLO: Final = "hello.json"
ECHO: Final = "echo"
ANSWER: Final = "answer.json"
#: NFS clients believe in the absence of a name for up to a minute.
ECHO_PATIENCE_S: Final = 70.0
CONNECT_S: Final = 3.0


def main() -> int:
    """Entry point of the preflight job: `main DIRECTORY`; 0 if the answer was written."""
    os.umask(0o077)
    directory = Path(sys.argv[1])
    question = json.loads((directory / QUESTION).read_text())
    write(directory / HELLO, {"at": time.time()})
    answer = {
        "host": platform.node(),
        "python": platform.python_version(),
        "version": __version__,
        "at": time.time(),
        "echo_s": echo_after(directory),
        "endpoints": {one: connect(one) for one in question["endpoints"]},
        "program": program(question["program"]),
        "cwd": enter(question["cwd"]),
        "scratch": scratch(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "cpus": len(os.sched_getaffinity(0)),
        "time_left_s": time_left(),
    }
    write(directory / ANSWER, answer)
    return 0


def write(path: Path, content: dict[str, Any]) -> None:
    """Put a file there at once."""
    write_private(path, json.dumps(content).encode())


def echo_after(directory: Path) -> float | None:
    """Seconds until the manager's answer to our hello was seen; None if it was not."""
    start = time.monotonic()
    while time.monotonic() - start < ECHO_PATIENCE_S:
        # A listing, not a look at the name: a name once missing is believed to be so for long.
        if ECHO in os.listdir(directory):
            return time.monotonic() - start
        time.sleep(0.05)
    return None


def connect(endpoint: str) -> str | None:
    """Why the manager's address cannot be reached; None if it can."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_S):
            return None
    except (OSError, ValueError) as error:
        return str(error) or type(error).__name__


def program(record: dict[str, str]) -> dict[str, str]:
    """The hash of the program as this node sees it, or why it cannot be imported."""
    try:
        ref = ProgramRef.from_json(record)
        found = program_hash(ref)
        with contextlib.redirect_stdout(sys.stderr):
            load_program(ref)
    except (ProgramError, ValueError) as error:
        return {"error": str(error)}
    except BaseException as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"hash": found}


def enter(directory: str) -> str:
    """Why tasks could not run in that directory; empty if they can."""
    try:
        os.chdir(directory)
    except OSError as error:
        return str(error.strerror)
    return ""


def scratch() -> str:
    """Why temporary files cannot be written; empty if they can.

    Python falls back to other places in silence, so that TMPDIR is looked at by itself.
    """
    place = os.environ.get("TMPDIR") or tempfile.gettempdir()
    try:
        with tempfile.NamedTemporaryFile(dir=place) as file:
            file.write(b"x" * 65536)
            file.flush()
    except OSError as error:
        return f"{place}: {error.strerror}"
    return ""


def time_left() -> float | None:
    """Seconds until the job's time limit, if the job knows it."""
    end_at = batchjob.end_at(os.environ)
    return None if end_at is None else end_at - time.time()
