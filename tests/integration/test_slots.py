"""Real children: whatever a task does, its slot survives and tells the truth about it."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobflow_worker import limits, processes
from jobflow_worker.codec import decode_body, encode_body
from jobflow_worker.messages import Assignment, Failed, Finished, Held, Progress
from jobflow_worker.program import resolve_program
from jobflow_worker.slotevents import (
    Moved,
    Settled,
    SlotBroken,
    SlotEvent,
    SlotReady,
    Unstarted,
)
from jobflow_worker.slots import ChildSetup, Slot, become_subreaper, close_all

PATIENCE_S = 20

PROGRAM = '''
import ctypes, os, signal, subprocess, sys, threading, time
from pathlib import Path
from jobflow_worker import NonRetryable, TaskProgram, current_attempt

import helper_of_slots


class Refused(NonRetryable):
    pass


class Hostile(Exception):
    def __str__(self):
        raise RuntimeError("no text for you")


class Everything(TaskProgram):
    """Does what the spec says: the name of a method below."""

    def __init__(self, *, program_args=None):
        super().__init__(program_args=program_args)
        self.runs = 0

    def generate_tasks(self):
        return []

    def execute_task(self, spec, progress_cb):
        self.runs += 1
        return getattr(self, spec["do"])(spec, progress_cb)

    def state(self, spec, cb):
        """What a task sees of its process."""
        old = os.umask(0o777)
        os.umask(old)
        return {
            "runs": self.runs, "pid": os.getpid(), "pgid": os.getpgid(0), "cwd": os.getcwd(),
            "umask": old, "term": str(signal.getsignal(signal.SIGTERM)), "args": self.program_args,
            "path": sys.path, "argv": sys.argv, "fds": list(map(int, os.listdir("/proc/self/fd"))),
            "helper": helper_of_slots.VALUE, "module": type(self).__module__,
        }

    def value(self, spec, cb):
        return spec["value"]

    def mark(self, spec, cb):
        """Leaves one byte per run in a file of this attempt's name."""
        fd = os.open(spec["path"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.write(fd, b"x")
        os.close(fd)
        time.sleep(spec.get("seconds", 0))

    def die_at(self, spec, cb):
        """Like mark, and a segfault at the end of one of them."""
        self.mark(spec, cb)
        if spec["die"]:
            ctypes.string_at(0)

    def raises(self, spec, cb):
        raise ValueError("first line\\nsecond line \\udc80")

    def deep(self, spec, cb):
        def down(n):
            if n:
                return down(n - 1)
            raise ValueError("x" * 50_000)
        down(50)

    def hostile(self, spec, cb):
        raise Hostile()

    def refuses(self, spec, cb):
        raise Refused("wrong input")

    def memory_error(self, spec, cb):
        bytearray(1 << 60)

    def exits(self, spec, cb):
        sys.exit(spec.get("code", 3))

    def interrupted(self, spec, cb):
        raise KeyboardInterrupt

    def os_exits(self, spec, cb):
        print("last words")
        os._exit(spec.get("code", 0))

    def segfaults(self, spec, cb):
        print("before the fall")
        ctypes.string_at(0)

    def kills_itself(self, spec, cb):
        os.kill(os.getpid(), getattr(signal, spec["signal"]))
        time.sleep(60)

    def sleeps(self, spec, cb):
        Path(spec["path"]).touch()
        time.sleep(60)

    def holds_the_gil(self, spec, cb):
        Path(spec["path"]).touch()
        ctypes.PyDLL(None).sleep(60)

    def ignores_sigterm(self, spec, cb):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        self.sleeps(spec, cb)

    def answers_sigterm(self, spec, cb):
        done = threading.Event()
        signal.signal(signal.SIGTERM, lambda *_: done.set())
        Path(spec["path"]).touch()
        while not done.wait(0.01):
            pass
        if spec.get("raise"):
            raise RuntimeError("stopped")
        return {"saved": True}

    def eats_memory(self, spec, cb):
        hoard = []
        while True:
            hoard.append(bytearray(os.urandom(1)) * (16 << 20))
            time.sleep(0.01)

    def prints(self, spec, cb):
        print("to stdout")
        print("to stderr", file=sys.stderr)
        os.write(1, b"raw \\xff\\xfe bytes\\n")
        subprocess.run(["echo", "from a command"], check=True)
        return {}

    def prints_much(self, spec, cb):
        for _ in range(spec["mib"]):
            os.write(1, b"a" * (1 << 20))
        print("the end")
        time.sleep(spec.get("seconds", 0))

    def closes_output(self, spec, cb):
        sys.stdout.close()
        os.close(1)
        os.close(2)

    def replaces_output(self, spec, cb):
        import io
        sys.stdout = io.StringIO()
        fd = os.open("/dev/null", os.O_WRONLY)
        os.dup2(fd, 2)

    def reads(self, spec, cb):
        return input("password: ")

    def closes_everything(self, spec, cb):
        os.closerange(3, 65536)
        time.sleep(60)

    def tidies_up(self, spec, cb):
        os.closerange(3, 256)

    def forks_and_returns(self, spec, cb):
        if os.fork() == 0:
            return {"who": "copy"}
        os.wait()
        return {"who": "original"}

    def leaves_children(self, spec, cb):
        """One in the process group, one that left it, one that forked once more."""
        subprocess.Popen(["sleep", "300"])
        subprocess.Popen(["sleep", "300"], start_new_session=True)
        subprocess.Popen(["sh", "-c", "setsid sleep 300 & exec sleep 300"], start_new_session=True)
        Path(spec["path"]).touch()
        if spec["how"] == "segfault":
            ctypes.string_at(0)
        time.sleep(60)

    def spoils(self, spec, cb):
        os.chdir("/")
        os.umask(0)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGALRM, lambda *_: 1 / 0)
        signal.setitimer(signal.ITIMER_REAL, 0.1)

    def progresses(self, spec, cb):
        for value, info in spec["steps"]:
            cb(value, info) if info is not None else cb(value)
        deadline = time.monotonic() + 10
        while not os.path.exists(spec["until"]) and time.monotonic() < deadline:
            time.sleep(0.01)

    def bad_progress(self, spec, cb):
        for bad in (None, "x", float("nan"), object()):
            cb(bad)
        cb(0.5, object())
        cb(7, {"too": "large" * 1000})
        self.kept = cb

    def late_progress(self, spec, cb):
        self.kept(0.1)

    def about(self, spec, cb):
        me = current_attempt()
        (me.scratch / "file").write_text("x" * 100)
        left = me.seconds_left
        return {"task_id": me.task_id, "attempt": me.attempt, "worker_id": me.worker_id,
                "scratch": str(me.scratch), "left": left}

    def big(self, spec, cb):
        return {"data": b"z" * spec["size"]}

    def unencodable(self, spec, cb):
        return {"deep": [1, {"here": {1, 2}}]}

    def burns(self, spec, cb):
        started = time.process_time()
        while time.process_time() - started < 0.05:
            pass
        return len(bytearray(os.urandom(1)) * spec["bytes"])
'''


class Rig:
    """One slot, its events as they come, and ways to wait for them."""

    def __init__(self, tmp_path: Path, env: dict[str, str]) -> None:
        self.here = tmp_path / "start"
        self.env = env
        self.folders = {name: tmp_path / name for name in ("start", "results", "scratch")}
        for folder in self.folders.values():
            folder.mkdir(exist_ok=True)
        self.events: list[SlotEvent] = []
        self.slots: list[Slot] = []
        self.count = 0

    def open(self, text: str = PROGRAM, **changes: Any) -> Slot:
        (self.here / "everything.py").write_text(textwrap.dedent(text))
        (self.here / "helper_of_slots.py").write_text("VALUE = 42\n")
        values: dict[str, Any] = {
            "program": resolve_program("everything.py", self.here),
            "args": {"a": [1, "ü"]},
            "cwd": self.here,
            "results_dir": self.folders["results"],
            "scratch_dir": self.folders["scratch"],
            "worker_id": "w-0123456789abcdef",
            "env": self.env,
        }
        slot = Slot(len(self.slots), ChildSetup(**{**values, **changes}))
        slot.start()
        self.slots.append(slot)
        return slot

    @property
    def slot(self) -> Slot:
        return self.slots[-1]

    def task(
        self, do: str, timeout_s: float | None = None, memory: int | None = None, **spec: Any
    ) -> Assignment:
        self.count += 1
        body = encode_body({"do": do, **spec})
        return Assignment(f"task-{self.count}", 1, body, timeout_s, memory)

    def turn(self) -> None:
        """One turn of an agent: wait as the slot says, then drain and check."""
        now = time.monotonic()
        due = self.slot.next_check(now)
        poller = select.poll()
        poller.register(self.slot.fileno(), select.POLLIN)
        wait_s = 0.2 if due is None else min(max(due - now, 0), 0.2)
        if poller.poll(wait_s * 1000):
            self.events += self.slot.drain()
        now = time.monotonic()
        due = self.slot.next_check(now)
        if due is not None and due <= now:
            self.events += self.slot.check(now)

    def until(self, done: Callable[[], object]) -> None:
        ends_at = time.monotonic() + PATIENCE_S
        while not done():
            assert time.monotonic() < ends_at, f"waited in vain; events: {self.events}"
            self.turn()

    def of(self, kind: type[Any]) -> list[Any]:
        return [one for one in self.events if isinstance(one, kind)]

    def outcomes(self) -> list[Any]:
        return [one.outcome for one in self.of(Settled)]

    def run(self, *assignments: Assignment) -> list[Any]:
        """Feed these and return their outcomes, in order."""
        before = len(self.outcomes())
        self.slot.feed(assignments)
        self.until(lambda: len(self.outcomes()) == before + len(assignments))
        return self.outcomes()[before:]

    def fail(self, do: str, **spec: Any) -> Failed:
        (outcome,) = self.run(self.task(do, **spec))
        assert isinstance(outcome, Failed)
        return outcome

    def result(self, do: str, **spec: Any) -> Any:
        (outcome,) = self.run(self.task(do, **spec))
        assert isinstance(outcome, Finished), outcome
        assert outcome.result is not None
        return decode_body(outcome.result)

    def begin(self, do: str, **spec: Any) -> Assignment:
        """Feed one that touches `path` when it runs, and wait for that."""
        path = self.here / "runs"
        path.unlink(missing_ok=True)
        task = self.task(do, path=str(path), **spec)
        self.slot.feed([task])
        self.until(path.exists)
        return task

    def still_works(self) -> None:
        assert self.result("value", value={"fine": 1}) == {"fine": 1}


@pytest.fixture
def rig(tmp_path: Path, session_env: dict[str, str], no_processes_left: None) -> Iterator[Rig]:
    become_subreaper()
    rig = Rig(tmp_path, session_env)
    yield rig
    close_all(rig.slots, 0.5)
    become_subreaper(False)
    assert os.listdir(rig.folders["scratch"]) == []
    assert all(slot.state == "closed" for slot in rig.slots)


@pytest.fixture
def ready(rig: Rig) -> Rig:
    rig.open()
    rig.until(lambda: rig.of(SlotReady))
    return rig


def alive(rig: Rig, command: bytes) -> list[int]:
    """Processes of this test with this in their command line, the dead not counted."""
    marker = f"JOBFLOW_TEST_ID={rig.env['JOBFLOW_TEST_ID']}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = marker in (folder / "environ").read_bytes().split(b"\0")
            if ours and command in (folder / "cmdline").read_bytes():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


# --- the ordinary -------------------------------------------------------------------------------


def test_what_a_task_sees(ready: Rig) -> None:
    seen = ready.result("state")
    assert seen["pid"] == seen["pgid"] == ready.slot.pid
    assert seen["cwd"] == str(ready.here)
    assert seen["path"][-1] == str(ready.here)
    assert "" not in seen["path"]
    assert seen["argv"] == [str(ready.here / "everything.py")]
    assert (seen["helper"], seen["module"]) == (42, "everything")
    assert seen["args"] == {"a": [1, "ü"]}
    assert sorted(fd for fd in seen["fds"] if fd < 256) == [0, 1, 2, 3], "3 is listdir's own"
    assert ready.result("state")["runs"] == 2, "one instance, one process"


def test_nothing_is_imported_from_the_current_directory(rig: Rig) -> None:
    (rig.here / "msgpack.py").write_text("raise SystemExit('shadowed')\n")
    (rig.here / "random.py").write_text("raise SystemExit('shadowed')\n")
    rig.open()
    rig.until(lambda: rig.events)
    assert rig.events == [SlotReady(0)]


@pytest.mark.parametrize("reference", ["everything:Everything", "everything.py:Everything"])
def test_the_other_ways_to_name_the_program(rig: Rig, reference: str) -> None:
    (rig.here / "everything.py").write_text(PROGRAM)
    rig.open(program=resolve_program(reference, rig.here))
    assert rig.result("state")["module"] == "everything"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        ({"a": 1}, {"a": 1}), (None, {"result": None}), ([1, 2], {"result": [1, 2]}),
        ("text", {"result": "text"}), (1.5, {"result": 1.5}),
    ],
)  # fmt: skip
def test_results_are_dicts_or_wrapped(ready: Rig, value: Any, kept: Any) -> None:
    assert ready.result("value", value=value) == kept


def test_a_long_queue_runs_in_order_each_once(ready: Rig) -> None:
    tasks = [ready.task("value", value=n) for n in range(2000)]
    outcomes = ready.run(*tasks)
    assert [one.task_id for one in outcomes] == [one.task_id for one in tasks]
    assert [decode_body(one.result)["result"] for one in outcomes] == list(range(2000))
    assert ready.slot.running() is None
    assert ready.slot.waiting() == ()


def test_what_it_costs_is_measured_per_attempt(ready: Rig) -> None:
    small, big, again = ready.run(
        ready.task("value", value=1), ready.task("burns", bytes=200 << 20),
        ready.task("value", value=1),
    )  # fmt: skip
    assert small.usage.cpu_s < 0.05 <= big.usage.cpu_s
    assert big.usage.duration_s >= 0.05
    assert big.usage.max_rss_bytes > 200 << 20
    # A process inherits the high-water mark of the one that started it, which is this test run.
    inherited = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert again.usage.max_rss_bytes <= max(150 << 20, inherited), "the peak is forgotten"


def test_a_spec_larger_than_a_packet(ready: Rig) -> None:
    tasks = [ready.task("value", value="y" * 300_000, n=n) for n in range(20)]
    outcomes = ready.run(*tasks)
    assert all(isinstance(one, Finished) and one.file for one in outcomes)
    left = [name for name in os.listdir(ready.folders["scratch"] / "slot-0") if "spec" in name]
    assert left == []


def test_a_large_result_is_a_file(ready: Rig) -> None:
    (one,) = ready.run(ready.task("big", size=1_000_000))
    assert isinstance(one, Finished)
    assert one.result is None
    assert one.file is not None
    path = ready.folders["results"] / one.file.name
    body = path.read_bytes()
    assert decode_body(body) == {"data": b"z" * 1_000_000}
    assert one.file.size == len(body)
    assert one.file.sha256 == hashlib.sha256(body).hexdigest()
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(ready.folders["results"]) == [one.file.name]


def test_a_large_result_that_cannot_be_stored(ready: Rig) -> None:
    ready.folders["results"].rmdir()
    failed = ready.fail("big", size=1_000_000)
    assert failed.cause == "exception"
    assert failed.error.startswith("FileNotFoundError")
    ready.still_works()


def test_what_a_task_spoils_is_put_back(ready: Rig) -> None:
    before = ready.result("state")
    ready.run(ready.task("spoils"))
    after = ready.result("state")
    for name in ("cwd", "umask", "term", "pid"):
        assert after[name] == before[name]
    # The alarm that it left would ring during this one.
    assert ready.result("mark", path="/dev/null", seconds=0.3) == {"result": None}
    assert ready.result("state")["pid"] == before["pid"]


def test_the_umask_of_the_user(rig: Rig) -> None:
    rig.open(umask=0o027)
    assert rig.result("state")["umask"] == 0o027


def test_current_attempt(rig: Rig) -> None:
    rig.open(ends_at=time.monotonic() + 1000)
    about = rig.result("about")
    assert (about["task_id"], about["attempt"]) == ("task-1", 1)
    assert about["worker_id"] == "w-0123456789abcdef"
    assert 900 < about["left"] <= 1000
    scratch = Path(about["scratch"])
    assert scratch.is_relative_to(rig.folders["scratch"])
    assert 40 < rig.result("about", timeout_s=50)["left"] <= 50
    rig.still_works()
    assert not scratch.exists()


# --- failures -----------------------------------------------------------------------------------


def test_exceptions(ready: Rig) -> None:
    failed = ready.fail("raises")
    assert failed.cause == "exception"
    assert failed.error == "ValueError: first line second line \\udc80"
    assert "in raises" in failed.traceback
    assert "child.py" not in failed.traceback
    assert failed.exit_code is failed.exit_signal is None
    long = ready.fail("deep")
    assert len(long.error) <= limits.ERROR_CHARS_MAX
    assert len(long.traceback) <= limits.TRACEBACK_CHARS_MAX
    assert long.traceback.startswith("Traceback")
    assert "characters left out" in long.traceback
    assert "Hostile" in ready.fail("hostile").error
    refused = ready.fail("refuses")
    assert (refused.cause, refused.error) == ("nonretryable", "Refused: wrong input")
    memory = ready.fail("memory_error")
    assert (memory.cause, memory.error) == ("memory", "MemoryError")
    assert ready.fail("exits").error == "SystemExit: 3"
    assert ready.fail("exits", code=None).error == "SystemExit"
    assert ready.fail("interrupted").error == "KeyboardInterrupt"
    bad = ready.fail("unencodable")
    assert bad.cause == "unencodable"
    assert "value['deep'][1]['here'] is of type builtins.set" in bad.error
    assert "EOFError" in ready.fail("reads").error
    assert ready.result("state")["runs"] == 11, "all of that in one process"


@pytest.mark.parametrize("code", [0, 7])
def test_os_exit_is_a_crash(ready: Rig, code: int) -> None:
    failed = ready.fail("os_exits", code=code)
    assert (failed.cause, failed.exit_code, failed.exit_signal) == ("crash", code, None)
    assert f"exit code {code}" in failed.error
    assert failed.output_tail == "last words\n"
    ready.still_works()


def test_a_segfault_tells_where(ready: Rig) -> None:
    failed = ready.fail("segfaults")
    assert (failed.cause, failed.exit_signal, failed.exit_code) == ("crash", "SIGSEGV", None)
    assert failed.output_tail.startswith("before the fall\n")
    assert "in segfaults" in failed.output_tail
    assert failed.usage.max_rss_bytes > 0
    ready.still_works()


@pytest.mark.parametrize("name", ["SIGKILL", "SIGTERM", "SIGABRT"])
def test_a_signal_from_elsewhere(ready: Rig, name: str) -> None:
    failed = ready.fail("kills_itself", signal=name)
    assert (failed.cause, failed.exit_signal) == ("crash", name)
    ready.still_works()


def test_the_oom_killer_is_named(ready: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = iter([1])
    monkeypatch.setattr(processes.OomWatch, "_count", lambda self: next(counts, 1))
    failed = ready.fail("kills_itself", signal="SIGKILL")
    assert (failed.cause, failed.exit_signal) == ("memory", "SIGKILL")
    assert "out-of-memory" in failed.error
    failed = ready.fail("kills_itself", signal="SIGKILL")
    assert failed.cause == "crash", "each rise explains one death"


def test_only_the_running_one_is_blamed(ready: Rig, tmp_path: Path) -> None:
    paths = [tmp_path / f"mark-{n}" for n in range(50)]
    tasks = [ready.task("die_at", path=str(p), die=n == 20) for n, p in enumerate(paths)]
    ready.slot.feed(tasks)
    ready.until(lambda: ready.of(Unstarted))
    outcomes = ready.outcomes()
    assert [type(one) for one in outcomes] == [Finished] * 20 + [Failed]
    (unstarted,) = ready.of(Unstarted)
    assert unstarted.attempts == tuple(Held(one.task_id, 1) for one in tasks[21:])
    assert [path.exists() for path in paths] == [True] * 21 + [False] * 29
    ready.still_works()


def test_a_closed_protocol_is_noticed(ready: Rig) -> None:
    failed = ready.fail("closes_everything")
    assert failed.cause == "crash"
    assert "descriptors" in failed.error
    ready.still_works()


def test_the_usual_tidying_is_survived(ready: Rig) -> None:
    pid = ready.slot.pid
    ready.run(ready.task("tidies_up"))
    ready.still_works()
    assert ready.slot.pid == pid


def test_a_forked_copy_that_comes_back_says_nothing(ready: Rig) -> None:
    assert ready.result("forks_and_returns") == {"who": "original"}
    ready.still_works()
    assert len(ready.outcomes()) == 2


# --- output -------------------------------------------------------------------------------------


def test_output_is_of_one_attempt(ready: Rig) -> None:
    said, silent, again = ready.run(
        ready.task("prints"), ready.task("value", value=1), ready.task("prints")
    )
    assert silent.output_tail == ""
    for one in (said, again):
        assert set(one.output_tail.splitlines()) == {
            "to stdout", "to stderr", r"raw \xff\xfe bytes", "from a command",
        }  # fmt: skip


def test_only_the_end_of_much_output_travels(ready: Rig) -> None:
    (one,) = ready.run(ready.task("prints_much", mib=1))
    assert len(one.output_tail) == limits.OUTPUT_TAIL_BYTES_MAX
    assert one.output_tail.endswith("aaa\nthe end\n") or one.output_tail.endswith("aathe end\n")


def test_closed_or_replaced_output_is_put_back(ready: Rig) -> None:
    for spoiler in ("closes_output", "replaces_output"):
        ready.run(ready.task(spoiler))
        (one,) = ready.run(ready.task("prints"))
        assert isinstance(one, Finished)
        assert len(one.output_tail.splitlines()) == 4


@pytest.mark.slow
def test_a_flood_of_output_is_cut(ready: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "OUTPUT_FILE_BYTES_MAX", 4 << 20)
    ready.slot.feed([ready.task("prints_much", mib=20, seconds=60)])
    output = ready.folders["scratch"] / "slot-0" / "output"
    ready.until(lambda: output.stat().st_size > 19 << 20)
    ready.until(lambda: output.stat().st_size <= 2 << 20)
    assert output.read_bytes().endswith(b"the end\n")
    ready.slot.kill("task-1", 1, "canceled")
    ready.until(ready.outcomes)
    assert ready.outcomes()[0].output_tail.endswith("the end\n")


# --- limits and kills ---------------------------------------------------------------------------


def test_a_time_out(ready: Rig) -> None:
    started = time.monotonic()
    failed = ready.fail("sleeps", timeout_s=0.3, path="/dev/null")
    assert (failed.cause, failed.exit_signal) == ("timeout", "SIGTERM")
    assert "0.3 s" in failed.error
    assert 0.25 < failed.usage.duration_s < 2
    assert time.monotonic() - started < 3


def test_what_waits_behind_a_time_out_never_began(ready: Rig) -> None:
    late, waiting = ready.task("sleeps", timeout_s=0.2, path="/dev/null"), ready.task("value")
    ready.slot.feed([late, waiting])
    ready.until(ready.outcomes)
    assert ready.of(Unstarted) == [Unstarted(0, (Held(waiting.task_id, 1),))]
    ready.still_works()


def test_a_call_that_holds_the_gil(ready: Rig) -> None:
    failed = ready.fail("holds_the_gil", timeout_s=0.3, path="/dev/null")
    assert failed.cause == "timeout"
    ready.still_works()


def test_a_time_out_counts_from_the_beginning_of_its_own_attempt(ready: Rig) -> None:
    tasks = [ready.task("mark", timeout_s=0.5, path="/dev/null", seconds=0.15) for _ in range(6)]
    assert all(isinstance(one, Finished) for one in ready.run(*tasks))


def test_a_memory_limit(ready: Rig) -> None:
    failed = ready.fail("eats_memory", memory=150 << 20)
    assert (failed.cause, failed.exit_signal) == ("memory", "SIGKILL")
    assert str(150 << 20) in failed.error
    assert failed.usage.max_rss_bytes > 150 << 20
    ready.still_works()


def test_cancel_of_the_running_one(ready: Rig) -> None:
    task = ready.begin("sleeps")
    held, since = ready.slot.running() or (None, 0.0)
    assert held == Held(task.task_id, 1)
    assert since <= time.monotonic()
    ready.slot.kill(task.task_id, 1, "canceled")
    ready.until(ready.outcomes)
    (failed,) = ready.outcomes()
    assert (failed.cause, failed.error, failed.exit_signal) == ("canceled", "canceled", "SIGTERM")
    ready.still_works()


def test_cancel_of_a_waiting_one(ready: Rig) -> None:
    running = ready.begin("sleeps")
    others = [ready.task("value", value=n) for n in range(3)]
    ready.slot.feed(others)
    ready.slot.kill(others[1].task_id, 1, "canceled")
    ready.until(lambda: ready.of(Unstarted))
    assert ready.of(Unstarted) == [Unstarted(0, (Held(others[1].task_id, 1),))]
    assert ready.slot.running() is not None
    assert ready.slot.waiting() == (Held(others[0].task_id, 1), Held(others[2].task_id, 1))
    ready.slot.kill(running.task_id, 1, "canceled")
    ready.until(ready.outcomes)


def test_cancel_of_what_is_not_here_does_nothing(ready: Rig) -> None:
    ready.slot.kill("nobody", 1, "canceled")
    ready.slot.feed([ready.task("value", value=1)])
    ready.slot.kill("task-1", 2, "canceled")
    ready.until(ready.outcomes)
    assert isinstance(ready.outcomes()[0], Finished)


def test_sigterm_ignored_is_followed_by_sigkill(
    ready: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "KILL_GRACE_S", 0.2)
    task = ready.begin("ignores_sigterm")
    ready.slot.kill(task.task_id, 1, "canceled")
    ready.until(ready.outcomes)
    assert (ready.outcomes()[0].cause, ready.outcomes()[0].exit_signal) == ("canceled", "SIGKILL")
    ready.still_works()


def test_a_success_in_answer_to_sigterm_counts(ready: Rig) -> None:
    task = ready.begin("answers_sigterm")
    pid = ready.slot.pid
    ready.slot.kill(task.task_id, 1, "timeout")
    ready.until(ready.outcomes)
    (one,) = ready.outcomes()
    assert isinstance(one, Finished)
    ready.until(lambda: len(ready.of(SlotReady)) == 2)
    assert ready.slot.pid != pid, "its process group is gone, so the child is replaced"
    ready.still_works()


def test_a_failure_in_answer_to_sigterm_has_the_kills_cause(ready: Rig) -> None:
    task = ready.begin("answers_sigterm", **{"raise": True})
    ready.slot.kill(task.task_id, 1, "timeout")
    ready.until(ready.outcomes)
    assert ready.outcomes()[0].cause == "timeout"
    ready.still_works()


@pytest.mark.parametrize("how", ["segfault", "cancel"])
def test_grandchildren_go_too(ready: Rig, how: str) -> None:
    task = ready.begin("leaves_children", how=how)
    if how == "cancel":
        ready.until(lambda: len(alive(ready, b"sleep\x00300")) == 4)
        ready.slot.kill(task.task_id, 1, "canceled")
    ready.until(ready.outcomes)
    ready.until(lambda: not alive(ready, b"sleep"))
    ready.still_works()


def test_zombies_of_strangers_are_left_alone(ready: Rig) -> None:
    mine = subprocess.Popen(["sh", "-c", "exit 7"])
    os.waitid(os.P_PID, mine.pid, os.WEXITED | os.WNOWAIT)
    orphan = subprocess.run(["sh", "-c", "sleep 0.05 & echo $!"], capture_output=True, check=True)
    pid = int(orphan.stdout)
    own = {mine.pid, ready.slot.pid or 0}
    ends_at = time.monotonic() + PATIENCE_S
    reaped = 0
    while Path(f"/proc/{pid}").exists():
        reaped += processes.reap_adopted(own)
        assert time.monotonic() < ends_at
    assert reaped >= 1
    assert mine.wait() == 7
    ready.still_works()


# --- recall -------------------------------------------------------------------------------------


def test_recall_takes_what_never_ran(ready: Rig, tmp_path: Path) -> None:
    """Each attempt runs exactly once or comes back, whenever the recall falls."""
    ran: dict[str, Path] = {}
    recalled: list[Held] = []
    for round_ in range(60):
        tasks = []
        for n in range(30):
            path = tmp_path / f"mark-{round_}-{n}"
            tasks.append(ready.task("mark", path=str(path)))
            ran[tasks[-1].task_id] = path
        ready.slot.feed(tasks)
        if round_ % 3 == 0:
            before = len(ready.events)
            ready.until(lambda before=before: len(ready.events) > before)  # type: ignore[misc]
        for _ in range(round_ % 7):
            ready.events += ready.slot.drain()
        recalled += ready.slot.recall()
    ready.until(lambda: ready.slot.running() is None)
    assert [one for one in ready.outcomes() if isinstance(one, Failed)] == []
    assert len(ready.of(SlotReady)) == 1
    done = {one.task_id for one in ready.outcomes()}
    back = {one.task_id for one in recalled}
    assert len(back) == len(recalled)
    assert done | back == set(ran)
    assert not done & back
    assert back, "the test did not recall anything"
    assert done, "the test did not run anything"
    for task_id, path in ran.items():
        assert (path.read_bytes() if path.exists() else b"") == (b"x" if task_id in done else b"")


def test_recall_includes_what_is_still_behind_the_socket(ready: Rig) -> None:
    running = ready.begin("sleeps")
    tasks = [ready.task("value", value="v" * 60_000) for _ in range(100)]
    ready.slot.feed(tasks)
    assert ready.slot.recall() == tuple(Held(one.task_id, 1) for one in tasks)
    assert ready.slot.recall() == ()
    assert ready.slot.waiting() == ()
    ready.slot.kill(running.task_id, 1, "canceled")
    ready.until(ready.outcomes)


def test_recall_before_the_child_is_ready(rig: Rig) -> None:
    slot = rig.open()
    task = rig.task("value", value=1)
    slot.feed([task])
    assert slot.running() is None
    assert slot.waiting() == (Held(task.task_id, 1),)
    assert slot.recall() == (Held(task.task_id, 1),)
    rig.still_works()


@pytest.mark.slow
def test_kills_and_recalls_at_any_moment(ready: Rig, tmp_path: Path) -> None:
    """Every attempt ends exactly once: settled or unstarted; what is unstarted left no trace."""
    dice = random.Random(20)
    paths: dict[Held, Path] = {}
    ended: list[tuple[Held, Any]] = []

    def take_in() -> None:
        for event in ready.events:
            if isinstance(event, Settled):
                outcome = event.outcome
                ended.append((Held(outcome.task_id, outcome.attempt), outcome))
            elif isinstance(event, Unstarted):
                ended.extend((held, None) for held in event.attempts)
        ready.events.clear()

    for round_ in range(25):
        tasks = []
        for n in range(20):
            path = tmp_path / f"mark-{round_}-{n}"
            seconds = dice.choice([0, 0, 0.002])
            tasks.append(ready.task("mark", path=str(path), seconds=seconds))
            paths[Held(tasks[-1].task_id, 1)] = path
        ready.slot.feed(tasks)
        for _ in range(dice.randrange(4)):
            ready.turn()
        for victim in dice.sample(tasks, 3):
            ready.slot.kill(victim.task_id, 1, "canceled")
        if dice.random() < 0.3:
            ended.extend((held, None) for held in ready.slot.recall())
        ready.until(lambda: not ready.slot.running() and not ready.slot.waiting())
        take_in()
    assert sorted(held for held, _ in ended) == sorted(paths)
    causes = {one.cause for _, one in ended if isinstance(one, Failed)}
    assert causes <= {"canceled"}
    for held, outcome in ended:
        traces = paths[held].read_bytes() if paths[held].exists() else b""
        if outcome is None:
            assert traces == b""
        elif isinstance(outcome, Finished):
            assert traces == b"x"
        else:
            assert traces in (b"", b"x")


def test_restarts_leak_no_descriptors(ready: Rig) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        ready.fail("os_exits")
        ready.until(lambda: ready.slot.state == "ready")
    assert len(os.listdir("/proc/self/fd")) == before


# --- progress -----------------------------------------------------------------------------------


def test_progress_first_at_once_and_the_latest_at_last(ready: Rig, tmp_path: Path) -> None:
    until = tmp_path / "go on"
    steps = [[n / 1000, {"n": n}] for n in range(1000)] + [[0.999, None]]
    task = ready.task("progresses", steps=steps, until=str(until))
    started = time.monotonic()
    ready.slot.feed([task])
    ready.until(lambda: ready.of(Moved))
    assert time.monotonic() - started < 0.4
    first = ready.of(Moved)[0].progress
    assert first == Progress(task.task_id, 1, 0.0, encode_body({"n": 0}))
    ready.until(lambda: ready.of(Moved)[-1].progress.fraction == 0.999)
    assert len(ready.of(Moved)) <= 4, "a thousand calls are a few events"
    until.touch()
    ready.until(ready.outcomes)


def test_bad_and_late_progress_is_ignored(ready: Rig) -> None:
    ready.run(ready.task("bad_progress"), ready.task("late_progress"))
    assert [one.progress for one in ready.of(Moved)] == [Progress("task-1", 1, 1.0, None)]


# --- programs that do not load ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import not_there_at_all\n", "not_there_at_all"),
        ("x = 1\n", "defines no TaskProgram"),
        ("print('said'); import sys; sys.exit(5)\n", "SystemExit: 5"),
    ],
)
def test_a_program_that_does_not_load(rig: Rig, text: str, words: str) -> None:
    slot = rig.open(text)
    task = rig.task("value", value=1)
    slot.feed([task])
    rig.until(lambda: rig.of(SlotBroken))
    (broken,) = rig.of(SlotBroken)
    assert words in broken.error
    if "import" in text:
        assert "everything.py" in broken.traceback
    if "print" in text:
        assert "said" in broken.traceback
    assert rig.of(Unstarted) == [Unstarted(0, (Held(task.task_id, 1),))]
    rig.until(lambda: slot.pid is None)
    assert slot.state == "broken"
    slot.feed([rig.task("value", value=1)])
    rig.until(lambda: len(rig.of(Unstarted)) == 2)


@pytest.mark.slow
def test_a_program_that_kills_its_loader(rig: Rig) -> None:
    slot = rig.open("import ctypes\nprint('loading')\nctypes.string_at(0)\n")
    rig.until(lambda: rig.of(SlotBroken))
    (broken,) = rig.of(SlotBroken)
    assert "SIGSEGV" in broken.error
    assert "3 times" in broken.error
    assert "loading" in broken.traceback
    assert slot.state == "broken"


@pytest.mark.slow
def test_a_program_that_closes_the_descriptors_as_it_loads(rig: Rig) -> None:
    slot = rig.open("import os, time\nos.closerange(3, 65536)\ntime.sleep(60)\n")
    rig.until(lambda: rig.of(SlotBroken))
    assert "descriptors" in rig.of(SlotBroken)[0].error
    assert slot.state == "broken"


@pytest.mark.slow
def test_a_directory_that_is_gone(rig: Rig, tmp_path: Path) -> None:
    rig.open(cwd=tmp_path / "gone")
    rig.until(lambda: rig.of(SlotBroken))
    assert "gone" in rig.of(SlotBroken)[0].error


# --- the end ------------------------------------------------------------------------------------


def test_an_idle_child_that_is_killed_is_replaced(ready: Rig) -> None:
    pid = ready.slot.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    ready.until(lambda: len(ready.of(SlotReady)) == 2)
    assert ready.outcomes() == []
    ready.still_works()


def test_close_while_running_and_while_loading(ready: Rig) -> None:
    ready.begin("sleeps")
    ready.open()
    started = time.monotonic()
    close_all(ready.slots, 5.0)
    assert time.monotonic() - started < 4


@pytest.mark.slow
def test_a_child_dies_with_its_agent(tmp_path: Path, session_env: dict[str, str]) -> None:
    (tmp_path / "p.py").write_text(
        "from jobflow_worker import TaskProgram\n\n\nclass P(TaskProgram):\n"
        "    def generate_tasks(self):\n        return []\n\n"
        "    def execute_task(self, spec, progress_cb):\n        return {}\n"
    )
    agent = f"""
        import os, signal, time
        from pathlib import Path
        from jobflow_worker.program import resolve_program
        from jobflow_worker.slots import ChildSetup, Slot
        here = Path({str(tmp_path)!r})
        slot = Slot(0, ChildSetup(resolve_program("p.py", here), {{}}, here, here, here, "w"))
        slot.start()
        while not slot.drain():
            time.sleep(0.01)
        print(slot.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    said = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(agent)], env=session_env, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert said.returncode == -signal.SIGKILL, said.stderr
    ends_at = time.monotonic() + PATIENCE_S
    while Path(f"/proc/{int(said.stdout)}").exists():
        assert time.monotonic() < ends_at
        time.sleep(0.01)
