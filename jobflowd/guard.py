"""The proof, at every start, that the TCP side is closed to strangers.

Rules
-----
* The encryption that a library promises is not believed: a client with a key of nobody connects
  to the socket that was just bound, and must be refused. If it gets in, or nobody can tell, the
  daemon does not start.
* There is one way out, `--insecure-plaintext`, and it is said aloud at every start.

Used by `opening.py`.
"""

from __future__ import annotations

import time
from typing import Any, Final

import zmq
from zmq.utils.monitor import parse_monitor_message

from jobflow_worker.transport.zmq import harden
from jobflowd.zmqserver import ZmqServer

#: Older ones have known holes: CVE-2019-13132 (a stack overflow before authentication) and
#: CVE-2020-15166 (a plain TCP connection starves the others).
LIBZMQ_MIN: Final = (4, 3, 3)
#: The refusal takes milliseconds; a loaded node may need longer.
PROOF_PATIENCE_S: Final = 15.0

PLAINTEXT_WARNING: Final = (
    "--insecure-plaintext: whoever reaches this port can read the tasks, fake results and run "
    "code as you; leave the flag away unless you are alone on this network"
)


class GuardError(Exception):
    """The TCP side cannot be closed to strangers: why, and what to do."""

    exit_code = 78


def check_library() -> None:
    """Raises `GuardError` if this libzmq cannot encrypt, or is known to be unsafe."""
    version = zmq.zmq_version_info()
    way_out = "install pyzmq from its wheel (pip install pyzmq), or use --mode fs"
    if not zmq.has("curve"):
        raise GuardError(
            f"this libzmq {zmq.zmq_version()} was built without CURVE, so TCP would be open to "
            f"everybody; {way_out}"
        )
    if version < LIBZMQ_MIN:
        wanted = ".".join(map(str, LIBZMQ_MIN))
        raise GuardError(
            f"libzmq {zmq.zmq_version()} has known holes (CVE-2019-13132, CVE-2020-15166) and "
            f"{wanted} or newer is needed; {way_out}"
        )


def prove_closed(server: ZmqServer, public: bytes, host: str) -> None:
    """Connect to the bound server with a key of nobody; raises `GuardError` unless refused.

    Frames of real workers that come back meanwhile are let in and left for the loop.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(io_threads=1)
    stranger = context.socket(zmq.DEALER)
    harden(stranger)
    stranger.curve_serverkey = public
    stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
    monitor: zmq.Socket[Any] = stranger.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    )
    try:
        stranger.connect(server.endpoints([host])[0])
        event = _first_event(server, monitor)
    finally:
        stranger.disable_monitor()
        monitor.close(0)
        stranger.close(0)
        context.term()
    if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
        return
    what = (
        "it did not refuse a client with an unknown key"
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED
        else f"it could not be reached at {host} to try it with an unknown key"
    )
    raise GuardError(
        f"the TCP side failed its self-test: {what}; use --mode fs, or give --bind-host an "
        "address that this host can reach itself"
    )


def _first_event(server: ZmqServer, monitor: zmq.Socket[Any]) -> int | None:
    """How the stranger's handshake ended, while the gate is served; None after the patience."""
    poller = zmq.Poller()
    poller.register(monitor, zmq.POLLIN)
    if server.gate is not None:
        poller.register(server.gate.socket, zmq.POLLIN)
    give_up_at = time.monotonic() + PROOF_PATIENCE_S
    while time.monotonic() < give_up_at:
        poller.poll(100)
        if server.gate is not None:
            server.gate.serve()
        try:
            parts = monitor.recv_multipart(zmq.DONTWAIT)
        except zmq.Again:
            continue
        return int(parse_monitor_message(parts)["event"])
    return None
