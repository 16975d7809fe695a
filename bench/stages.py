"""The manager's path of a no-op task, stage by stage, in one process: CPU microseconds a task.

    python -m bench.stages [--tasks N]

Frames of two workers are taken in, decided, committed to a database on this disk and answered, as
the daemon does it, but without sockets, workers, and what those do to the caches. What the daemon
costs above this is its loop, ZeroMQ, and the two cores that it shares.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.measure import Result, arguments, emit, parse
from bench.yardstick import WHAT, Pairs
from jobflow_worker import collector
from jobflow_worker.codec import decode_frame, encode_body, encode_frame
from jobflow_worker.messages import (
    MANAGER,
    WORKER,
    Assign,
    Assignment,
    Envelope,
    Finished,
    Register,
    Report,
    RequestWork,
    TaskFinished,
    Usage,
)
from jobflowd import events as ev
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.effects import Deliver, Post
from jobflowd.model import Definition
from jobflowd.performer import filled
from jobflowd.store import Store

#: What a worker holds, and how many outcomes one message and one turn bring.
_HELD = 1000
_MESSAGE = 250
_TURN = 500
_USAGE = Usage(0.00001, 0.00001, 20_000_000)


class _Seat:
    """A worker as far as the manager can tell: it holds attempts and says that they are done."""

    def __init__(self, number: int) -> None:
        self.worker_id = f"w-{number:016}"
        self.held: deque[Assignment] = deque()
        self.seen = 1
        self.counter = 2
        self.hb_seq = 0

    def report(self, *, brief: bool) -> Envelope:
        self.hb_seq += 1
        room = _HELD - len(self.held)
        report = Report(1, self.hb_seq, self.seen, self.counter, room, brief=brief)
        return self._envelope(RequestWork(report))

    def finished(self) -> list[Envelope]:
        done = [self.held.popleft() for _ in range(min(_TURN, len(self.held)))]
        items = [Finished(one.task_id, one.attempt, b"\x80", None, _USAGE, "") for one in done]
        return [
            self._envelope(
                TaskFinished(self.counter - 1, tuple(items[start : start + _MESSAGE])),
            )
            for start in range(0, len(items), _MESSAGE)
        ]

    def _envelope(self, message: Any) -> Envelope:
        self.counter += 1
        return Envelope(WORKER, self.worker_id, "", self.counter, 0.0, message)


class _Manager:
    """The daemon's turn, with a clock around each stage."""

    def __init__(self, folder: Path) -> None:
        self.cost: Counter[str] = Counter()
        self._store = Store(folder / "manager.db")
        self._store.open()
        snapshot = self._store.begin_epoch("adopt", wall=1e9)
        settings = Settings("s", "p.py:P", stay=True)
        self._coordinator = Coordinator(settings, snapshot, 1)
        self._now = 1000.0
        self.turn([ev.ProgramChanged("hash"), ev.TransportsReady()])

    def close(self) -> None:
        self._store.close()

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        began = time.thread_time()
        yield
        self.cost[name] += time.thread_time() - began

    def hear(self, envelopes: Sequence[Envelope]) -> list[ev.Event]:
        frame = encode_frame(envelopes)
        with self._stage("decode"):
            good, _ = decode_frame(frame, sent_by=WORKER)
        found: list[ev.Event] = []
        for one in good:
            message: Any = one.message
            found.append(ev.Heard(one.sender, one.counter, "zmq", message))
        return found

    def turn(self, events: Sequence[ev.Event]) -> dict[str, list[Any]]:
        """Returns what is posted, by worker."""
        self._now += 0.01
        coordinator, store = self._coordinator, self._store
        with self._stage("look up"):
            facts = store.lookup(coordinator.questions(self._now, events))
        with self._stage("decide"):
            turn = coordinator.turn(self._now, 1e9 + self._now, events, facts)
        with self._stage("commit"):
            store.commit(turn.changes)
        posts: dict[str, list[Any]] = {}
        with self._stage("send"):
            for effect in turn.effects:
                if not isinstance(effect, Post):
                    continue
                messages: list[Any] = [
                    filled(one, store.specs([item.row for item in one.items]))
                    if isinstance(one, Deliver)
                    else one
                    for one in effect.messages
                ]
                encode_frame(
                    Envelope(MANAGER, MANAGER, effect.worker_id, 1, 0.0, one) for one in messages
                )
                posts[effect.worker_id] = messages
        return posts


def one_run(tasks: int) -> dict[str, float]:
    """CPU microseconds a task of each stage; generating and queueing are not in it."""
    with tempfile.TemporaryDirectory(prefix="jf-bench-") as folder:
        manager = _Manager(Path(folder))
        try:
            return _drive(manager, [_Seat(1), _Seat(2)], tasks)
        finally:
            manager.close()


def _drive(manager: _Manager, seats: Sequence[_Seat], tasks: int) -> dict[str, float]:
    spec = encode_body({"i": 1})
    made = [Definition(f"t{n:07}", spec, bytes(16), 2, 0, None, None, None) for n in range(tasks)]
    manager.turn([ev.Generated(tuple(made))])
    for seat in seats:
        hello = Register(1, 1, "1", "3.11", "h", 1, 1, "zmq", "hash", 0)
        manager.turn([ev.Heard(seat.worker_id, 1, "zmq", hello)])
        _take(seats, manager.turn(manager.hear([seat.report(brief=False)])))
    manager.cost.clear()
    done = 0
    while any(seat.held for seat in seats):
        events: list[ev.Event] = []
        for seat in seats:
            before = len(seat.held)
            outcomes = seat.finished()
            done += before - len(seat.held)
            events += manager.hear([*outcomes, seat.report(brief=True)])
        _take(seats, manager.turn(events))
    return {name: round(seconds / done * 1e6, 2) for name, seconds in manager.cost.items()}


def _take(seats: Sequence[_Seat], posts: dict[str, list[Any]]) -> None:
    for seat in seats:
        for message in posts.get(seat.worker_id, ()):
            seat.seen = max(seat.seen, message.seq)
            if isinstance(message, Assign):
                seat.held.extend(message.items)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__)
    parser.add_argument("--tasks", type=int, default=None)
    args = parse(parser, argv)
    tasks = args.tasks or (2_000 if args.quick else 40_000)
    result = Result("stages", "tasks/s", yardstick_is=WHAT)
    result.details = {"cpu_us_per_task": []}
    pairs = Pairs(quick=args.quick)
    collector.calm()
    for _ in range(args.runs):
        cost = one_run(tasks)
        result.details["cpu_us_per_task"].append({**cost, "all": round(sum(cost.values()), 2)})
        result.add(1e6 / sum(cost.values()), pairs.after())
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
