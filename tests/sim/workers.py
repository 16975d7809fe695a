"""Simulated nodes: the real `Session` with simulated slots, children, links and deaths."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from jobflow_worker.codec import decode_frame, encode_body, encode_frame
from jobflow_worker.messages import MANAGER, WORKER, Envelope, Failed, Finished, Held, Usage
from jobflow_worker.outbox import Outgoing
from jobflow_worker.session import Session
from jobflow_worker.slotevents import Settled, SlotReady, Unstarted
from jobflow_worker.vocabulary import (
    BeaconSeen,
    Effect,
    Event,
    Exit,
    Feed,
    Identity,
    Kill,
    Leave,
    NoBeacon,
    ReadBeacon,
    Recall,
    Reconnect,
    Send,
    Spool,
)
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.run import Simulation

#: How often a session may act in a row without time passing before it is called a spin.
SPIN_MAX = 100


class Fate(NamedTuple):
    """What an attempt will come to: ok, a failure cause, or "agent": it kills its worker."""

    kind: str
    duration_s: float


@dataclass(slots=True)
class Job:
    """An attempt in a slot's child."""

    held: Held
    fate: Fate
    token: int
    began: float


class SimSlot:
    """Behaves as `slots.Slot` does, with a simulated child."""

    def __init__(self, worker: SimWorker, number: int) -> None:
        self.worker = worker
        self.number = number
        self.queue: deque[Held] = deque()
        self.head: Job | None = None
        self.ready = False
        self.doomed = False
        self._token = 0

    def start(self, delay_s: float) -> None:
        self.worker.world.at(delay_s, self._loaded)

    def _loaded(self) -> None:
        if self.worker.alive:
            self.ready = True
            self.worker.act(SlotReady(self.number))
            self._begin()

    def feed(self, items: tuple[Held, ...]) -> None:
        self.queue.extend(items)
        self._begin()

    def _begin(self) -> None:
        if self.head is not None or not self.ready or self.doomed or not self.queue:
            return
        worker = self.worker
        held = self.queue.popleft()
        fate = worker.sim.fate(held, worker.host)
        self._token += 1
        self.head = Job(held, fate, self._token, worker.world.now)
        worker.sim.checks.began(worker, held)
        worker.world.at(fate.duration_s, self._end, self._token)

    def _end(self, token: int) -> None:
        worker, head = self.worker, self.head
        if not worker.alive or head is None or head.token != token:
            return
        if worker.frozen:
            worker.world.at(0.1, self._end, token)
            return
        if head.fate.kind == "agent":
            worker.sim.checks.killed_by(head.held)
            worker.die("poison")
            return
        self._settle(head, head.fate.kind)

    def _settle(self, head: Job, kind: str) -> None:
        worker = self.worker
        usage = Usage(worker.world.now - head.began, 0.0, 0)
        outcome: Finished | Failed
        if kind == "ok":
            body = encode_body([head.held.task_id, head.held.attempt])
            outcome = Finished(*head.held, body, None, usage, "")
        else:
            outcome = Failed(
                *head.held, kind, f"{kind} of the simulator", "", None, None, usage, ""
            )
        self.head = None
        events: list[Event] = [Settled(self.number, outcome)]
        dead = kind in ("crash", "timeout", "memory", "canceled") or self.doomed
        if dead:
            # The child died with it: what waited behind certainly never began.
            if self.queue:
                events.append(Unstarted(self.number, tuple(self.queue)))
                self.queue.clear()
            self.ready = self.doomed = False
            self.start(worker.world.rng.uniform(0.1, 1.0))
        worker.sim.checks.ended(worker, head.held, kind)
        worker.act(*events)
        self._begin()

    def recall(self) -> tuple[Held, ...]:
        taken = tuple(self.queue)
        self.queue.clear()
        return taken

    def kill(self, held: Held) -> list[Event]:
        if self.doomed:
            return []
        if self.head is not None and self.head.held == held:
            self.doomed = True
            self.worker.world.at(self.worker.world.rng.uniform(0.0, 2.0), self._killed, self._token)
            if not self.queue:
                return []
            back = Unstarted(self.number, self.recall())
            return [back]
        if held in self.queue:
            self.queue.remove(held)
            return [Unstarted(self.number, (held,))]
        return []

    def _killed(self, token: int) -> None:
        head = self.head
        if self.worker.alive and head is not None and head.token == token:
            self._settle(head, "canceled")


class SimWorker:
    """One agent process: acts, sends, is frozen, dies."""

    def __init__(self, sim: Simulation, number: int, transport: str, launch_id: str | None) -> None:
        self.sim = sim
        self.world = sim.world
        rng = random.Random(f"worker {sim.profile.seed} {number}")
        self.worker_id = f"w{number}-{rng.getrandbits(64):016x}"
        self.transport = transport
        self.launch_id = launch_id
        self.alive = True
        self.exit_code: int | None = None
        self.frozen = False
        self._kept: list[Event] = []
        slots = sim.profile.slots
        self.host = f"host{number % 3}"
        text = sim.program_hash
        identity = Identity("1", "3", self.host, number, slots, text, launch_id)
        self.session = Session(identity, manager_timeout_s=sim.manager_timeout_s)
        self.session.transport = transport
        self.slots = [SimSlot(self, one) for one in range(slots)]
        self.room = 0
        self._token = 0
        self._wake_at = float("inf")
        self._spins = 0
        self._read_version = 0
        self._registered = False
        self._look_s = 0.01
        for slot in self.slots:
            slot.start(rng.uniform(0.05, 0.5))
        if transport == "fs":
            self.world.at(0.1, self._look)

    # --- acting -------------------------------------------------------------------------------

    def act(self, *events: Event) -> None:
        """One pass of the agent's loop."""
        if not self.alive:
            return
        if self.frozen:
            self._kept.extend(events)
            return
        more = list(events)
        while True:
            self.world.stats["session_turns"] += 1
            effects = self.session.handle(self.world.now, more)
            self.sim.checks.acted(self, more)
            if self.world.traced and (more or effects):
                self.world.trace(f"{self.worker_id[:4]} {more!r} -> {effects!r}")
            more = [event for effect in effects for event in self._perform(effect)]
            if not more or not self.alive:
                break
        if self.alive:
            self._plan()

    def _plan(self) -> None:
        deadline = self.session.next_deadline()
        if deadline is None:
            return
        if deadline <= self.world.now:
            self._spins += 1
            if self._spins > SPIN_MAX:
                raise Violation(f"{self.worker_id} spins: its deadline never moves")
        else:
            self._spins = 0
        if deadline < self._wake_at or self._wake_at <= self.world.now:
            self._wake_at = max(deadline, self.world.now + 1e-4)
            self._token += 1
            self.world.at(self._wake_at - self.world.now, self._wake, self._token)

    def _wake(self, token: int) -> None:
        if self.alive and token == self._token:
            self._wake_at = float("inf")
            self.act()

    def _perform(self, effect: Effect) -> list[Event]:
        match effect:
            case Send(fresh):
                self._send(fresh)
            case Feed(slot, items):
                self.slots[slot].feed(tuple(Held(one.task_id, one.attempt) for one in items))
            case Recall(slot):
                return [Unstarted(slot, self.slots[slot].recall())]
            case Kill(slot, held):
                return self.slots[slot].kill(held)
            case ReadBeacon():
                seen = self.sim.beacon
                return [NoBeacon() if seen is None else BeaconSeen(*seen, ())]
            case Reconnect():
                pass
            case Spool():
                self.sim.mail.spools[self.worker_id] = self._frame(self.session.outbox.waiting())
                self.world.stats["spools"] += 1
            case Exit(code, _):
                self.exit_code = code
                self.die("exit")
        return []

    # --- links --------------------------------------------------------------------------------

    def _frame(self, outgoing: list[Outgoing] | tuple[Outgoing, ...]) -> bytes:
        return encode_frame(
            Envelope(WORKER, self.worker_id, "", one.counter, 0.0, one.message) for one in outgoing
        )

    def _send(self, fresh: tuple[Outgoing, ...]) -> None:
        self.sim.checks.sent(self, fresh)
        if self.transport == "zmq":
            frame = self._frame(fresh)
            self.world.stats["frames_up"] += 1
            manager = self.sim.manager
            self.sim.net.send("up", self.worker_id, manager.arrive, self.worker_id, frame)
            return
        self._registered = True
        delay = self.sim.mail.write("up", self.worker_id, self._frame(self.session.everything()))
        self.world.at(delay + 0.005, self.sim.manager.look_at, self.worker_id)
        self._look_s = 0.01

    def arrive(self, frame: bytes) -> None:
        """A frame of the manager."""
        if not self.alive:
            return
        envelopes, complaints = decode_frame(frame, sent_by=MANAGER)
        if complaints:
            raise Violation(f"the manager sent what is not valid: {complaints}")
        self.act(*[one.message for one in envelopes])  # type: ignore[misc]

    def _look(self) -> None:
        """The mailbox link's reading, at its own pace."""
        if not self.alive:
            return
        found = self.sim.mail.read("down", self.worker_id)
        half_beat = self.sim.profile.heartbeat_s / 2
        self._look_s = min(half_beat, 2 * self._look_s)
        if found is not None and found[0] != self._read_version:
            self._read_version = found[0]
            self._look_s = 0.02
            self.arrive(found[1])
        self.world.at(self._look_s, self._look)

    # --- fates --------------------------------------------------------------------------------

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, and SIGCONT later."""
        if self.alive and not self.frozen:
            self.frozen = True
            self.world.fault("worker_pause")
            self.world.at(seconds, self.thaw)

    def thaw(self) -> None:
        if self.frozen:
            self.frozen = False
            kept, self._kept = self._kept, []
            self.act(*kept)

    def leave(self, cause: str) -> None:
        """A signal of the batch system."""
        if self.alive:
            self.act(Leave(cause))

    def die(self, why: str) -> None:
        """The process is gone, with its children."""
        if not self.alive:
            return
        self.alive = False
        if self.world.traced:
            self.world.trace(f"{self.worker_id[:4]} dies: {why}")
        for slot in self.slots:
            if slot.head is not None:
                self.sim.checks.ended(self, slot.head.held, "died")
        self.sim.cluster.on_worker_gone(self, why)
