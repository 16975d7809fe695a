"""Snapshots on a real file: whole, private, bounded, and never an error for the run."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from jobflowd.telemetry import SCHEMA, FilePublisher


def publisher(path: Path, queue_size: int = 2) -> FilePublisher:
    return FilePublisher(path, queue_size, 0.5, session="t1", epoch=3, wall=lambda: 1.5)


def test_a_snapshot_is_the_status_with_a_head(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    out = publisher(path)
    out.offer({"state": "running", "tasks": {"total": 3}, "schema": "other"})
    out.pump(10.0)
    assert json.loads(path.read_text()) == {
        "schema": SCHEMA,
        "session": "t1",
        "epoch": 3,
        "seq": 1,
        "written_at": "1970-01-01T00:00:01.500Z",
        "interval": 0.5,
        "state": "running",
        "tasks": {"total": 3},
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [path.name]


def test_writes_keep_their_pace_and_the_oldest_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    out = publisher(path)
    assert out.due(10.0)
    for number in range(5):
        out.offer({"n": number})
    assert out.dropped == 3
    out.pump(10.0)
    assert json.loads(path.read_text())["n"] == 3
    assert not out.due(10.4)
    assert out.next_at == 10.5
    out.pump(10.4)
    assert json.loads(path.read_text())["n"] == 3
    out.pump(10.5)
    assert json.loads(path.read_text())["seq"] == 5
    out.pump(20.0)
    assert out.written == 2


def test_faults_are_counted_and_the_next_one_is_tried(tmp_path: Path) -> None:
    path = tmp_path / "gone" / "snapshot.json"
    out = publisher(path)
    for now in (1.0, 2.0):
        out.offer({})
        out.pump(now)
    out.offer({"bad": float("nan")})
    out.pump(3.0)
    assert (out.errors, out.written) == (3, 0)
    path.parent.mkdir()
    out.offer({})
    out.pump(4.0)
    assert out.written == 1


def test_the_last_word_is_the_newest(tmp_path: Path) -> None:
    path = tmp_path / "snapshot.json"
    out = publisher(path)
    out.offer({"state": "running"})
    out.close({"state": "done"})
    assert json.loads(out.path.read_bytes())["final"] is True
    assert json.loads(path.read_text())["state"] == "done"
    out.close()
    assert out.written == 1
