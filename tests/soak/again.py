"""Which executions were repeated although nobody had given a reason.

A task may run more than once, but only for cause: its worker or its child was hit. An attempt that
is followed by another one counts as *finished* if it had noted its end, as *running* if it had
begun and not ended. It is excused if its agent or its child was killed, or its agent was stopped or
had just been, before the next attempt began: then the manager could not know. An older attempt that
begins late is excused if it was its own agent that had been stopped.
"""

from __future__ import annotations

import itertools
import signal
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.bench import Note

from .killer import Blow

#: Two heartbeats. A worker that was stopped for longer than its lease goes on with what it has
#: before its manager has read its next report, and a killed one's child lives for a moment.
RECOVERY_S = 2.0


@dataclass(slots=True)
class Repetitions:
    """Repeated executions; `although_*` are those that nothing excuses."""

    all: int = 0
    excused: int = 0
    although_finished: list[str] = field(default_factory=list)
    although_running: list[str] = field(default_factory=list)


def repetitions(notes: Sequence[Note], blows: Sequence[Blow]) -> Repetitions:
    """Look at every attempt that was followed by another one of the same task."""
    by_task: dict[str, list[Note]] = defaultdict(list)
    for note in notes:
        by_task[note.task_id].append(note)
    by_pid: dict[int, list[Blow]] = defaultdict(list)
    for blow in blows:
        by_pid[blow.pid].append(blow)
    found = Repetitions()
    for task_id, story in by_task.items():
        starts = sorted((one for one in story if one.word == "start"), key=lambda one: one.at)
        ends = {one.attempt: one for one in story if one.word == "end"}
        for before, after in itertools.pairwise(starts):
            found.all += 1
            end = ends.get(before.attempt)
            if _excused(before, end, after, by_pid):
                found.excused += 1
                continue
            line = f"{task_id} attempts {before.attempt} and {after.attempt} of {before.worker_id}"
            if end is not None and end.at <= after.at:
                found.although_finished.append(line)
            else:
                found.although_running.append(line)
    return found


def _excused(before: Note, end: Note | None, after: Note, hits: dict[int, list[Blow]]) -> bool:
    agents = [before.agent_pid]
    if after.attempt < before.attempt:
        agents.append(after.agent_pid)
    for blow in (one for pid in agents for one in hits[pid]):
        over_at = blow.until if blow.number is signal.SIGSTOP else blow.at
        if blow.at <= after.at and over_at + RECOVERY_S >= before.at:
            return True
    # A child can be killed between the note of its end and the frame that carries the result.
    last = after.at if end is None else end.at + 1.0
    return any(
        blow.number is signal.SIGKILL and before.at <= blow.at <= last for blow in hits[before.pid]
    )
