"""OpenMetrics text: counters of this daemon's life, gauges of this moment; and its file.

No clock: its caller reads it. Nothing is labelled by task or worker, so the text
stays small however large the run is. Counters begin at zero with the daemon, as collectors expect.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from jobflow_worker.sessionfiles import write_private
from jobflowd import logs
from jobflowd.census import Census, Here
from jobflowd.model import Changes
from jobflowd.reports import LEASE_EXPIRED

_log: Final = logs.get(__name__)

#: How often the file is written: collectors look every 15 s at most.
FILE_S: Final = 15.0

#: Upper bounds of the histograms, in seconds.
_RUN_S: Final = (0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0)
_COMMAND_S: Final = (0.05, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
_COMMIT_S: Final = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 30.0)
_TASK_STATES: Final = ("queued", "assigned", "running", "succeeded", "failed", "canceled")
_WORKER_STATES: Final = ("idle", "busy", "draining", "quarantined")


class Histogram:
    """Counts by upper bound, with the sum of all values."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        """One observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def lines(self, name: str, labels: str = "") -> Iterator[str]:
        """Its samples; `labels` as in `a="b"`."""
        so_far = 0
        for bound, count in zip((*self.bounds, None), self.counts, strict=True):
            so_far += count
            edge = "+Inf" if bound is None else f"{bound:g}"
            both = f'{labels},le="{edge}"' if labels else f'le="{edge}"'
            yield f"{name}_bucket{{{both}}} {so_far}"
        own = f"{{{labels}}}" if labels else ""
        yield f"{name}_sum{own} {self.total:.6f}"
        yield f"{name}_count{own} {so_far}"


class CommandTimes:
    """Commands of the batch system that are over: how long each took, and which failed.

    `seconds` count from the order, so that a wait for room among other commands shows as well.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, Histogram] = {}
        self.failures: Counter[tuple[str, str]] = Counter()

    def ended(self, command: str, seconds: float, rc: int | None, *, timed_out: bool) -> None:
        """One is over; `rc` is None if it could not be started or did not end by itself."""
        self.seconds.setdefault(command, Histogram(_COMMAND_S)).add(seconds)
        if rc != 0:
            reason = "timeout" if timed_out else "cannot_run" if rc is None else "exit_code"
            self.failures[command, reason] += 1

    def lines(self) -> Iterator[str]:
        """Both families."""
        name = "jobflow_batch_command_seconds"
        yield f"# TYPE {name} histogram"
        yield f"# HELP {name} Commands of the batch system, from the order to the end."
        for command, histogram in sorted(self.seconds.items()):
            yield from histogram.lines(name, f'command="{_escaped(command)}"')
        name = "jobflow_batch_command_failures"
        yield f"# TYPE {name} counter"
        yield f"# HELP {name} Those that did not end with 0."
        for (command, reason), count in sorted(self.failures.items()):
            yield f'{name}_total{{command="{_escaped(command)}",reason="{reason}"}} {count}'


class Metrics:
    """What is counted while a daemon lives, and the file for a collector, if there is one.

    `next_at` is the monotonic time of the next writing; a failure there never fails the run.
    """

    def __init__(self, file: Path | None = None, commands: CommandTimes | None = None) -> None:
        """`commands`: of the batch system, if there is one."""
        self._file = file
        self.commands = commands if commands is not None else CommandTimes()
        self.lease_expirations = 0
        self.next_at = float("inf") if file is None else 0.0
        self.attempts: Counter[str] = Counter()
        self.verdicts: Counter[str] = Counter()
        self.stories: Counter[str] = Counter()
        self.run_s = Histogram(_RUN_S)
        self.commit_s = Histogram(_COMMIT_S)
        #: How long the last pass of the loop was busy: what an operator may have waited.
        self.lag_s = 0.0
        self.completed_at: float | None = None

    def committed(self, changes: Changes, seconds: float) -> None:
        """A turn was made durable in so many seconds."""
        if changes.empty:
            return
        self.commit_s.add(seconds)
        for attempt in changes.attempts:
            self.attempts[attempt.outcome] += 1
            if attempt.duration_s is not None:
                self.run_s.add(attempt.duration_s)
            if attempt.outcome in ("succeeded", "failed") and attempt.ended_at is not None:
                self.completed_at = attempt.ended_at
        self.verdicts.update(verdict for _, _, verdict in changes.processed)
        self.lease_expirations += sum(
            story.kind == "worker_lost" and story.text.endswith(LEASE_EXPIRED)
            for story in changes.stories
        )
        self.stories.update(story.kind for story in changes.stories if story.level != "info")

    def publish(self, now: float, census: Census, here: Here) -> None:
        """Replace the file for the collector; nothing without one."""
        if self._file is None:
            return
        self.next_at = now + FILE_S
        try:
            write_private(self._file, self.text(census, here).encode(), fsync=False)
        except OSError as error:
            _log.repeated("metrics_file_failed", text=f"{self._file}: {error}")

    def text(self, census: Census, here: Here) -> str:
        """The whole exposition, ending with `# EOF`."""
        return "\n".join((*self._gauges(census, here), *self._counters(), "# EOF")) + "\n"

    def _gauges(self, census: Census, here: Here) -> Iterator[str]:
        tasks = {state: getattr(census.tasks, state) for state in _TASK_STATES}
        yield from _family("jobflow_tasks", "gauge", "Tasks by state.", "state", tasks)
        workers = {state: census.worker_counts.get(state, 0) for state in _WORKER_STATES}
        workers["offline"] = census.workers_offline
        yield from _family("jobflow_workers", "gauge", "Workers by state.", "state", workers)
        launches = {word: int(count) for word, count in census.launch_counts.items()}
        yield from _family("jobflow_launches", "gauge", "Launches by state.", "state", launches)
        wanted = {"": float(census.target)}
        yield from _family("jobflow_workers_wanted", "gauge", "Workers wanted.", "", wanted)
        state = {"": float(census.state == "degraded")}
        yield from _family("jobflow_degraded", "gauge", "1: the disk is full.", "", state)
        paused = {"": float(census.launching.paused)}
        yield from _family("jobflow_launching_paused", "gauge", "1: nothing launches.", "", paused)
        lag = {"": self.lag_s}
        yield from _family("jobflow_loop_lag_seconds", "gauge", "Last pass of the loop.", "", lag)
        if self.completed_at is not None:
            at = {"": self.completed_at}
            name = "jobflow_last_completion_timestamp_seconds"
            yield from _family(name, "gauge", "When an attempt last ended.", "", at)
        for name, value, text in (
            ("jobflow_process_cpu_seconds", here.cpu_s, "CPU time of the daemon."),
            ("jobflow_process_resident_memory_bytes", here.rss_bytes, "Memory of the daemon."),
            ("jobflow_database_bytes", here.db_bytes, "The database and its log."),
        ):
            if value is not None:
                yield from _family(name, "gauge", text, "", {"": float(value)})
        yield "# TYPE jobflow_build info"
        yield f'jobflow_build_info{{version="{_escaped(here.version)}"}} 1'

    def _counters(self) -> Iterator[str]:
        for name, text, label, counts in (
            ("jobflow_task_attempts", "Attempts that ended, by outcome.", "outcome", self.attempts),
            ("jobflow_outcome_messages", "Outcomes by verdict.", "result", self.verdicts),
            ("jobflow_incidents", "Warnings and errors by kind.", "kind", self.stories),
        ):
            yield from _family(name, "counter", text, label, dict(sorted(counts.items())))
        expired = {"": float(self.lease_expirations)}
        text = "Workers lost because they were silent for a whole lease."
        yield from _family("jobflow_lease_expirations", "counter", text, "", expired)
        yield from self.commands.lines()
        yield "# TYPE jobflow_task_run_seconds histogram"
        yield from self.run_s.lines("jobflow_task_run_seconds")
        yield "# TYPE jobflow_store_commit_seconds histogram"
        yield from self.commit_s.lines("jobflow_store_commit_seconds")


def _family(
    name: str, kind: str, text: str, label: str, values: Mapping[str, float]
) -> Iterator[str]:
    yield f"# TYPE {name} {kind}"
    yield f"# HELP {name} {text}"
    suffix = "_total" if kind == "counter" else ""
    for word, value in values.items():
        labels = f'{{{label}="{_escaped(word)}"}}' if label else ""
        yield f"{name}{suffix}{labels} {value:.10g}"


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
