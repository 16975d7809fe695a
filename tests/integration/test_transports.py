"""ROUTER and DEALER on loopback: round trips, hostile peers, keys, the choice of `auto`."""

from __future__ import annotations

import gc
import socket
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import msgpack
import pytest
import zmq
from zmq.utils import z85

from jobflow_worker import limits
from jobflow_worker.codec import encode_frame
from jobflow_worker.messages import (
    MANAGER,
    WORKER,
    Ack,
    Envelope,
    Finished,
    FromManager,
    FromWorker,
    Heartbeat,
    Register,
    Reject,
    Report,
    TaskFinished,
    Usage,
    Welcome,
)
from jobflow_worker.record import replace
from jobflow_worker.sessionfiles import Beacon, SessionPaths, write_beacon
from jobflow_worker.transport.auto import AutoLink, open_link
from jobflow_worker.transport.base import Inbox, Link
from jobflow_worker.transport.zmq import CurveKeys, ZmqLink
from jobflowd.keys import open_mail_key
from jobflowd.zmqserver import BindError, CurveServer, Received, ZmqServer

ID = "w-0123456789abcdef"
OTHER = "w-fedcba9876543210"
WELCOME = Welcome(1, 1, 0, "s1", 10.0, 60.0)
REGISTER = Register(
    protocol_min=1,
    protocol_max=1,
    version="1",
    python="3",
    host="h",
    pid=1,
    slots=1,
    transport="zmq",
    program_hash="",
    floor=0,
)


def said(message: FromWorker, counter: int = 1, sender: str = ID) -> Envelope:
    return Envelope(WORKER, sender, "", counter, 0.0, message)


def answer(message: FromManager, counter: int = 1, recipient: str = ID) -> Envelope:
    return Envelope(MANAGER, MANAGER, recipient, counter, 0.0, message)


def beat(hb_seq: int) -> Heartbeat:
    return Heartbeat(Report(epoch=1, hb_seq=hb_seq, seen=0, floor=0, credit=1))


def beacon(*endpoints: str, n: int = 1, heartbeat_s: float = 1.0) -> Beacon:
    return Beacon(1, "open", endpoints, None, "", heartbeat_s, n)


def until(
    condition: Callable[[], object], *, within_s: float = 10.0, step_s: float = 0.002
) -> None:
    """Wait for a condition that has side effects, such as a receive."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(step_s)


class Ends:
    """A server and links to it, pumped together."""

    def __init__(self, server: ZmqServer) -> None:
        self.server = server
        self.items: list[tuple[Envelope, str | None]] = []
        self.complaints: list[str] = []

    def pump(self) -> Received:
        received = self.server.receive(1_000)
        self.items += received.items
        self.complaints += received.complaints
        return received

    def heard(self, link: Link, counter: int) -> None:
        def pumped() -> bool:
            link.receive()
            self.pump()
            return any(one.counter == counter for one, _ in self.items)

        until(pumped)

    def answered(self, link: Link, kind: type[FromManager] = Welcome) -> Envelope:
        found: list[Envelope] = []

        def pumped() -> bool:
            self.pump()
            found.extend(one for one in link.receive().envelopes if isinstance(one.message, kind))
            return bool(found)

        until(pumped)
        return found[0]


@pytest.fixture
def server() -> Iterator[ZmqServer]:
    with closing(ZmqServer("127.0.0.1")) as one:
        one.bind()
        yield one


@pytest.fixture
def ends(server: ZmqServer) -> Ends:
    return Ends(server)


@pytest.fixture
def unanswering() -> Iterator[str]:
    """An endpoint that accepts connections and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"tcp://127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refusing() -> str:
    """An endpoint where nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    return f"tcp://127.0.0.1:{port}"


def dealer(server: ZmqServer, context: zmq.Context[zmq.Socket[bytes]]) -> zmq.Socket[bytes]:
    sock: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    sock.setsockopt(zmq.LINGER, 0)
    sock.connect(server.endpoints(["127.0.0.1"])[0])
    return sock


def connected(server: ZmqServer, worker_id: str = ID) -> ZmqLink:
    link = ZmqLink(worker_id, time.monotonic)
    link.open(server.endpoints(["127.0.0.1"]))
    return link


def raw_socket(link: Link) -> zmq.Socket[bytes]:
    """The only socket of a zmq link, for a test that misbehaves through it."""
    sock, *_ = link.sockets()  # The monitor of its handshakes comes after it.
    assert isinstance(sock, zmq.Socket)
    return sock


# --- round trips --------------------------------------------------------------------------------


def test_register_and_welcome(ends: Ends) -> None:
    with closing(connected(ends.server)) as link:
        # Sent before any connection stands: it arrives without being sent again by the session.
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        ends.heard(link, 1)
        assert ends.items[0] == (said(REGISTER), None)
        assert ends.server.send(ID, [answer(WELCOME)])
        assert ends.answered(link) == answer(WELCOME)
        assert link.heard
        assert link.next_poll(0.0) is None


def test_a_thousand_messages_arrive_in_order(ends: Ends) -> None:
    with closing(connected(ends.server)) as link:
        link.send([said(REGISTER, 1)], lambda: [said(REGISTER, 1)])
        ends.heard(link, 1)
        ends.items.clear()
        many = [said(beat(n), n) for n in range(2, 1002)]
        link.send(many, lambda: many)
        ends.heard(link, 1001)
        assert [one.counter for one, _ in ends.items] == list(range(2, 1002))


def test_large_results_pass_and_oversized_ones_are_named(ends: Ends) -> None:
    def done(items: int) -> TaskFinished:
        usage = Usage(1.0, 1.0, 1)
        body = b"r" * limits.RESULT_INLINE_BYTES_MAX
        return TaskFinished(
            0, tuple(Finished(f"t{n}", 1, body, None, usage, "") for n in range(items))
        )

    with closing(connected(ends.server)) as link:
        batch = [said(done(60), 1), said(done(70), 2), said(done(20), 3)]
        link.send(batch, lambda: batch)
        complaints: list[str] = []

        def pumped() -> bool:
            complaints.extend(link.receive().complaints)
            ends.pump()
            return any(one.counter == 3 for one, _ in ends.items)

        until(pumped)
        assert [one.counter for one, _ in ends.items] == [1, 3]
        assert any("TaskFinished number 2" in one for one in complaints)


def test_what_a_dead_manager_missed_is_replaced_by_the_present_state(server: ZmqServer) -> None:
    state = [said(beat(1), 1)]
    with closing(connected(server)) as link:
        ends = Ends(server)
        link.send(state, lambda: state)
        ends.heard(link, 1)
        port = server.port
        server.close()
        sock = raw_socket(link)
        until(lambda: not sock.poll(0, zmq.POLLOUT))
        for hb_seq in range(2, 40):
            state[:] = [said(beat(hb_seq), hb_seq)]
            link.send(list(state), lambda: state)
        with closing(ZmqServer("127.0.0.1", port)) as again:
            again.bind()
            assert again.port == port
            ends = Ends(again)
            link.receive()
            ends.heard(link, 39)
            assert [one.counter for one, _ in ends.items] == [39]


def test_reconnect_follows_the_beacon_and_leaves_a_working_link_alone(ends: Ends) -> None:
    with closing(connected(ends.server)) as link, closing(ZmqServer("127.0.0.1")) as second:
        state = [said(REGISTER, 1)]
        link.send(state, lambda: state)
        ends.heard(link, 1)
        ends.server.send(ID, [answer(WELCOME)])
        ends.answered(link)
        state = [said(beat(5), 5)]
        before = link.sockets()
        link.reconnect(ends.server.endpoints(["127.0.0.1"]))
        assert link.sockets() == before
        second.bind()
        link.reconnect(second.endpoints(["127.0.0.1"]))
        moved = Ends(second)
        moved.heard(link, 5)


def test_equal_endpoints_are_probed_anew_only_after_silence(server: ZmqServer) -> None:
    now = [100.0]
    link = ZmqLink(ID, lambda: now[0])
    with closing(link):
        endpoints = server.endpoints(["127.0.0.1"])
        link.open(endpoints)
        before = link.sockets()
        link.reconnect(endpoints)
        assert link.sockets() == before, "a handshake may be on its way"
        now[0] += limits.CONNECT_PATIENCE_S
        link.reconnect(endpoints)
        assert link.sockets() != before


def test_unusable_endpoints_are_noted_and_the_others_work(
    ends: Ends, unanswering: str, refusing: str
) -> None:
    with closing(ZmqLink(ID, time.monotonic)) as link:
        good = ends.server.endpoints(["127.0.0.1"])
        link.open(["tcp://", refusing, unanswering, *good, *good])
        assert len(link.sockets()) == 3
        assert "left out" in link.notes[0]
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        ends.heard(link, 1)
        ends.server.send(ID, [answer(WELCOME)])
        ends.answered(link)
        assert len(link.sockets()) == 1


def test_nobody_there_costs_at_most_a_look_a_second(refusing: str) -> None:
    now = [0.0]
    with closing(ZmqLink(ID, lambda: now[0])) as link:
        link.open([refusing])
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        looks = 0
        while now[0] < 60:
            due = link.next_poll(now[0])
            assert due is not None
            now[0] = max(due, now[0] + 1e-6)
            assert link.receive() == Inbox([], [])
            looks += 1
        assert looks < 80


# --- the server among peers ---------------------------------------------------------------------


def test_the_newest_valid_frame_says_where_answers_go(ends: Ends) -> None:
    with closing(connected(ends.server)) as first, closing(connected(ends.server)) as second:
        first.send([said(beat(1), 1)], lambda: [said(beat(1), 1)])
        ends.heard(first, 1)
        second.send([said(beat(2), 2)], lambda: [said(beat(2), 2)])
        ends.heard(second, 2)
        ends.server.send(ID, [answer(WELCOME)])
        ends.answered(second)
        assert first.receive().envelopes == []


def test_the_unreachable_is_counted_not_raised(ends: Ends) -> None:
    assert not ends.server.send(OTHER, [answer(WELCOME, recipient=OTHER)])
    link = connected(ends.server)
    link.send([said(beat(1), 1)], lambda: [said(beat(1), 1)])
    ends.heard(link, 1)
    link.close()
    until(lambda: not ends.server.send(ID, [answer(WELCOME)]))
    assert ends.server.undelivered == 2
    ends.server.forget(ID)
    ends.server.forget(ID)
    assert not ends.server.send(ID, [answer(WELCOME)])


def wire(**changes: object) -> dict[str, object]:
    values: dict[str, object] = {
        "v": 1,
        "msg_id": f"{ID}:1",
        "ts": 0.0,
        "src": {"role": WORKER, "id": ID},
        "dst": {"role": MANAGER, "id": ""},
        "type": "ShutdownAck",
        "payload": {"reason": "done"},
    }
    return values | changes


HOSTILE_IDS = ["../../x", "", "w", f"{ID}\n", "w-0123456789ABCDEF", "/etc/passwd", ".", "w" * 400]


@pytest.mark.parametrize(
    "parts",
    [
        [b""],
        [b"\xc1\xff\x00garbage"],
        [b"\x91" * 2_000],
        [b"a", b"b"],
        [msgpack.packb([wire(type="Assign", payload={})])],
        [msgpack.packb([wire(src={"role": MANAGER, "id": "manager"})])],
        [msgpack.packb([wire()] * (limits.ENVELOPES_PER_FRAME_MAX + 1))],
        [msgpack.packb([wire(), wire(src={"role": WORKER, "id": OTHER}, msg_id=f"{OTHER}:1")])],
        *[
            [msgpack.packb([wire(src={"role": WORKER, "id": one}, msg_id=f"{one}:1")])]
            for one in HOSTILE_IDS
        ],
    ],
)
def test_the_server_survives_what_peers_say(ends: Ends, parts: list[bytes]) -> None:
    with zmq.Context() as context, dealer(ends.server, context) as sock:
        sock.send_multipart(parts)
        until(lambda: ends.pump() and ends.complaints)
        sock.send(encode_frame([said(beat(7), 7)]))
        until(lambda: ends.pump() and ends.items)
    assert ends.items == [(said(beat(7), 7), None)]
    assert ends.server.complained >= 1
    for one in (*HOSTILE_IDS, OTHER):
        assert not ends.server.send(one, [])


def test_another_version_is_told_so(ends: Ends) -> None:
    with zmq.Context() as context, dealer(ends.server, context) as sock:
        sock.send(msgpack.packb([wire(v=2)]))
        until(lambda: ends.pump() and ends.complaints)
        assert sock.poll(5_000)
        (reply,) = msgpack.unpackb(sock.recv())
    assert reply["type"] == "Reject"
    assert reply["payload"]["code"] == "version"
    assert ends.items == []


def test_a_worker_takes_the_rejection_of_its_version(ends: Ends) -> None:
    frame = msgpack.packb([wire(v=2)])
    with closing(connected(ends.server)) as link:
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        ends.heard(link, 1)
        raw_socket(link).send(frame)
        assert isinstance(ends.answered(link, Reject).message, Reject)


def test_an_oversized_frame_ends_only_its_sender(ends: Ends) -> None:
    with (
        zmq.Context() as context,
        dealer(ends.server, context) as sock,
        closing(connected(ends.server)) as link,
    ):
        sock.send(b"x" * (limits.FRAME_BYTES_MAX + 2 * limits.KIB))
        link.send([said(beat(3), 3)], lambda: [said(beat(3), 3)])
        ends.heard(link, 3)
        sock.send(encode_frame([said(beat(4), 4, OTHER)]))
        until(lambda: ends.pump() and len(ends.items) == 2)
    assert ends.items[1][0].sender == OTHER


def test_raw_bytes_on_the_port_harm_nobody(ends: Ends) -> None:
    with socket.create_connection(("127.0.0.1", ends.server.port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\n\r\n" + bytes(range(256)) * 50)
        with closing(connected(ends.server)) as link:
            link.send([said(beat(3), 3)], lambda: [said(beat(3), 3)])
            ends.heard(link, 3)


def test_the_worker_survives_what_a_manager_says(ends: Ends) -> None:
    with closing(connected(ends.server)) as link:
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        ends.heard(link, 1)
        address = ends.server._peers[ID].address
        for parts in ([b"\xc1"], [b"a", b"b"], [encode_frame([answer(WELCOME, 1, OTHER)])]):
            ends.server.socket.send_multipart([address, *parts])
        complaints: list[str] = []

        def listened() -> bool:
            complaints.extend(link.receive().complaints)
            return len(complaints) == 3

        until(listened)
        assert not link.heard, "only a valid frame for this worker is an answer"
        ends.server.send(ID, [answer(WELCOME)])
        ends.answered(link)


def test_drained_when_empty_or_when_all_had_their_turn() -> None:
    now = [50.0]
    with closing(ZmqServer("127.0.0.1", clock=lambda: now[0])) as server:
        server.bind()
        assert server.receive(10).read_at == 50.0
        links = [connected(server, f"w-{n:016x}") for n in range(3)]
        for n, link in enumerate(links):
            hello = [said(beat(1), 1, f"w-{n:016x}")]
            link.send(hello, partial(list, hello))
        ends = Ends(server)
        until(lambda: [one.receive() for one in links] and ends.pump() and len(ends.items) == 3)
        until(lambda: server.receive(1).drained)
        for n, link in enumerate(links):
            for counter in range(2, 30):
                link.send([said(beat(counter), counter, f"w-{n:016x}")], list)
        readings = []
        for _ in range(12):
            now[0] += 1
            assert server.socket.poll(5_000)
            readings.append(server.receive(1).read_at)
        # Two frames for each of three peers: all were heard since the first of these six.
        assert readings == [None] * 5 + [51.0] + [None] * 5 + [57.0]
        for link in links:
            link.close()


def test_no_more_is_taken_in_once_there_are_enough_outcomes(server: ZmqServer) -> None:
    items = tuple(Finished(f"t{n}", 1, b"\x01", None, Usage(0.1, 0.1, 1), "") for n in range(10))
    with closing(connected(server)) as link:
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        Ends(server).heard(link, 1)
        for counter in range(2, 6):
            link.send([said(TaskFinished(0, items), counter)], list)
        counters: list[int] = []

        def taken() -> int:
            received = server.receive(100, 15)
            if received.items:
                assert len(received.items) <= 2, "enough after two frames"
                counters.extend(one.counter for one, _ in received.items)
            received = server.receive(100, 5)
            if received.items:
                assert len(received.items) == 1, "enough after the first"
                counters.extend(one.counter for one, _ in received.items)
            return len(counters)

        until(lambda: taken() == 4)
        assert counters == [2, 3, 4, 5]


# --- binding ------------------------------------------------------------------------------------


def test_a_taken_port_is_replaced_by_another(server: ZmqServer) -> None:
    with closing(ZmqServer("127.0.0.1", server.port)) as second:
        second.bind()
        assert second.port not in (0, server.port)


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host", "*!"])
def test_an_address_that_is_not_here_is_explained(host: str) -> None:
    with (
        closing(ZmqServer(host)) as server,
        pytest.raises(BindError, match="--bind-host") as caught,
    ):
        server.bind()
    assert caught.value.exit_code == 78


def test_endpoints_name_every_host_once(server: ZmqServer) -> None:
    port = server.port
    assert server.endpoints(["login1", "10.0.0.1", "login1", "fe80::1"]) == [
        f"tcp://login1:{port}",
        f"tcp://10.0.0.1:{port}",
        f"tcp://[fe80::1]:{port}",
    ]


def test_all_interfaces_can_be_bound_and_reached() -> None:
    with closing(ZmqServer("0.0.0.0")) as server:
        server.bind()
        ends = Ends(server)
        with closing(ZmqLink(ID, time.monotonic)) as link:
            link.open(server.endpoints(["127.0.0.1"]))
            link.send([said(REGISTER)], lambda: [said(REGISTER)])
            ends.heard(link, 1)


def test_closing_leaves_nothing_behind(refusing: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        server = ZmqServer("127.0.0.1")
        server.bind()
        used, unused = connected(server), ZmqLink(ID, time.monotonic)
        unused.open([refusing])
        unused.send([said(REGISTER)], lambda: [said(REGISTER)])
        contexts = [used._context, unused._context, server.context]
        for _ in range(2):
            used.close()
            unused.close()
            server.close()
        assert all(one.closed for one in contexts)
        del server, used, unused, contexts
        gc.collect()


# --- CURVE --------------------------------------------------------------------------------------


class Gate:
    """A ZAP handler in the server's context: answers 200 and the key for listed keys only."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: list[bytes]) -> None:
        self.allowed = allowed
        self.refused = 0
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind("inproc://zeromq.zap.01")

    def close(self) -> None:
        self.socket.close()

    def pump(self) -> None:
        while self.socket.poll(0):
            version, request, _, _, _, _, raw = self.socket.recv_multipart()
            key = z85.encode(raw)
            good = key in self.allowed
            self.refused += not good
            status = [b"200", b"OK", key] if good else [b"400", b"unknown key", b""]
            self.socket.send_multipart([version, request, *status, b""])


@pytest.fixture
def curve() -> CurveServer:
    public, secret = zmq.curve_keypair()
    return CurveServer(public, secret)


def curve_link(server: ZmqServer, keys: CurveKeys) -> ZmqLink:
    link = ZmqLink(ID, time.monotonic, keys)
    link.open(server.endpoints(["127.0.0.1"]))
    return link


def test_keys_are_not_shown(curve: CurveServer) -> None:
    keys = CurveKeys(curve.public, *zmq.curve_keypair())
    assert keys.secret.decode() not in repr(keys)
    assert curve.secret.decode() not in repr(curve)


def test_encrypted_frames_pass_up_to_the_limit(curve: CurveServer) -> None:
    with closing(ZmqServer("127.0.0.1", curve=curve)) as server:
        server.bind()
        ends = Ends(server)
        with closing(curve_link(server, CurveKeys(curve.public, *zmq.curve_keypair()))) as link:
            link.send([said(REGISTER)], lambda: [said(REGISTER)])
            ends.heard(link, 1)
            raw_socket(link).send(b"\xc1" * limits.FRAME_BYTES_MAX)
            until(lambda: ends.pump() and ends.complaints)
            link.send([said(beat(2), 2)], lambda: [said(beat(2), 2)])
            ends.heard(link, 2)


@pytest.mark.parametrize("wrong", ["server", "none"])
def test_a_wrong_or_missing_key_is_not_heard(curve: CurveServer, wrong: str) -> None:
    with closing(ZmqServer("127.0.0.1", curve=curve)) as server:
        server.bind()
        ends = Ends(server)
        keys = CurveKeys(zmq.curve_keypair()[0], *zmq.curve_keypair())
        stranger = connected(server) if wrong == "none" else curve_link(server, keys)
        friend = curve_link(server, CurveKeys(curve.public, *zmq.curve_keypair()))
        with closing(stranger), closing(friend):
            stranger.send([said(beat(1), 1)], lambda: [said(beat(1), 1)])
            friend.send([said(beat(2), 2, OTHER)], lambda: [said(beat(2), 2, OTHER)])
            ends.heard(friend, 2)
            until(lambda: stranger.receive() and ends.pump() and ends.server.receive(9).drained)
            assert [one.sender for one, _ in ends.items] == [OTHER]
            assert stranger.next_poll(0.0) is not None, "it has not sent a byte"


def test_a_name_belongs_to_the_first_key_that_used_it(curve: CurveServer) -> None:
    pairs = [zmq.curve_keypair() for _ in range(3)]
    guarded = replace(curve, domain=b"jobflow")
    with closing(ZmqServer("127.0.0.1", curve=guarded)) as server:
        gate = Gate(server.context, [pairs[0][0], pairs[1][0]])
        server.bind()
        ends = Ends(server)
        owner, thief, stranger = (curve_link(server, CurveKeys(curve.public, *p)) for p in pairs)
        with closing(gate), closing(owner), closing(thief), closing(stranger):
            links = (owner, thief, stranger)

            def pump_until(condition: Callable[[], object]) -> None:
                def pumped() -> object:
                    gate.pump()
                    ends.pump()
                    for one in links:
                        one.receive()
                    return condition()

                until(pumped)

            stranger.send([said(beat(9), 9)], lambda: [said(beat(9), 9)])
            owner.send([said(beat(1), 1)], lambda: [said(beat(1), 1)])
            pump_until(lambda: ends.items and gate.refused)
            assert ends.items == [(said(beat(1), 1), pairs[0][0].decode())]
            thief.send([said(beat(2), 2)], lambda: [said(beat(2), 2)])
            pump_until(lambda: ends.complaints)
            assert "another client's key" in ends.complaints[0]
            server.send(ID, [answer(WELCOME)])
            ends.answered(owner)
            server.forget(ID)
            thief.send([said(beat(3), 3)], lambda: [said(beat(3), 3)])
            pump_until(lambda: len(ends.items) == 2)
            assert ends.items[1][1] == pairs[1][0].decode()


def test_without_a_handler_everybody_is_refused(curve: CurveServer) -> None:
    with closing(ZmqServer("127.0.0.1", curve=replace(curve, domain=b"jobflow"))) as server:
        server.bind()
        with closing(curve_link(server, CurveKeys(curve.public, *zmq.curve_keypair()))) as link:
            link.send([said(beat(1), 1)], lambda: [said(beat(1), 1)])
            deadline = time.monotonic() + 0.5
            while time.monotonic() < deadline:
                link.receive()
                assert server.receive(10).items == []
                server.socket.poll(20)


# --- auto ---------------------------------------------------------------------------------------


@pytest.fixture
def paths(tmp_path: Path) -> SessionPaths:
    one = SessionPaths(tmp_path / "session")
    one.make()
    open_mail_key(one, "session", fresh=True)
    return one


def test_auto_uses_tcp_where_it_works(
    ends: Ends, paths: SessionPaths, unanswering: str, refusing: str
) -> None:
    good = ends.server.endpoints(["127.0.0.1"])
    link = open_link("auto", paths, beacon(refusing, unanswering, *good), ID, time.monotonic)
    with closing(link):
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        ends.heard(link, 1)
        ends.server.send(ID, [answer(WELCOME)])
        assert ends.answered(link) == answer(WELCOME)
        assert link.kind == "zmq"
        assert len(link.notes) == 1
        assert not list(paths.mail_new.iterdir())


@pytest.fixture
def now() -> list[float]:
    return [1_000.0]


def auto(paths: SessionPaths, first: Beacon, now: list[float]) -> AutoLink:
    write_beacon(paths.beacon, first)
    link = open_link("auto", paths, first, ID, lambda: now[0])
    assert isinstance(link, AutoLink)
    return link


def test_auto_uses_the_mailbox_when_no_endpoint_answers_and_the_beacon_moves(
    paths: SessionPaths, now: list[float], unanswering: str, refusing: str
) -> None:
    with closing(auto(paths, beacon(refusing, unanswering), now)) as link:
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        now[0] += 1.1
        write_beacon(paths.beacon, beacon(refusing, unanswering, n=2))
        link.receive()
        assert link.kind == "zmq"
        now[0] += limits.CONNECT_PATIENCE_S
        link.receive()
        assert link.kind == "fs"
        assert link.sockets() == []
        assert "no endpoint" in link.notes[0]
        assert [one.name for one in paths.mail_new.iterdir()] == [ID]
        content = (paths.mail_in / ID).read_bytes()
        assert b"\xa9transport\xa2fs" in content, "Register names the transport that carries it"
        # For life: an endpoint that comes back changes nothing.
        link.reconnect([refusing])
        assert link.kind == "fs"


def test_auto_waits_while_the_beacon_stands_still(
    paths: SessionPaths, now: list[float], refusing: str
) -> None:
    with closing(auto(paths, beacon(refusing), now)) as link:
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        for _ in range(100):
            now[0] += 1.0
            due = link.next_poll(now[0])
            assert due is not None
            link.receive()
        assert link.kind == "zmq"
        paths.beacon.unlink()
        now[0] += 1.0
        link.receive()
        assert link.kind == "zmq"


def test_auto_follows_a_manager_that_came_back_elsewhere(
    ends: Ends, paths: SessionPaths, now: list[float], refusing: str
) -> None:
    with closing(auto(paths, beacon(refusing), now)) as link:
        link.send([said(REGISTER)], lambda: [said(REGISTER)])
        now[0] += limits.CONNECT_PATIENCE_S + 1
        good = ends.server.endpoints(["127.0.0.1"])
        write_beacon(paths.beacon, replace(beacon(*good), epoch=2))

        def pumped() -> bool:
            now[0] += 0.01
            link.receive()
            ends.pump()
            return bool(ends.items)

        until(pumped)
        ends.server.send(ID, [answer(WELCOME)])
        ends.answered(link)
        assert link.kind == "zmq"


def test_auto_without_endpoints_uses_the_mailbox_at_once(
    paths: SessionPaths, now: list[float]
) -> None:
    with closing(auto(paths, beacon(), now)) as link:
        assert link.kind == "fs"
        assert "no TCP endpoint" in link.notes[0]


def test_modes_need_what_they_use(paths: SessionPaths, refusing: str) -> None:
    with pytest.raises(ValueError, match="fs"):
        open_link("fs", None, beacon(refusing), ID, time.monotonic)
    with pytest.raises(ValueError, match="pigeon"):
        open_link("pigeon", paths, beacon(refusing), ID, time.monotonic)
    with closing(open_link("auto", None, beacon(refusing), ID, time.monotonic)) as link:
        assert isinstance(link, ZmqLink)
    with closing(open_link("fs", paths, beacon(refusing), ID, time.monotonic)) as link:
        assert link.kind == "fs"


def test_acks_reach_a_worker_that_only_listens(ends: Ends) -> None:
    with closing(connected(ends.server)) as link:
        link.send([said(beat(1), 1)], lambda: [said(beat(1), 1)])
        ends.heard(link, 1)
        acks = [answer(Ack(1, n, n - 1, 1), n) for n in range(1, 301)]
        ends.server.send(ID, acks)
        found: list[int] = []

        def listened() -> bool:
            found.extend(one.counter for one in link.receive().envelopes)
            return len(found) == 300

        until(listened)
        assert found == list(range(1, 301))
