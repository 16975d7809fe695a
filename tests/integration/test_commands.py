"""Batch commands as children: answers, refusals, time-outs, floods, none left behind."""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from jobflowd.commands import (
    ERR_BYTES_MAX,
    OUT_BYTES_MAX,
    Commands,
    Finished,
    batch_environment,
)

pytestmark = pytest.mark.usefixtures("no_processes_left")

Run = Callable[..., Finished]


@pytest.fixture(params=[True, False], ids=["pidfd", "no pidfd"])
def commands(request: pytest.FixtureRequest) -> Iterator[Commands]:
    one = Commands(max_parallel=2, pidfds=request.param)
    yield one
    one.close()


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def drive(commands: Commands, timeout_s: float = 20.0) -> list[Finished]:
    """As the daemon's poller does, until nothing is left."""
    poller = select.poll()
    poller.register(commands.wake_fd(), select.POLLIN)
    finished: list[Finished] = []
    end = time.monotonic() + timeout_s
    while commands.busy:
        assert time.monotonic() < end, "it took too long"
        finished += commands.service(time.monotonic())
        wake = commands.next_deadline(time.monotonic())
        if wake is not None:
            poller.poll(max(0.0, min(wake - time.monotonic(), 10.0)) * 1000)
    return finished


@pytest.fixture
def run(commands: Commands, session_env: dict[str, str]) -> Run:
    def run(code: str, *, stdin: bytes | None = None, timeout_s: float = 10.0) -> Finished:
        commands.start(python(code), stdin=stdin, timeout_s=timeout_s, env=session_env)
        (one,) = drive(commands)
        return one

    return run


def test_an_answer_comes_with_status_output_and_errors(run: Run) -> None:
    one = run("import sys; print('job 5'); print('careful', file=sys.stderr); sys.exit(3)")
    assert (one.rc, one.out, one.err) == (3, "job 5\n", "careful\n")
    assert one.dead
    assert not one.timed_out
    assert not one.cut


def test_stdin_is_what_was_given_or_nothing(run: Run) -> None:
    code = "import sys; print(len(sys.stdin.read()))"
    assert run(code, stdin=b"x" * 300_000).out == "300000\n"
    assert run(code).out == "0\n"


def test_a_missing_command_is_named(commands: Commands) -> None:
    handle = commands.start(["/no/such/sbatch"], timeout_s=1, env={})
    (one,) = drive(commands)
    assert one.handle == handle
    assert one.rc is None
    assert "/no/such/sbatch" in one.err
    commands.start(["a\0b"], timeout_s=1, env={})
    assert drive(commands)[0].rc is None


def test_a_time_out_kills_the_whole_group(run: Run) -> None:
    child = "import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', " + repr(
        "import time; time.sleep(600)"
    )
    one = run(child + "]); print('begun', flush=True); time.sleep(600)", timeout_s=0.5)
    assert one.timed_out
    assert one.dead
    assert one.rc is None
    assert one.out == "begun\n"


def test_a_background_child_does_not_hold_the_answer(run: Run) -> None:
    child = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', " + repr(
        "import time; time.sleep(1)"
    )
    started = time.monotonic()
    assert run(child + "]); print('job 5')").out == "job 5\n"
    assert time.monotonic() - started < 0.9


def test_a_flood_is_cut_and_does_not_block_it(run: Run) -> None:
    one = run(
        "import os, sys\n"
        f"for n in range({OUT_BYTES_MAX // 65536 + 10}): os.write(1, b'x' * 65536)\n"
        f"os.write(2, b'y' * {ERR_BYTES_MAX + 10})\n"
    )
    assert one.rc == 0
    assert one.cut
    assert len(one.out) == OUT_BYTES_MAX
    assert len(one.err) == ERR_BYTES_MAX


def test_all_output_of_an_ended_command_is_read(run: Run) -> None:
    one = run("import os\nfor n in range(48): os.write(1, b'x' * 65536)")
    assert (len(one.out), one.cut) == (48 * 65536, False)


def test_text_that_is_no_utf8_is_still_an_answer(run: Run) -> None:
    assert run("import os; os.write(1, b'job \\xff')").out == "job \ufffd"


def test_no_more_than_allowed_run_at_a_time(
    commands: Commands, session_env: dict[str, str]
) -> None:
    code = "import time; print(time.monotonic()); time.sleep(0.3); print(time.monotonic())"
    handles = [commands.start(python(code), timeout_s=10, env=session_env) for _ in range(5)]
    finished = drive(commands)
    assert sorted(one.handle for one in finished) == handles
    spans = [tuple(map(float, one.out.split())) for one in finished]
    for begin, _ in spans:
        assert sum(1 for other, until in spans if other <= begin < until) <= 2


def test_a_waiting_command_has_its_full_time(
    commands: Commands, session_env: dict[str, str]
) -> None:
    code = "import time; time.sleep(0.4)"
    for _ in range(6):
        commands.start(python(code), timeout_s=0.9, env=session_env)
    assert [one.timed_out for one in drive(commands)] == [False] * 6


def test_close_kills_what_runs(commands: Commands, session_env: dict[str, str]) -> None:
    commands.start(python("import time; time.sleep(600)"), timeout_s=600, env=session_env)
    commands.service(time.monotonic())
    commands.close()
    commands._epoll = select.epoll()  # The fixture closes it again.


@pytest.mark.parametrize(
    ("environ", "kept"),
    [
        ({"PATH": "/bin", "LANG": "de_DE"}, {"PATH": "/bin"}),
        ({"SLURM_JOB_ID": "1", "SBATCH_PARTITION": "x", "SLURM_CONF": "/c"}, {"SLURM_CONF": "/c"}),
        ({"LSB_JOBID": "1", "LSF_ENVDIR": "/lsf"}, {"LSF_ENVDIR": "/lsf"}),
        ({"LC_ALL": "fr_FR.UTF-8"}, {}),
    ],
)
def test_the_environment_is_plain_and_not_of_our_own_job(
    environ: Mapping[str, str], kept: Mapping[str, str]
) -> None:
    assert batch_environment(environ) == {**kept, "LC_ALL": "C"}


def test_a_command_is_run_with_the_given_environment_only(commands: Commands) -> None:
    commands.start(python("import os; print(sorted(os.environ))"), timeout_s=10, env={"A": "1"})
    assert "'PATH'" not in drive(commands)[0].out
    assert "PATH" in os.environ
