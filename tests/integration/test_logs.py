"""The log on a real file: form, no forging, rotation, full disks, stderr under systemd."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflowd import logs
from jobflowd.logs import EventLog, LogFile, Logging, TextForm

LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z (DEBUG|INFO|WARNING|ERROR) \S.*")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "manager.db.log"


@pytest.fixture
def text_log(path: Path) -> Iterator[Logging]:
    log = logs.start(path, level="DEBUG", form="text")
    yield log
    log.close()


def test_a_line_is_time_level_event_and_fields(text_log: Logging, path: Path) -> None:
    logs.get("jobflowd.daemon").info(
        "worker.registered", worker_id="n1-3f", slots=2, note="two words", share=0.5, gone=None
    )
    line = path.read_text()
    assert LINE.fullmatch(line.rstrip("\n"))
    assert line.endswith(
        ' INFO worker.registered worker_id=n1-3f slots=2 note="two words" share=0.5\n'
    )
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@given(text=st.text(), event=st.text(min_size=1))
def test_no_value_forges_a_line(text: str, event: str) -> None:
    record = logging.LogRecord("jobflowd", logging.INFO, "", 0, "%s", (event,), None)
    setattr(record, logs._FIELDS, {"value": text})
    line = TextForm().format(record)
    assert line.isprintable()
    assert len(line.splitlines()) == 1


def test_a_value_cannot_pretend_to_be_a_field(text_log: Logging, path: Path) -> None:
    logs.get("x").info("e", a='1" level="ERROR', b="c=d", c="")
    assert path.read_text().endswith(r' a="1\" level=\"ERROR" b="c=d" c=""' + "\n")


def test_a_traceback_is_indented_and_escaped(text_log: Logging, path: Path) -> None:
    try:
        raise ValueError("bad\n2026-01-01T00:00:00.000Z ERROR forged\x1b[2J")
    except ValueError:
        logs.get("x").exception("turn.failed")
    first, *rest = path.read_text().splitlines()
    assert LINE.fullmatch(first)
    assert rest
    assert all(line.startswith("    | ") and line.isprintable() for line in rest)


def test_json_lines(path: Path) -> None:
    log = logs.start(path, level="INFO", form="json")
    try:
        logs.get("x").warning("disk.full", path=Path("/x"), free=0, level="fake")
        logs.get("x").debug("not.written")
    finally:
        log.close()
    (line,) = path.read_text().splitlines()
    entry = json.loads(line)
    at = entry.pop("at")
    assert at.endswith("Z")
    assert entry == {
        "level": "WARNING",
        "event": "disk.full",
        "path": "/x",
        "free": 0,
        "level_": "fake",
    }


def test_repeated_warnings_are_counted(text_log: Logging, path: Path) -> None:
    now = [0.0]
    log = EventLog("jobflowd.x", clock=lambda: now[0])
    for second in range(100):
        now[0] = float(second)
        log.repeated("frame.refused", key="peer1", why="garbage")
    log.repeated("frame.refused", key="peer2", why="garbage")
    lines = path.read_text().splitlines()
    assert len(lines) == 3
    assert lines[1].endswith("why=garbage times=60")
    for number in range(1000):
        log.repeated("frame.refused", key=str(number))
    assert len(log._seen) == logs.REPEAT_KINDS_MAX


def file_log(path: Path, **limits: int) -> tuple[LogFile, logging.Logger]:
    handler = LogFile(path, **limits)
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.open()
    logger = logging.Logger("alone")
    logger.addHandler(handler)
    return handler, logger


def test_rotation_keeps_the_newest_files(path: Path) -> None:
    handler, logger = file_log(path, rotate_bytes=100, rotate_files=3)
    for number in range(100):
        logger.info("line %04d", number)
    handler.close()
    names = sorted(one.name for one in path.parent.iterdir())
    assert names == [path.name, *[f"{path.name}.{n}" for n in (1, 2, 3)]]
    text = "".join((path.parent / name).read_text() for name in [*names[:0:-1], names[0]])
    numbers = [int(line.split()[1]) for line in text.splitlines()]
    assert numbers == list(range(numbers[0], 100))
    assert all(one.stat().st_size <= 100 for one in path.parent.iterdir())
    assert all(stat.S_IMODE(one.stat().st_mode) == 0o600 for one in path.parent.iterdir())


def test_a_rotation_that_fails_costs_nothing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, logger = file_log(path, rotate_bytes=50)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "replace", refuse)
    for number in range(20):
        logger.info("line %04d", number)
    handler.close()
    assert len(path.read_text().splitlines()) == 20
    assert handler.dropped == 0


def test_reopen_follows_a_moved_file(path: Path) -> None:
    handler, logger = file_log(path)
    logger.info("one")
    path.rename(path.with_name("moved"))
    logger.info("two")
    handler.reopen()
    logger.info("three")
    handler.close()
    assert path.with_name("moved").read_text() == "one\ntwo\n"
    assert path.read_text() == "three\n"


def test_a_full_disk_is_counted_and_told_later(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handler, logger = file_log(path)
    real = os.write
    room = [6]

    def write(fd: int, data: bytes) -> int:
        if not room[0]:
            raise OSError(28, "No space left on device")
        taken = min(room[0], len(data))
        room[0] -= taken
        return real(fd, data[:taken])

    logger.info("one")
    monkeypatch.setattr(os, "write", write)
    for _ in range(3):
        logger.info("lost in part or whole")
    assert handler.dropped == 3
    room[0] = 10**6
    logger.info("two")
    handler.close()
    lines = path.read_text().splitlines()
    assert lines[0] == "one"
    assert lines[-2].endswith("WARNING log.lines_lost count=3")
    assert lines[-1] == "two"


def test_a_value_that_cannot_be_shown_costs_its_line(text_log: Logging, path: Path) -> None:
    class Hostile:
        def __str__(self) -> str:
            raise RuntimeError

    logs.get("x").info("e", value=Hostile())
    logs.get("x").info("after")
    assert text_log.dropped == 1
    assert "after" in path.read_text()


def test_links_and_fifos_are_not_opened(tmp_path: Path, path: Path) -> None:
    (tmp_path / "target").write_text("")
    path.symlink_to(tmp_path / "target")
    with pytest.raises(OSError):  # noqa: PT011 - the number differs between systems
        LogFile(path).open()
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(OSError):  # noqa: PT011
        LogFile(path).open()


def test_stderr_gets_short_lines_from_info_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(sys, "stderr", out)
    log = logs.start(path, level="DEBUG", form="text")
    try:
        logs.get("x").debug("quiet")
        logs.get("x").info("ready", port=5)
        logs.get("x").error("bad")
        shown = out.getvalue()
        out.close()
        logs.get("x").info("nobody listens")
        lines = path.read_text()
    finally:
        log.close()
    assert "quiet" in lines
    assert "quiet" not in shown
    assert "ready port=5\n" in shown
    assert "ERROR bad\n" in shown
    assert "nobody listens" in lines


def test_console_and_journal_forms(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.LogRecord("jobflowd", logging.WARNING, "", 0, "%s", ("disk.full",), None)
    assert re.fullmatch(r"\d\d:\d\d:\d\d WARNING disk.full", logs.ConsoleForm().format(record))
    assert logs.JournalForm().format(record) == "<4>disk.full"
    record.levelno, record.levelname = logging.INFO, "INFO"
    assert re.fullmatch(r"\d\d:\d\d:\d\d disk.full", logs.ConsoleForm().format(record))
    assert logs.JournalForm().format(record) == "<6>disk.full"


def test_the_journal_is_known_by_its_device_and_inode() -> None:
    about = os.fstat(2)
    assert logs.under_systemd({"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino}"})
    assert not logs.under_systemd({"JOURNAL_STREAM": f"{about.st_dev}:{about.st_ino + 1}"})
    assert not logs.under_systemd({})


def test_in_the_background_stdout_follows_the_file(path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from jobflowd import logs\n"
        "log = logs.start(Path(sys.argv[1]), level='INFO', form='text', console=False)\n"
        "os.write(2, b'words of a library\\n'); logs.get('x').info('after')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=True)
    assert done.stderr == b""
    first, second = path.read_text().splitlines()
    assert first == "words of a library"
    assert second.endswith("INFO after")
