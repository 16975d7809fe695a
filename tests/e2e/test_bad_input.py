"""Bad input gets one sentence, the right exit code, and leaves nothing running or lost."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import pytest
from e2e_world import World

pytestmark = pytest.mark.slow

HEADER = "from jobflow_worker import TaskDefinition, TaskProgram\n"
CLASS = """
class {name}(TaskProgram):
    def generate_tasks(self):
        {body}

    def execute_task(self, spec, progress_cb):
        return {{}}
"""


def program(world: World, body: str, name: str = "One") -> None:
    """Make the program's text anew, with this for its generate_tasks."""
    world.program.write_text(HEADER + CLASS.format(name=name, body=body))


def refused(world: World, code: int, *says: str, flags: tuple[str, ...] = ()) -> str:
    """The start is refused with one sentence that says all this, and quickly."""
    found = world.run("--workers", "1", *flags, code=code)
    errors = [line for line in found.stderr.splitlines() if "jobflowd: error: " in line]
    assert len(errors) == 1, found.stderr
    assert "Traceback" not in found.stderr
    for one in says:
        assert one in errors[0], errors[0]
    return errors[0]


def test_program_file_not_found(world: World) -> None:
    world.program.unlink()
    refused(world, 66, "tasks.py")
    assert not world.root.exists()


def test_several_classes_in_a_file(world: World) -> None:
    one = CLASS.format(name="One", body="return []")
    world.program.write_text(HEADER + one + CLASS.format(name="Two", body="return []"))
    refused(world, 65, "One", "Two", ":One")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("x = 1\n", "TaskProgram"),
        ("import no_such_module\n", "no_such_module"),
        ("def broken(:\n", "line 1"),
    ],
)
def test_programs_that_are_none(world: World, text: str, says: str) -> None:
    world.program.write_text(text)
    refused(world, 65, says)


@pytest.mark.parametrize("args", ["[1]", "{bad", '"text"'])
def test_args_that_are_not_an_object(world: World, args: str) -> None:
    refused(world, 2, "--program-args", flags=("--program-args", args))
    assert not world.root.exists()


def generation_fails(world: World, *says: str) -> str:
    """The start ends with 65, having said why."""
    return refused(world, 65, *says)


def test_generate_tasks_raises_at_once(world: World) -> None:
    program(world, "raise ValueError('no inputs in /data')")
    generation_fails(world, "ValueError", "no inputs in /data")


def test_a_first_try_that_named_no_task_binds_nobody(world: World) -> None:
    """Whoever mistyped the class or the arguments just starts again."""
    world.program.write_text(HEADER + CLASS.format(name="One", body="raise OSError('no')"))
    refused(world, 65, "OSError")
    world.program.write_text(HEADER + CLASS.format(name="Two", body="return []"))
    again = ("start", "--session-id", "t1", "--workers", "1")
    named = ("--program", f"{world.program}:Two", "--program-args", '{"a": 1}')
    assert "no task" in world.cli.run("jobflowd", *again, *named).stderr
    program(world, "return [TaskDefinition('a', {})]", name="Three")
    named = ("--program", f"{world.program}:Three", "--program-args", '{"a": 2}')
    assert "1 succeeded" in world.cli.run("jobflowd", *again, *named).stderr
    named = ("--program", f"{world.program}:Three", "--program-args", '{"a": 3}')
    assert "--fresh" in world.cli.run("jobflowd", *again, *named, code=78).stderr


def test_generate_tasks_raises_in_the_middle_and_loses_nothing(world: World) -> None:
    world.run("--workers", "1", code=65, n=5, raise_at_end=True)
    # What was named is kept, and a start with the program mended goes on.
    counts = world.in_database()
    assert sum(counts.values()) == 5
    text = world.program.read_text().replace('args.get("raise_at_end")', "False")
    world.program.write_text(text)
    world.ended(world.again(), 0)
    assert world.in_database() == {"succeeded": 5}
    assert set(world.started().values()) == {1}


def test_a_detached_start_tells_of_a_broken_program(world: World) -> None:
    program(world, "raise ValueError('no inputs in /data')")
    assert "no inputs in /data" in refused(world, 65, flags=("--detach",))


def test_duplicates_with_different_specs(world: World) -> None:
    program(world, "return [TaskDefinition('same', {'a': 1}), TaskDefinition('same', {'a': 2})]")
    generation_fails(world, "'same'")


def test_duplicates_with_equal_specs_are_one_task(world: World) -> None:
    program(world, "return [TaskDefinition('same', {'a': 1}), TaskDefinition('same', {'a': 1})]")
    assert "1 succeeded" in world.run("--workers", "1").stderr


@pytest.mark.parametrize(
    ("spec", "says"),
    [("{'a': {1, 2}}", "set"), ("{'a': 'x' * 2**20}", "bytes"), ("[1]", "dict")],
)
def test_specs_that_cannot_be(world: World, spec: str, says: str) -> None:
    program(world, f"return [TaskDefinition('odd', {spec})]")
    generation_fails(world, "odd", says)


@pytest.mark.parametrize(
    ("flags", "code", "says"),
    [
        (("--mode", "pigeon"), 2, "auto"),
        (("--workers", "-1"), 2, "--workers"),
        (("--lease-duration", "1s", "--heartbeat-interval", "1s"), 78, "--lease-duration 4"),
        (("--lease-duration", "soon"), 2, "--lease-duration"),
        (("--task-memory", "20GX"), 2, "--task-memory"),
        (("--nonsense",), 2, "--nonsense"),
    ],
)
def test_flags_that_cannot_be(world: World, flags: tuple[str, ...], code: int, says: str) -> None:
    refused(world, code, says, flags=flags)
    assert not world.root.exists()


def test_a_directory_that_cannot_be_written(world: World) -> None:
    # Nobody can make a directory in /proc or /sys, not even root.
    refused(world, 77, "/sys", flags=("--shared-dir", "/sys/jobflow"))


def test_a_session_of_somebody_else(world: World) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    world.run("--workers", "1", n=1)
    os.chown(world.root, 12345, -1)
    refused(world, 77, "12345")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("PRAGMA user_version = 9999", "newer"),
        ("PRAGMA application_id = 77", "manager.db"),
    ],
)
def test_a_database_of_another_kind_is_left_alone(world: World, change: str, says: str) -> None:
    world.run("--workers", "1", n=2)
    path = world.root / "manager.db"
    with sqlite3.connect(path) as db:
        db.execute(change)
    db.close()
    before = path.read_bytes()
    found = world.run("--workers", "1", code=78, n=2)
    assert says in found.stderr
    assert path.read_bytes() == before


def test_a_database_that_is_none(world: World) -> None:
    path = world.dir / "notes.txt"
    path.write_text("my shopping list\n" * 100)
    found = world.run("--workers", "1", "--db-path", str(path), code=74)
    assert "notes.txt" in found.stderr
    assert path.read_text().startswith("my shopping list")


# --- a full disk --------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Any:
    """A file system of 24 MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m,mode=0700", "jobflow-test", str(mount)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("no right to mount a tmpfs here")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(directory: Path) -> Path:
    """Use up all room; returns the file that has it."""
    path = directory / "ballast"
    with path.open("wb", buffering=0) as file:
        size = 65536
        while size:
            try:
                if not file.write(b"x" * size):
                    break
            except OSError:
                size //= 2
    return path


def test_no_room_at_the_start(world: World, small_disk: Path) -> None:
    fill(small_disk)
    found = world.run("--workers", "1", "--shared-dir", str(small_disk), code=74, n=1)
    assert "Traceback" not in found.stderr
    assert "space" in found.stderr or "room" in found.stderr


def test_a_disk_that_fills_in_mid_run_loses_nothing(world: World, small_disk: Path) -> None:
    flags = ("--workers", "1", "--db-path", str(small_disk / "manager.db"))
    daemon = world.start(*flags, n=300, spec={"do": "sleep", "s": 0.02})
    world.until(lambda: len(world.notes("end")) > 20, "tasks to end")
    ballast = fill(small_disk)
    status = world.until(lambda: degraded(world), "the daemon to be degraded", 30)
    assert "manager.db" in status["state_reason"] or "disk" in status["state_reason"]
    refusal = world.cli.run("jobflowctl", "-s", "t1", "scale", "2", "--json", code=None)
    assert refusal.returncode != 0
    ballast.unlink()
    world.ended(daemon, 0, 40)
    assert set(world.started().values()) == {1}
    log = (small_disk / "manager.db.log").read_text()
    assert "disk_works_again" in log


def degraded(world: World) -> dict[str, Any] | None:
    status = world.ask("status")
    return status if status["state"] == "degraded" else None


def test_status_of_json_shape_when_nothing_is_there(world: World) -> None:
    found = world.cli.run("jobflowctl", "-s", "t1", "status", "--json", code=5)
    assert found.stderr.strip()
    assert not found.stdout.strip() or json.loads(found.stdout)
