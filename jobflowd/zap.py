"""Who may connect: the ZAP handler (RFC 27), answered by the daemon's own loop.

Rules
-----
* libzmq asks before it lets a client in, and waits: the answer is a look-up in memory. There is
  no thread, and nothing that could stop while the sockets go on.
* It fails closed: whatever is not a well-formed question about a listed key is answered with 400,
  and without an answer nobody gets in (ZAP_ENFORCE_DOMAIN).
* The answer's user id is the client's public key; it comes back with every frame of that
  connection and is judged again there, since a key may be withdrawn while a connection stands.

Used by `zmqserver.py` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import zmq
from zmq.utils import z85

#: The name under which libzmq asks about our sockets; "" or "*" would mean something else.
DOMAIN: Final = b"jobflow"
_ENDPOINT: Final = "inproc://zeromq.zap.01"
_VERSION: Final = b"1.0"
_KEY_BYTES: Final = 32

#: A client's public key (Z85) to the holder that it was made for, or None.
HolderOf = Callable[[str], str | None]


class Gate:
    """Answers libzmq's questions in one context. To be made before the guarded socket binds."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], holder_of: HolderOf) -> None:
        self._holder_of = holder_of
        self.admitted = 0
        self.refused = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ENDPOINT)

    def serve(self, limit: int = 256) -> list[str]:
        """Answer what is asked, at most `limit`; returns a complaint for each refusal."""
        complaints: list[str] = []
        for _ in range(limit):
            try:
                parts = self.socket.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                break
            self._answer(parts, complaints)
        return complaints

    def _answer(self, parts: list[bytes], complaints: list[str]) -> None:
        # Peer of this inproc pipe, empty delimiter, version, request id, domain, address, ...
        if len(parts) < 8 or parts[1] != b"":
            return  # Not a question, so there is nothing to answer: its client waits in vain.
        peer, _, version, request, domain, address, _, mechanism, *credentials = parts
        key = ""
        if (version, domain, mechanism) == (_VERSION, DOMAIN, b"CURVE") and len(credentials) == 1:
            key = _text_of(credentials[0])
        if key and self._holder_of(key) is not None:
            self.admitted += 1
            answer = [b"200", b"OK", key.encode(), b""]
        else:
            self.refused += 1
            answer = [b"400", b"unknown key", b"", b""]
            complaints.append(
                "refused a client whose key is not of this session, from "
                f"{address.decode(errors='replace')[:64]}"
            )
        self.socket.send_multipart([peer, b"", _VERSION, request, *answer], zmq.DONTWAIT)

    def close(self) -> None:
        """Idempotent. From now on nobody gets in."""
        self.socket.close()


def _text_of(key: bytes) -> str:
    return z85.encode(key).decode() if len(key) == _KEY_BYTES else ""
