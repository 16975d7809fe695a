"""A daemon's inside on the stand-in: real store, coordinator, desk and commands, virtual hours.

No worker ever comes: what is looked at is which jobs are there. `crash` ends a life at a point
around the submission, as a power cut would: memory is gone, the file stays.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobflowd import events as ev
from jobflowd.batchdesk import BatchDesk
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.effects import CancelLaunch, QueryLaunches, Submit
from jobflowd.launchers.base import LaunchContext, Launcher
from jobflowd.model import Definition
from jobflowd.store import Store

VERBS = ("sbatch", "squeue", "scancel", "sacct", "bsub", "bjobs", "bkill")
POINTS = ("before the command", "while it runs", "before its commit", "after its commit")


class Crash(Exception):
    """The life ends here."""


@dataclass
class Rig:
    """One session directory, and lives of daemons over it."""

    root: Path
    launcher: Launcher
    environ: Mapping[str, str]
    wanted: int = 1
    poll_s: float = 60.0
    now: float = 1000.0
    crash_at: str = ""
    pending: list[ev.Event] = field(default_factory=list)

    def live(self) -> None:
        """Begin a life: a start, or a restart after a crash."""
        settings = Settings(
            "t1", "t.py", "slurm", "jf-abcdef", workers=self.wanted, launch_poll_s=self.poll_s
        )
        self.store = Store(self.root / "manager.db")
        self.store.open()
        snapshot = self.store.begin_epoch("adopt", wall=self.now)
        self.coordinator = Coordinator(settings, snapshot, int(snapshot.meta["epoch"]))
        self.desk = BatchDesk(
            self.root,
            self.launcher,
            self._context,
            user="root",
            prefix="jf-abcdef",
            timeout_s=20.0,
            environ=self.environ,
        )
        tasks = tuple(
            Definition(f"t{n}", b"x", b"h" * 16, 2, 0, None, None, None)
            for n in range(max(20, self.wanted * 2))
        )
        self.pending = [ev.ProgramChanged("h"), ev.TransportsReady(), ev.Generated(tasks)]

    def _context(self, launch_id: str) -> LaunchContext:
        directory = self.root / "launches" / launch_id
        return LaunchContext(
            "t1",
            str(self.root),
            launch_id,
            ("sleep", "60"),
            "/tmp",
            str(directory / "script"),
            str(directory / "output"),
        )

    def die(self) -> None:
        """The power is cut."""
        self.desk.close()
        self.store.close()

    @contextlib.contextmanager
    def one_life(self) -> Iterator[None]:
        self.live()
        try:
            yield
        finally:
            self.die()

    def turn(self) -> None:
        """One pass of the loop, with the crash points of a submission."""
        events, self.pending = self.pending, []
        answered = any(isinstance(one, ev.Submitted | ev.SubmitFailed) for one in events)
        if answered and self.crash_at == "before its commit":
            raise Crash
        facts = self.store.lookup(self.coordinator.questions(self.now, events))
        turn = self.coordinator.turn(self.now, self.now, events, facts)
        self.store.commit(turn.changes)
        if answered and self.crash_at == "after its commit":
            raise Crash
        for effect in turn.effects:
            match effect:
                case Submit(launch_id, exclude):
                    if self.crash_at == "before the command":
                        raise Crash
                    answer = self.desk.submit(launch_id, exclude)
                    self.pending += [] if answer is None else [answer]
                case CancelLaunch(launch_id, job_id, now):
                    self.desk.cancel(launch_id, job_id, now)
                case QueryLaunches(launches):
                    self.desk.query(launches)
        if self.crash_at == "while it runs" and any(isinstance(e, Submit) for e in turn.effects):
            self.desk.tick(time.monotonic())
            raise Crash

    def settle(self) -> None:
        """Turns until nothing is to be done at this moment."""
        while True:
            due = self.coordinator.next_deadline()
            if self.pending or (due is not None and due <= self.now):
                self.turn()
                continue
            if not self.desk.busy:
                self.pending += self.desk.reap()
                if not self.pending:
                    return
                continue
            self.desk.tick(time.monotonic())
            self.pending += self.desk.reap()
            time.sleep(0.002)

    def scale(self, wanted: int) -> None:
        """`jobflowctl scale`."""
        self.pending.append(ev.Asked(1, "scale", {"workers": wanted}))

    def run_for(self, seconds: float) -> None:
        """Let virtual time pass."""
        end = self.now + seconds
        while True:
            self.settle()
            due = self.coordinator.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
        self.now = end


def live_jobs(fake: Path) -> Counter[str]:
    """Names of the jobs that wait or run, with how many of each."""
    return Counter(
        (one / "name").read_text()
        for one in fake.glob("jobs/*")
        if (one / "name").exists()
        and not (one / "killed").exists()
        and not (one / "status").exists()
    )


def calls(fake: Path) -> Counter[str]:
    """How often each command was called."""
    return Counter(line.split()[0] for line in (fake / "calls").read_text().splitlines())


def stand_in(root: Path) -> dict[str, str]:
    """Install the stand-in below `root`, in front of any real one; the variables that it needs."""
    (root / "fakebatch" / "jobs").mkdir(parents=True)
    (root / "bin").mkdir()
    text = (Path(__file__).parent / "batchsystem.py").read_text()
    for verb in VERBS:
        path = root / "bin" / verb
        path.write_text(f"#!{sys.executable} -SE\n{text}")
        path.chmod(0o755)
    return {
        "FAKEBATCH_DIR": str(root / "fakebatch"),
        "PATH": f"{root / 'bin'}:/usr/local/bin:/usr/bin:/bin",
    }
