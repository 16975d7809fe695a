"""jobflowctl as people and scripts run it, against a stub daemon on a real socket."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import typer
from stub_daemon import TASK_IDS, StubDaemon, census, write_ended, write_session

from jobflowctl import cli as ctl
from jobflowctl import errors, waiting
from jobflowctl.client import Client
from jobflowd import api

if TYPE_CHECKING:
    from conftest import Cli

CTL = str(Path(sys.executable).parent / "jobflowctl")


@pytest.fixture
def place(
    session_env: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> api.SessionPlace:
    """A session in the test's own world, which this process shares with the commands."""
    for name in ("JOBFLOW_SESSION", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in session_env.items():
        monkeypatch.setenv(name, value)
    return write_session(tmp_path / "runs" / "t1")


@pytest.fixture
def daemon(place: api.SessionPlace) -> Iterator[StubDaemon]:
    with StubDaemon(api.socket_path(place.dir)) as daemon:
        yield daemon


def ask(cli: Cli, *args: str) -> dict[str, Any]:
    """The one JSON object of a verb."""
    done = cli.run("jobflowctl", *args, "--json")
    assert done.stdout.count("\n") == 1
    body: dict[str, Any] = json.loads(done.stdout)
    return body


# --- every verb -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "keys"),
    [
        (["status"], {"session", "state", "tasks", "workers", "launches", "eta_s", "warnings"}),
        (["tasks"], {"tasks", "next"}),
        (["task", "scan-0001"], {"task_id", "state", "spec", "attempts"}),
        (["workers"], {"workers", "next"}),
        (["launches"], {"launches", "next"}),
        (["events"], {"events", "next"}),
        (["snapshot"], {"state", "worker_list", "launch_list"}),
        (["scale", "3"], {"ok", "message"}),
        (["shutdown"], {"ok", "message"}),
        (["pause"], {"ok", "message"}),
        (["resume"], {"ok", "message"}),
        (["drain", "w-busy"], {"ok", "message"}),
        (["cancel", "a", "b"], {"ok", "message"}),
        (["cancel", "--all"], {"ok", "message"}),
        (["retry", "--failed"], {"ok", "message"}),
        (["release", "launcher"], {"ok", "message"}),
    ],
)
def test_json_of_every_verb(daemon: StubDaemon, cli: Cli, args: list[str], keys: set[str]) -> None:
    body = ask(cli, "-s", "t1", *args)
    assert body["schema"] == f"jobflow.{args[0]}/1"
    assert keys <= set(body)


def test_arguments_arrive_as_they_were_typed(daemon: StubDaemon, cli: Cli) -> None:
    for args in (
        ["scale", "0", "--now"],
        ["shutdown", "--now", "--yes"],
        ["cancel", "a b", "ü"],
        ["retry", "x"],
    ):
        cli.run("jobflowctl", "-s", "t1", *args)
    changes = [(one.cmd, one.args) for one in daemon.requests if one.cmd != "status"]
    assert changes == [
        ("scale", {"workers": 0, "now": True}),
        ("shutdown", {"now": True}),
        ("cancel", {"task_ids": ["a b", "ü"]}),
        ("retry", {"task_ids": ["x"]}),
    ]


def test_people_get_a_screen_and_scripts_only_data(daemon: StubDaemon, cli: Cli) -> None:
    done = cli.run("jobflowctl", "status")
    assert "40 of 100 tasks" in done.stdout
    assert "\x1b" not in done.stdout
    assert done.stdout.rstrip().endswith("jobflowctl -s t1 failures")
    assert done.stderr == ""
    assert cli.run("jobflowctl", "-q", "status").stdout == "running\n"


def test_options_work_on_both_sides_of_the_verb(daemon: StubDaemon, cli: Cli) -> None:
    before = cli.run("jobflowctl", "-s", "t1", "--json", "workers").stdout
    after = cli.run("jobflowctl", "workers", "--json", "-s", "t1").stdout
    assert before == after


def test_pages(daemon: StubDaemon, cli: Cli) -> None:
    first = ask(cli, "tasks", "--limit", "3")
    assert [row["task_id"] for row in first["tasks"]] == TASK_IDS[:3]
    second = ask(cli, "tasks", "--limit", "3", "--after", first["next"])
    assert [row["task_id"] for row in second["tasks"]] == TASK_IDS[3:6]
    assert "--after 3" in cli.run("jobflowctl", "tasks", "--limit", "3").stdout
    every = cli.run("jobflowctl", "-q", "tasks", "--all").stdout.split()
    assert every == TASK_IDS
    found = ask(cli, "tasks", "--match", "scan-24*", "--limit", "2")
    assert [row["task_id"] for row in found["tasks"]] == ["scan-2400", "scan-2401"]
    newest = ask(cli, "events", "-n", "2")
    assert [row["text"] for row in newest["events"]] == ["n1498", "n1499"]


def test_following_events_ends_with_the_run(
    daemon: StubDaemon, cli: Cli, place: api.SessionPlace
) -> None:
    following = cli.spawn("jobflowctl", "events", "-f", "-n", "1", "--json")
    deadline = time.monotonic() + 20
    while not following.stdout.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    write_ended(place.dir, 0)
    daemon.stop()
    assert following.process.wait(20) == 0, following.printed()
    (line,) = following.stdout.read_text().splitlines()
    assert json.loads(line)["schema"] == "jobflow.event/1"


# --- exit codes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ([], "Usage"),
        (["frobnicate"], "No such command"),
        (["status", "--frobnicate"], "No such option"),
        (["scale"], "Missing argument"),
        (["scale", "many"], "Invalid value"),
        (["scale", "-1"], ""),
        (["--color", "blue", "status"], "auto, always or never"),
        (["tasks", "--state", "pending"], "no task state"),
        (["cancel"], "task ids or --all"),
        (["cancel", "a", "--all"], "one of the two"),
        (["retry"], "task ids, --failed or --group"),
        (["wait", "--timeout", "soon"], "not a duration"),
        (["task", "nope"], "no task 'nope'"),
        (["cancel", "unknown"], ""),
        (["task", "x" * 300], "1 to 255"),
    ],
)
def test_usage_is_code_2(daemon: StubDaemon, cli: Cli, args: list[str], words: str) -> None:
    done = cli.run("jobflowctl", *args, code=2)
    # Some versions print the help of an empty command line to stdout.
    assert words in done.stderr + (done.stdout if not args else "")
    assert "Traceback" not in done.stderr


def test_no_daemon_is_code_5_and_a_sentence(place: api.SessionPlace, cli: Cli) -> None:
    done = cli.run("jobflowctl", "-s", "t1", "status", code=5)
    assert "does not run" in done.stderr
    assert "jobflowd start --session-id t1" in done.stderr
    done = cli.run("jobflowctl", "-s", "nope", "status", code=5)
    assert "no session 'nope'" in done.stderr
    done = cli.run("jobflowctl", "status", code=5)
    assert "the last one was t1" in done.stderr
    write_ended(place.dir, 3, succeeded=98, failed=2)
    done = cli.run("jobflowctl", "-s", str(place.dir), "status", code=5)
    assert re.search(r"ended .* s ago: done, 98 succeeded, 2 failed", done.stderr)


def test_no_session_at_all(cli: Cli) -> None:
    done = cli.run("jobflowctl", "status", code=5)
    assert "jobflowd start --program" in done.stderr


def test_a_session_of_another_host(place: api.SessionPlace, cli: Cli) -> None:
    write_session(place.dir, host="login3", pid=77)
    done = cli.run("jobflowctl", "-s", "t1", "status", code=5)
    assert "runs on login3 (pid 77), not on" in done.stderr
    assert "ssh login3 jobflowctl" in cli.run("jobflowctl", "status", code=5).stderr


def test_a_stale_socket_is_no_daemon(place: api.SessionPlace, cli: Cli) -> None:
    import socket

    path = api.socket_path(place.dir)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    assert "does not run" in cli.run("jobflowctl", "-s", "t1", "status", code=5).stderr


def test_a_socket_directory_that_is_open_to_others_is_code_77(
    daemon: StubDaemon, place: api.SessionPlace, cli: Cli
) -> None:
    api.socket_path(place.dir).parent.chmod(0o755)
    assert "open to others" in cli.run("jobflowctl", "-s", "t1", "status", code=77).stderr


def test_a_version_that_is_not_ours_is_code_78(daemon: StubDaemon, cli: Cli) -> None:
    daemon.answer = lambda request, view: ("version", "This daemon speaks version 9.", "Use it.")
    assert "version 9" in cli.run("jobflowctl", "-s", "t1", "status", code=78).stderr


def test_a_refusal_is_code_1_with_the_daemons_words(daemon: StubDaemon, cli: Cli) -> None:
    daemon.answer = lambda request, view: ("conflict", "No launcher.\x1b[2J", "By hand.")
    done = cli.run("jobflowctl", "-s", "t1", "scale", "3", code=1)
    assert done.stderr == "jobflowctl: No launcher.\\x1b[2J\nBy hand.\n"


# --- which session ----------------------------------------------------------------------------


def test_many_sessions(
    daemon: StubDaemon, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_session(tmp_path / "runs" / "t2", "t2")
    write_session(tmp_path / "runs" / "dead", "dead")
    assert ask(cli, "status")["session"] == "t1", "the only live one"
    with StubDaemon(api.socket_path(other.dir)) as second:
        second.view = census(session="t2")
        done = cli.run("jobflowctl", "status", code=2)
        assert "-s t1" in done.stderr
        assert "-s t2" in done.stderr
        assert "dead" not in done.stderr
        assert ask(cli, "-s", "t2", "status")["session"] == "t2"
        cli.env["JOBFLOW_SESSION"] = "t2"
        assert ask(cli, "status")["session"] == "t2"
        assert ask(cli, "-s", "t1", "status")["session"] == "t1"


def test_sessions_and_their_states(daemon: StubDaemon, cli: Cli, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    write_session(runs / "down", "down")
    write_session(runs / "away", "away", host="login3")
    write_ended(write_session(runs / "over", "over").dir, 3, failed=1)
    old = write_session(runs / "old", "old", started_at=1.0)
    (old.dir / "ended.json").write_text('{"state": "done", "code": 0, "ended_at": 2.0}')
    (write_session(runs / "lost", "lost").dir / "session.json").unlink()
    for name in ("session.json", "owner.json"):
        (runs / "lost" / name).unlink(missing_ok=True)
    (runs / "lost").rmdir()
    states = {row["session"]: row["state"] for row in ask(cli, "sessions")["sessions"]}
    assert states == {
        "t1": "live",
        "down": "down",
        "away": "elsewhere",
        "over": "ended",
        "old": "ended",
        "lost": "missing",
    }
    done = cli.run("jobflowctl", "-q", "sessions", "--prune")
    assert set(done.stdout.split()) == {"t1", "down", "away", "over"}
    assert (old.dir / "session.json").exists(), "only the name is forgotten"


def test_a_daemon_started_with_another_environment_is_found(
    place: api.SessionPlace, cli: Cli
) -> None:
    runtime = cli.env.pop("XDG_RUNTIME_DIR")
    shared = api.socket_paths(place.dir)
    below_tmp = next(path for path in shared if path.parent == Path(f"/tmp/jobflow-{os.getuid()}"))
    with StubDaemon(below_tmp):
        assert ask(cli, "-s", "t1", "status")["state"] == "running"
        cli.env["XDG_RUNTIME_DIR"] = runtime
        assert ask(cli, "-s", "t1", "status")["state"] == "running"


# --- waiting ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "exit_code"), [(0, 0), (3, 3), (4, 4), (74, 4), (130, 4)])
def test_an_ended_session_answers_at_once(
    place: api.SessionPlace, cli: Cli, code: int, exit_code: int
) -> None:
    write_ended(place.dir, code, succeeded=1)
    done = cli.run("jobflowctl", "-s", "t1", "wait", "--json", code=exit_code)
    body = json.loads(done.stdout)
    assert (body["code"], body["daemon_code"], body["tasks"]) == (exit_code, code, {"succeeded": 1})
    assert body["ended_at"].endswith("Z")


def test_waiting_gives_up_with_124(daemon: StubDaemon, cli: Cli) -> None:
    started = time.monotonic()
    done = cli.run("jobflowctl", "-s", "t1", "wait", "--timeout", "0.3s", code=124)
    assert "still runs" in done.stderr
    assert time.monotonic() - started < 10


def test_waiting_for_a_dead_session_is_code_5(place: api.SessionPlace, cli: Cli) -> None:
    cli.run("jobflowctl", "-s", "t1", "wait", code=5)


def test_waiting_sees_the_end(daemon: StubDaemon, cli: Cli, place: api.SessionPlace) -> None:
    done = cli.spawn("jobflowctl", "-s", "t1", "wait")
    deadline = time.monotonic() + 20
    while not daemon.requests and time.monotonic() < deadline:
        time.sleep(0.02)
    write_ended(place.dir, 3, succeeded=9, failed=1)
    daemon.stop()
    assert done.process.wait(20) == 3, done.printed()
    assert done.stdout.read_text() == "t1 done: 9 succeeded · 1 failed\n"


def test_waiting_survives_a_restart_and_sees_a_daemon_that_stays(
    daemon: StubDaemon, place: api.SessionPlace
) -> None:
    times = iter(range(1000))
    steps: list[str] = []

    def sleep(_: float) -> None:
        steps.append("")
        if len(steps) == 2:
            daemon.stop()
        if len(steps) == 5:
            steps.append("up")
            second.__enter__()

    second = StubDaemon(api.socket_path(place.dir))
    second.view = census("done")
    outcome = waiting.wait_for_end(
        place, gone_patience_s=1000, done_patience_s=5, clock=lambda: next(times), sleep=sleep
    )
    second.stop()
    assert (outcome.code, outcome.daemon_code, outcome.state) == (3, None, "done")


def test_a_daemon_that_stays_away_without_an_end_is_no_success(
    daemon: StubDaemon, place: api.SessionPlace
) -> None:
    times = iter(range(1000))
    with pytest.raises(errors.NoSession):
        waiting.wait_for_end(
            place, gone_patience_s=5, clock=lambda: next(times), sleep=lambda _: daemon.stop()
        )


def test_shutdown_may_wait_for_the_end(
    daemon: StubDaemon, cli: Cli, place: api.SessionPlace
) -> None:
    ending = cli.spawn("jobflowctl", "-s", "t1", "shutdown", "--wait", "--yes", "--json")
    daemon.view = census("draining", state_reason="2 workers are leaving")
    deadline = time.monotonic() + 20
    while len(daemon.requests) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    write_ended(place.dir, 4, queued=60)
    daemon.stop()
    assert ending.process.wait(20) == 0, ending.printed()
    assert json.loads(ending.stdout.read_text())["ended"]["code"] == 4
    assert "2 workers are leaving" in ending.stderr.read_text()


# --- the client -------------------------------------------------------------------------------


def test_a_busy_daemon_is_told_from_a_dead_one(daemon: StubDaemon, place: api.SessionPlace) -> None:
    daemon.answer = lambda request, view: None
    with Client(place) as client, pytest.raises(errors.DaemonBusy, match="busy"):
        client.call("status", timeout_s=0.1)


def test_a_read_is_repeated_and_a_change_is_not(
    daemon: StubDaemon, place: api.SessionPlace
) -> None:
    with Client(place) as client:
        client.call("ping")
        daemon.stop()
        with StubDaemon(api.socket_path(place.dir)) as second:
            assert client.call("status")["state"] == "running"
            second.stop()
            with pytest.raises(errors.NoSession, match="left before it answered"):
                client.call("scale", {"workers": 1})


@pytest.mark.parametrize("answer", [b"rubbish\n", b"[]\n", b'{"id": 1', b""])
def test_an_answer_that_is_none_is_no_crash(
    place: api.SessionPlace, cli: Cli, answer: bytes
) -> None:
    import socket
    import threading

    path = api.socket_path(place.dir)
    path.parent.mkdir(mode=0o700)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        done = cli.run("jobflowctl", "-s", "t1", "status", code=5)
        thread.join(10)
    assert "left before it answered" in done.stderr


# --- at a terminal ----------------------------------------------------------------------------


def at_terminal(
    cli: Cli, typed: bytes, *args: str, env: dict[str, str] | None = None
) -> tuple[int, str]:
    """Run at a pseudo-terminal, type at the first question; returns code and everything shown."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [CTL, *args],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**cli.env, "TERM": "xterm", **(env or {})},
    )
    os.close(terminal)
    shown = b""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and select.select([controller], [], [], 20)[0]:
        try:
            data = os.read(controller, 65536)
        except OSError:
            break
        if not data:
            break
        shown += data
        if b"[y/N]" in shown and typed:
            os.write(controller, typed)
            typed = b""
    code = process.wait(20)
    os.close(controller)
    return code, shown.decode()


@pytest.mark.parametrize(
    ("args", "question"),
    [
        (["scale", "0"], "Let every worker of t1 go?"),
        (["shutdown"], "End t1 after the running tasks? 60 tasks left."),
        (["cancel", "--all"], "Cancel 60 tasks of t1 for good?"),
    ],
)
def test_danger_is_asked_about(
    daemon: StubDaemon, cli: Cli, args: list[str], question: str
) -> None:
    code, shown = at_terminal(cli, b"n\n", *args)
    assert (code, question in shown) == (1, True)
    assert {one.cmd for one in daemon.requests} <= {"status"}
    code, shown = at_terminal(cli, b"y\n", *args)
    assert code == 0
    assert daemon.requests[-1].cmd == args[0]
    daemon.requests.clear()
    code, shown = at_terminal(cli, b"", *args, "--yes")
    assert (code, "[y/N]" in shown) == (0, False)


def test_a_terminal_gets_colours_and_lines_that_fit(daemon: StubDaemon, cli: Cli) -> None:
    cli.env["COLUMNS"] = "60"
    _, shown = at_terminal(cli, b"", "status")
    assert "\x1b[1mt1\x1b[0m" in shown
    _, shown = at_terminal(cli, b"", "tasks")
    assert all(len(line) <= 60 for line in shown.splitlines())


def test_a_reader_that_goes_away_is_no_error(daemon: StubDaemon, cli: Cli) -> None:
    script = f"set -o pipefail; {CTL} -s t1 tasks --all | head -1"
    done = subprocess.run(
        ["bash", "-c", script], env=cli.env, capture_output=True, timeout=30, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("TASK")


def test_a_terminal_without_utf8_gets_ascii(daemon: StubDaemon, cli: Cli) -> None:
    cli.env |= {"PYTHONIOENCODING": "ascii"}
    assert cli.run("jobflowctl", "status").stdout.isascii()


def test_help_is_quick_and_has_examples(cli: Cli) -> None:
    times = []
    for _ in range(3):
        started = time.monotonic()
        done = cli.run("jobflowctl", "--help")
        times.append(time.monotonic() - started)
    assert "jobflowctl -s t1 scale 20" in done.stdout
    assert min(times) < 1.0, "0.13 s on an idle machine"
    for verb in ("status", "wait", "retry", "watch"):
        assert "Examples:" in cli.run("jobflowctl", verb, "--help").stdout


def test_it_runs_as_a_module(session_env: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "jobflowctl", "--version"],
        env=session_env,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert re.fullmatch(r"jobflowctl \d+\.\d+\.\d+\n", done.stdout)


# --- watch ------------------------------------------------------------------------------------


def test_watch_once(daemon: StubDaemon, cli: Cli) -> None:
    done = cli.run("jobflowctl", "watch", "--once")
    assert "running · 40.0 %  40/100 tasks" in done.stdout
    assert ask(cli, "watch", "--once")["schema"] == "jobflow.watch/1"


def test_watch_ends_with_the_run(daemon: StubDaemon, cli: Cli, place: api.SessionPlace) -> None:
    watching = cli.spawn("jobflowctl", "watch", "--interval", "0.1s")
    deadline = time.monotonic() + 20
    while len(daemon.requests) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    write_ended(place.dir, 0, succeeded=100)
    daemon.stop()
    assert watching.process.wait(20) == 0, watching.printed()
    lines = watching.stdout.read_text().splitlines()
    assert len(lines) > 2
    assert lines[-1] == "t1 done: 100 succeeded"


def test_watch_reads_a_telemetry_file(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "dashboard_snapshot.json"
    cli.run("jobflowctl", "watch", "--telemetry-file", str(file), code=5)
    file.write_text('{"schema": "other/1"}')
    done = cli.run("jobflowctl", "watch", "--telemetry-file", str(file), code=2)
    assert "not a telemetry snapshot" in done.stderr
    body = {"schema": api.schema("snapshot"), "session": "t1", "seq": 1, "state": "running"}
    file.write_text(json.dumps({**body, "tasks": {"total": 4, "succeeded": 1}}))
    done = cli.run("jobflowctl", "watch", "--telemetry-file", str(file), "--once")
    assert "25.0 %  1/4 tasks" in done.stdout
    arguments = ["--interval", "0.05s", "--stale-timeout", "0.2s"]
    watching = cli.spawn("jobflowctl", "watch", "--telemetry-file", str(file), *arguments)
    deadline = time.monotonic() + 20
    while "not changed" not in watching.stderr.read_text() and time.monotonic() < deadline:
        time.sleep(0.02)
    done_body = {**body, "seq": 2, "state": "done", "tasks": {"total": 4, "succeeded": 4}}
    new = tmp_path / "new"
    new.write_text(json.dumps(done_body))
    new.replace(file)
    assert watching.process.wait(20) == 0, watching.printed()
    assert watching.stdout.read_text().count("\n") == 2


def test_one_look_at_an_old_telemetry_file_says_how_old_it_is(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "dashboard_snapshot.json"
    body = {"schema": api.schema("snapshot"), "session": "t1", "seq": 1, "state": "running"}
    file.write_text(json.dumps(body))
    os.utime(file, (time.time() - 7200, time.time() - 7200))
    look = ["jobflowctl", "watch", "--telemetry-file", str(file), "--once"]
    assert "was written 2 h ago" in cli.run(*look).stderr
    assert cli.run(*look, "--stale-timeout", "3h").stderr == ""
    # Whoever follows is told that it does not move, and leaves with the daemon's last word.
    file.write_text(json.dumps({**body, "state": "draining", "final": True}))
    assert cli.run(*look[:-1]).stderr == ""


# --- speed and completion ---------------------------------------------------------------------


def test_a_verb_loads_no_validation_library(daemon: StubDaemon, cli: Cli) -> None:
    code = (
        "import sys; sys.argv = ['jobflowctl', '-s', 't1', 'tasks', '--state', 'failed']\n"
        "from jobflowctl.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "sys.exit(' '.join({'pydantic', 'rich', 'zmq', 'psutil'} & set(sys.modules)) or 0)\n"
    )
    argv = [sys.executable, "-c", code]
    done = subprocess.run(
        argv, env=cli.env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "scan-0001" in done.stdout


@pytest.mark.parametrize(
    ("words", "offers"),
    [
        ("jobflowctl -s ", ["t1"]),
        ("jobflowctl tasks --state ru", ["running"]),
        ("jobflowctl -s t1 task scan-0000", ["scan-0000"]),
        ("jobflowctl -s t1 drain w-b", ["w-busy"]),
        ("jobflowctl -s nope task x", []),
        ("jobflowctl fail", ["failures"]),
    ],
)
def test_the_shell_offers_what_there_is(
    daemon: StubDaemon, cli: Cli, words: str, offers: list[str]
) -> None:
    parts = words.split(" ")
    cli.env |= {
        "_JOBFLOWCTL_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(parts) - 1),
    }
    assert cli.run("jobflowctl").stdout.split() == offers


def test_bash_completes_by_the_script_that_it_is_given(daemon: StubDaemon, cli: Cli) -> None:
    script = """
        eval "$(_JOBFLOWCTL_COMPLETE=source_bash jobflowctl)"
        complete -p jobflowctl
        offer() {
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            _jobflowctl_completion jobflowctl
            echo "${COMPREPLY[*]}"
        }
        offer jobflowctl fail
        offer jobflowctl -s t1 drain w-b
        offer jobflowctl tasks --state ru
    """
    path = f"{Path(CTL).parent}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "--norc", "-euc", script],
        env={**cli.env, "PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    registered, *offers = done.stdout.splitlines()
    assert registered.endswith("jobflowctl")
    assert offers == ["failures", "w-busy", "running"]
    assert done.stderr == ""


def test_no_colour_and_dumb_terminals_get_plain_text(daemon: StubDaemon, cli: Cli) -> None:
    before = dict(cli.env)
    for changes in ({"NO_COLOR": "1"}, {"TERM": "dumb"}):
        cli.env = {**before, **changes}
        env = {"TERM": "xterm", **changes}
        for verb in ("status", "tasks", "workers", "failures"):
            _, shown = at_terminal(cli, b"", verb, env=env)
            assert "\x1b" not in shown, (verb, changes)
    cli.env = before
    _, shown = at_terminal(cli, b"", "--color", "never", "status")
    assert "\x1b" not in shown


@pytest.mark.parametrize("columns", [40, 80, 200])
@pytest.mark.parametrize("verb", ["tasks", "workers", "launches", "failures"])
def test_tables_fit_every_terminal(daemon: StubDaemon, cli: Cli, verb: str, columns: int) -> None:
    cli.env["COLUMNS"] = str(columns)
    code, shown = at_terminal(cli, b"", "--color", "never", verb)
    assert code == 0
    # Commands to type next are never cut.
    rows = [line for line in shown.splitlines() if "jobflowctl -s" not in line]
    assert rows
    assert all(len(line) <= columns for line in rows), shown


@pytest.mark.parametrize("verb", ["status", "tasks", "workers", "launches", "failures"])
def test_a_pipe_gets_whole_lines_without_colours(daemon: StubDaemon, cli: Cli, verb: str) -> None:
    done = cli.run("jobflowctl", verb)
    assert "\x1b" not in done.stdout
    assert "…" not in done.stdout
    assert done.stderr == ""


def test_every_verb_has_examples_and_the_codes_are_in_one_table() -> None:
    command: Any = typer.main.get_command(ctl.app)
    without = [name for name, verb in command.commands.items() if "Examples:" not in verb.epilog]
    assert without == []
    told = {int(word) for word in re.findall(r"^ +(\d+) ", command.epilog, re.MULTILINE)}
    known = {value for name, value in vars(errors).items() if name.startswith("EXIT_")}
    assert known <= told
    page = (Path(__file__).parents[2] / "docs" / "codes.md").read_text()
    assert all(re.search(rf"^\|[^|]*\b{code}\b", page, re.MULTILINE) for code in told)
