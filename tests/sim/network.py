"""What carries bytes: a datagram-like zmq and mailboxes of a shared file system.

Both carry *encoded* frames between the real Coordinator and real Sessions. The zmq here is worse
than the real one: with `ordered` off it also reorders within a connection.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.sim.swarm import Profile
from tests.sim.world import World


class Network:
    """Datagrams with loss, doubles, delay and partitions, drawn per message."""

    def __init__(self, world: World, profile: Profile) -> None:
        self.world = world
        self.profile = profile
        self._cut: dict[str, str] = {}
        self._last: dict[tuple[str, str], float] = {}
        #: worker id -> when its connection works (again).
        self.link_up: dict[str, float] = {}

    def send(self, way: str, worker_id: str, arrive: Callable[..., None], *args: Any) -> None:
        """Send "up" (to the manager) or "down"; it arrives never, once or several times."""
        world, profile = self.world, self.profile
        if world.now < self.link_up.get(worker_id, 0.0) or self._cut.get(worker_id) in (way, "all"):
            world.stats["undelivered"] += 1
            return
        copies = 1
        if world.chaos and world.chance(profile.loss):
            world.fault("lost")
            return
        if world.chaos and world.chance(profile.duplicate):
            world.fault("doubled")
            copies = 2
        for _ in range(copies):
            delay = profile.delay_s * (0.5 + world.rng.random())
            if world.chaos and copies == 2:
                delay += world.rng.expovariate(1.0)
            if profile.ordered:
                earliest = self._last.get((way, worker_id), 0.0)
                at = max(earliest + 1e-6, world.now + delay)
                if copies == 1:
                    self._last[way, worker_id] = at
                delay = at - world.now
            elif world.chaos:
                delay *= world.rng.choice((1, 1, 1, 5, 40))
            world.at(delay, arrive, *args)

    def partition(self, worker_id: str, way: str, seconds: float) -> None:
        """Cut a worker off, in one direction or both."""
        self._cut[worker_id] = way
        self.world.fault("partition")
        self.world.at(seconds, self._cut.pop, worker_id, None)

    def heal(self) -> None:
        """Nothing is cut any more."""
        self._cut.clear()


@dataclass(slots=True)
class Mailbox:
    """One file, replaced as a whole; `coming` are versions that a reader cannot see yet."""

    version: int = 0
    content: bytes = b""
    coming: deque[tuple[float, int, bytes]] = field(default_factory=deque)


class Mailboxes:
    """Two files per worker, each with one writer; a reader sees a new version after a while."""

    def __init__(self, world: World, profile: Profile) -> None:
        self.world = world
        self.profile = profile
        self._boxes: dict[tuple[str, str], Mailbox] = {}
        self._version = 0
        self.spools: dict[str, bytes] = {}

    def write(self, way: str, worker_id: str, content: bytes) -> float:
        """Replace a file; returns how long until it can be seen."""
        box = self._boxes.setdefault((way, worker_id), Mailbox())
        self._version += 1
        delay = self.profile.visible_s * self.world.rng.random()
        if self.world.chaos and self.world.chance(self.profile.loss):
            delay += self.world.rng.uniform(0.0, 5.0)
            self.world.fault("slow_file")
        box.coming.append((self.world.now + delay, self._version, content))
        return delay

    def read(self, way: str, worker_id: str) -> tuple[int, bytes] | None:
        """Version and content as this reader sees them now; None if there is no file."""
        box = self._boxes.get((way, worker_id))
        if box is None:
            return None
        newest = box.version
        for at, version, content in box.coming:
            # Latest wins: what was overtaken is never seen.
            if at <= self.world.now and version > newest:
                newest, box.content = version, content
        box.version = newest
        while box.coming and box.coming[0][1] <= newest:
            box.coming.popleft()
        return (box.version, box.content) if box.version else None

    def remove(self, worker_id: str) -> None:
        """The manager cleans up."""
        self._boxes.pop(("up", worker_id), None)
        self._boxes.pop(("down", worker_id), None)

    def writers(self) -> list[str]:
        """Every worker that has a file for the manager."""
        return [worker_id for way, worker_id in self._boxes if way == "up"]
