"""Opening a session on a real directory: owner, identity, resume, archive, refusals."""

from __future__ import annotations

import fcntl
import json
import os
import select
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobflow_worker.program import ProgramError
from jobflow_worker.sessionfiles import SessionFileError, SessionPaths, SessionRecord
from jobflowd import ownership
from jobflowd.config import ConfigError, StartConfig, default_config
from jobflowd.filesystems import filesystem_of
from jobflowd.ownership import Owner, is_gone, read_owner, take
from jobflowd.sessiondir import Session, SessionError, open_session

Opener = Callable[..., Session]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's world: state directory, a program, nothing of the real home."""
    monkeypatch.setenv("JOBFLOW_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "conv.py").write_text("class Conv: ...\n")
    (tmp_path / "other.py").write_text("class Other: ...\n")
    return tmp_path


@pytest.fixture
def start(place: Path) -> Iterator[Opener]:
    """Open a session of conv.py with these settings; all are closed after the test."""
    opened: list[Session] = []
    mask = os.umask(0o022)

    def opener(**values: Any) -> Session:
        session = open_session(conv(place, **values))
        opened.append(session)
        return session

    yield opener
    for session in opened:
        session.close()
    os.umask(mask)


def conv(place: Path, **values: Any) -> StartConfig:
    values.setdefault("program", str(place / "conv.py"))
    return default_config(**{name: one for name, one in values.items() if one is not None})


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


def refused(code: int, *says: str, start: Opener, **values: Any) -> str:
    with pytest.raises((SessionError, ConfigError, ProgramError, SessionFileError)) as caught:
        start(**values)
    assert caught.value.exit_code == code
    for one in says:
        assert one in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- begin and go on --------------------------------------------------------------------------


def test_a_new_session_is_private_and_complete(start: Opener, place: Path) -> None:
    session = start(program_args={"n": 1}, workers=3)
    assert session.name == "conv"
    assert session.paths.root == place / "state" / "sessions" / "conv"
    assert not session.resumed
    assert session.log_path == session.paths.root / "manager.db.log"
    for path in [session.paths.root, *session.paths.root.rglob("*")]:
        wanted = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.lstat().st_mode) == wanted, path
    pointer = json.loads((place / "state" / "pointers" / "conv.json").read_text())
    assert pointer["dir"] == str(session.paths.root)
    assert pointer["pid"] == os.getpid()
    record = SessionRecord.load(session.paths.session_file)
    assert record.program_args == {"n": 1}
    assert record.settings == {"workers": 3}
    flags = fcntl.fcntl(session.ownership._lock_fd, fcntl.F_GETFD)
    assert flags & fcntl.FD_CLOEXEC


def test_the_same_identity_goes_on(start: Opener, place: Path) -> None:
    first = start(program_args={"a": 1, "b": 2}, workers=3)
    first.write_ended("done", 0, {"total": 2})
    first.close()
    assert not first.paths.owner.exists()
    second = start(program_args={"b": 2, "a": 1}, workers=5)
    assert second.resumed
    assert second.record.created_at == first.record.created_at
    assert second.record.settings == {"workers": 5}
    assert not (second.paths.root / "ended.json").exists()


def test_ended_is_readable_by_the_clients(start: Opener) -> None:
    from jobflowd.api import find_session

    session = start()
    session.write_ended("done", 3, {"failed": 1})
    session.close()
    ended = find_session("conv").ended()
    assert ended is not None
    assert (ended.state, ended.code, ended.tasks) == ("done", 3, {"failed": 1})


def test_a_start_without_a_program_repeats_the_record(start: Opener, place: Path) -> None:
    shared = place / "shared"
    first = start(
        program_args={"n": 1},
        shared_dir=shared,
        session_id="t1",
        workers=3,
        db_path=place / "db" / "x.db",
    )
    first.close()
    again = start(program=None, session_id="t1", slots=2)
    assert again.paths.root == shared / "t1"
    assert again.program == first.program
    assert again.program_args == {"n": 1}
    assert again.config.program_args == {"n": 1}
    assert (again.config.workers, again.config.slots) == (3, 2)
    assert again.db_path == place / "db" / "x.db"
    assert again.resumed
    again.close()
    third = start(program=None, session_id="t1")
    assert third.config.slots == 2


def test_without_program_and_session_there_is_nothing_to_start(start: Opener, place: Path) -> None:
    refused(2, "--program", start=start, program=None)
    refused(2, "no session nope", start=start, program=None, session_id="nope")
    assert not (place / "state").exists()


def test_another_identity_is_refused_and_both_are_shown(start: Opener, place: Path) -> None:
    start(program_args={"n": 1}, session_id="t1").close()
    before = tree(place)
    text = refused(
        78, "--session-id", "--fresh", start=start, session_id="t1", program_args={"n": 2}
    )
    assert '{"n": 1}' in text
    assert '{"n": 2}' in text
    other = str(place / "other.py")
    text = refused(78, start=start, session_id="t1", program=other, program_args={"n": 1})
    assert "conv.py" in text
    assert "other.py" in text
    refused(
        78,
        "conv.py:Conv",
        start=start,
        session_id="t1",
        program=str(place / "conv.py:Conv"),
        program_args={"n": 1},
    )
    refused(78, start=start, program=None, session_id="t1", program_args={"n": 3})
    assert tree(place) == before


def test_changed_program_text_is_the_same_session(start: Opener, place: Path) -> None:
    first = start()
    first.close()
    (place / "conv.py").write_text("class Conv: pass\n")
    second = start()
    assert second.resumed
    assert second.program_hash != first.program_hash


def test_fresh_archives_the_old_run(start: Opener, place: Path) -> None:
    first = start(program_args={"n": 1})
    root = first.paths.root
    for name in ("manager.db", "manager.db-wal", "manager.db.log", "manager.db.log.1"):
        (root / name).write_text(name)
    (root / "results" / "r1").write_text("old")
    (root / "mail" / "in" / "w1").write_text("old")
    first.write_ended("done", 0, {})
    first.close()
    second = start(program=str(place / "other.py"), session_id="conv", fresh=True)
    assert not second.resumed
    assert second.archived is not None
    assert second.archived.parent == root / "archive"
    kept = set(os.listdir(second.archived))
    assert kept >= {"manager.db", "manager.db-wal", "manager.db.log", "manager.db.log.1"}
    assert kept >= {"session.json", "results", "mail", "ended.json"}
    assert (second.archived / "results" / "r1").read_text() == "old"
    assert not list((root / "mail" / "in").iterdir())
    assert not (root / "manager.db").exists()
    assert second.record.program["path"] == str(place / "other.py")
    second.close()
    third = start(program=str(place / "conv.py"), session_id="conv", fresh=True)
    assert third.archived not in (None, second.archived)


def test_fresh_renames_a_database_elsewhere(start: Opener, place: Path) -> None:
    database = place / "db" / "x.db"
    start(db_path=database).close()
    database.write_text("old")
    second = start(fresh=True, db_path=database)
    assert not database.exists()
    assert second.archived is not None
    assert database.with_name(f"x.db.{second.archived.name}").read_text() == "old"


def test_fresh_of_a_new_session_archives_nothing(start: Opener) -> None:
    assert start(fresh=True).archived is None


def test_a_damaged_record_stops_all_but_fresh(start: Opener) -> None:
    first = start()
    first.close()
    first.paths.session_file.write_text("{")
    refused(78, "session.json", start=start)
    assert start(fresh=True).archived is not None


def test_the_database_of_a_session_stays_the_same(start: Opener, place: Path) -> None:
    start(db_path=place / "a.db").close()
    assert start().db_path == place / "a.db"
    refused(75, start=start)


def test_another_database_is_refused(start: Opener, place: Path) -> None:
    start().close()
    refused(78, "manager.db", "b.db", start=start, db_path=place / "b.db")


# --- names ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "name"),
    [("a b.py", "a-b"), (".hidden.py", "hidden"), ("pkg/__init__.py", "pkg"), ("é.py", "session")],
)
def test_default_names(start: Opener, place: Path, file: str, name: str) -> None:
    path = place / file
    path.parent.mkdir(exist_ok=True)
    path.write_text("")
    assert start(program=str(path)).name == name


def test_a_name_leads_to_one_session(start: Opener, place: Path) -> None:
    start(session_id="t1", shared_dir=place / "one").close()
    refused(
        78, str(place / "one"), "--session-id", start=start, session_id="t1", shared_dir=place / "2"
    )
    assert not (place / "2").exists()
    refused(78, f"--shared-dir {place / 'one'}", start=start, session_id="t1")
    # By another spelling of the path it is the same directory.
    (place / "link").symlink_to(place / "one")
    start(session_id="t1", shared_dir=place / "link").close()


def test_the_pointer_of_a_deleted_session_is_free(start: Opener, place: Path) -> None:
    start(session_id="t1", shared_dir=place / "one").close()
    (place / "one").rename(place / "gone")
    session = start(session_id="t1", shared_dir=place / "two")
    pointer = json.loads((place / "state" / "pointers" / "t1.json").read_text())
    assert pointer["dir"] == str(session.paths.root)


def test_a_home_that_cannot_be_written_costs_only_the_name(start: Opener, place: Path) -> None:
    (place / "state").write_text("a file is in the way")
    session = start(shared_dir=place / "shared")
    assert any(str(session.paths.root) in warning for warning in session.warnings)


# --- two daemons ------------------------------------------------------------------------------


def test_a_second_daemon_is_told_who_owns_the_session(start: Opener, place: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from jobflowd.config import default_config\n"
        "from jobflowd.sessiondir import open_session\n"
        f"s = open_session(default_config(program={str(place / 'conv.py')!r}))\n"
        "print('open', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert other.stdout is not None
        assert other.stdin is not None
        assert select.select([other.stdout], [], [], 20)[0]
        assert other.stdout.readline() == b"open\n"
        before = tree(place)
        refused(75, f"pid {other.pid}", " on ", " since ", "jobflowctl -s conv", start=start)
        assert tree(place) == before
    finally:
        # Killed: it removes neither its record nor anything else.
        other.kill()
        other.communicate()
    assert read_owner(SessionPaths(place / "state/sessions/conv").owner) is not None
    assert start().resumed


def test_a_living_pid_counts_even_where_locks_do_not_work(
    start: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(fd: int, how: int) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    start()
    refused(75, f"pid {os.getpid()}", start=start)


def test_a_pid_that_was_used_again_is_not_the_owner() -> None:
    mine = ownership.this_process(0.0)
    assert not is_gone(mine)
    assert is_gone(replace(mine, pid_start=mine.pid_start + 1))
    assert is_gone(replace(mine, boot_id="another boot"))
    assert is_gone(replace(mine, pid=2**22 + 1))


class Clock:
    """Time that passes only by sleeping; `on_sleep` is what happens meanwhile."""

    def __init__(self, on_sleep: Callable[[], None] = lambda: None) -> None:
        self.now = 0.0
        self.on_sleep = on_sleep

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.on_sleep()

    def read(self) -> float:
        return self.now


@pytest.fixture
def foreign(tmp_path: Path) -> tuple[SessionPaths, Owner]:
    """A session whose record says that another host runs it."""
    paths = SessionPaths(tmp_path / "s")
    paths.make()
    owner = Owner("f" * 32, "login3", "boot", 4711, 1, 1.0, 7)
    paths.owner.write_bytes(owner.encode())
    return paths, owner


def test_another_hosts_session_is_taken_after_five_silent_minutes(
    foreign: tuple[SessionPaths, Owner],
) -> None:
    paths, _ = foreign
    clock, said = Clock(), list[str]()
    held = take(paths, name="s", say=said.append, clock=clock.read, sleep=clock.sleep)
    assert clock.now == pytest.approx(300)
    assert "login3" in said[0]
    assert read_owner(paths.owner) == held.owner
    assert sorted(os.listdir(paths.root)) == sorted(
        ["keys", "launches", "lock", "mail", "owner.json", "quarantine", "results", "spool"]
    )
    held.release()


def test_another_hosts_session_is_refused_once_its_beat_moves(
    foreign: tuple[SessionPaths, Owner],
) -> None:
    paths, owner = foreign
    clock = Clock()

    def beat() -> None:
        if clock.now >= 30:
            paths.owner.write_bytes(replace(owner, beat=8).encode())

    clock.on_sleep = beat
    with pytest.raises(SessionError, match="ssh login3 jobflowctl -s s shutdown") as caught:
        take(paths, name="s", clock=clock.read, sleep=clock.sleep)
    assert caught.value.exit_code == 75
    assert clock.now == pytest.approx(30)
    left = read_owner(paths.owner)
    assert left is not None
    assert left.host == "login3"


def test_takeover_takes_at_once_and_the_old_owner_stops(
    foreign: tuple[SessionPaths, Owner], monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, _ = foreign
    paths.owner.unlink()
    monkeypatch.setattr(fcntl, "flock", lambda fd, how: None)
    monkeypatch.setattr(ownership, "this_host", lambda: "login3")
    old = take(paths, name="s")
    assert old.refresh()
    assert old.owner.beat == 1
    monkeypatch.setattr(ownership, "this_host", lambda: "login4")
    clock = Clock()
    new = take(paths, name="s", takeover=True, clock=clock.read, sleep=clock.sleep)
    assert clock.now == 0
    with pytest.raises(SessionError, match="taken over") as caught:
        old.refresh()
    assert caught.value.exit_code == 75
    old.release()
    assert new.refresh()
    new.release()
    assert not paths.owner.exists()


def test_a_session_moved_under_its_daemon_ends_it(start: Opener, place: Path) -> None:
    session = start()
    root = session.paths.root
    root.rename(place / "moved")
    with pytest.raises(SessionError) as caught:
        session.refresh_owner()
    assert caught.value.exit_code == 74
    root.mkdir()
    with pytest.raises(SessionError) as caught:
        session.refresh_owner()
    assert caught.value.exit_code in (74, 75)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"uuid": 1}', b"\xff\xfe", b"x" * 100_000])
def test_a_damaged_owner_record_stops_nobody(
    foreign: tuple[SessionPaths, Owner], content: bytes
) -> None:
    paths, _ = foreign
    paths.owner.write_bytes(content)
    held = take(paths, name="s", sleep=lambda seconds: pytest.fail("waited"))
    assert read_owner(paths.owner) == held.owner
    held.release()


# --- directories ------------------------------------------------------------------------------


def test_a_link_in_place_of_the_session_is_refused(start: Opener, place: Path) -> None:
    (place / "elsewhere").mkdir()
    (place / "shared").mkdir()
    (place / "shared" / "t1").symlink_to(place / "elsewhere")
    refused(77, "link", start=start, session_id="t1", shared_dir=place / "shared")
    assert not list((place / "elsewhere").iterdir())


def test_a_file_in_the_way_is_refused(start: Opener, place: Path) -> None:
    (place / "shared").mkdir()
    (place / "shared" / "t1").write_text("")
    refused(77, "a file", start=start, session_id="t1", shared_dir=place / "shared")
    refused(77, "a file", start=start, session_id="t1", shared_dir=place / "shared" / "t1" / "x")


def test_a_directory_that_others_could_prepare_is_refused(start: Opener, place: Path) -> None:
    root = place / "shared" / "t1"
    root.mkdir(parents=True)
    root.chmod(0o777)
    refused(77, "chmod 700", start=start, session_id="t1", shared_dir=place / "shared")
    root.chmod(0o755)
    session = start(session_id="t1", shared_dir=place / "shared")
    assert stat.S_IMODE(root.stat().st_mode) == 0o700
    session.close()


def test_a_parent_that_everybody_may_write_is_refused(start: Opener, place: Path) -> None:
    shared = place / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    refused(77, "chmod o-w", start=start, session_id="t1", shared_dir=shared)
    shared.chmod(0o1777)
    start(session_id="t1", shared_dir=shared)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
def test_somebody_elses_directory_is_refused(start: Opener, place: Path) -> None:
    root = place / "shared" / "t1"
    root.mkdir(parents=True)
    os.chown(root, 12345, 12345)
    refused(77, "12345", start=start, session_id="t1", shared_dir=place / "shared")


def test_a_directory_with_other_things_in_it_is_refused(start: Opener, place: Path) -> None:
    root = place / "shared" / "t1"
    root.mkdir(parents=True)
    (root / "thesis.tex").write_text("")
    refused(78, "thesis.tex", start=start, session_id="t1", shared_dir=place / "shared")
    assert tree(root) == ["thesis.tex"]


def test_an_unwritable_place_is_refused(start: Opener) -> None:
    # Nobody can make a directory there, root included.
    refused(77, "/sys/t1", "--shared-dir", start=start, session_id="t1", shared_dir=Path("/sys"))


def test_no_space_is_said_and_nothing_is_left(
    start: Opener, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(record: SessionRecord, path: Path) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(SessionRecord, "save", full)
    refused(74, "no space", "make room", start=start, shared_dir=place / "shared")
    assert tree(place / "shared") == []


def test_a_missing_program_leaves_nothing(start: Opener, place: Path) -> None:
    refused(66, "nope.py", start=start, program=str(place / "nope.py"))
    assert not (place / "state").exists()


def test_a_conflict_of_settings_leaves_nothing(start: Opener, place: Path) -> None:
    refused(78, "--lease-duration", start=start, lease_duration=20.0)
    assert not (place / "state").exists()


# --- file systems -----------------------------------------------------------------------------


def test_the_longest_and_latest_mount_counts(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(
        "1 0 8:1 / / rw - ext4 /dev/sda rw\n"
        "2 1 0:40 / /home rw shared:1 - autofs systemd-1 rw\n"
        "3 1 0:41 / /home rw shared:2 - nfs4 server:/home rw\n"
        "4 1 0:42 / /with\\040blank rw - lustre x rw\n"
        "5 1 0:43 / /homestead rw - tmpfs tmpfs rw\n"
        "6 1 0:44 / /fuse rw - fuse.sshfs x rw\n"
        "short line\n"
    )
    found = {
        path: filesystem_of(Path(path), table)
        for path in ("/home/u/x", "/with blank/x", "/homestead/x", "/opt", "/fuse/x")
    }
    assert found == {
        "/home/u/x": ("nfs4", True),
        "/with blank/x": ("lustre", True),
        "/homestead/x": ("tmpfs", False),
        "/opt": ("ext4", False),
        "/fuse/x": ("fuse.sshfs", True),
    }
    assert filesystem_of(Path("/"), tmp_path / "none") == ("unknown", False)
    assert filesystem_of(tmp_path)[0] != "unknown"
