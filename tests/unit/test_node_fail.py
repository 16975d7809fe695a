"""A node's failure that is known only after its worker was given up: nobody is charged for it."""

from __future__ import annotations

import pytest
from test_batch_pool import Inside

from jobflow_worker.messages import Finished, Heartbeat, Held, Report, TaskFinished, Usage
from jobflowd import events as ev
from jobflowd.launchers.lsf import Lsf
from jobflowd.launchers.slurm import Slurm
from jobflowd.model import LaunchState, Worker
from jobflowd.store import Store


def lost_worker(store: Store) -> tuple[Inside, str, Worker]:
    """A worker whose one running task is lost with it and charged, for nobody knows why."""
    inside = Inside(store, tasks=1, workers=1)
    (launch,) = inside.submitted()
    worker = inside.register(launch)
    say(inside, worker, 1, credit=1)
    say(inside, worker, 2, running=(Held("t0", 1),))
    inside.after(80.0)
    assert not worker.registered
    assert losses(store) == 1
    return inside, launch, worker


def say(
    inside: Inside, worker: Worker, number: int, credit: int = 0, running: tuple[Held, ...] = ()
) -> None:
    report = Report(inside.core.book.epoch, number, worker.seq, 1, credit, running)
    inside.turn(ev.Heard(worker.worker_id, 1 + number, "zmq", Heartbeat(report)))


def losses(store: Store) -> int:
    ((found,),) = store.read("SELECT losses FROM tasks WHERE task_id = 't0'", ())
    return int(found)


def attempt(store: Store) -> tuple[str, str, str]:
    ((*row,),) = store.read("SELECT outcome, cause, charged FROM attempts", ())
    return tuple(row)  # type: ignore[return-value]


def seen(inside: Inside, launch: str, reason: str, *, blameless: bool) -> None:
    inside.turn(
        ev.LaunchSeen(launch, LaunchState.ENDED, "7", reason, blameless=blameless),
        ev.QueryAnswered(),
    )


def test_the_charge_is_given_back_once(store: Store) -> None:
    inside, launch, _ = lost_worker(store)
    for _ in range(2):
        seen(inside, launch, "the job's node failed", blameless=True)
        assert losses(store) == 0
    assert attempt(store) == ("lost", "the job's node failed", "")


def test_our_own_cancel_proves_nothing(store: Store) -> None:
    inside, launch, _ = lost_worker(store)
    seen(inside, launch, "the job was cancelled", blameless=False)
    assert losses(store) == 1


def test_a_late_outcome_has_moved_the_charge_already(store: Store) -> None:
    inside, launch, worker = lost_worker(store)
    done = Finished("t0", 1, b"\x01", None, Usage(1.0, 0.5, 1000), "")
    inside.register(launch)
    inside.turn(ev.Heard(worker.worker_id, 99, "zmq", TaskFinished(0, (done,))))
    assert losses(store) == 0
    seen(inside, launch, "the job's node failed", blameless=True)
    assert losses(store) == 0
    assert attempt(store)[0] == "succeeded"


@pytest.mark.parametrize(
    ("word", "blameless"),
    [("NODE_FAIL", True), ("PREEMPTED", True), ("TIMEOUT", True), ("CANCELLED", False),
     ("FAILED", False), ("OUT_OF_MEMORY", False), ("COMPLETED", False)],
)  # fmt: skip
def test_what_slurm_takes_upon_itself(word: str, blameless: bool) -> None:
    text = f"JF|JOBID|STATE|REASON|TIME_LEFT|NAME|JF\nJF|7|{word}|None|0:00|jf-a-1|JF\n"
    (job,) = Slurm().parse_query(0, text, "").jobs  # type: ignore[union-attr]
    assert job.blameless is blameless


@pytest.mark.parametrize(("why", "blameless"), [("TERM_PREEMPT", True), ("TERM_OWNER", False)])
def test_what_lsf_takes_upon_itself(why: str, blameless: bool) -> None:
    text = f"JOBID^STAT^EXIT_CODE^JOB_NAME^EXIT_REASON^PEND_REASON\n7^EXIT^143^jf-a-1^{why}: x^-\n"
    (job,) = Lsf().parse_query(0, text, "").jobs  # type: ignore[union-attr]
    assert job.blameless is blameless
