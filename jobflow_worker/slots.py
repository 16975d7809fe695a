"""The agent's side of a slot: feed a warm child, watch it, end it, and say truly what happened.

Rules
-----
* The queue of fed attempts lives here, in order. Its first `_sent` entries are in the socket or
  with the child, the rest is backlog. The child takes one at a time, so of those that have left
  the socket at most the first has no outcome: that one is running, and only it is ever blamed.
* The agent holds a second descriptor of the child's end of the socket. Reading there takes whole
  packets back, each atomically: what comes back never ran, what does not come back was taken. The
  child may take one while its neighbours are taken back, so packets are known by their names.
* What a dead child had said is read to the end before its death is judged: an outcome that was
  sent counts.
* Nothing here blocks but `close`, `close_all` and the exec in `start`.

One thread owns a slot and makes all its calls. Times are monotonic seconds.
"""

from __future__ import annotations

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

from jobflow_worker import childwire, limits
from jobflow_worker.childproc import ChildProcess, ChildSetup, End
from jobflow_worker.messages import (
    Assignment,
    Failed,
    Finished,
    Held,
    Progress,
    ResultFile,
    Usage,
)
from jobflow_worker.processes import OomWatch, become_subreaper, reap_adopted
from jobflow_worker.slotevents import (
    Moved,
    Settled,
    SlotBroken,
    SlotEvent,
    SlotReady,
    Unstarted,
)
from jobflow_worker.slotwatch import Watch

__all__ = ["ChildSetup", "OomWatch", "Slot", "become_subreaper", "close_all", "reap_adopted"]

#: How often a child that loads, or orphans that die, are looked at.
_IDLE_LOOK_S: Final = 1.0
#: Pause between one SIGKILL and the next.
_KILL_AGAIN_S: Final = 0.5
#: A child that ended its pipe is dying: how soon it is looked at, and when it is killed.
_DYING_LOOK_S: Final = 0.005
_DYING_S: Final = 0.5
#: Deaths in a row without an outcome before the slot gives up, and the pause before each restart.
_FRUITLESS_MAX: Final = 3
_RESTART_S: Final = 0.5
_READS_PER_DRAIN: Final = 4
#: Far more than a pipe holds: the last words of a dead child are read to the end.
_READS_OF_DEAD: Final = 64
#: After SIGKILL only an uninterruptible sleep keeps a process; it is left to the kernel.
_KILLED_WAIT_S: Final = 2.0

_DOOM_WORDS: Final = {
    "canceled": "canceled",
    "timeout": "ran longer than its time-out",
    "memory": "used more memory than its limit",
}


class _State(Enum):
    IDLE = "not started"
    LOADING = "the child loads the program"
    READY = "the child takes attempts"
    PAUSE = "a new child comes later"
    BROKEN = "gave up"
    CLOSED = "closed"


class _Doom(NamedTuple):
    """Why the running attempt is being killed."""

    cause: str
    error: str


class Slot:
    """Room for one running attempt. See the module's rules."""

    def __init__(self, number: int, setup: ChildSetup, *, oom: OomWatch | None = None) -> None:
        self.number = number
        self._child = ChildProcess(os.path.join(setup.scratch_dir, f"slot-{number}"), setup)
        self._oom = oom
        self._state = _State.IDLE
        self._events: list[SlotEvent] = []
        self._queue: deque[Assignment] = deque()
        self._sent = 0
        self._watch = Watch(self._child)
        self._cpu_told = 0.0
        self._doom: _Doom | None = None
        self._kill_at: float | None = None
        self._useful = False
        self._fruitless = 0
        self._restart_at = 0.0
        self._looked_at = 0.0
        self._burying = False

    # --- what the agent asks --------------------------------------------------------------------

    @property
    def pid(self) -> int | None:
        """The child's pid, which is also its process group; None while there is none."""
        return self._child.pid

    @property
    def state(self) -> str:
        """One of idle, loading, ready, pause, broken, closed."""
        return self._state.name.lower()

    def fileno(self) -> int:
        """To be polled for reading; then call `drain`. The number stays over restarts.

        The pipe behind it does not: poll it by number (poll, zmq.Poller), not by epoll.
        """
        return self._child.fileno()

    def running(self) -> tuple[Held, float] | None:
        """The attempt that the child has, and since when."""
        if self._state is not _State.READY or not self._sent:
            return None
        return _held(self._queue[0]), self._watch.started_at

    def waiting(self) -> tuple[Held, ...]:
        """What was fed behind the running one, in order."""
        skip = 1 if self.running() else 0
        return tuple(map(_held, self._queue))[skip:]

    def next_check(self, now: float) -> float | None:
        """When `check` wants to be called; None if only `fileno` can bring news."""
        if self._state in (_State.IDLE, _State.CLOSED):
            return None
        times = [now] if self._events else []
        if self._state is _State.PAUSE:
            times.append(self._restart_at)
        if self._kill_at is not None:
            times.append(self._kill_at)
        if self._child.hung_up:
            times.append(self._looked_at + _DYING_LOOK_S)
        if self._child.has_orphans or self._doom or self._state is _State.LOADING:
            times.append(self._looked_at + _IDLE_LOOK_S)
        if self._state is _State.READY and self._sent and self._doom is None:
            times.append(self._watch.next_look(self._queue[0]))
        return min(times, default=None)

    # --- what the agent tells -------------------------------------------------------------------

    def start(self) -> None:
        """Start the first child. Its `SlotReady` comes later."""
        assert self._state is _State.IDLE
        if self._oom is None:
            self._oom = OomWatch()
        self._child.open()
        self._spawn()

    def feed(self, assignments: Iterable[Assignment]) -> None:
        """Add attempts to the queue. Never blocks; what the child cannot take yet waits here."""
        assert self._state is not _State.CLOSED
        self._queue.extend(assignments)
        if self._state is _State.BROKEN:
            self._give_back_from(0)
        self._pump()

    def recall(self) -> tuple[Held, ...]:
        """Take back, now, all attempts that have certainly not begun, in order."""
        self._withdraw()
        return self._pop_from(self._sent)

    def kill(self, task_id: str, attempt: int, cause: str, error: str = "") -> None:
        """End this attempt if it is here; `cause` is canceled, timeout or memory.

        Running: its process group gets SIGTERM, later SIGKILL, and the outcome is a Failed with
        this cause, or its success if that was faster; what waited behind it is Unstarted. Not
        begun: it is Unstarted itself, and the others stay. The events come by `drain` or `check`.
        """
        target = Held(task_id, attempt)
        if self._doom is not None:
            return
        # Nothing more may begin while we look: otherwise the signal could meet a neighbour.
        self._withdraw()
        self._read(_READS_PER_DRAIN)
        for index, one in enumerate(self._queue):
            if _held(one) != target:
                continue
            if index < self._sent:
                self._give_back_from(self._sent)
                self._condemn(_Doom(cause, error or _DOOM_WORDS[cause]))
                return
            del self._queue[index]
            self._events.append(Unstarted(self.number, (self._let_go(one),)))
            break
        self._pump()

    def drain(self) -> list[SlotEvent]:
        """What the child said since, a bounded amount."""
        self._read(_READS_PER_DRAIN)
        self._pump()
        return self._take_events()

    def check(self, now: float) -> list[SlotEvent]:
        """Time-outs, memory, output size, escalation of kills, death and restart."""
        self._looked_at = now
        if self._child.has_orphans:
            self._child.reap_orphans()
        if self._child.pid is not None:
            self._look(now)
        elif self._state is _State.PAUSE and now >= self._restart_at:
            self._spawn()
        return self._take_events()

    def close(self, grace_s: float) -> None:
        """End the child and its process group, reap, remove the slot's folder.

        Blocks for up to `grace_s` and a moment. What the child says meanwhile is not read:
        `drain` before. Attempts that are still here have no outcome.
        """
        close_all([self], grace_s)

    # --- feeding --------------------------------------------------------------------------------

    def _pump(self) -> None:
        """Move backlog into the socket, as much as it takes."""
        if self._state is not _State.READY or self._doom is not None or self._child.hung_up:
            return
        if not self._sent and self._queue:
            self._watch.begin()
        while self._sent < len(self._queue):
            one = self._queue[self._sent]
            try:
                if not self._child.send(one):
                    return  # Full: the next outcome makes room.
            except OSError as error:
                del self._queue[self._sent]
                text = f"OSError: its spec cannot be handed to it: {error}"
                self._settle_badly(one, "exception", text, None, Usage(0.0, 0.0, 0), "")
                continue
            self._sent += 1

    def _let_go(self, one: Assignment) -> Held:
        """The queue no longer holds it; nor does the disk."""
        held = _held(one)
        self._child.forget(held)
        return held

    def _withdraw(self) -> None:
        """Every packet that the child has not taken becomes backlog again, in its order."""
        back = set(self._child.take_back(self._sent))
        if not back:
            return
        sent = [self._queue.popleft() for _ in range(self._sent)]
        self._queue.extendleft(reversed([one for one in sent if _held(one) in back]))
        kept = [one for one in sent if _held(one) not in back]
        self._queue.extendleft(reversed(kept))
        self._sent = len(kept)

    def _pop_from(self, index: int) -> tuple[Held, ...]:
        popped = [self._queue.pop() for _ in range(len(self._queue) - index)]
        return tuple(self._let_go(one) for one in reversed(popped))

    def _give_back_from(self, index: int) -> None:
        """Everything in the queue from here on never began."""
        if len(self._queue) > index:
            self._events.append(Unstarted(self.number, self._pop_from(index)))

    # --- what the child says --------------------------------------------------------------------

    def _take_events(self) -> list[SlotEvent]:
        events, self._events = self._events, []
        return events

    def _read(self, reads: int) -> None:
        for _ in range(reads):
            try:
                frames, more = self._child.read()
                for items in frames:
                    self._on_frame(items)
            except (childwire.Corrupt, TypeError, ValueError, IndexError):
                self._kill_liar("its process sent what is not a message of ours")
                return
            if not more:
                break
        if self._child.hung_up and not self._burying:
            dying_at = time.monotonic() + _DYING_S
            self._kill_at = min(dying_at, self._kill_at or dying_at)
            self._bury()

    def _on_frame(self, items: list[Any]) -> None:
        kind = items[0]
        if kind == childwire.FINISHED:
            _, task_id, attempt, body, file, tail, *usage = items
            stored = ResultFile(*file) if file else None
            self._on_outcome(Finished(task_id, attempt, body, stored, Usage(*usage), tail))
        elif kind == childwire.FAILED:
            _, task_id, attempt, cause, error, said, tail, *usage = items
            cost = Usage(*usage)
            self._on_outcome(Failed(task_id, attempt, cause, error, said, None, None, cost, tail))
        elif kind == childwire.PROGRESS:
            self._on_progress(Progress(*items[1:]))
        elif kind == childwire.READY:
            self._cpu_told = float(items[1])
            self._state = _State.READY
            self._events.append(SlotReady(self.number))
        elif kind == childwire.BROKEN:
            self._give_up(items[1], items[2])

    def _is_head(self, named: Finished | Failed | Progress) -> bool:
        if not self._sent:
            return False
        head = self._queue[0]
        return named.task_id == head.task_id and named.attempt == head.attempt

    def _on_outcome(self, outcome: Finished | Failed) -> None:
        if not self._is_head(outcome):
            return
        self._useful = True
        if self._doom is not None:
            # It survived the SIGTERM, but its process group did not: this child is of no use.
            self._kill_at = time.monotonic()
            if isinstance(outcome, Failed):
                return
        self._cpu_told += outcome.usage.cpu_s
        self._let_go(self._queue.popleft())
        self._sent -= 1
        self._events.append(Settled(self.number, outcome))
        self._watch.begin()

    def _on_progress(self, progress: Progress) -> None:
        """The first of an attempt; later ones stand in a file."""
        if not self._is_head(progress):
            return
        self._watch.announce(progress)
        self._events.append(Moved(self.number, progress))

    # --- watching -------------------------------------------------------------------------------

    def _look(self, now: float) -> None:
        if self._bury():
            return
        if self._kill_at is not None and now >= self._kill_at:
            if self._doom is None and self._child.hung_up:
                self._kill_liar("its process closed the descriptors that its worker needs")
            self._child.signal(signal.SIGKILL)
            self._kill_at = now + _KILL_AGAIN_S
        elif self._state is _State.READY and self._sent and self._doom is None:
            head = self._queue[0]
            excess = self._watch.excess(now, head)
            progress = self._watch.progress()
            if progress and self._is_head(progress):
                self._events.append(Moved(self.number, progress))
            if excess:
                self.kill(head.task_id, head.attempt, excess.cause, excess.error)

    def _condemn(self, doom: _Doom) -> None:
        """Kill the running attempt: gently, unless the node's memory is at stake."""
        self._doom = doom
        at_once = doom.cause == "memory"
        self._kill_at = time.monotonic() + (_KILL_AGAIN_S if at_once else limits.KILL_GRACE_S)
        self._child.signal(signal.SIGKILL if at_once else signal.SIGTERM)

    def _kill_liar(self, error: str) -> None:
        self._doom = _Doom("crash", error)
        self._kill_at = time.monotonic()
        self._child.signal(signal.SIGKILL)

    # --- death and restart ----------------------------------------------------------------------

    def _bury(self) -> bool:
        """If the child is dead: end its group, honour its last words, judge, restart."""
        if not self._child.is_dead():
            return False
        self._child.end_group()
        self._burying = True  # So that the end of the pipe does not lead here again.
        self._read(_READS_OF_DEAD)
        self._burying = False
        end = self._child.reap()
        self._withdraw()
        tail = self._child.output_tail()
        useful = self._useful or self._sent > 0
        doing = "waited for work" if self._state is _State.READY else "loads the program"
        words = f"The process that {doing} {end.words}"
        if self._doom is not None:
            words = f"The program cannot run: {self._doom.error}"
        self._judge(end, tail)
        self._give_back_from(0)
        self._watch.begin()
        self._doom = self._kill_at = None
        self._child.reset()
        if self._state is _State.BROKEN:
            return True
        if useful:
            self._fruitless = 0
            self._spawn()
        else:
            self._retry_later(words, tail)
        return True

    def _judge(self, end: End, tail: str) -> None:
        """The attempts that the child had taken (one, unless it lied) ended with it."""
        if not self._sent:
            return
        cpu_s = max(0.0, end.cpu_s - self._cpu_told)
        rss = max(end.max_rss_bytes, self._watch.memory_peak)
        usage = Usage(max(0.0, time.monotonic() - self._watch.started_at), cpu_s, rss)
        if self._doom is not None:
            cause, error = self._doom
        elif end.signal_name == "SIGKILL" and self._oom is not None and self._oom.rose():
            cause, error = "memory", "the kernel's out-of-memory killer ended its process"
        else:
            cause, error = "crash", f"its process {end.words}"
        for _ in range(self._sent):
            one = self._queue.popleft()
            self._sent -= 1
            self._settle_badly(one, cause, error, end, usage, tail)

    def _settle_badly(
        self, one: Assignment, cause: str, error: str, end: End | None, usage: Usage, tail: str
    ) -> None:
        self._let_go(one)
        name, code = (end.signal_name, end.exit_code) if end else (None, None)
        failed = Failed(one.task_id, one.attempt, cause, error, "", name, code, usage, tail)
        self._events.append(Settled(self.number, failed))

    def _retry_later(self, words: str, said: str) -> None:
        self._fruitless += 1
        if self._fruitless >= _FRUITLESS_MAX:
            self._give_up(f"{words}, {self._fruitless} times in a row", said)
            return
        self._state = _State.PAUSE
        self._restart_at = time.monotonic() + _RESTART_S * self._fruitless

    def _give_up(self, error: str, traceback: str) -> None:
        self._state = _State.BROKEN
        self._child.signal(signal.SIGKILL)
        self._give_back_from(0)
        self._events.append(SlotBroken(self.number, error, traceback))

    def _spawn(self) -> None:
        self._state = _State.LOADING
        self._useful = False
        try:
            self._child.start()
        except OSError as error:
            self._retry_later(f"No process can be started: {error}", "")

    # --- the end --------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Ask the child to end: by the end of its input, and SIGTERM if it is busy."""
        self._withdraw()
        self._child.end_input()
        if self._sent or self._state is not _State.READY:
            self._child.signal(signal.SIGTERM)

    def _gone(self) -> bool:
        return self._child.pid is None or self._child.is_dead()

    def _finish(self) -> None:
        """The child has ended, or never will: let go of everything."""
        if self._child.is_dead():
            self._child.reap()
        self._watch.begin()
        self._child.close()
        self._state = _State.CLOSED


def close_all(slots: Sequence[Slot], grace_s: float) -> None:
    """`Slot.close` for many at once: they share one grace."""
    open_ones = [slot for slot in slots if slot._state is not _State.CLOSED]
    for slot in open_ones:
        slot._stop()
    _wait_until(lambda: all(slot._gone() for slot in open_ones), grace_s)
    for slot in open_ones:
        slot._child.end_group()
    _wait_until(lambda: all(slot._gone() for slot in open_ones), _KILLED_WAIT_S)
    for slot in open_ones:
        slot._finish()
    _wait_until(lambda: all(slot._child.reap_orphans() for slot in open_ones), _KILLED_WAIT_S)


def _wait_until(done: Callable[[], bool], patience_s: float) -> None:
    ends_at = time.monotonic() + patience_s
    while not done() and time.monotonic() < ends_at:
        time.sleep(0.005)


def _held(one: Assignment) -> Held:
    return Held(one.task_id, one.attempt)
