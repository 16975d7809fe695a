"""What the store and the session directory promise: one owner, no silent step back, bounds.

Who owns a session between hosts is judged with fakes in tests/integration/test_sessiondir.py; here
a real daemon loses its session while it runs. Between real hosts: test_nfs.py.
"""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from jobflow_worker.messages import Heartbeat, Report, TaskFinished
from jobflowd import dbfile
from jobflowd import events as ev
from jobflowd import store as store_module
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.dbfile import StoreBroken
from jobflowd.model import Changes
from jobflowd.ownership import read_owner
from jobflowd.recovery import Recovery
from jobflowd.store import Store

from .bench import Bench, kill, state_of
from .messages import Crowd

SLOW = pytest.mark.slow


# --- one owner ---------------------------------------------------------------------------------


def taken_by_another_host(bench: Bench) -> None:
    """What a takeover from elsewhere leaves: its record in the place of ours."""
    path = bench.session / "owner.json"
    record = json.loads(path.read_text())
    record |= {"uuid": "f" * 32, "host": "elsewhere", "beat": 1}
    path.write_text(json.dumps(record))


@SLOW
def test_a_daemon_whose_session_was_taken_stops_before_it_launches(bench: Bench) -> None:
    gate = ("--workers", "2")
    daemon = bench.start(*gate, n=2, s=600.0, hurry=str(bench.root / "hurry"))
    bench.until(lambda: len(bench.notes()) == 2, "two running tasks")
    launches = sorted((bench.session / "launches").iterdir())
    wal = bench.database.with_name("manager.db-wal")
    taken_by_another_host(bench)
    victim, survivor = (one["pid"] for one in bench.ask("workers")["workers"])
    kill(victim, signal.SIGKILL)

    assert bench.ended(daemon, 20) == 75, bench.printed()
    assert "taken over" in bench.printed()
    assert sorted((bench.session / "launches").iterdir()) == launches, "it launched once more"
    assert wal.stat().st_size > 0, "it checked in a database that is another's"
    owner = read_owner(bench.session / "owner.json")
    assert owner is not None
    assert owner.host == "elsewhere"
    assert state_of(survivor), "the worker belongs to the other daemon now"

    # The other one is gone; whoever knows that need not wait five minutes for its beat.
    daemon = bench.start(*gate, "--takeover", n=2, s=600.0, hurry=str(bench.root / "hurry"))
    bench.until(bench.serving, "the daemon to serve")
    (bench.root / "hurry").touch()
    assert bench.ended(daemon, 60) == 0, bench.printed()
    verdict = bench.verdict(2)
    assert verdict.problems == []
    assert sorted(verdict.started_again.values()) == [2], "only the killed worker's task"


# --- a database that went back -------------------------------------------------------------------


@SLOW
def test_an_older_backup_is_refused_without_a_flag(bench: Bench) -> None:
    """RELIABILITY X8: what was acknowledged since the backup would silently be undone."""
    n = 12
    daemon = bench.start("--workers", "1", n=n, s=0.2)
    bench.until(lambda: len(bench.notes()) >= 4, "some tasks")
    kill(daemon.pid, signal.SIGKILL)
    daemon.wait()
    backup = bench.root / "backup"
    backup.mkdir()
    for file in bench.session.glob("manager.db*"):
        if not file.name.endswith(".log"):
            shutil.copy(file, backup)
    daemon = bench.start("--workers", "1", n=n, s=0.2)
    bench.until(bench.serving, "the daemon to serve")
    bench.until(lambda: bench.ask("status")["tasks"]["succeeded"] >= 8, "more tasks")
    kill(daemon.pid, signal.SIGKILL)
    daemon.wait()
    for file in bench.session.glob("manager.db-*"):
        file.unlink()
    for file in backup.iterdir():
        shutil.copy(file, bench.session)

    assert bench.ended(bench.start("--workers", "1", n=n, s=0.2)) == 78
    assert "older copy" in bench.printed()
    assert "--accept-rollback" in bench.printed()
    again = bench.start("--workers", "1", "--accept-rollback", n=n, s=0.2)
    assert bench.ended(again) == 0, bench.printed()
    assert bench.verdict(n).problems == []


# --- degraded: what nobody repeats is kept ------------------------------------------------------


def test_a_spool_that_is_read_while_the_disk_is_full_is_not_lost(tmp_path: Path) -> None:
    """Its writer is gone, and the file is removed as soon as a turn has been committed."""
    store = Store(":memory:")
    store.open()
    settings = Settings("s", "p.py")
    coordinator = Coordinator(settings, store.begin_epoch(wall=0.0), 1)
    recovery = Recovery(store, settings, tmp_path)
    spooled = ev.Heard("w-1", 3, "fs", TaskFinished(0, ()), spooled=True)
    beat = Heartbeat(Report(1, 5, 0, 0, 0))
    recovery.degrade([spooled, ev.Heard("w-2", 4, "zmq", beat)], "no space")
    found = recovery.try_again(coordinator)
    assert found is not None
    assert [one for one in found[1] if isinstance(one, ev.Heard)] == [spooled]
    store.close()


# --- bounds ------------------------------------------------------------------------------------


@SLOW
def test_the_database_is_flat_over_many_messages(tmp_path: Path) -> None:
    """Known failure 14. 80,000 here; `python -m tests.faults.messages 1000000` for more."""
    crowd = Crowd(tmp_path / "m.db")
    # Until its first checkpoint the log grows to its 4 MB.
    crowd.run(40_000)
    early = crowd.sizes()
    crowd.run(40_000)
    late = crowd.sizes()
    crowd.close()
    assert late["processed_messages"] <= early["processed_messages"] + 100
    assert late["attempts"] == early["attempts"]
    assert late["bytes"] <= early["bytes"] * 1.2
    assert late["messages"] >= 80_000


class DeadFile:
    """A connection whose database can no longer be written, while its log still can."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self.tried = 0

    def execute(self, sql: str, *values: Any) -> Any:
        if "wal_checkpoint" in sql:
            self.tried += 1
            raise sqlite3.OperationalError("disk I/O error")
        return self._db.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)


def test_a_log_that_is_not_taken_in_any_more_ends_the_daemon(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen on NFS after a restart of its server: SQLite itself keeps quiet about it."""
    monkeypatch.setattr(store_module, "LOG_LOOK_EVERY", 4)
    store = Store(tmp_path / "m.db")
    store.open()
    dead = DeadFile(store._connection())
    monkeypatch.setattr(store, "_db", dead)
    for n in range(8):
        store.commit(Changes(meta={"n": n}))
    assert dead.tried == 0, "a small log is nobody's concern"
    monkeypatch.setattr(dbfile, "WAL_BYTES_KEPT", 0)
    for n in range(3):
        store.commit(Changes(meta={"n": n}))
    with pytest.raises(StoreBroken):
        store.commit(Changes(meta={"n": 3}))
    assert dead.tried == 1
    dead._db.close()
