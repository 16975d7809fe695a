"""The admin protocol as text: every valid call, every kind of invalid one, no exception else."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflowd import api

VALID: list[tuple[str, dict[str, Any]]] = [
    ("ping", {}),
    ("status", {}),
    ("tasks", {"state": "failed", "after": "100", "limit": 50}),
    ("tasks", {"state": "held"}),
    ("task", {"task_id": "ünï/1"}),
    ("workers", {"after": "w-1", "limit": 5}),
    ("launches", {"limit": 1000}),
    ("events", {"after": "7", "task_id": "x"}),
    ("snapshot", {}),
    ("scale", {"workers": 0, "now": True}),
    ("shutdown", {"now": False}),
    ("pause", {}),
    ("resume", {}),
    ("drain", {"worker": "w"}),
    ("cancel", {"task_ids": ["a", "b"]}),
    ("cancel", {"all": True}),
    ("retry", {"failed": True}),
    ("release", {"what": "launcher"}),
    ("explain", {"task_id": "a"}),
    ("spec", {"task_id": "a"}),
    ("failures", {}),
    ("results", {"after": "12", "limit": 10}),
    ("logs", {"of": "launch", "name": "l1", "after": "17:4096", "bytes": 1024}),
    ("events", {"last": 20}),
    ("metrics", {}),
    ("attempts", {"after": "1000001", "limit": 5}),
    ("fleet", {"after": "3"}),
    ("backup", {"path": "/tmp/copy.db"}),
    ("retry", {"group": 0}),
    ("yield", {}),
]


@pytest.mark.parametrize(("cmd", "args"), VALID)
def test_a_valid_call_comes_back_as_it_was(cmd: str, args: dict[str, Any]) -> None:
    line = api.encode_call(7, cmd, args)
    assert line.endswith(b"\n")
    assert api.parse_call(line[:-1]) == api.Call(7, cmd, args)


def test_the_table_of_valid_calls_covers_every_command() -> None:
    assert {cmd for cmd, _ in VALID} == set(api.COMMANDS)


def test_reads_and_changes_are_told_apart() -> None:
    changes = {"scale", "shutdown", "pause", "resume", "drain", "cancel", "retry", "release"}
    assert changes | {"yield"} == set(api.COMMANDS) - api.READS


@pytest.mark.parametrize(
    ("cmd", "args", "words"),
    [
        ("scale", {}, "needs workers"),
        ("retry", {"group": 1, "failed": True}, "exactly one of"),
        ("retry", {"failed": False}, "exactly one of"),
        ("backup", {"path": "copy.db"}, "absolute path"),
        ("backup", {"path": "/tmp/a\0b"}, "NUL"),
        ("logs", {"of": "worker", "after": "../x"}, "next"),
        ("logs", {}, "needs of"),
        ("scale", {"workers": -1}, "from 0 to"),
        ("scale", {"workers": True}, "whole number"),
        ("scale", {"workers": 2.0}, "whole number"),
        ("scale", {"workers": 1, "then": 2}, "no argument 'then'"),
        ("tasks", {"state": "pending"}, "one of queued"),
        ("tasks", {"limit": 1001}, "from 1 to 1000"),
        ("tasks", {"after": "scan-1"}, "`next` of the page before"),
        ("events", {"after": 7}, "`next` of the page before"),
        ("task", {"task_id": ""}, "1 to 255"),
        ("task", {"task_id": "x" * 256}, "1 to 255"),
        ("task", {"task_id": "\ud800"}, "surrogates"),
        ("cancel", {}, "exactly one of task_ids or all"),
        ("cancel", {"all": False}, "exactly one of"),
        ("cancel", {"all": True, "task_ids": ["a"]}, "exactly one of"),
        ("retry", {"task_ids": []}, "list of 1 to"),
        ("retry", {"task_ids": ["a", 3]}, "a text of"),
        ("rm", {}, "Unknown command"),
        (["status"], {}, "Unknown command"),
    ],
)
def test_a_wrong_argument_is_named(cmd: Any, args: Any, words: str) -> None:
    line = json.dumps({"v": 1, "id": "x1", "cmd": cmd, "args": args}).encode()
    with pytest.raises(api.BadRequest, match=words) as caught:
        api.parse_call(line)
    assert (caught.value.code, caught.value.call_id) == ("usage", "x1")


def test_another_version_is_told_so() -> None:
    with pytest.raises(api.BadRequest) as caught:
        api.parse_call(b'{"v": 2, "id": 1, "cmd": "status"}')
    assert caught.value.code == "version"


def test_a_person_with_socat_may_leave_most_away() -> None:
    assert api.parse_call(b'{"cmd": "status", "new_field": 1}') == api.Call(None, "status", {})


def test_null_means_not_given() -> None:
    call = api.parse_call(b'{"cmd": "tasks", "args": {"state": null, "after": null}}')
    assert call.args == {}


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"status",
        b"[]",
        b'{"cmd": "status", "id": 1.5}',
        b'{"cmd": "status", "id": ' + b"9" * 100_000 + b"}",
        b'{"cmd": "scale", "args": {"workers": NaN}}',
        b"[" * 500_000,
        b"\xff\xfe{\x00",
        b'{"cmd": "status", "args": []}',
    ],
)
def test_what_is_no_request_is_refused(line: bytes) -> None:
    with pytest.raises(api.BadRequest):
        api.parse_call(line)


@given(st.binary(max_size=200))
def test_no_line_of_bytes_raises_anything_else(line: bytes) -> None:
    with contextlib.suppress(api.BadRequest):
        api.parse_call(line)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(st.sampled_from(["v", "id", "cmd", "args", "x"]), _json),
    st.sampled_from(sorted(api.COMMANDS)),
)
def test_no_object_raises_anything_else(value: dict[str, Any], cmd: str) -> None:
    for one in (value, {**value, "v": 1, "id": 1, "cmd": cmd}):
        try:
            call = api.parse_call(json.dumps(one).encode())
        except api.BadRequest as bad:
            json.loads(api.encode_error(bad.call_id, bad.code, bad.message, bad.hint))
        else:
            assert set(call.args) <= set(api.COMMANDS[call.cmd].args)


@given(st.text())
def test_an_answer_is_one_line_of_plain_ascii(text: str) -> None:
    line = api.encode_answer(1, {"text": text})
    assert line.count(b"\n") == 1
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    assert json.loads(line)["text"] == text


def test_a_request_that_is_too_long_is_refused_before_it_is_sent() -> None:
    with pytest.raises(api.BadRequest, match="1 MiB"):
        api.encode_call(1, "cancel", {"task_ids": ["x" * 250] * 9000})


# --- places -----------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "JOBFLOW_STATE_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_the_state_directory(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert api.state_dir() == home / ".local" / "state" / "jobflow"
    monkeypatch.setenv("XDG_STATE_HOME", "relative/is/ignored")
    assert api.state_dir() == home / ".local" / "state" / "jobflow"
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "xdg"))
    assert api.state_dir() == home / "xdg" / "jobflow"
    monkeypatch.setenv("JOBFLOW_STATE_DIR", str(home / "own"))
    assert api.state_dir() == home / "own"


def test_the_socket_path(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    session, link = home / "s", home / "link"
    session.mkdir()
    link.symlink_to(session)
    below_tmp = api.socket_path(session)
    assert below_tmp.parent == Path(f"/tmp/jobflow-{os.getuid()}")
    assert api.socket_path(link) == below_tmp, "the real directory counts"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home))
    assert api.socket_path(session) == home / "jobflow" / below_tmp.name
    assert below_tmp in api.socket_paths(session), "a client looks in both"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(home / "gone"))
    assert api.socket_path(session) == below_tmp


@pytest.mark.parametrize(
    ("name", "good"),
    [("t1", True), ("a.b-c_d", True), ("", False), ("..", False), ("a/b", False), ("-x", False)],
)
def test_session_names(name: str, good: bool) -> None:
    assert api.is_session_name(name) is good


def _pointer(home: Path, name: str, **record: Any) -> Path:
    api.pointers_dir().mkdir(parents=True, exist_ok=True)
    directory = home / "runs" / name
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "session.json").write_text(json.dumps({"session": name}))
    value = {"session": name, "dir": str(directory), "host": "login3", "pid": 5, **record}
    (api.pointers_dir() / f"{name}.json").write_text(json.dumps(value))
    return directory


def test_a_session_is_found_by_name_and_by_directory(home: Path) -> None:
    directory = _pointer(home, "t1", started_at=12.5)
    place = api.find_session("t1")
    assert place == api.SessionPlace("t1", directory, "login3", 5, 12.5)
    assert not place.here
    assert api.find_session(str(directory)).session == "t1"


def test_the_owner_record_is_newer_than_the_pointer(home: Path) -> None:
    directory = _pointer(home, "t1", started_at="2026-11-22T16:00:00Z")
    assert api.find_session("t1").started_at == 1_795_363_200.0
    (directory / "owner.json").write_text('{"host": "login4", "pid": 6, "started_at": 99}')
    place = api.find_session("t1")
    assert (place.host, place.pid, place.started_at) == ("login4", 6, 99.0)


def test_damaged_records_are_skipped(home: Path) -> None:
    _pointer(home, "good", started_at=1)
    for name, text in (("a", "{"), ("b", "[]"), ("c", '{"dir": 3}'), ("d", "\x00")):
        (api.pointers_dir() / f"{name}.json").write_text(text)
    assert [place.session for place in api.list_sessions()] == ["good"]


@pytest.mark.parametrize("name", ["nope", "../../etc", "no/such", "", "a\x1bb"])
def test_no_such_session(home: Path, name: str) -> None:
    with pytest.raises(api.NoSuchSession) as caught:
        api.find_session(name)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("record", "code"),
    [
        ({"state": "done", "code": 3, "ended_at": 20.0, "tasks": {"failed": 1, "x": "y"}}, 3),
        ({"state": "done", "code": 0, "ended_at": 5.0, "tasks": {"failed": 1}}, 0),
        ({"state": "done", "code": 0}, None),
        ({"state": "done", "code": "0", "ended_at": 20.0}, None),
        ([], None),
    ],
    ids=["good", "while a later daemon only serves", "no time", "no number", "no object"],
)
def test_the_recorded_end(home: Path, record: Any, code: int | None) -> None:
    directory = _pointer(home, "t1", started_at=10.0)
    (directory / "ended.json").write_text(json.dumps(record))
    ended = api.find_session("t1").ended()
    assert (None if ended is None else ended.code) == code
    if ended is not None:
        assert ended.tasks == {"failed": 1}


def test_a_directory_that_is_not_private_is_refused(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir(mode=0o700)
    api.check_private_directory(good)
    link, file, open_one = tmp_path / "link", tmp_path / "file", tmp_path / "open"
    link.symlink_to(good)
    file.write_text("")
    open_one.mkdir()
    open_one.chmod(0o755)
    for bad in (link, file, open_one):
        with pytest.raises(api.NotOurs):
            api.check_private_directory(bad)
    with pytest.raises(api.NotOurs, match="belongs to user"):
        api.check_private_directory(good, owner=os.getuid() + 1)
