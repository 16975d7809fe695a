"""What both ends of the wire look like from an attacker's desk."""

from __future__ import annotations

import time
from collections.abc import Callable

import zmq

from jobflow_worker.codec import encode_frame
from jobflow_worker.keyfile import CurveKeys
from jobflow_worker.messages import WORKER, Envelope, FromWorker, Heartbeat, Register, Report
from jobflow_worker.transport.zmq import ZmqLink
from jobflowd.zmqserver import Received, ZmqServer

ID = "w-0123456789abcdef"
OTHER = "w-fedcba9876543210"


def register(launch_id: str | None = None, program_hash: str = "", slots: int = 1) -> Register:
    return Register(
        protocol_min=1,
        protocol_max=1,
        version="1",
        python="3",
        host="evil",
        pid=1,
        slots=slots,
        transport="zmq",
        program_hash=program_hash,
        floor=0,
        launch_id=launch_id,
    )


def beat(hb_seq: int = 1) -> Heartbeat:
    return Heartbeat(Report(epoch=1, hb_seq=hb_seq, seen=0, floor=0, credit=1))


def said(message: FromWorker, counter: int = 1, sender: str = ID) -> Envelope:
    return Envelope(WORKER, sender, "", counter, 0.0, message)


def frame(message: FromWorker, counter: int = 1, sender: str = ID) -> bytes:
    return encode_frame([said(message, counter, sender)])


def pair() -> tuple[bytes, bytes]:
    public, secret = zmq.curve_keypair()
    return public, secret


def keys(server_public: bytes, client: tuple[bytes, bytes] | None = None) -> CurveKeys:
    return CurveKeys(server_public, *(client or pair()))


def link_to(endpoint: str, with_keys: CurveKeys | None, worker_id: str = ID) -> ZmqLink:
    link = ZmqLink(worker_id, time.monotonic, with_keys)
    link.open([endpoint])
    return link


def endpoint_of(server: ZmqServer) -> str:
    return server.endpoints(["127.0.0.1"])[0]


def until(
    condition: Callable[[], object], what: str, *, within_s: float = 15.0, step_s: float = 0.005
) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(step_s)


class Table:
    """A server and the links to it, pumped together; everything that got in is in `items`."""

    def __init__(self, server: ZmqServer, *links: ZmqLink) -> None:
        self.server = server
        self.links = links
        self.items: list[tuple[Envelope, str | None]] = []
        self.complaints: list[str] = []
        self.notes: list[str] = []

    def pump(self) -> Received:
        for link in self.links:
            self.notes += link.notes
            link.notes.clear()
            self.complaints += link.receive().complaints
        received = self.server.receive(1_000)
        self.items += received.items
        self.complaints += received.complaints
        return received

    def pump_until(self, condition: Callable[[], object], what: str) -> None:
        until(lambda: (self.pump(), condition())[1], what)

    def settle(self, rounds: int = 40) -> None:
        """Give what must not happen the time in which it would."""
        for _ in range(rounds):
            self.pump()
            self.server.socket.poll(10)
