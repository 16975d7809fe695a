"""The daemon's TCP side: one ROUTER socket for all workers.

Rules
-----
* A worker is its identity inside valid frames, never its routing address: the address of the
  newest valid frame is where answers go. With CURVE, an identity belongs to the first client key
  that used it, until it is forgotten; frames of another key under that name are refused.
* With an allow-list, its key is judged at the handshake (`zap.py`) and again with each frame: a
  connection outlives the withdrawal of its key. The core gets the key's holder.
* Nothing that a peer sends or fails to take raises. What cannot be delivered is dropped and
  counted; the worker's next report brings it back.
* Only `daemon.py` uses this. It knows envelopes, not what they mean.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import zmq

from jobflow_worker import limits
from jobflow_worker.codec import decode_frame, encode_frame
from jobflow_worker.messages import MANAGER, WORKER, Envelope, Outcome, Reject, is_worker_id
from jobflow_worker.transport.framing import to_frames
from jobflow_worker.transport.zmq import harden
from jobflowd.zap import Gate, HolderOf

#: Complaints kept from one call: they are logged at a limited rate, and counted anyway.
_COMPLAINTS_MAX: Final = 100


class BindError(Exception):
    """The address cannot be used: which, why, and what to do."""

    exit_code = 78


@dataclass(frozen=True, slots=True)
class CurveServer:
    """The server's pair (Z85, 40 bytes each) and the ZAP domain that judges client keys.

    Without a domain any client that knows the public key is let in.
    """

    public: bytes
    secret: bytes = field(repr=False)
    domain: bytes | None = None


@dataclass(slots=True)
class Received:
    """One bounded drain. `items` are valid envelopes with what their connection has proved: the
    holder of its key with an allow-list, the key itself with another judge, else None.

    `read_at` (monotonic) is set when all peers have been heard: mail that had arrived by then
    has been handed over, for every worker at least its oldest.
    """

    items: list[tuple[Envelope, str | None]] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    read_at: float | None = None

    @property
    def drained(self) -> bool:
        return self.read_at is not None


@dataclass(slots=True)
class _Peer:
    address: bytes
    key: str | None


class ZmqServer:
    """Bind, receive in bounded drains, send without blocking, close."""

    def __init__(
        self,
        bind_host: str,
        port: int = 0,
        curve: CurveServer | None = None,
        clock: Callable[[], float] = time.monotonic,
        holder_of: HolderOf | None = None,
    ) -> None:
        """`port` is a wish: 0 for any free one, and another one if it is taken.

        `holder_of` is the allow-list. Without it, whoever else answers ZAP in our context judges.
        """
        self._bind_host = bind_host
        self._wish = port
        self._curve = curve
        self._holder_of = holder_of
        self._clock = clock
        self._peers: dict[str, _Peer] = {}
        self._round: set[bytes] = set()
        self._round_count = 0
        self._round_at = 0.0
        self._closed = False
        self.port = 0
        self.undelivered = 0
        self.complained = 0
        #: The ZAP handler must live in the same context.
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
        self.context.set(zmq.MAX_SOCKETS, 65_535)
        self.gate = Gate(self.context, holder_of) if holder_of is not None else None
        self.socket: zmq.Socket[bytes] = self.context.socket(zmq.ROUTER)
        self._configure()

    def _configure(self) -> None:
        harden(self.socket)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.socket.setsockopt(zmq.BACKLOG, limits.SOCKET_BACKLOG)
        self.socket.setsockopt(zmq.RCVHWM, limits.SOCKET_FRAMES_PER_PEER_MAX)
        if self._curve is None:
            return
        self.socket.curve_server = True
        self.socket.curve_publickey = self._curve.public
        self.socket.curve_secretkey = self._curve.secret
        if self._curve.domain is not None:
            # Enforced: without a running handler everybody is refused, not let in.
            self.socket.setsockopt(zmq.ZAP_DOMAIN, self._curve.domain)
            self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)

    def bind(self) -> None:
        """Listen. Raises `BindError`; `port` is the real one afterwards."""
        host = f"[{self._bind_host}]" if ":" in self._bind_host else self._bind_host
        wishes = [str(self._wish), "*"] if self._wish else ["*"]
        for wish in wishes:
            try:
                self.socket.bind(f"tcp://{host}:{wish}")
                break
            except zmq.ZMQError as error:
                if error.errno == zmq.EADDRINUSE and wish != "*":
                    continue
                raise BindError(
                    f"cannot listen on {self._bind_host} port {self._wish or 'any'}: "
                    f"{error.strerror}; give --bind-host an address of this host, and --port 0 "
                    "for a free port"
                ) from None
        last = self.socket.getsockopt_string(zmq.LAST_ENDPOINT)
        self.port = int(last.rstrip("\0").rpartition(":")[2])

    def endpoints(self, hosts: Sequence[str]) -> list[str]:
        """What the beacon says: this server under each of the host's names or addresses."""
        return [
            f"tcp://{f'[{host}]' if ':' in host else host}:{self.port}"
            for host in dict.fromkeys(hosts)
        ]

    def sockets(self) -> list[zmq.Socket[bytes]]:
        """What to poll for input; `receive` serves all of them."""
        return [self.socket] if self.gate is None else [self.socket, self.gate.socket]

    # --- in ---------------------------------------------------------------------------------

    def receive(self, frames: int, outcomes: int | None = None) -> Received:
        """At most so many frames, and no more once there are so many outcomes in them: some frames
        have none, some a thousand. Never raises for what a peer sent."""
        received = Received()
        counted = found = 0
        if self.gate is not None:
            received.complaints += self.gate.serve()
        for _ in range(frames):
            now = self._clock()
            try:
                parts = self.socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                self._end_round()
                received.read_at = now
                break
            self._count(parts[0].bytes, now, received)
            self._take(parts, received)
            found += sum(
                len(one.message.items)
                for one, _ in received.items[counted:]
                if isinstance(one.message, Outcome)
            )
            counted = len(received.items)
            if outcomes is not None and found >= outcomes:
                break
        self.complained += len(received.complaints)
        del received.complaints[_COMPLAINTS_MAX:]
        return received

    def _count(self, address: bytes, now: float, received: Received) -> None:
        """ROUTER serves its peers in turn: after two frames per peer each has had its turn."""
        if self._round_count == 0:
            self._round_at = now
        self._round_count += 1
        self._round.add(address)
        if self._round_count >= 2 * max(len(self._peers), len(self._round)):
            received.read_at = self._round_at
            self._end_round()

    def _end_round(self) -> None:
        self._round.clear()
        self._round_count = 0

    def _take(self, parts: list[zmq.Frame], received: Received) -> None:
        address = parts[0].bytes
        if len(parts) != 2:
            received.complaints.append(f"a message of {len(parts)} parts instead of 2")
            return
        envelopes, complaints = decode_frame(parts[1].bytes, sent_by=WORKER)
        received.complaints += complaints
        if not envelopes:
            if any(one.startswith("version ") for one in complaints):
                self._refuse_version(address)
            return
        worker_id = envelopes[0].sender
        if any(one.sender != worker_id for one in envelopes):
            received.complaints.append(f"a frame of {worker_id} speaks for other workers as well")
            return
        key = self._key(parts[1])
        if self.gate is not None and key is None:
            received.complaints.append(f"a frame as {worker_id} with a key that was withdrawn")
            self._refuse(address, "launch", "the manager has given up this worker's launch")
            return
        if not self._bind_address(worker_id, address, key):
            received.complaints.append(f"a frame as {worker_id} with another client's key")
            return
        received.items += [(one, key) for one in envelopes]

    def _bind_address(self, worker_id: str, address: bytes, key: str | None) -> bool:
        peer = self._peers.get(worker_id)
        if peer is None:
            assert is_worker_id(worker_id)
            self._peers[worker_id] = _Peer(address, key)
            return True
        if peer.key != key:
            return False
        peer.address = address
        return True

    def _key(self, frame: zmq.Frame) -> str | None:
        """The holder of the client's key, or with another judge the key itself, as the ZAP handler
        answered it; None if it proves nothing (any more)."""
        if self._curve is None or self._curve.domain is None:
            return None
        try:
            key = str(frame.get("User-Id")) or None
        except zmq.ZMQError:
            return None
        return key if self._holder_of is None or key is None else self._holder_of(key)

    def _refuse_version(self, address: bytes) -> None:
        """Tell a peer of another version why nobody answers it. Its identity is not believed."""
        sentence = "this manager speaks another protocol version; install the same jobflowd"
        self._refuse(address, "version", sentence)

    def _refuse(self, address: bytes, code: str, sentence: str) -> None:
        reject = Reject(epoch=0, seq=0, base=0, code=code, sentence=sentence)
        self._send(address, [encode_frame([Envelope(MANAGER, MANAGER, "", 0, 0.0, reject)])])

    # --- out --------------------------------------------------------------------------------

    def send(self, worker_id: str, envelopes: Sequence[Envelope]) -> bool:
        """Send now or drop. False if the worker has no connection or does not read."""
        peer = self._peers.get(worker_id)
        if peer is None:
            self.undelivered += 1
            return False
        frames, complaints = to_frames(envelopes)
        self.complained += len(complaints)
        return self._send(peer.address, frames) and not complaints

    def _send(self, address: bytes, frames: list[bytes]) -> bool:
        try:
            for frame in frames:
                self.socket.send_multipart([address, frame], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            # EHOSTUNREACH: the connection is gone. EAGAIN: the peer does not read.
            if error.errno not in (zmq.EHOSTUNREACH, zmq.EAGAIN):
                raise
            self.undelivered += 1
            return False
        return True

    def forget(self, worker_id: str) -> None:
        """Drop the address and the key binding of a worker that is gone; idempotent."""
        self._peers.pop(worker_id, None)

    def close(self, linger_s: float = 0.0) -> None:
        """Give the last messages at most `linger_s` to leave; idempotent."""
        if self._closed:
            return
        self._closed = True
        self.socket.close(linger=int(linger_s * 1000))
        if self.gate is not None:
            self.gate.close()
        self.context.term()
