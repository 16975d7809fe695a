"""The worker's TCP link: one DEALER to one manager, found among several addresses.

Rules
-----
* No routing id is set and nothing is queued for a manager that is not there (IMMEDIATE): what
  could not be sent is not kept as bytes. Once a connection stands, the whole present state is
  sent instead, so a new manager never hears stale reports.
* A manager with several addresses is probed on all of them at once, one socket each; the first
  that brings a valid frame is kept, the others are closed.
* A socket belongs to the thread that made it; there are no threads here.
* With keys, only the holder of the pinned server key is talked to. Whether the peer refused our
  key is seen through the socket's monitor and is told as `refused`; it is a claim of whoever
  answers there, so the agent asks the beacon before it believes it.

`harden` and `has_ipv6` serve the daemon's ROUTER as well.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from typing import Any, Final

import zmq

from jobflow_worker import limits
from jobflow_worker.keyfile import CurveKeys
from jobflow_worker.messages import Envelope
from jobflow_worker.transport.base import Everything, Inbox, Pollable
from jobflow_worker.transport.framing import from_manager, to_frames

#: Frames taken in one `receive`; the poller comes back for more.
FRAMES_PER_RECEIVE_MAX: Final = 64
#: libzmq judges the encrypted frame: CURVE adds a nonce, a tag and a command name.
WIRE_BYTES_MAX: Final = limits.FRAME_BYTES_MAX + limits.KIB
#: How soon a connection that came up is noticed while something waits to be sent.
_RETRY_S_MIN: Final = 0.005
_RETRY_S_MAX: Final = 1.0
#: What the monitor of a socket with keys tells.
_HANDSHAKES: Final = (
    zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


def has_ipv6() -> bool:
    """True if this host can open IPv6 sockets at all."""
    if not socket.has_ipv6:
        return False
    try:
        socket.socket(socket.AF_INET6, socket.SOCK_STREAM).close()
    except OSError:
        return False
    return True


def harden(sock: zmq.Socket[bytes]) -> None:
    """Options that both ends share: bounded memory, dead peers noticed, stalls closed.

    The reason of each number is in `limits.py`. LINGER 0: ending never waits for a peer.
    """
    sock.setsockopt(zmq.LINGER, 0)
    sock.setsockopt(zmq.MAXMSGSIZE, WIRE_BYTES_MAX)
    sock.setsockopt(zmq.SNDHWM, limits.SOCKET_SEND_FRAMES_MAX)
    sock.setsockopt(zmq.RCVHWM, limits.SOCKET_RECEIVE_FRAMES_MAX)
    sock.setsockopt(zmq.HANDSHAKE_IVL, limits.SOCKET_HANDSHAKE_S * 1_000)
    sock.setsockopt(zmq.HEARTBEAT_IVL, limits.SOCKET_PING_S * 1_000)
    sock.setsockopt(zmq.HEARTBEAT_TIMEOUT, limits.SOCKET_DEAD_S * 1_000)
    sock.setsockopt(zmq.HEARTBEAT_TTL, limits.SOCKET_DEAD_S * 1_000)
    sock.setsockopt(zmq.TCP_KEEPALIVE, 1)
    sock.setsockopt(zmq.TCP_KEEPALIVE_IDLE, limits.TCP_KEEPALIVE_IDLE_S)
    sock.setsockopt(zmq.TCP_KEEPALIVE_INTVL, limits.TCP_KEEPALIVE_INTERVAL_S)
    sock.setsockopt(zmq.TCP_KEEPALIVE_CNT, limits.TCP_KEEPALIVE_COUNT)
    if has_ipv6():
        sock.setsockopt(zmq.IPV6, 1)


class _Candidate:
    """One address of the manager. `behind`: something was not sent, all must be."""

    __slots__ = ("behind", "endpoint", "monitor", "noted", "refused", "sock")

    def __init__(self, endpoint: str, sock: zmq.Socket[bytes], behind: bool) -> None:
        self.endpoint = endpoint
        self.sock = sock
        self.behind = behind
        self.monitor: zmq.Socket[Any] | None = None
        self.refused = False
        self.noted = False

    def close(self, linger_ms: int = 0) -> None:
        if self.monitor is not None:
            self.sock.disable_monitor()
            self.monitor.close(0)
        self.sock.close(linger_ms)


class ZmqLink:
    """A link to the manager behind one or more endpoints; see `base.Link`."""

    def __init__(
        self,
        worker_id: str,
        clock: Callable[[], float],
        keys: CurveKeys | None = None,
    ) -> None:
        self.notes: list[str] = []
        self._worker_id = worker_id
        self._clock = clock
        self._keys = keys
        self._context = zmq.Context(io_threads=1)
        self._endpoints: tuple[str, ...] = ()
        self._candidates: list[_Candidate] = []
        self._everything: Everything | None = None
        self._complaints: list[str] = []
        self._heard = False
        self._heard_since_reconnect = False
        self._probed_at = 0.0
        self._retry_s = _RETRY_S_MIN
        self._retry_at = 0.0
        self._closed = False

    @property
    def kind(self) -> str:
        return "zmq"

    @property
    def full(self) -> bool:
        return False

    @property
    def heard(self) -> bool:
        """True once one of the present endpoints has answered with a valid frame."""
        return self._heard

    @property
    def refused(self) -> bool:
        """True while the peer says that it does not know our key; see the module's rules."""
        return any(one.refused for one in self._candidates)

    def rekey(self, keys: CurveKeys | None) -> None:
        """Use these keys from the next `reconnect` on, which then connects anew."""
        if keys != self._keys:
            self._keys = keys
            self._endpoints = ()

    def open(self, endpoints: Sequence[str]) -> None:
        """Start connecting to all of these. Unusable ones are noted and left out."""
        self._drop_candidates()
        self._endpoints = tuple(endpoints)
        self._heard = self._heard_since_reconnect = False
        self._probed_at = self._clock()
        for endpoint in dict.fromkeys(self._endpoints):
            self._connect(endpoint)
        self._hurry()

    def _connect(self, endpoint: str) -> None:
        sock: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        harden(sock)
        sock.setsockopt(zmq.IMMEDIATE, 1)
        pause_s = limits.SOCKET_RECONNECT_S + _any_share() * limits.SOCKET_RECONNECT_JITTER_S
        sock.setsockopt(zmq.RECONNECT_IVL, int(pause_s * 1_000))
        sock.setsockopt(zmq.RECONNECT_IVL_MAX, limits.SOCKET_RECONNECT_S_MAX * 1_000)
        if self._keys is not None:
            sock.curve_serverkey = self._keys.server_public
            sock.curve_publickey = self._keys.public
            sock.curve_secretkey = self._keys.secret
        one = _Candidate(endpoint, sock, self._everything is not None)
        if self._keys is not None:
            one.monitor = sock.get_monitor_socket(_HANDSHAKES)
        try:
            sock.connect(endpoint)
        except zmq.ZMQError as error:
            one.close()
            self.notes.append(f"endpoint {endpoint[:200]!r} is left out: {error.strerror}")
            return
        self._candidates.append(one)

    def _drop_candidates(self) -> None:
        for one in self._candidates:
            one.close()
        self._candidates.clear()

    def sockets(self) -> list[Pollable]:
        found: list[Pollable] = [one.sock for one in self._candidates]
        found += [one.monitor for one in self._candidates if one.monitor is not None]
        return found

    def _watch_handshakes(self) -> None:
        for one in self._candidates:
            for event in _handshakes(one.monitor):
                one.refused = event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                    one.noted = False
                elif not one.noted:
                    one.noted = True
                    self.notes.append(
                        f"{one.endpoint} refuses this worker's key"
                        if one.refused
                        else f"{one.endpoint} is not answered by the manager of this session: "
                        "whoever listens there does not hold its key"
                    )

    def send(self, fresh: Sequence[Envelope], everything: Everything) -> None:
        self._everything = everything
        frames, complaints = to_frames(fresh)
        self._complaints += complaints
        for one in self._candidates:
            if not one.behind:
                one.behind = not _send_all(one.sock, frames)
                if one.behind:
                    self._hurry()
        self._catch_up(self._clock())

    def _hurry(self) -> None:
        self._retry_s = _RETRY_S_MIN
        self._retry_at = self._clock() + self._retry_s

    def _catch_up(self, now: float) -> None:
        """Send the whole state where something was lost and a connection stands now."""
        behind = [one for one in self._candidates if one.behind]
        if not behind:
            return
        ready = [one for one in behind if _can_send(one.sock)]
        if ready and self._everything is not None:
            frames, complaints = to_frames(self._everything())
            self._complaints += complaints
            for one in ready:
                one.behind = not _send_all(one.sock, frames)
        if now >= self._retry_at:
            self._retry_s = min(self._retry_s * 2, _RETRY_S_MAX)
            self._retry_at = now + self._retry_s

    def receive(self) -> Inbox:
        complaints, self._complaints = self._complaints, []
        envelopes: list[Envelope] = []
        self._watch_handshakes()
        self._catch_up(self._clock())
        for one in list(self._candidates):
            frames = _receive_some(one.sock)
            good, bad = from_manager(frames, self._worker_id)
            complaints += bad
            if not good:
                continue
            envelopes += good
            self._heard_since_reconnect = True
            if not self._heard:
                self._choose(one)
                break
        return Inbox(envelopes, complaints)

    def _choose(self, chosen: _Candidate) -> None:
        self._heard = True
        for one in self._candidates:
            if one is not chosen:
                one.close()
        self._candidates = [chosen]

    def next_poll(self, now: float) -> float | None:
        if any(one.behind for one in self._candidates):
            return max(now, self._retry_at)
        return None

    def busy(self, now: float) -> None:
        """Nothing to do: the socket tells."""

    def reconnect(self, endpoints: Sequence[str]) -> None:
        """Probe anew if the endpoints are others, or the same and nothing came since last asked.

        The second case covers a restarted manager on its old port, for which libzmq would wait
        up to half a minute, and one address of several that stopped working.
        """
        if tuple(endpoints) == self._endpoints:
            silent = not self._heard_since_reconnect
            self._heard_since_reconnect = False
            patient = self._clock() - self._probed_at < limits.CONNECT_PATIENCE_S
            if not silent or patient:
                return
        self.open(endpoints)

    def close(self, linger_s: float = 2.0) -> None:
        if self._closed:
            return
        self._closed = True
        for one in self._candidates:
            one.close(int(linger_s * 1000) if self._heard else 0)
        self._candidates.clear()
        self._context.term()


def _can_send(sock: zmq.Socket[bytes]) -> bool:
    """True once a handshake is through; before it, IMMEDIATE leaves nothing to write to."""
    return bool(int(sock.getsockopt(zmq.EVENTS)) & zmq.POLLOUT)


def _send_all(sock: zmq.Socket[bytes], frames: list[bytes]) -> bool:
    """False if the peer is not there, or reads too slowly, for one of them."""
    try:
        for frame in frames:
            sock.send(frame, zmq.DONTWAIT)
    except zmq.Again:
        return False
    return True


def _any_share() -> float:
    """At random, from 0 to 1."""
    return int.from_bytes(os.urandom(4), "big") / 2**32


def _handshakes(monitor: zmq.Socket[Any] | None) -> list[int]:
    """What the handshakes came to since last asked."""
    events: list[int] = []
    while monitor is not None:
        try:
            parts = monitor.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            break
        # As zmq.utils.monitor does, which would bring asyncio and ssl into each agent.
        events.append(int.from_bytes(parts[0][:2], sys.byteorder))
    return events


def _receive_some(sock: zmq.Socket[bytes]) -> list[bytes]:
    frames: list[bytes] = []
    try:
        while len(frames) < FRAMES_PER_RECEIVE_MAX:
            parts: list[Any] = sock.recv_multipart(zmq.DONTWAIT)
            # Of more than one part, none is ours: the codec refuses an empty frame.
            frames.append(parts[0] if len(parts) == 1 else b"")
    except zmq.Again:
        pass
    return frames
