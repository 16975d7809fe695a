"""The parts of deeper questions: pieces of logs, metrics, result pages, the init template."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobflow_worker.messages import ResultFile
from jobflowd import logreading, queries, template
from jobflowd.census import Census, Here, TaskCounts
from jobflowd.config import StartConfig, load
from jobflowd.flags import SETTINGS
from jobflowd.metrics import CommandTimes, Metrics
from jobflowd.model import (
    AttemptRow,
    Changes,
    Definition,
    NewTask,
    ResultRow,
    Story,
    Task,
    TaskState,
    Worker,
)
from jobflowd.store import Store

# --- logs ---------------------------------------------------------------------------------------


def test_a_log_is_followed_over_pieces_and_rotations(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("one\ntwo\n")
    first = logreading.read_piece(log, None, 1000)
    assert (first["text"], first["end"]) == ("one\ntwo\n", True)
    with log.open("a") as file:
        file.write("three\n")
    piece = logreading.read_piece(log, first["next"], 3)
    assert (piece["text"], piece["end"]) == ("thr", False)
    assert logreading.read_piece(log, piece["next"], 100)["text"] == "ee\n"
    log.rename(tmp_path / "log.1")
    log.write_text("new\n")
    assert logreading.read_piece(log, piece["next"], 100)["text"] == "new\n"


def test_a_first_look_shows_whole_lines_of_the_end(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("".join(f"line {n}\n" for n in range(10_000)))
    found = logreading.read_piece(log, None, 10**6)
    assert found["text"].startswith("line ")
    assert found["text"].endswith("line 9999\n")
    assert len(found["text"]) <= logreading.TAIL_BYTES


def test_a_character_is_never_cut_in_two(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("äöü€𝄞" * 50)
    text, after = "", "0:0"
    while True:
        piece = logreading.read_piece(log, after, 7)
        text, after = text + piece["text"], piece["next"]
        if piece["end"]:
            break
    assert text == log.read_text()


def test_what_is_no_plain_file_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc/hostname")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "pipe", "missing"):
        with pytest.raises(logreading.NoLog):
            logreading.read_piece(tmp_path / name, None, 10)


# --- metrics ------------------------------------------------------------------------------------


def test_metrics_count_what_was_committed(tmp_path: Path) -> None:
    file = tmp_path / "jobflow.prom"
    metrics = Metrics(file)
    row = AttemptRow(1, 1, 1, 1.0, 9.0, "succeeded", "", "", None, None, 0.7)
    changes = Changes(
        attempts=[row, row._replace(outcome="lost", duration_s=None)],
        processed=[(1, 1, "accepted"), (1, 2, "late")],
        stories=[Story(1.0, "task_failed", "t", None, None, "x", "warning")],
    )
    metrics.committed(changes, 0.002)
    metrics.committed(Changes(), 5.0)
    census = Census("s", "p", "running", tasks=TaskCounts(succeeded=3))
    metrics.publish(0.0, census, Here(1, "h", 'v"1\n'))
    text = file.read_text()
    assert text == metrics.text(census, Here(1, "h", 'v"1\n'))
    lines = text.splitlines()
    for line in (
        'jobflow_tasks{state="succeeded"} 3',
        'jobflow_task_attempts_total{outcome="lost"} 1',
        'jobflow_outcome_messages_total{result="late"} 1',
        'jobflow_incidents_total{kind="task_failed"} 1',
        'jobflow_task_run_seconds_bucket{le="0.5"} 0',
        'jobflow_task_run_seconds_bucket{le="1"} 1',
        "jobflow_task_run_seconds_count 1",
        "jobflow_store_commit_seconds_count 1",
        "jobflow_last_completion_timestamp_seconds 9",
        'jobflow_build_info{version="v\\"1\\n"} 1',
    ):
        assert line in lines
    assert lines[-1] == "# EOF"
    assert oct(file.stat().st_mode & 0o777) == "0o600"


def test_metrics_count_leases_that_expired(tmp_path: Path) -> None:
    metrics = Metrics()
    stories = [
        Story(1.0, "worker_lost", None, "w1", None, "worker lost: its lease expired", "warning"),
        Story(1.0, "worker_lost", None, "w2", None, "its job was preempted"),
        Story(1.0, "task_failed", "t", None, None, "its lease expired", "warning"),
    ]
    metrics.committed(Changes(stories=stories), 0.001)
    text = metrics.text(Census("s", "p", "running"), Here(1, "h", "v"))
    assert "jobflow_lease_expirations_total 1" in text.splitlines()


def test_metrics_time_the_commands_of_the_batch_system() -> None:
    times = CommandTimes()
    times.ended("squeue", 0.3, 0, timed_out=False)
    times.ended("squeue", 30.0, None, timed_out=True)
    times.ended("sbatch", 0.2, 1, timed_out=False)
    times.ended("sbatch", 0.0, None, timed_out=False)
    text = Metrics(commands=times).text(Census("s", "p", "running"), Here(1, "h", "v"))
    lines = text.splitlines()
    for line in (
        'jobflow_batch_command_seconds_bucket{command="squeue",le="0.5"} 1',
        'jobflow_batch_command_seconds_bucket{command="squeue",le="+Inf"} 2',
        'jobflow_batch_command_seconds_count{command="sbatch"} 2',
        'jobflow_batch_command_failures_total{command="squeue",reason="timeout"} 1',
        'jobflow_batch_command_failures_total{command="sbatch",reason="exit_code"} 1',
        'jobflow_batch_command_failures_total{command="sbatch",reason="cannot_run"} 1',
    ):
        assert line in lines
    families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
    assert len(families) == len(set(families))


def test_a_metrics_file_that_cannot_be_written_harms_nothing(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "missing" / "x.prom")
    metrics.publish(1.0, Census("s", "p", "running"), Here(1, "h", "v"))
    assert metrics.next_at > 1.0
    assert Metrics().next_at == float("inf")


# --- results ------------------------------------------------------------------------------------


@pytest.fixture
def results() -> Iterator[Store]:
    """Five results, the third in a file, the fourth a large one."""
    store = Store(":memory:")
    store.open()
    changes = Changes()
    changes.workers[1] = Worker(1, "w", "zmq", "n1", 1, 1)
    for row in range(1, 6):
        definition = Definition(f"t{row}", b"s", b"h" * 16, 2, 0, None, None, None)
        changes.new_tasks.append(NewTask(row, row, definition))
        changes.tasks[row] = Task(row, f"t{row}", TaskState.SUCCEEDED, 0, row)
        body = b"x" * (queries.RESULT_BYTES_MAX if row == 4 else 10)
        file = ("r-1", 99, "abc") if row == 3 else (None, None, None)
        changes.results.append(ResultRow(row, 1, None if row == 3 else body, *file))
    store.commit(changes)
    yield store
    store.close()


def test_result_pages_are_bounded_by_rows_and_by_bytes(results: Store) -> None:
    names: list[list[str]] = []
    mark: str | None = None
    while True:
        page, mark = queries.result_page(results, mark, 100)
        names.append([row["task_id"] for row in page])
        if "t3" in names[-1]:
            assert page[-1]["result"] == ResultFile("r-1", 99, "abc")
        if mark is None:
            break
    assert names == [["t1", "t2", "t3"], ["t4"], ["t5"]]
    assert [row["task_id"] for row in queries.result_page(results, None, 1)[0]] == ["t1"]
    assert queries.result_page(results, "5", 10) == ([], None)


# --- init ---------------------------------------------------------------------------------------


def config_of(path: Path) -> StartConfig:
    return load({"config": str(path)}, {}, user_file=path.with_name("no"), site_file=path)


def test_the_template_is_a_valid_configuration_and_says_what_was_given(tmp_path: Path) -> None:
    words = ["--launcher", "slurm", "--slurm-mem=8G", "--workers", "50", "--slurm-arg", "--x=1"]
    words += ["--program-args", '{"input_dir": "a\\"b", "n": [1, {"k": true}]}', "--stay"]
    values: dict[str, Any] = {"program": "conv.py", **template.parse_flags(words)}
    path = tmp_path / "jobflow.toml"
    path.write_text(template.configuration(values))
    config = config_of(path)
    assert (config.launcher, config.workers, config.slurm_mem) == ("slurm", 50, 8 * 2**30)
    assert config.program_args == {"input_dir": 'a"b', "n": [1, {"k": True}]}
    assert (config.slurm_arg, config.stay, config.program) == (("--x=1",), True, "conv.py")


def test_every_default_that_is_shown_can_be_uncommented(tmp_path: Path) -> None:
    toml = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    text = template.configuration({})
    for line in text.splitlines():
        name, equals, value = line.removeprefix("# ").partition(" = ")
        if equals and name in SETTINGS and "(default:" not in value:
            SETTINGS[name].parse(toml.loads(f"{name} = {value}")[name])
    assert all(f"{name} = " in text for name in ("program", "workers", "lease_duration"))


@pytest.mark.parametrize(
    "words",
    [["--nope", "1"], ["--workers"], ["--workers", "many"], ["--fresh"], ["--detach"], ["x"]],
)
def test_flags_that_a_start_would_not_take_are_refused(words: list[str]) -> None:
    with pytest.raises(template.BadFlag):
        template.parse_flags(words)
