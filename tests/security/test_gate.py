"""The TCP side as a stranger meets it: the matrix of SECURITY.md section 5, and more (T1 to T5)."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

import pytest
import zmq
from peers import (
    ID,
    OTHER,
    Table,
    beat,
    endpoint_of,
    frame,
    keys,
    link_to,
    pair,
    said,
    until,
)

from jobflow_worker.keyfile import CurveKeys
from jobflow_worker.messages import MANAGER, Envelope, Reject, Welcome
from jobflow_worker.record import replace
from jobflow_worker.sessionfiles import SessionPaths
from jobflowd import guard
from jobflowd.keys import KeyRing
from jobflowd.zap import DOMAIN, Gate
from jobflowd.zmqserver import CurveServer, ZmqServer

L1, L2 = "jf-abc-1", "jf-abc-2"


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    paths = SessionPaths(tmp_path / "session")
    paths.make()
    made = KeyRing(paths, "t1")
    made.open([L1, L2], fresh=False)
    return made


@pytest.fixture
def server(ring: KeyRing) -> Iterator[ZmqServer]:
    with closing(guarded(ring)) as made:
        made.bind()
        yield made


def guarded(ring: KeyRing, port: int = 0) -> ZmqServer:
    return ZmqServer("127.0.0.1", port, ring.curve(), holder_of=ring.holder_of)


def keys_of(ring: KeyRing, holder: str) -> CurveKeys:
    from jobflow_worker.keyfile import read_key_file

    return read_key_file(ring.ensure_launch_key(holder)).curve()


def tried(server: ZmqServer, with_keys: CurveKeys | None) -> Table:
    """Send as a stranger for a while; a friend who is heard proves that the server listens."""
    link = link_to(endpoint_of(server), with_keys, OTHER)
    with closing(link):
        table = Table(server, link)
        link.send([said(beat(), sender=OTHER)], lambda: [said(beat(), sender=OTHER)])
        table.settle()
    return table


# --- the matrix -------------------------------------------------------------------------------


def test_curve_without_zap_lets_anybody_in_who_knows_the_public_key(ring: KeyRing) -> None:
    """Why the allow-list is there: this row must stay true, or our reasons are old."""
    plain = replace(ring.curve(), domain=None)
    with closing(ZmqServer("127.0.0.1", curve=plain)) as server:
        server.bind()
        assert tried(server, keys(plain.public)).items


def test_a_domain_without_a_handler_lets_nobody_in(ring: KeyRing) -> None:
    with closing(ZmqServer("127.0.0.1", curve=ring.curve())) as server:
        server.bind()
        assert not tried(server, keys_of(ring, L1)).items


def test_a_listed_key_gets_in_under_its_holders_name(server: ZmqServer, ring: KeyRing) -> None:
    for holder in (L1, L2):
        assert {peer for _, peer in tried(server, keys_of(ring, holder)).items} == {holder}
        server.forget(OTHER)


def test_an_unknown_key_is_refused_and_told_so(server: ZmqServer, ring: KeyRing) -> None:
    table = tried(server, keys(ring.curve().public))
    assert not table.items
    assert any("refused a client whose key is not of this session" in c for c in table.complaints)
    assert any("refuses this worker's key" in note for note in table.notes)


def test_a_handler_that_stopped_lets_nobody_in(server: ZmqServer, ring: KeyRing) -> None:
    assert server.gate is not None
    server.gate.close()
    server.gate = None
    for client in (keys_of(ring, L1), keys(ring.curve().public)):
        assert not tried(server, client).items


def test_plaintext_is_refused(server: ZmqServer) -> None:
    assert not tried(server, None).items


def test_another_managers_key_is_refused(server: ZmqServer, ring: KeyRing) -> None:
    mine = keys_of(ring, L1)
    table = tried(server, replace(mine, server_public=pair()[0]))
    assert not table.items


def test_the_managers_public_key_alone_opens_nothing(server: ZmqServer, ring: KeyRing) -> None:
    """The beacon may leak; what opens the door is the client's secret."""
    mine, public = keys_of(ring, L1), ring.curve().public
    half = CurveKeys(public, mine.public, pair()[1])
    assert not tried(server, half).items


def test_each_row_of_a_wrong_question_is_answered_with_no(ring: KeyRing) -> None:
    """libzmq asks well; if anything else ever asks, it fails closed, without a word or with 400."""
    import zmq.utils.z85 as z85

    key = z85.decode(keys_of(ring, L1).public)
    good = [b"", b"1.0", b"1", DOMAIN, b"10.0.0.1", b"", b"CURVE", key]
    wrong = [
        (1, b"2.0"), (3, b""), (3, b"*"), (3, b"other"), (6, b"NULL"), (6, b"PLAIN"),
        (7, b""), (7, key[:-1]), (7, key + b"\0"), (7, b"\0" * 32), (7, b"\xff" * 32),
    ]  # fmt: skip
    rows = [good] + [[*good[:at], value, *good[at + 1 :]] for at, value in wrong] + [[*good, key]]
    with zmq.Context() as context, closing(Gate(context, ring.holder_of)) as gate:
        asker = context.socket(zmq.DEALER)
        asker.setsockopt(zmq.LINGER, 0)
        asker.connect("inproc://zeromq.zap.01")
        statuses = []
        for row in rows:
            asker.send_multipart(row)
            until(lambda: (gate.serve(), asker.poll(1))[1], "an answer")
            statuses.append(asker.recv_multipart()[3])
        assert statuses == [b"200"] + [b"400"] * (len(rows) - 1)
        assert (gate.admitted, gate.refused) == (1, len(rows) - 1)
        for junk in ([b""], [b"", b"1.0"], [b"x"] * 8, [b"", b"1.0", b"1", DOMAIN]):
            asker.send_multipart(junk)
        gate.serve()
        assert not asker.poll(20)
        asker.close()


# --- while it runs ----------------------------------------------------------------------------


def test_withdrawing_a_key_ends_a_connection_that_stands(server: ZmqServer, ring: KeyRing) -> None:
    link = link_to(endpoint_of(server), keys_of(ring, L1))
    with closing(link):
        table = Table(server, link)
        link.send([said(beat(1), 1)], lambda: [said(beat(1), 1)])
        table.pump_until(lambda: table.items, "the first frame")
        ring.revoke(L1)
        table.items.clear()
        answers: list[object] = []
        link.send([said(beat(2), 2)], lambda: [said(beat(2), 2)])

        def rejected() -> bool:
            received = server.receive(100)
            table.items += received.items
            table.complaints += received.complaints
            answers.extend(one.message for one in link.receive().envelopes)
            return bool(answers)

        until(rejected, "the refusal")
        assert not table.items
        assert any("a key that was withdrawn" in one for one in table.complaints)
        assert isinstance(answers[0], Reject)


def test_no_client_speaks_in_the_name_of_another(server: ZmqServer, ring: KeyRing) -> None:
    """T24, at the border: a name belongs to the key that used it first."""
    owner = link_to(endpoint_of(server), keys_of(ring, L1))
    thief = link_to(endpoint_of(server), keys_of(ring, L2))
    with closing(owner), closing(thief):
        table = Table(server, owner, thief)
        owner.send([said(beat(1), 1)], lambda: [said(beat(1), 1)])
        table.pump_until(lambda: table.items, "the owner's frame")
        thief.send([said(beat(2), 2)], lambda: [said(beat(2), 2)])
        table.pump_until(lambda: any("another client's key" in c for c in table.complaints), "it")
        assert [one.counter for one, _ in table.items] == [1]
        server.send(ID, [Envelope(MANAGER, MANAGER, ID, 1, 0.0, Welcome(1, 1, 0, "t1", 1.0, 9.0))])
        heard: list[object] = []
        until(lambda: heard.extend(owner.receive().envelopes) or heard, "the owner's answer")
        assert not thief.receive().envelopes, "the thief must not get the owner's mail"


def test_recorded_bytes_say_nothing_the_second_time(server: ZmqServer, ring: KeyRing) -> None:
    """T3: what a sniffer recorded of a good conversation neither shows nor repeats anything."""
    with ExitStack() as stack:
        relay = stack.enter_context(Relay(server.port))
        link = stack.enter_context(closing(link_to(relay.endpoint, keys_of(ring, L1))))
        table = Table(server, link)
        secret_word = "a-launch-id-that-nobody-may-read"
        from peers import register

        link.send([said(register(secret_word))], lambda: [said(register(secret_word))])
        table.pump_until(lambda: table.items, "the frame through the relay")
        recorded = bytes(relay.up)
        assert len(recorded) > 300
        assert secret_word.encode() not in recorded
        assert ID.encode() not in recorded
        table.items.clear()
        with relay.raw() as again:
            again.sendall(recorded)
            table.settle()
        assert not table.items


def test_an_impostor_on_the_managers_port_hears_and_says_nothing(ring: KeyRing) -> None:
    """T2: after the manager's death any user may listen where it listened."""
    first = guarded(ring)
    first.bind()
    port, endpoint = first.port, endpoint_of(first)
    first.close()
    impostor_pair = CurveServer(*pair())
    for curve in (None, impostor_pair):
        with closing(ZmqServer("127.0.0.1", port, curve)) as impostor:
            impostor.bind()
            assert impostor.port == port
            link = link_to(endpoint, keys_of(ring, L1))
            with closing(link):
                table = Table(impostor, link)
                link.send([said(beat())], lambda: [said(beat())])
                table.settle()
                assert table.notes, "the worker did not complain"
                assert not table.items
                assert not link.heard
                assert not link.refused, "an impostor's silence is no refusal"
                assert "does not hold its key" in table.notes[0]


def test_an_impostor_may_claim_a_refusal_but_the_link_only_tells(ring: KeyRing) -> None:
    """The ERROR command of CURVE comes before any proof, so `refused` alone must not be final."""
    with closing(fake_refuser()) as fake:
        link = link_to(f"tcp://127.0.0.1:{fake.port}", keys_of(ring, L1))
        with closing(link):
            until(lambda: (link.receive(), link.refused)[1], "the claimed refusal")


def test_strangers_do_not_slow_the_friends(server: ZmqServer, ring: KeyRing) -> None:
    """T4: half-open and garbage connections in mass; the friends' frames come all the same."""
    import socket

    with ExitStack() as stack:
        for number in range(300):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            if number % 3 == 1:
                one.sendall(b"\xff\x00\x00\x00\x00\x00\x00\x00\x01\x7f\x03\x00CURVE" + b"\0" * 40)
            elif number % 3 == 2:
                one.sendall(bytes(range(256)) * 4)
        link = stack.enter_context(closing(link_to(endpoint_of(server), keys_of(ring, L1))))
        table = Table(server, link)
        for number in range(1, 51):
            now = [said(beat(number), number)]
            link.send(now, partial(list, now))
            table.pump_until(partial(last_is, table, number), "it")


def test_a_flood_of_one_friend_is_bounded_and_fair(server: ZmqServer, ring: KeyRing) -> None:
    """A worker that drowns the manager fills its own share, and the others have their turns."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    loud: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    loud.setsockopt(zmq.LINGER, 0)
    loud.setsockopt(zmq.SNDHWM, 10)
    loud.setsockopt(zmq.IMMEDIATE, 1)
    mine = keys_of(ring, L1)
    loud.curve_serverkey, loud.curve_publickey = mine.server_public, mine.public
    loud.curve_secretkey = mine.secret
    loud.connect(endpoint_of(server))
    assert server.gate is not None
    until(lambda: (server.gate.serve(), loud.poll(1, zmq.POLLOUT))[1], "the connection")
    sent = 0
    filler = frame(beat(), sender=OTHER)
    for _ in range(20_000):
        try:
            loud.send(filler, zmq.DONTWAIT)
            sent += 1
        except zmq.Again:
            if not loud.poll(200, zmq.POLLOUT):
                break
    else:
        pytest.fail("nothing held the flood back")
    with closing(link_to(endpoint_of(server), keys_of(ring, L2))) as link:
        table = Table(server, link)
        link.send([said(beat(7), 7)], lambda: [said(beat(7), 7)])
        seen = 0
        while not any(one.sender == ID for one, _ in table.items):
            link.receive()
            received = server.receive(20)
            table.items += received.items
            seen += len(received.items)
            assert seen <= sent + 1
        assert seen < sent / 2, "the quiet one waited for the whole flood"
    loud.close()
    context.term()


# --- the self-test ----------------------------------------------------------------------------


def test_the_self_test_passes_where_strangers_are_refused(server: ZmqServer, ring: KeyRing) -> None:
    guard.prove_closed(server, ring.curve().public, "127.0.0.1")


def test_the_self_test_leaves_the_frames_of_workers_alone(server: ZmqServer, ring: KeyRing) -> None:
    """Survivors of a restart are back before the self-test is through."""
    link = link_to(endpoint_of(server), keys_of(ring, L1))
    with closing(link):
        link.send([said(beat())], lambda: [said(beat())])
        for _ in range(5):
            guard.prove_closed(server, ring.curve().public, "127.0.0.1")
            link.receive()
        table = Table(server, link)
        table.pump_until(lambda: table.items, "the worker's frame")


@pytest.mark.parametrize("hole", ["no allow-list", "everybody is listed"])
def test_the_self_test_stops_a_daemon_that_lets_strangers_in(ring: KeyRing, hole: str) -> None:
    if hole == "no allow-list":
        open_server = ZmqServer("127.0.0.1", curve=replace(ring.curve(), domain=None))
    else:
        open_server = ZmqServer("127.0.0.1", curve=ring.curve(), holder_of=lambda key: "anybody")
    with closing(open_server) as server:
        server.bind()
        with pytest.raises(guard.GuardError, match="did not refuse") as caught:
            guard.prove_closed(server, ring.curve().public, "127.0.0.1")
        assert caught.value.exit_code == 78


def test_a_self_test_without_an_answer_is_no_proof(
    ring: KeyRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "PROOF_PATIENCE_S", 0.3)
    with closing(ZmqServer("127.0.0.1", curve=ring.curve())) as mute:
        mute.bind()
        with pytest.raises(guard.GuardError, match="could not be reached"):
            guard.prove_closed(mute, ring.curve().public, "127.0.0.1")


def test_a_libzmq_without_curve_is_refused_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zmq, "has", lambda what: False)
    with pytest.raises(guard.GuardError, match="without CURVE") as caught:
        guard.check_library()
    assert "--mode fs" in str(caught.value)


@pytest.mark.parametrize("version", [(4, 2, 5), (4, 3, 2), (3, 2, 0)])
def test_an_old_libzmq_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(zmq, "zmq_version_info", lambda: version)
    with pytest.raises(guard.GuardError, match="CVE-2020-15166"):
        guard.check_library()


# --- helpers ----------------------------------------------------------------------------------


def last_is(table: Table, counter: int) -> bool:
    return bool(table.items) and table.items[-1][0].counter >= counter


class Relay:
    """A man in the middle who writes down what passes upwards."""

    def __init__(self, port: int) -> None:
        import socket

        self._socket = socket
        self._port = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"tcp://127.0.0.1:{self._listener.getsockname()[1]}"
        self.up = bytearray()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Relay:
        self._thread.start()
        return self

    def _serve(self) -> None:
        import select

        try:
            down, _ = self._listener.accept()
        except OSError:
            return
        up = self._socket.create_connection(("127.0.0.1", self._port))
        with down, up:
            while True:
                ready, _, _ = select.select([down, up], [], [], 10)
                for one in ready:
                    data = one.recv(65536)
                    if not data:
                        return
                    if one is down:
                        self.up += data
                        up.sendall(data)
                    else:
                        down.sendall(data)
                if not ready:
                    return

    def raw(self):  # type: ignore[no-untyped-def]
        return self._socket.create_connection(("127.0.0.1", self._port))

    def __exit__(self, *_: object) -> None:
        self._listener.close()


class fake_refuser:
    """Speaks just enough ZMTP to say ERROR 400 to whoever greets it."""

    def __init__(self, port: int = 0) -> None:
        import socket

        self._listener = socket.create_server(("127.0.0.1", port))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\x01" + b"CURVE".ljust(20, b"\0") + b"\x01"
        error = b"\x05ERROR\x03400"
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                client.settimeout(5)
                try:
                    client.sendall(greeting.ljust(64, b"\0"))
                    read = b""
                    while len(read) < 64 + 200:
                        data = client.recv(4096)
                        if not data:
                            break
                        read += data
                    client.sendall(b"\x04" + bytes([len(error)]) + error)
                    client.recv(4096)
                except OSError:
                    continue

    def close(self) -> None:
        self._listener.close()
