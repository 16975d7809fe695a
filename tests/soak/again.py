"""Which executions were repeated although nobody had given a reason.

A task may run more than once, but only for cause: its worker or its child was hit. An attempt that
is followed by another one counts as *finished* if it had noted its end, as *running* if it had
begun and not ended. It is excused if its agent or its child was killed, or its agent stopped,
before the next attempt began: then the manager could not know.
"""

from __future__ import annotations

import itertools
import signal
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.faults.bench import Note

from .killer import Blow


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
            if _excused(before, end, after.at, by_pid):
                found.excused += 1
                continue
            line = f"{task_id} attempts {before.attempt} and {after.attempt} of {before.worker_id}"
            if end is not None and end.at <= after.at:
                found.although_finished.append(line)
            else:
                found.although_running.append(line)
    return found


def _excused(before: Note, end: Note | None, again_at: float, hits: dict[int, list[Blow]]) -> bool:
    for blow in hits[before.agent_pid]:
        stopped = blow.number is signal.SIGSTOP
        if blow.at <= again_at and (blow.until if stopped else blow.at) >= before.at:
            return True
    # A child can be killed between the note of its end and the frame that carries the result.
    last = again_at if end is None else end.at + 1.0
    return any(
        blow.number is signal.SIGKILL and before.at <= blow.at <= last for blow in hits[before.pid]
    )
