"""Local workers with real processes: seen, adopted, found, told apart, ended."""

from __future__ import annotations

import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobflowd.events import LaunchSeen, SubmitFailed, Submitted
from jobflowd.launchers.multiprocess import local_job_id, parse_local_job_id
from jobflowd.model import LaunchState
from jobflowd.processes import CANCEL_GRACE_S, LocalDesk

pytestmark = pytest.mark.usefixtures("no_processes_left")

SLEEP = "import time; print('ready', flush=True); time.sleep(60)"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); " + SLEEP

Make = Callable[..., LocalDesk]


@pytest.fixture
def desks(tmp_path: Path, session_env: dict[str, str]) -> Iterator[Make]:
    made: list[LocalDesk] = []

    def make(code: str = SLEEP, **options: object) -> LocalDesk:
        options = {"start_dir": tmp_path, "environ": session_env} | options

        def argv(launch_id: str) -> list[str]:
            return [sys.executable, "-c", code, "--launch-id", launch_id]

        desk = LocalDesk(tmp_path / "session", argv=argv, **options)  # type: ignore[arg-type]
        made.append(desk)
        return desk

    yield make
    for desk in made:
        desk.close()


def until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def submit(desk: LocalDesk, launch_id: str = "l1") -> Submitted:
    answer = desk.submit(launch_id)
    assert isinstance(answer, Submitted)
    return answer


def pid_of(job_id: str) -> int:
    process = parse_local_job_id(job_id)
    assert process is not None
    return process.pid


def output_of(answer: Submitted) -> str:
    assert answer.output is not None
    return Path(answer.output).read_text()


def wait_end(desk: LocalDesk, timeout_s: float = 10.0) -> LaunchSeen:
    """As the daemon's poller does: sleep until the descriptor wakes it."""
    poller = select.poll()
    poller.register(desk.wake_fd(), select.POLLIN)
    assert poller.poll(timeout_s * 1000), "nothing woke the poller"
    (seen,) = desk.reap()
    assert not poller.poll(0)
    return seen


def end(desk: LocalDesk, launch_id: str, job_id: str | None = None) -> None:
    desk.cancel(launch_id, job_id, now=True)
    wait_end(desk)


# --- starting ---------------------------------------------------------------------------------


def test_a_worker_runs_in_its_own_session_with_private_output(desks: Make, tmp_path: Path) -> None:
    code = (
        "import os, sys, time; print(os.getcwd(), os.getsid(0) == os.getpid(), "
        "os.environ['JOBFLOW_LAUNCH_ID'], os.environ['JOBFLOW_SESSION_DIR'], "
        "repr(sys.stdin.read()), flush=True); print('oops', file=sys.stderr)"
    )
    desk = desks(code)
    answer = submit(desk)
    seen = wait_end(desk)
    session = tmp_path / "session"
    assert output_of(answer) == f"{tmp_path} True l1 {session} ''\noops\n"
    assert answer.output == str(session / "launches" / "l1" / "output")
    assert stat.S_IMODE(os.stat(answer.output).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(answer.output)).st_mode) == 0o700
    assert seen == LaunchSeen(
        "l1", LaunchState.ENDED, answer.batch_job_id, "the worker left", output_of(answer)
    )


def test_the_users_umask_is_given_to_workers(desks: Make) -> None:
    desk = desks("import os; print(oct(os.umask(0)))", umask=0o027)
    answer = submit(desk)
    wait_end(desk)
    assert output_of(answer) == "0o27\n"


@pytest.mark.parametrize("launch_id", ["../x", "", "a/b", "-x", "a\nb"])
def test_a_strange_launch_id_is_refused(desks: Make, launch_id: str) -> None:
    assert isinstance(desks().submit(launch_id), SubmitFailed)


def test_a_missing_start_directory_is_named(desks: Make, tmp_path: Path) -> None:
    answer = desks(start_dir=tmp_path / "gone").submit("l1")
    assert isinstance(answer, SubmitFailed)
    assert str(tmp_path / "gone") in answer.reason


def test_an_unwritable_output_is_a_refusal(desks: Make, tmp_path: Path) -> None:
    (tmp_path / "session").write_text("a file where the directory should be")
    answer = desks().submit("l1")
    assert isinstance(answer, SubmitFailed)
    assert answer.reason.startswith("cannot start a worker")


def test_the_output_is_not_written_through_a_link(desks: Make, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    directory = tmp_path / "session" / "launches" / "l1"
    directory.mkdir(parents=True)
    (directory / "output").symlink_to(victim)
    assert isinstance(desks().submit("l1"), SubmitFailed)
    assert not victim.exists()


# --- seeing -----------------------------------------------------------------------------------


def test_a_live_worker_is_running_and_its_kill_is_seen_at_once(desks: Make) -> None:
    desk = desks()
    answer = submit(desk)
    asked = [("l1", answer.batch_job_id)]
    until(lambda: output_of(answer))
    assert desk.query(asked) == [LaunchSeen("l1", LaunchState.RUNNING, answer.batch_job_id)]
    os.kill(pid_of(answer.batch_job_id), signal.SIGKILL)
    started = time.monotonic()
    seen = wait_end(desk)
    assert time.monotonic() - started < 1.0
    assert (seen.state, seen.tail) == (LaunchState.FAILED, "ready\n")
    assert "SIGKILL" in seen.reason
    (again,) = desk.query(asked)
    assert again.state is LaunchState.ENDED


def test_an_exit_status_and_the_end_of_a_long_output_are_told(desks: Make) -> None:
    desk = desks("print('x' * 100_000 + 'the end'); raise SystemExit(78)")
    submit(desk)
    seen = wait_end(desk)
    assert seen.state is LaunchState.FAILED
    assert "exit status 78" in seen.reason
    assert seen.tail.endswith("the end\n")
    assert len(seen.tail) <= 8192


def test_a_query_tells_of_ends_too(desks: Make) -> None:
    desk = desks("pass")
    answer = submit(desk)
    states: list[LaunchState] = []

    def ended() -> bool:
        states.extend(one.state for one in desk.query([("l1", answer.batch_job_id)]))
        return states[-1] is LaunchState.ENDED

    until(ended)
    assert desk.reap() == []


def test_without_pidfds_ends_are_seen_by_looking(desks: Make) -> None:
    desk = desks(pidfds=False)
    answer = submit(desk)
    deadline = desk.next_deadline()
    assert deadline is not None
    assert deadline <= time.monotonic() + 1.0
    assert desk.reap() == []
    os.kill(pid_of(answer.batch_job_id), signal.SIGKILL)
    seen: list[LaunchSeen] = []

    def ended() -> bool:
        seen.extend(desk.reap())
        return bool(seen)

    until(ended)
    assert "SIGKILL" in seen[0].reason
    assert desk.next_deadline() is None


def test_by_default_it_is_the_worker_of_this_installation(
    tmp_path: Path, session_env: dict[str, str]
) -> None:
    desk = LocalDesk(tmp_path / "session", start_dir=tmp_path, environ=session_env)
    submit(desk)
    seen = wait_end(desk, 30)
    desk.close()
    assert seen.state is LaunchState.FAILED
    assert seen.tail.startswith("jobflow-worker: error: ")
    assert str(tmp_path / "session") in seen.tail


# --- after a restart --------------------------------------------------------------------------


def test_another_desk_adopts_a_worker_and_sees_its_end(desks: Make) -> None:
    first, second = desks(), desks()
    answer = submit(first)
    asked = [("l1", answer.batch_job_id)]
    assert second.query(asked) == [LaunchSeen("l1", LaunchState.RUNNING, answer.batch_job_id)]
    os.kill(pid_of(answer.batch_job_id), signal.SIGKILL)
    assert wait_end(second).state is LaunchState.ENDED
    assert wait_end(first).state is LaunchState.FAILED


def test_workers_outlive_their_desk(desks: Make) -> None:
    first = desks()
    answer = submit(first)
    first.close()
    first.close = lambda: None  # type: ignore[method-assign]
    second = desks()
    (seen,) = second.query([("l1", answer.batch_job_id)])
    assert seen.state is LaunchState.RUNNING
    os.kill(pid_of(answer.batch_job_id), signal.SIGKILL)
    os.waitpid(pid_of(answer.batch_job_id), 0)
    wait_end(second)


def test_a_pid_of_somebody_else_is_not_the_worker(desks: Make) -> None:
    """The same pid with another start time: gone, and not signalled."""
    first, second = desks(), desks()
    process = parse_local_job_id(submit(first).batch_job_id)
    assert process is not None
    other = local_job_id(process.host, process.boot, process.pid, process.start_ticks - 1)
    (seen,) = second.query([("l9", other)])
    assert seen.state is LaunchState.ENDED
    second.cancel("l9", other, now=True)
    assert first.reap() == []
    end(first, "l1")


def test_other_hosts_give_no_evidence_and_other_boots_are_over(desks: Make) -> None:
    desk = desks()
    process = parse_local_job_id(submit(desk).batch_job_id)
    assert process is not None
    elsewhere = local_job_id("elsewhere", process.boot, process.pid, process.start_ticks)
    before = local_job_id(process.host, "00000000", process.pid, process.start_ticks)
    seen = desk.query([("l2", elsewhere), ("l3", before)])
    assert [(one.launch_id, one.state) for one in seen] == [("l3", LaunchState.ENDED)]
    assert "restarted" in seen[0].reason
    end(desk, "l1")


def test_an_unrecorded_worker_is_found_by_its_environment(desks: Make) -> None:
    # Its child has the same environment and a session of its own, but other arguments.
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', " + repr(SLEEP)
    first, second = desks(child + "], start_new_session=True); " + SLEEP), desks()
    answer = submit(first)
    until(lambda: output_of(answer).count("ready") == 2)
    assert second.find(["l1", "l2"]) == {"l1": answer.batch_job_id}
    seen = {one.launch_id: one for one in second.query([("l1", None), ("l2", None)])}
    assert seen["l1"].state is LaunchState.RUNNING
    assert seen["l1"].batch_job_id == answer.batch_job_id
    assert seen["l2"].state is LaunchState.ENDED
    second.cancel("l1", None, now=True)
    wait_end(second)
    wait_end(first)


def test_the_same_launch_id_in_another_session_is_another_launch(
    desks: Make, tmp_path: Path, session_env: dict[str, str]
) -> None:
    desk = desks()
    answer = submit(desk)
    other = LocalDesk(tmp_path / "other", start_dir=tmp_path, environ=session_env)
    assert other.find(["l1"]) == {}
    other.cancel("l1", None, now=True)
    assert desk.reap() == []
    assert other.query([("l1", None)])[0].state is LaunchState.ENDED
    other.close()
    end(desk, "l1", answer.batch_job_id)


# --- ending -----------------------------------------------------------------------------------


def test_cancel_asks_first(desks: Make) -> None:
    polite = "import signal, sys; signal.signal(15, lambda *a: sys.exit(0)); "
    desk = desks(polite + SLEEP)
    answer = submit(desk)
    until(lambda: output_of(answer))
    desk.cancel("l1", answer.batch_job_id)
    assert wait_end(desk).state is LaunchState.ENDED
    desk.cancel("l1", answer.batch_job_id)
    desk.cancel("l1", answer.batch_job_id, now=True)


def test_cancel_kills_when_the_grace_is_over(desks: Make) -> None:
    now = [1000.0]
    desk = desks(STUBBORN, clock=lambda: now[0])
    answer = submit(desk)
    until(lambda: output_of(answer))
    desk.cancel("l1", answer.batch_job_id)
    desk.cancel("l1", answer.batch_job_id)
    assert desk.next_deadline() == 1000.0 + CANCEL_GRACE_S
    desk.tick(1000.0 + CANCEL_GRACE_S - 0.1)
    assert desk.reap() == []
    desk.tick(1000.0 + CANCEL_GRACE_S)
    assert "SIGKILL" in wait_end(desk).reason


def test_cancel_now_kills_at_once_also_an_adopted_worker(desks: Make) -> None:
    first, second = desks(STUBBORN), desks()
    answer = submit(first)
    until(lambda: output_of(answer))
    second.cancel("l1", answer.batch_job_id, now=True)
    wait_end(second)
    assert "SIGKILL" in wait_end(first).reason


def test_what_a_killed_worker_started_is_ended(desks: Make) -> None:
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', " + repr(SLEEP)
    desk = desks(child + "], start_new_session=True); " + SLEEP)
    answer = submit(desk)
    until(lambda: output_of(answer).count("ready") == 2)
    os.kill(pid_of(answer.batch_job_id), signal.SIGKILL)
    wait_end(desk)  # `no_processes_left` sees to the rest.


def test_what_a_worker_left_running_on_purpose_is_left(desks: Make, tmp_path: Path) -> None:
    child = "import time; time.sleep(0.5); open('later', 'w')"
    desk = desks(f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}])")
    submit(desk)
    assert wait_end(desk).state is LaunchState.ENDED
    until((tmp_path / "later").exists)


def test_many_workers_at_once(desks: Make) -> None:
    desk = desks("pass")
    for n in range(12):
        submit(desk, f"l{n}")
    seen: dict[str, LaunchSeen] = {}
    until(lambda: seen.update({one.launch_id: one for one in desk.reap()}) or len(seen) == 12)
    assert {one.state for one in seen.values()} == {LaunchState.ENDED}
