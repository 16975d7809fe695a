"""generate_tasks() in its child: everything it yields arrives, everything it does is survived."""

from __future__ import annotations

import os
import select
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path

import pytest

from jobflow_worker import limits
from jobflow_worker.codec import decode_body
from jobflow_worker.program import resolve_program
from jobflow_worker.sessionfiles import SessionPaths, SessionRecord
from jobflowd.events import Generated, GenerationEnded
from jobflowd.generate import EXIT_GRACE_S, GeneratorProcess
from jobflowd.model import Definition

pytestmark = pytest.mark.usefixtures("no_processes_left")

HEAD = """
import os, signal, sys, time
from jobflow_worker import TaskDefinition, TaskProgram

class P(TaskProgram):
    def execute_task(self, spec, progress_cb):
        return {}
    def generate_tasks(self):
"""

Make = Callable[..., GeneratorProcess]


@pytest.fixture
def generator(tmp_path: Path, session_env: dict[str, str]) -> Iterator[Make]:
    """Makes the session of a program and starts its generator."""
    made: list[GeneratorProcess] = []

    def make(body: str, args: dict[str, object] | None = None, **more: object) -> GeneratorProcess:
        (tmp_path / "prog.py").write_text(HEAD + textwrap.indent(textwrap.dedent(body), " " * 8))
        paths = SessionPaths(tmp_path / "session")
        paths.make()
        ref = resolve_program("prog.py", tmp_path)
        record = SessionRecord("s", ref.to_json(), args or {}, str(tmp_path), 0.0, "0", {})
        record.save(paths.session_file)
        child = GeneratorProcess(paths.root, environ=session_env, **more)  # type: ignore[arg-type]
        made.append(child)
        child.start()
        return child

    yield make
    for child in made:
        child.close()


def wait(child: GeneratorProcess, timeout_s: float = 10.0) -> None:
    """As the daemon's poller does."""
    poller = select.poll()
    poller.register(child.fileno(), select.POLLIN)
    assert poller.poll(timeout_s * 1000), "nothing to receive"


def collect(child: GeneratorProcess) -> tuple[list[Definition], GenerationEnded]:
    tasks: list[Definition] = []
    while True:
        wait(child)
        for event in child.receive(4):
            if isinstance(event, GenerationEnded):
                return tasks, event
            tasks.extend(event.definitions)


def error_of(child: GeneratorProcess) -> str:
    _, end = collect(child)
    assert end.error is not None
    assert "\n" not in end.error
    return end.error


def reaped(child: GeneratorProcess) -> None:
    while child.pid is not None:
        wait(child)
        assert child.receive(1) == []


# --- what is yielded --------------------------------------------------------------------------


def test_a_list_arrives_in_order_with_all_its_fields(generator: Make) -> None:
    child = generator(
        """
        return [TaskDefinition("a", {"x": (1, "é")}),
                TaskDefinition("b", {}, max_retries=0, priority=-5, timeout_s=1, time_request_s=2.5,
                               memory_limit_bytes=10)]
        """
    )
    (a, b), end = collect(child)
    assert end == GenerationEnded()
    assert decode_body(a.spec) == {"x": [1, "é"]}
    assert a.spec_hash == blake2b(a.spec, digest_size=16).digest()
    assert a[3:] == (2, 0, None, None, None)
    assert (b.task_id, *b[3:]) == ("b", 0, -5, 1.0, 2.5, 10)
    reaped(child)


def test_a_generator_and_its_arguments(generator: Make) -> None:
    body = """
    for i in range(self.program_args["n"]):
        yield TaskDefinition(f"t{i}", {"i": i})
    """
    tasks, end = collect(generator(body, {"n": 2500}))
    assert end.error is None
    assert [one.task_id for one in tasks] == [f"t{i}" for i in range(2500)]
    assert [decode_body(one.spec)["i"] for one in tasks] == list(range(2500))


def test_no_tasks_at_all(generator: Make) -> None:
    assert collect(generator("return []")) == ([], GenerationEnded())


def test_definitions_of_another_class_are_taken(generator: Make) -> None:
    child = generator(
        """
        from types import SimpleNamespace as N
        yield N(task_id="a", spec={"x": 1})
        yield N(task_id="b", spec={}, max_retries=7, priority=None)
        """
    )
    (a, b), end = collect(child)
    assert end.error is None
    assert (a.max_retries, b.max_retries, b.priority) == (2, 7, 0)


def test_batches_are_bounded_by_bytes(generator: Make) -> None:
    child = generator("for i in range(12): yield TaskDefinition(str(i), {'x': 'y' * 400_000})")
    sizes = []
    ended = False
    while not ended:
        wait(child)
        for event in child.receive(4):
            if isinstance(event, Generated):
                sizes.append(sum(len(one.spec) for one in event.definitions))
            else:
                ended = True
    assert sum(sizes) > 12 * 400_000
    assert max(sizes) <= limits.MIB + limits.SPEC_BYTES_MAX


def test_the_first_tasks_come_while_the_generator_thinks(generator: Make) -> None:
    child = generator(
        """
        for i in range(10):
            yield TaskDefinition(f"t{i}", {})
        time.sleep(600)
        """
    )
    ids: list[str] = []
    while len(ids) < 10:
        wait(child)
        for event in child.receive(4):
            assert isinstance(event, Generated)
            ids += [one.task_id for one in event.definitions]
    assert ids == [f"t{i}" for i in range(10)]
    assert child.stalled_for(time.monotonic() + 100.0) > 99.0
    child.kill()
    assert child.stalled_for(time.monotonic() + 100.0) == 0.0


def test_an_unread_child_waits(generator: Make, tmp_path: Path) -> None:
    """Back-pressure: with nobody reading, an endless generator stands still."""
    child = generator(
        """
        i = 0
        while True:
            i += 1
            if i % 1000 == 0:
                with open("count", "w") as file:
                    file.write(str(i))
            yield TaskDefinition(str(i), {"x": "y" * 1000})
        """
    )
    child.pause()
    count = tmp_path / "count"
    deadline = time.monotonic() + 10
    seen, since = "", time.monotonic()
    while time.monotonic() - since < 0.5 or not seen:
        assert time.monotonic() < deadline, "it never stood still"
        now = count.read_text() if count.exists() else ""
        if now != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.02)
    assert int(seen) <= 5000
    assert child.receive(4) == []
    assert child.stalled_for(time.monotonic() + 100.0) == 0.0
    child.resume()
    wait(child)
    (event,) = child.receive(1)
    assert isinstance(event, Generated)
    assert event.definitions[0].task_id == "1"
    child.kill()
    assert child.receive(4) == []


def test_receive_is_bounded_and_the_rest_keeps_it_readable(generator: Make) -> None:
    child = generator("return [TaskDefinition(str(i), {}) for i in range(3500)]")
    tasks = 0
    while True:
        wait(child)
        events = child.receive(1)
        assert len(events) <= 1
        if events and isinstance(events[0], GenerationEnded):
            break
        tasks += sum(len(e.definitions) for e in events if isinstance(e, Generated))
    assert tasks == 3500


# --- where it runs ----------------------------------------------------------------------------


def test_prints_go_to_the_log_and_not_into_the_stream(generator: Make) -> None:
    child = generator(
        """
        print("hello" * 10)
        os.write(1, b"raw\\n")
        print("oops", file=sys.stderr)
        yield TaskDefinition("a", {})
        """
    )
    tasks, end = collect(child)
    assert (len(tasks), end) == (1, GenerationEnded())
    log = Path(child.log_path).read_text()
    assert set(log.splitlines()) == {"hello" * 10, "raw", "oops"}
    assert stat.S_IMODE(os.stat(child.log_path).st_mode) == 0o600


def test_it_runs_where_the_start_was_typed_in_its_own_session(
    generator: Make, tmp_path: Path
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')")
    (tmp_path / "sibling.py").write_text("x = 5")
    child = generator(
        """
        import json, sibling
        yield TaskDefinition("a", {
            "cwd": os.getcwd(), "leads": os.getsid(0) == os.getpid(), "stdin": sys.stdin.read(),
            "empty": "" in sys.path, "last": sys.path[-1], "x": sibling.x, "umask": os.umask(0)})
        """,
        umask=0o027,
    )
    (task,), end = collect(child)
    assert end.error is None
    spec = decode_body(task.spec)
    assert spec == {
        "cwd": str(tmp_path),
        "leads": True,
        "stdin": "",
        "empty": False,
        "last": str(tmp_path),
        "x": 5,
        "umask": 0o027,
    }


def test_it_dies_with_its_daemon(generator: Make, tmp_path: Path) -> None:
    child = generator("time.sleep(600)\nyield")
    session = tmp_path / "session"
    daemon = (
        "import os, sys; from jobflowd.generate import GeneratorProcess; "
        f"g = GeneratorProcess({str(session)!r}); g.start(); print(g.pid, flush=True); "
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", daemon],
        check=False,
        stdout=subprocess.PIPE,
        text=True,
    )
    pid = int(done.stdout)
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text():
        assert time.monotonic() < deadline, "the generator outlived its daemon"
        time.sleep(0.01)
    child.kill()


# --- what goes wrong --------------------------------------------------------------------------


def test_raising_in_the_middle_keeps_what_came_before(generator: Make) -> None:
    child = generator(
        """
        yield TaskDefinition("a", {})
        raise ValueError("no such\\nfolder")
        """
    )
    tasks, end = collect(child)
    assert [one.task_id for one in tasks] == ["a"]
    assert end.error == "generate_tasks() raised ValueError: no such folder"
    assert "prog.py" in end.detail
    assert "generatechild" not in end.detail
    reaped(child)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return None", ["returned None", "yield"]),
        ("return 5", ["type int"]),
        ("return [TaskDefinition('a', {}), 7]", ["type int", "item 2"]),
        ("from types import SimpleNamespace as N\nreturn [N(task_id='', spec={})]", ["task_id"]),
        ("return [TaskDefinition('a', {'x': {'y': {1}}})]", ["'a'", "spec['x']['y']", "set"]),
        ("return [TaskDefinition('a', {'x': {1: 2}})]", ["'a'", "spec['x']", "key 1"]),
        ("return [TaskDefinition('a', {'x': 2**70})]", ["'a'", "spec['x']", "64 bits"]),
        ("return [TaskDefinition('big', {'x': 'y' * 600_000})]", ["'big'", "600", "524288"]),
        ("return [TaskDefinition('a', {}, max_retries=-1)]", ["max_retries"]),
        ("sys.exit(3)", ["SystemExit", "3"]),
        ("raise KeyboardInterrupt", ["KeyboardInterrupt"]),
        ("class E(Exception):\n    def __str__(self): 1/0\nraise E", ["raised E"]),
        ("raise ValueError('\\udcff')", ["ValueError"]),
        ("raise ValueError('x' * 100_000)", ["xxx"]),
        ("def f(): f()\nf()", ["RecursionError"]),
    ],
)
def test_errors_say_what_and_where(generator: Make, body: str, words: list[str]) -> None:
    error = error_of(generator(body))
    for word in words:
        assert word in error
    assert len(error) <= limits.ERROR_CHARS_MAX


def test_a_program_that_cannot_be_loaded_is_an_error(generator: Make) -> None:
    child = generator("return []\n\nclass Q(:\n")
    _, end = collect(child)
    assert end.error is not None
    assert "SyntaxError" in end.error
    assert "class Q" in end.detail


@pytest.mark.parametrize(
    ("ending", "words"),
    [
        ("os._exit(7)", "exit status 7"),
        ("os._exit(0)", "exit status 0"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"),
        ("os.closerange(3, 1000); time.sleep(0.3); os._exit(8)", "exit status 8"),
    ],
)
@pytest.mark.parametrize("pidfds", [True, False])
def test_a_sudden_death_is_told_with_the_last_output(
    generator: Make, ending: str, words: str, pidfds: bool
) -> None:
    child = generator(
        f"""
        yield TaskDefinition("a", {{}})
        time.sleep(0.2)  # Until the thread has sent it.
        print("last words")
        {ending}
        """,
        pidfds=pidfds,
    )
    tasks: list[Definition] = []
    end = None
    deadline = time.monotonic() + 10
    while end is None:
        assert time.monotonic() < deadline
        wake = child.next_deadline()
        poller = select.poll()
        poller.register(child.fileno(), select.POLLIN)
        poller.poll(10_000 if wake is None else max(1.0, (wake - time.monotonic()) * 1000))
        for event in child.receive(4):
            if isinstance(event, GenerationEnded):
                end = event
            else:
                tasks.extend(event.definitions)
    assert [one.task_id for one in tasks] == ["a"]
    assert end.error is not None
    assert words in end.error
    assert end.detail == "last words\n"
    assert child.pid is None


def test_a_death_is_seen_although_a_grandchild_holds_the_pipe(generator: Make) -> None:
    child = generator(
        """
        if os.fork() == 0:
            time.sleep(600)
        os._exit(1)
        """
    )
    started = time.monotonic()
    assert "exit status 1" in error_of(child)
    assert time.monotonic() - started < 5


def test_a_child_that_does_not_leave_is_killed(generator: Make) -> None:
    child = generator(
        """
        import atexit
        atexit.register(time.sleep, 600)
        return []
        """
    )
    assert collect(child)[1] == GenerationEnded()
    deadline = child.next_deadline()
    assert deadline is not None
    assert deadline > time.monotonic() + EXIT_GRACE_S - 5
    child.tick(deadline - 0.01)
    assert child.pid is not None
    child.tick(deadline)
    reaped(child)
    assert child.next_deadline() is None


def test_noise_in_the_stream_ends_it(generator: Make) -> None:
    child = generator(
        """
        import stat
        for fd in range(3, 100):
            try:
                if stat.S_ISFIFO(os.fstat(fd).st_mode):
                    os.write(fd, b"n" * 64)
            except OSError:
                pass
        time.sleep(600)
        """
    )
    assert "broken" in error_of(child)
    reaped(child)


def test_kill_is_quiet_and_can_be_repeated(generator: Make) -> None:
    child = generator("signal.signal(15, signal.SIG_IGN)\ntime.sleep(600)\nyield")
    child.kill()
    child.kill()
    reaped(child)
    assert child.receive(4) == []


def test_a_session_that_is_not_there(tmp_path: Path) -> None:
    child = GeneratorProcess(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        child.start()
    child.close()
    empty = GeneratorProcess(tmp_path)
    empty.start()
    assert "session" in error_of(empty)
    empty.close()
