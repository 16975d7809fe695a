"""A file system without POSIX locks (RELIABILITY D13): fcntl is refused by strace."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
#: Opens the store, counts one more start, says how many there were, and is killed.
SCRIPT = """
import os, signal, sys
from jobflowd.model import Changes
from jobflowd.store import Store
store = Store(sys.argv[1])
try:
    store.open()
except Exception as error:
    os.write(1, str(error).encode())
    os._exit(getattr(error, "exit_code", 1))
starts = int(store.load().meta.get("starts", 0)) + 1
store.commit(Changes(meta={"starts": starts}))
os.write(1, str(starts).encode())
os.kill(os.getpid(), signal.SIGKILL)
"""


def run(database: Path, *flags: str) -> tuple[int, str]:
    """Run the script under strace; its exit code and what it said."""
    done = subprocess.run(
        [
            *("strace", "-qq", "-y", "-e", "trace=fcntl", *flags),
            *(sys.executable, "-c", SCRIPT, str(database)),
        ],
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode, done.stdout.decode()


def start(database: Path, error: str) -> tuple[int, str]:
    """The script where fcntl says `error` from the first lock on.

    Python itself asks fcntl before that, so the calls of a good run are counted first.
    """
    trace = database.parent / "trace"
    run(database.parent / "elsewhere.db", "-o", str(trace))
    lines = trace.read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if "elsewhere.db" in line)
    for left in database.parent.glob("elsewhere.db*"):
        left.unlink()
    return run(database, "-o", "/dev/null", "-e", f"inject=fcntl:error={error}:when={first}+")


@pytest.mark.parametrize("error", ["ENOLCK", "ENOSYS"])
def test_a_session_goes_on_without_file_locks(
    tmp_path: Path, require: Callable[[str], None], error: str
) -> None:
    """Killed twice, and every start finds what the last one stored."""
    require("strace")
    (tmp_path / "owner.json").write_text("{}")
    database = tmp_path / "manager.db"
    for expected in ("1", "2", "3"):
        code, said = start(database, error)
        assert said == expected
        assert code in (-9, 137)
        assert database.with_name("manager.db.lock").is_dir(), "SQLite holds no lock of its own"
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".jobflow")] == []


def test_a_lock_that_another_process_may_hold_is_left_alone(
    tmp_path: Path, require: Callable[[str], None]
) -> None:
    """Outside a session directory no record says whose lock it is."""
    require("strace")
    database = tmp_path / "manager.db"
    assert start(database, "ENOLCK")[1] == "1"
    code, said = start(database, "ENOLCK")
    assert code == 75, said
    assert "remove that directory" in said
    database.with_name("manager.db.lock").rmdir()
    assert start(database, "ENOLCK")[1] == "2"
