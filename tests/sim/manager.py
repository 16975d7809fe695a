"""The daemon's shell, simulated: the real Coordinator, a real or fast store, and the same order.

Look up, decide, commit, perform; bounded drains; degraded mode by the real `Recovery`; and crashes
before the commit, after it, and between effects. The methods are small so that planted bugs can
replace one of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from jobflow_worker.codec import decode_frame, encode_frame
from jobflow_worker.messages import MANAGER, WORKER, Assign, Assignment, Envelope
from jobflowd import events as ev
from jobflowd import recovery
from jobflowd.book import Settings
from jobflowd.company import Company
from jobflowd.coordinator import Coordinator
from jobflowd.dbfile import DiskFull
from jobflowd.effects import (
    CancelLaunch,
    Deliver,
    Effect,
    Forget,
    Post,
    QueryLaunches,
    Reply,
    Submit,
)
from jobflowd.recovery import Recovery
from tests.sim.world import Violation

if TYPE_CHECKING:
    from tests.sim.run import Simulation

#: The daemon wakes up this long after something arrived.
LATENCY_S = 0.0005
SPIN_MAX = 200


class Crash(Exception):
    """kill -9 of the manager."""


class SimManager:
    """One session's daemon over all its lives."""

    def __init__(self, sim: Simulation, settings: Settings, store: Any) -> None:
        self.sim = sim
        self.world = sim.world
        self.settings = settings
        self.store = store
        self.incarnation = 0
        self.up = False
        self.frozen_until = 0.0
        self.frozen_since = -1.0
        self.listening_since = 0.0
        self.coordinator: Coordinator
        self.exit_code: int | None = None
        self.full_until = 0.0
        self._pending: list[ev.Event] = []
        self._company = Company()
        self.socket: deque[tuple[str, bytes]] = deque()
        self._peers: dict[str, None] = {}
        self._boxes: dict[str, int] = {}
        self._spools: list[str] = []
        self._wake_at = float("inf")
        self._spins = 0
        self._counter = 0
        self._was_ending = False

    # --- life ---------------------------------------------------------------------------------

    def start(self) -> None:
        """A new life over the same store."""
        world = self.world
        self.incarnation += 1
        self.up, self.exit_code, self._was_ending = True, None, False
        self.listening_since = world.now
        self.frozen_until, self.frozen_since = 0.0, -1.0
        world.stats["lives"] += 1
        # The real Recovery reads its clocks through this name.
        recovery.time = SimpleNamespace(  # type: ignore[assignment, attr-defined]
            monotonic=lambda: world.now, time=lambda: world.wall
        )
        snapshot = self.store.begin_epoch("adopt", wall=world.wall)
        self.coordinator = Coordinator(self.settings, snapshot, int(snapshot.meta["epoch"]))
        self.recovery = Recovery(self.store, self.settings, Path("nowhere"))
        self.sim.edit_program()
        self._pending = [ev.ProgramChanged(self.sim.program_hash)]
        self._company = Company()
        self.socket.clear()
        self._peers.clear()
        self._boxes.clear()
        self._wake_at = float("inf")
        self.sim.checks.on_life(snapshot)
        self.sim.put_beacon("open")
        life = self.incarnation
        for worker in self.sim.cluster.alive:
            # The connection is new; the socket of the earlier life is gone with what lay in it.
            self.sim.net.link_up[worker.worker_id] = world.now + world.rng.uniform(0.01, 0.5)
        world.at(world.rng.uniform(0.01, 0.3), self._read_everything, life)
        self.sim.generate(life)
        self.wake(LATENCY_S)

    def _read_everything(self, life: int) -> None:
        """Every mailbox and spool that was there at the start is handed over; then it is said."""
        if life != self.incarnation or not self.up:
            return
        for worker_id in self.sim.mail.writers():
            self.look_at(worker_id)
        self._read_spools(life)
        self.tell(life, ev.TransportsReady())

    def _read_spools(self, life: int) -> None:
        if life != self.incarnation or not self.up:
            return
        if not self.recovery.degraded:
            for worker_id, frame in sorted(self.sim.mail.spools.items()):
                envelopes, _ = decode_frame(frame, sent_by=WORKER)
                for one in envelopes:
                    heard = ev.Heard(worker_id, one.counter, "fs", one.message, spooled=True)
                    self._pending.append(heard)
                self._spools.append(worker_id)
        self.wake(LATENCY_S)
        self.world.at(10.0, self._read_spools, life)

    def die(self) -> None:
        """kill -9."""
        if not self.up:
            return
        self.world.trace("manager dies")
        self.up = False
        self.incarnation += 1
        self._spools.clear()

    def freeze(self, seconds: float) -> None:
        """SIGSTOP, suspend, or a file system that hangs."""
        if self.up and not self.frozen:
            self.frozen_until = self.world.now + seconds
            self.frozen_since = self.world.now
            self.world.at(seconds, self.thaw, self.incarnation, self.world.now)

    def thaw(self, life: int, since: float) -> None:
        """It goes on; a pause of more than two heartbeats is one that it must notice."""
        mine = life == self.incarnation and since == self.frozen_since >= 0.0
        if self.up and mine and self.world.now >= self.frozen_until:
            self.frozen_since = -1.0
            if self.world.now - since > 2 * self.settings.heartbeat_s:
                self.listening_since = self.world.now
            self._wake_at = float("inf")
            self.wake(LATENCY_S)

    @property
    def frozen(self) -> bool:
        return self.world.now < self.frozen_until

    # --- what arrives -------------------------------------------------------------------------

    def tell(self, life: int, *events: ev.Event) -> None:
        """Events for this life of the daemon only."""
        if self.up and life == self.incarnation:
            self._pending.extend(events)
            self.wake(LATENCY_S)

    def arrive(self, worker_id: str, frame: bytes) -> None:
        """A zmq frame reaches the socket's queue."""
        if self.up:
            self._peers[worker_id] = None
            self.socket.append((worker_id, frame))
            self.wake(LATENCY_S)

    def look_at(self, worker_id: str) -> None:
        """The mailbox process reads a mailbox and hands over what is new, and that it was read."""
        if not self.up:
            return
        if worker_id not in self._boxes:
            self._boxes[worker_id] = 0
            self.world.at(self.settings.heartbeat_s / 2, self._look_again, worker_id,
                          self.incarnation)  # fmt: skip
        found = self.sim.mail.read("up", worker_id)
        if found is not None and found[0] != self._boxes[worker_id]:
            self._boxes[worker_id] = found[0]
            envelopes, complaints = decode_frame(found[1], sent_by=WORKER)
            self.sim.checks.valid(complaints)
            for one in envelopes:
                self._pending.append(ev.Heard(worker_id, one.counter, "fs", one.message))
        self._pending.append(ev.MailRead(self.world.now, worker_id))
        self.wake(LATENCY_S)

    def _look_again(self, worker_id: str, life: int) -> None:
        if self.up and life == self.incarnation and worker_id in self._boxes:
            self.look_at(worker_id)
            self.world.at(self.settings.heartbeat_s / 2, self._look_again, worker_id, life)

    # --- the loop -----------------------------------------------------------------------------

    def wake(self, delay_s: float) -> None:
        """Let a pass happen then, or earlier if one is planned."""
        at = self.world.now + delay_s
        if at < self._wake_at:
            self._wake_at = at
            self.world.at(delay_s, self._on_wake, self.incarnation, at)

    def _on_wake(self, life: int, at: float) -> None:
        if not self.up or life != self.incarnation or at != self._wake_at or self.frozen:
            return
        self._wake_at = float("inf")
        try:
            self._pass()
        except Crash:
            self.sim.crashed()
            return
        if self.up:
            self._plan()

    def _plan(self) -> None:
        times = [self.recovery.retry_at, self._company.until]
        if not self.recovery.degraded:
            times.append(self.coordinator.next_deadline())
        deadline = min((at for at in times if at is not None), default=None)
        if self._pending or self.socket:
            self.wake(LATENCY_S)
        elif deadline is not None:
            self._spins = self._spins + 1 if deadline <= self.world.now else 0
            if self._spins > SPIN_MAX:
                raise Violation("the manager spins: its deadline never moves")
            self.wake(max(deadline - self.world.now, 1e-4))

    def _pass(self) -> None:
        now = self.world.now
        if self.recovery.retry_at is not None and now >= self.recovery.retry_at:
            self._try_to_recover()
        events, self._pending = self._pending, []
        read_at = self._drain(events)
        deadline = self.coordinator.next_deadline()
        due = deadline is not None and deadline <= now
        if read_at is not None and (events or due):
            events.append(ev.MailRead(read_at))
        events = self._company.join(events, self.coordinator.book, now, due=due)
        if events or due:
            self._turn(events)
        if self.coordinator.book.finishing is None or self.world.chaos:
            self.sim.finishing_at = self.world.now
        # What a full disk refused has not happened, the end of the run included.
        if self.up and not self.recovery.degraded and self.coordinator.finished is not None:
            self.exit_code = self.coordinator.finished
            self.sim.exited(self.exit_code)

    def _drain(self, events: list[ev.Event]) -> float | None:
        """A bounded number of frames; the time, if the socket was seen empty."""
        limit = len(self.socket)
        if self.world.chaos and limit > 1 and self.world.chance(self.sim.profile.drain_few):
            limit = self.world.rng.randrange(limit)
        for _ in range(limit):
            _, frame = self.socket.popleft()
            envelopes, complaints = decode_frame(frame, sent_by=WORKER)
            self.sim.checks.valid(complaints)
            for one in envelopes:
                events.append(ev.Heard(one.sender, one.counter, "zmq", one.message))
        return None if self.socket else self.world.now

    def _turn(self, events: Sequence[ev.Event]) -> None:
        if self.recovery.degraded:
            self.recovery.keep(events)
            answers = self.recovery.bare_answers(events, self.coordinator.book.epoch)
            self._perform(answers)
            return
        world = self.world
        world.stats["turns"] += 1
        ending = self.coordinator.book.finishing
        facts = self.store.lookup(self.coordinator.questions(world.now, events))
        turn = self.coordinator.turn(world.now, world.wall, events, facts)
        if world.traced:
            world.trace(f"turn {events!r} -> {turn.effects!r}")
            for row, task in turn.changes.all_tasks.items():
                world.trace(f"  {row} {task!r}")
        self.sim.checks.rates.heard(events)
        try:
            self._commit_and_perform(turn.changes, turn.effects)
        except DiskFull as error:
            world.fault("disk_full")
            self.coordinator.book.finishing = ending
            self.recovery.degrade(events, str(error))
            self._spools.clear()
            return
        if self._was_ending and self.coordinator.book.finishing is None:
            raise Violation("the run was to end, and after a full disk nobody knows of it")
        self._was_ending = False
        for worker_id in self._spools:
            self.sim.checks.taken_in(self.sim.mail.spools.pop(worker_id, b""))
        self._spools.clear()

    def _commit_and_perform(self, changes: Any, effects: Sequence[Effect]) -> None:
        crash = self._crash_point()
        if crash == "before":
            raise Crash
        self.commit(changes)
        if crash == "after":
            raise Crash
        self._perform(effects, crash)

    def _crash_point(self) -> str:
        if not self.world.chaos or not self.world.chance(self.sim.profile.crash_in_turn):
            return ""
        return self.world.rng.choice(("before", "after", "between"))

    def commit(self, changes: Any) -> None:
        """Durable, or DiskFull and nothing of it."""
        if self.world.now < self.full_until and not changes.empty:
            raise DiskFull("no space left on device")
        checks = self.sim.checks
        checks.before_commit(self, changes)
        self.store.commit(changes)
        checks.after_commit(self, changes)

    def _try_to_recover(self) -> None:
        if self.world.now < self.full_until:
            self.recovery.retry_at = self.world.now + 1.0
            return
        ending = self.coordinator.book.finishing
        found = self.recovery.try_again(self.coordinator)
        if found is not None:
            self._was_ending = ending in ("shutdown", "detach")
            self.coordinator, events = found
            self.listening_since = self.world.now
            self.sim.checks.on_life(self.store.load())
            self.sim.put_beacon("open")
            self._pending = [*events, *self._pending]

    # --- effects ------------------------------------------------------------------------------

    def _perform(self, effects: Sequence[Effect], crash: str = "") -> None:
        stop_at = self.world.rng.randrange(len(effects) + 1) if crash == "between" else None
        for number, effect in enumerate(effects):
            if number == stop_at:
                raise Crash
            match effect:
                case Post():
                    self.post(effect)
                case Forget(worker_id, transport):
                    self._forget(worker_id, transport)
                case Submit() | CancelLaunch() | QueryLaunches():
                    self._pending.extend(self.sim.cluster.perform(effect))
                case Reply(_, _, error):
                    self.world.stats["replies" if error is None else "refusals"] += 1
                case _:
                    raise Violation(f"an effect that this history has no cause for: {effect}")
        if stop_at is not None:
            raise Crash

    def _forget(self, worker_id: str, transport: str) -> None:
        if transport == "fs":
            self.sim.mail.remove(worker_id)
            self._boxes.pop(worker_id, None)
        else:
            self._peers.pop(worker_id, None)

    def post(self, post: Post) -> None:
        """Fill in the specs, encode, send or drop."""
        self.sim.checks.posts(self, post)
        envelopes = []
        for message in post.messages:
            if isinstance(message, Deliver):
                message = self._filled(message)
            self._counter += 1
            envelopes.append(Envelope(MANAGER, MANAGER, post.worker_id, self._counter, 0, message))
        frame = encode_frame(envelopes)
        self.world.stats["frames_down"] += 1
        if post.transport == "fs":
            self.sim.mail.write("down", post.worker_id, frame)
        elif post.worker_id in self._peers:
            worker = self.sim.by_id[post.worker_id]
            self.sim.net.send("down", post.worker_id, worker.arrive, frame)

    def _filled(self, deliver: Deliver) -> Assign:
        specs = self.store.specs([one.row for one in deliver.items])
        items = tuple(
            Assignment(one.task_id, one.attempt, specs[one.row], one.timeout_s, one.memory_bytes)
            for one in deliver.items
        )
        return Assign(deliver.epoch, deliver.seq, deliver.base, items)
