"""The store on a real disk: kills, rivals, foreign and damaged files, full and failing disks.

Each fault is made for real, in a child process where it would hurt this one.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobflowd import dbfile
from jobflowd.model import Changes, Definition, NewTask, Task, TaskState
from jobflowd.store import Store, StoreError

ROOT = Path(__file__).parents[2]

#: What the children share: a store at argv[1], and a commit of one task a time.
PRELUDE = """
import os, sys
from jobflowd.model import Changes, Definition, NewTask, Task, TaskState
from jobflowd.store import DiskFull, Store, StoreBroken, StoreError

def say(*words):
    print(*words, flush=True)

def one(row, size=1000):
    definition = Definition(f"t{row}", bytes(size), b"h" * 16, 2, 0, None, None, None)
    changes = Changes(new_tasks=[NewTask(row, row, definition)], meta={"last": row})
    changes.tasks[row] = Task(row, f"t{row}", TaskState.SUCCEEDED, 0, row)
    return changes

store = Store(sys.argv[1])
"""


def child(code: str, *args: str | Path, before: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    text = PRELUDE + textwrap.dedent(code)
    return subprocess.Popen(
        [*before, sys.executable, "-c", text, *map(str, args)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, *args: str | Path, before: tuple[str, ...] = ()) -> str:
    process = child(code, *args, before=before)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Store]:
    store = Store(path)
    store.open(patience_s=0.1)
    try:
        yield store
    finally:
        store.close()


def refused(path: Path) -> StoreError:
    with pytest.raises(StoreError) as caught, opened(path):
        pass
    assert str(path.parent) in caught.value.sentence
    return caught.value


def with_one_task(path: Path) -> None:
    definition = Definition("t1", b"spec", b"h" * 16, 2, 0, None, None, None)
    with opened(path) as store:
        store.commit(Changes(new_tasks=[NewTask(1, 1, definition)]))


# --- the file -----------------------------------------------------------------------------------


def test_a_new_database_is_private_set_up_as_designed_and_survives_a_close(tmp_path: Path) -> None:
    path = tmp_path / "manager.db"
    with opened(path) as store:
        for name, value in (
            ("locking_mode", "exclusive"),
            ("journal_mode", "wal"),
            ("synchronous", 2),
            ("foreign_keys", 1),
            ("application_id", dbfile.APPLICATION_ID),
            ("user_version", max(dbfile.migrations())),
        ):
            assert store.read(f"PRAGMA {name}") == [(value,)]
        assert sorted(os.listdir(tmp_path)) == ["manager.db", "manager.db-wal"]
        for entry in tmp_path.iterdir():
            assert stat.S_IMODE(entry.stat().st_mode) == 0o600
        assert store.size_bytes() >= sum(entry.stat().st_size for entry in tmp_path.iterdir())
    with_one_task(path)
    assert os.listdir(tmp_path) == ["manager.db"]
    with opened(path) as store:
        assert store.specs([1]) == {1: b"spec"}


def test_a_path_with_odd_characters_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "a?b#c%20 d'ü.db"
    with_one_task(path)
    assert path.exists()


def test_nothing_is_left_of_a_run_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = Store(":memory:")
    store.open()
    store.begin_epoch()
    store.close()
    assert os.listdir(tmp_path) == []


# --- kills --------------------------------------------------------------------------------------


@pytest.mark.parametrize("round_no", range(6))
def test_what_was_committed_survives_kill_9(tmp_path: Path, round_no: int) -> None:
    path = tmp_path / "manager.db"
    process = child(
        """
        store.open()
        store.begin_epoch()
        row = 0
        while True:
            row += 1
            store.commit(one(row, size=20_000))
            say(row)
        """,
        path,
    )
    assert process.stdout is not None
    dice = random.Random(round_no)
    with process:
        for _ in range(dice.randint(1, 300)):
            process.stdout.readline()
        # Somewhere inside a commit: after a random part of the time that one takes.
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(dice.random() * 0.001)
        process.send_signal(signal.SIGKILL)
        told = process.stdout.read().split()
    with opened(path) as store:
        snapshot = store.begin_epoch()
        (found,) = store.read("SELECT count(*), max(id) FROM tasks")
    acknowledged = int(told[-1]) if told else 1
    last = snapshot.meta["last"]
    assert last >= acknowledged
    # Whole commits only: task, spec and mark of each, and no hole.
    assert found == (last, last)
    assert snapshot.counts == {TaskState.SUCCEEDED: last}
    assert snapshot.meta["epoch"] == 2


def test_a_failed_commit_leaves_the_database_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "manager.db"
    with_one_task(path)
    with opened(path) as store:
        before = store.load()
        changes = Changes(meta={"seen": 1})
        changes.tasks[1] = Task(1, "t1", TaskState.SUCCEEDED, 0, 1)
        changes.new_tasks = [
            NewTask(1, 2, Definition("t2", b"", b"h" * 16, 2, 0, None, None, None))
        ]
        with pytest.raises(StoreError):
            store.commit(changes)
        assert store.load() == before
    with opened(path) as store:
        assert store.load() == before


# --- rivals and strangers -----------------------------------------------------------------------


def test_a_second_daemon_is_refused_and_the_first_goes_on(tmp_path: Path) -> None:
    path = tmp_path / "manager.db"
    with opened(path) as store:
        out = run(
            """
            try:
                store.open(patience_s=0.1)
            except StoreError as error:
                say(error.exit_code, error.sentence)
            """,
            path,
        )
        store.commit(Changes(meta={"still": "here"}))
        assert store.load().meta == {"still": "here"}
    assert out.startswith("75 ")
    assert "in use by another process" in out


def test_a_database_of_a_newer_version_is_refused_and_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "manager.db"
    with_one_task(path)
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 999")
    before = path.read_bytes()
    error = refused(path)
    assert error.exit_code == 78
    assert "999" in error.sentence
    assert path.read_bytes() == before


@pytest.mark.parametrize("mark", ["", "PRAGMA user_version = 1", "PRAGMA application_id = 77"])
def test_the_database_of_another_program_is_refused_and_not_touched(
    tmp_path: Path, mark: str
) -> None:
    path = tmp_path / "manager.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(f"CREATE TABLE tasks (id); {mark};")
    before = path.read_bytes()
    error = refused(path)
    assert error.exit_code == 78
    assert "another program" in error.sentence
    assert path.read_bytes() == before


def test_garbage_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manager.db"
    path.write_bytes(b"no database at all, but a good many bytes of text. " * 100)
    before = path.read_bytes()
    assert refused(path).exit_code == 74
    assert path.read_bytes() == before


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manager.db"
    with opened(path) as store:
        definition = Definition("t1", bytes(100_000), b"h" * 16, 2, 0, None, None, None)
        store.commit(Changes(new_tasks=[NewTask(1, 1, definition)]))
    content = bytearray(path.read_bytes())
    for page in range(1, len(content) // 4096):
        content[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(content)
    error = refused(path)
    assert error.exit_code == 74
    assert "damaged" in error.sentence


def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    path = tmp_path / "manager.db"
    path.touch(mode=0o600)
    with_one_task(path)


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    error = refused(tmp_path / "no" / "manager.db")
    assert error.exit_code == 78
    assert str(tmp_path / "no") in error.sentence
    assert refused(tmp_path).exit_code == 78


# --- permissions --------------------------------------------------------------------------------


@pytest.fixture
def foreign_dir() -> Iterator[Path]:
    """A directory that an ordinary user can reach and not write."""
    path = Path(tempfile.mkdtemp(prefix="jobflow-test-"))
    path.chmod(0o755)
    yield path
    path.chmod(0o755)
    shutil.rmtree(path)


AS_ORDINARY_USER = """
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
try:
    store.open()
except StoreError as error:
    say(error.exit_code, error.sentence)
"""


def test_a_read_only_directory_is_refused(foreign_dir: Path) -> None:
    foreign_dir.chmod(0o555)
    out = run(AS_ORDINARY_USER, foreign_dir / "manager.db")
    assert out.startswith("77 ")
    assert "directory is not writable" in out


@pytest.mark.parametrize("mode", [0o444, 0o000])
def test_a_file_that_may_not_be_written_is_refused(foreign_dir: Path, mode: int) -> None:
    path = foreign_dir / "manager.db"
    with_one_task(path)
    foreign_dir.chmod(0o777)
    path.chmod(mode)
    out = run(AS_ORDINARY_USER, path)
    assert out.startswith("77 ")


# --- disks that fill and fail -------------------------------------------------------------------

can_mount = pytest.mark.skipif(
    os.getuid() != 0
    or shutil.which("unshare") is None
    or subprocess.run(["unshare", "-m", "true"], check=False, capture_output=True).returncode != 0,
    reason="needs root and a mount namespace of its own",
)


def on_small_disk(mount_point: Path, size: str, code: str) -> str:
    """Run code in a namespace where `mount_point` is a tmpfs of that size."""
    script = f'mount -t tmpfs -o size={size} none "$0" && exec "$@"'
    before = ("unshare", "-m", "sh", "-c", script, str(mount_point))
    return run(code, mount_point / "manager.db", before=before)


@can_mount
def test_a_full_disk_is_told_rolled_back_and_tried_again(tmp_path: Path) -> None:
    out = on_small_disk(
        tmp_path,
        "1m",
        """
        store.open()
        store.begin_epoch()
        ballast = sys.argv[1] + ".ballast"
        with open(ballast, "wb") as file:
            file.write(bytes(300_000))
        row = 0
        try:
            while True:
                row += 1
                store.commit(one(row, size=10_000))
        except DiskFull as error:
            say(error.exit_code, "there is no space" in error.sentence.lower())
        say(store.load().meta["last"] == row - 1, len(store.specs(range(row + 9))) == row - 1)
        try:
            store.commit(one(row, size=50_000))
        except DiskFull:
            say("still full")
        os.unlink(ballast)
        store.commit(one(row))
        say(store.load().meta["last"] == row)
        store.close()
        store.open()
        say(store.load().meta["last"] == row)
        """,
    )
    assert out.split("\n") == ["74 True", "True True", "still full", "True", "True", ""]


@can_mount
def test_a_full_disk_at_the_start_is_told(tmp_path: Path) -> None:
    out = on_small_disk(
        tmp_path,
        "64k",
        """
        with open(sys.argv[1] + ".ballast", "wb") as file:
            file.write(bytes(60_000))
        try:
            store.open()
        except DiskFull as error:
            say(error.exit_code)
        """,
    )
    assert out == "74\n"


@can_mount
def test_a_read_only_file_system_is_refused(tmp_path: Path) -> None:
    out = on_small_disk(
        tmp_path,
        "1m",
        """
        import subprocess
        subprocess.run(["mount", "-o", "remount,ro", os.path.dirname(sys.argv[1])], check=True)
        try:
            store.open()
        except StoreError as error:
            say(error.exit_code)
        """,
    )
    assert out == "77\n"


def test_a_write_error_breaks_the_store_for_good(tmp_path: Path) -> None:
    out = run(
        """
        import resource
        store.open()
        store.begin_epoch()
        store.commit(one(1))
        limit = os.stat(sys.argv[1] + "-wal").st_size + 100_000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            store.commit(one(2, size=500_000))
        except StoreBroken as error:
            say(error.exit_code)
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        # The disk is well again, but who knows what was lost: no second chance.
        for again in (lambda: store.commit(one(3)), store.load, store.begin_epoch):
            try:
                again()
            except StoreBroken:
                say("broken")
        store.close()
        os._exit(0)
        """,
        tmp_path / "manager.db",
    )
    assert out.split() == ["74", "broken", "broken", "broken"]
    with opened(tmp_path / "manager.db") as store:
        assert store.load().meta["last"] == 1


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace to inject errors")
def test_a_failed_fsync_breaks_the_store_though_the_next_would_work(tmp_path: Path) -> None:
    trace = ("strace", "-f", "-o", str(tmp_path / "trace"), "-e", "trace=fdatasync")
    inject = ("-e", "inject=fdatasync:error=EIO:when=20")
    process = child(
        """
        store.open()
        store.begin_epoch()
        for row in range(1, 100):
            try:
                store.commit(one(row))
            except StoreBroken as error:
                say(row, error.exit_code)
                break
        try:
            store.commit(one(row))
        except StoreBroken:
            say("broken")
        os._exit(0)
        """,
        tmp_path / "manager.db",
        before=(*trace, *inject),
    )
    out, err = process.communicate(timeout=60)
    if "ptrace" in err:
        pytest.skip("this machine does not let a process be traced")
    row, exit_code, again = out.split()
    assert (exit_code, again) == ("74", "broken")
    with opened(tmp_path / "manager.db") as store:
        assert store.load().meta["last"] >= int(row) - 1


# --- copies and migrations ----------------------------------------------------------------------


def test_a_backup_is_a_complete_private_database(tmp_path: Path) -> None:
    path, target = tmp_path / "manager.db", tmp_path / "copy" / "backup.db"
    target.parent.mkdir()
    with_one_task(path)
    target.write_bytes(b"an older backup")
    with opened(path) as store:
        store.backup(target)
        store.commit(Changes(meta={"later": 1}))
    assert os.listdir(target.parent) == ["backup.db"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    with opened(target) as copy:
        assert copy.specs([1]) == {1: b"spec"}
        assert copy.load().meta == {}


def test_a_backup_that_fails_harms_nothing(tmp_path: Path) -> None:
    path = tmp_path / "manager.db"
    with_one_task(path)
    with opened(path) as store:
        with pytest.raises(StoreError) as caught:
            store.backup(tmp_path / "no" / "backup.db")
        assert caught.value.exit_code == 74
        link = tmp_path / "link.db"
        link.symlink_to(path)
        with pytest.raises(StoreError, match="database itself"):
            store.backup(link)
        store.commit(Changes(meta={"lives": 1}))
    with opened(path) as store:
        assert store.specs([1]) == {1: b"spec"}


#: The schema version after the newest one.
NEXT = max(dbfile.migrations()) + 1


@pytest.fixture
def a_next_version(monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    steps = {**dbfile.migrations(), NEXT: "CREATE TABLE extra (id INTEGER);"}
    monkeypatch.setattr(dbfile, "migrations", lambda: steps)
    return steps


def test_a_migration_keeps_a_copy_of_the_old_file(
    tmp_path: Path, a_next_version: dict[int, str]
) -> None:
    path, second = tmp_path / "manager.db", a_next_version.pop(NEXT)
    with_one_task(path)
    a_next_version[NEXT] = second
    with opened(path) as store:
        assert store.read("PRAGMA user_version") == [(NEXT,)]
        assert store.read("SELECT count(*) FROM extra") == [(0,)]
        assert store.specs([1]) == {1: b"spec"}
    a_next_version.pop(NEXT)
    with opened(tmp_path / f"manager.db.v{NEXT - 1}.backup") as store:
        assert store.read("PRAGMA user_version") == [(NEXT - 1,)]
        assert store.specs([1]) == {1: b"spec"}


def test_a_migration_that_fails_changes_nothing(
    tmp_path: Path, a_next_version: dict[int, str]
) -> None:
    path = tmp_path / "manager.db"
    a_next_version.pop(NEXT)
    with_one_task(path)
    a_next_version[NEXT] = "CREATE TABLE extra (id INTEGER); CREATE TABLE tasks (id INTEGER);"
    assert "cannot be opened" in refused(path).sentence
    a_next_version.pop(NEXT)
    with opened(path) as store:
        assert store.read("PRAGMA user_version") == [(NEXT - 1,)]
        assert store.read("SELECT count(*) FROM sqlite_master WHERE name = 'extra'") == [(0,)]
