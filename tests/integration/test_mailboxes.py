"""Mailbox files on a real file system: the worker's link, the reader, and the process around it."""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from jobflow_worker import limits
from jobflow_worker.keyfile import MailKeyFile, mail_key_path
from jobflow_worker.messages import (
    MANAGER,
    WORKER,
    Ack,
    Assign,
    Assignment,
    Envelope,
    Finished,
    FromManager,
    FromWorker,
    Heartbeat,
    Held,
    Register,
    Report,
    TaskFinished,
    Usage,
    Welcome,
)
from jobflow_worker.record import replace
from jobflow_worker.sessionfiles import (
    Beacon,
    SessionFileError,
    SessionPaths,
    SessionRecord,
    UnsafeFileError,
    read_beacon,
    read_private,
    write_beacon,
    write_private,
)
from jobflow_worker.transport import mailfile
from jobflow_worker.transport.framing import to_frames
from jobflow_worker.transport.fs import FsLink, write_spool
from jobflowd import mailpipe
from jobflowd.foreign import FOREIGN_MAX
from jobflowd.mailboxes import Mail, MailboxClient
from jobflowd.mailchild import BROKEN_PATIENCE, OPENS_BURST, MailReader
from jobflowd.mailpipe import Note

ID = "w-0123456789abcdef"
OTHER = "w-fedcba9876543210"
WELCOME = Welcome(1, 1, 0, "s1", 10.0, 60.0)
REGISTER = Register(1, 1, "1", "3", "h", 1, 1, "fs", "", 0)
HEARTBEAT_S = 10.0


def said(message: FromWorker, counter: int = 1, sender: str = ID) -> Envelope:
    return Envelope(WORKER, sender, "", counter, 0.0, message)


def answer(message: FromManager, counter: int = 1, recipient: str = ID) -> Envelope:
    return Envelope(MANAGER, MANAGER, recipient, counter, 0.0, message)


def beat(hb_seq: int, running: tuple[Held, ...] = ()) -> Heartbeat:
    return Heartbeat(Report(1, hb_seq, 0, 0, 1, running=running))


def outcome(counter: int, size: int = 10, items: int = 1) -> TaskFinished:
    usage = Usage(1.0, 1.0, 1)
    done = (Finished(f"t{counter}-{n}", 1, b"r" * size, None, usage, "") for n in range(items))
    return TaskFinished(0, tuple(done))


#: The mail key of every session here.
SEAL = mailfile.Seal(b"ab" * 20)


def seal_file(path: Path, data: bytes) -> None:
    """Write a mailbox file as its owner does."""
    write_private(path, SEAL.put(data, f"{path.parent.name}/{path.name}"), fsync=False)


def opened(path: Path) -> bytes:
    """What is in a sealed file."""
    return SEAL.open(path.read_bytes(), f"{path.parent.name}/{path.name}")


def content(*envelopes: Envelope, serial: int = 1, pace: int = mailfile.IDLE) -> bytes:
    return mailfile.pack(to_frames(envelopes)[0], serial, pace)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def paths(tmp_path: Path) -> SessionPaths:
    one = SessionPaths(tmp_path / "session")
    one.make()
    write_private(mail_key_path(one), MailKeyFile("s1", SEAL.key.decode()).encode())
    return one


@pytest.fixture
def link(paths: SessionPaths, clock: Clock) -> FsLink:
    return FsLink(paths, ID, HEARTBEAT_S, clock)


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Counts what a file server would be asked."""
    calls: Counter[str] = Counter()

    def wrapped(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            calls[name] += 1
            return real(*args, **options)

        return call

    with monkeypatch.context() as patch:
        for name in ("open", "fstat", "stat", "lstat", "rename", "unlink", "listdir", "scandir"):
            patch.setattr(os, name, wrapped(name, getattr(os, name)))
        yield calls


# --- session files ------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o277])
def test_everything_is_private_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        paths = SessionPaths(tmp_path / "state" / "sessions" / "s1")
        paths.make()
        write_private(paths.owner, b"{}")
    finally:
        os.umask(before)
    directories = [paths.root, *(one for one in paths.root.rglob("*") if one.is_dir())]
    assert {stat.S_IMODE(one.stat().st_mode) for one in directories} == {0o700}
    assert stat.S_IMODE(paths.owner.stat().st_mode) & 0o077 == 0
    assert not [one for one in paths.root.iterdir() if one.name.startswith(".")]
    paths.make()


def test_an_open_directory_is_closed_and_a_planted_link_refused(tmp_path: Path) -> None:
    paths = SessionPaths(tmp_path / "s")
    paths.root.mkdir()
    paths.root.chmod(0o777)
    paths.make()
    assert stat.S_IMODE(paths.root.stat().st_mode) == 0o700
    paths.spool.rmdir()
    paths.spool.symlink_to(tmp_path)
    with pytest.raises(UnsafeFileError, match="link"):
        paths.make()
    assert UnsafeFileError.exit_code == 77


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_others_is_not_used(tmp_path: Path) -> None:
    paths = SessionPaths(tmp_path / "s")
    paths.make()
    paths.beacon.write_bytes(b"{}")
    os.chown(paths.beacon, 65534, 65534)
    with pytest.raises(UnsafeFileError, match="belongs to user 65534"):
        read_private(paths.beacon, 100)
    assert read_beacon(paths.beacon) is None
    os.chown(paths.root, 65534, 65534)
    with pytest.raises(UnsafeFileError, match="belongs to user 65534"):
        paths.make()


def test_reading_refuses_links_pipes_sockets_directories_and_large_files(tmp_path: Path) -> None:
    real = tmp_path / "real"
    write_private(real, b"x" * 101)
    (tmp_path / "link").symlink_to(real)
    os.mkfifo(tmp_path / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        before = os.getcwd()
        os.chdir(tmp_path)
        try:
            listener.bind("socket")
        finally:
            os.chdir(before)
        for name in ("link", "fifo", "socket", "real"):
            with pytest.raises(UnsafeFileError):
                read_private(tmp_path / name, 100)
    with pytest.raises((UnsafeFileError, IsADirectoryError)):
        read_private(tmp_path, 100)
    with pytest.raises(FileNotFoundError):
        read_private(tmp_path / "none", 100)
    assert read_private(real, 101) == b"x" * 101


def test_a_failed_write_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_private(path, b"old")

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    for name in ("write", "fsync", "rename"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space"):
                write_private(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_the_record_comes_back_and_faults_are_explained(paths: SessionPaths) -> None:
    record = SessionRecord("s1", {"path": "/p.py"}, {"a": [1, "ü"]}, "/home", 1.5, "0.1", {"w": 1})
    record.save(paths.session_file)
    assert SessionRecord.load(paths.session_file) == record
    text = paths.session_file.read_text()
    for bad in ("", "[]", text.replace('"v": 1', '"v": 9'), text.replace('"s1"', '"../s1"')):
        write_private(paths.session_file, bad.encode())
        with pytest.raises(SessionFileError, match="--fresh") as caught:
            SessionRecord.load(paths.session_file)
        assert caught.value.exit_code == 78
    paths.session_file.unlink()
    with pytest.raises(SessionFileError, match="not a session directory"):
        SessionRecord.load(paths.session_file)


def test_the_beacon_is_read_or_is_none(paths: SessionPaths) -> None:
    assert read_beacon(paths.beacon) is None
    beacon = Beacon(1, "open", ("tcp://a:1",), "k" * 40, "h", 10.0, 1)
    write_beacon(paths.beacon, beacon)
    assert read_beacon(paths.beacon) == beacon
    write_beacon(paths.beacon, replace(beacon, n=2))
    assert read_beacon(paths.beacon) == replace(beacon, n=2)
    paths.beacon.write_bytes(b"{")
    assert read_beacon(paths.beacon) is None


def test_launch_directories_are_plain_names(paths: SessionPaths) -> None:
    assert paths.launch_dir("L1") == paths.launches / "L1"
    for name in ("../x", "", ".hidden", "a/b"):
        with pytest.raises(ValueError, match="launch id"):
            paths.launch_dir(name)


# --- the worker's link --------------------------------------------------------------------------


def test_the_registration_comes_last(
    paths: SessionPaths, link: FsLink, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    real = os.rename

    def rename(source: Path, target: Path) -> None:
        order.append(target.parent.name)
        real(source, target)

    monkeypatch.setattr(os, "rename", rename)
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    assert order == ["out", "in", "new"]
    assert mailfile.unpack(opened(paths.mail_out / ID)).frames == []
    link.send([said(beat(1))], lambda: [said(beat(1))])
    assert order == ["out", "in", "new", "in"]


def test_the_managers_mailbox_is_taken_once(
    paths: SessionPaths, link: FsLink, clock: Clock
) -> None:
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    seal_file(paths.mail_out / ID, content(answer(WELCOME)))
    due = link.next_poll(clock.now)
    assert due is not None
    assert due - clock.now <= 0.002
    clock.now += 0.01
    assert link.receive().envelopes == [answer(WELCOME)]
    for _ in range(5):
        clock.now += 20
        assert link.receive().envelopes == []
    seal_file(paths.mail_out / ID, content(answer(WELCOME), serial=2))
    clock.now += 20
    assert link.receive().envelopes == [answer(WELCOME)]


def test_a_torn_mailbox_is_read_again_and_then_told_of_once(
    paths: SessionPaths, link: FsLink, clock: Clock
) -> None:
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    clock.now += 1
    link.receive()
    whole = content(answer(WELCOME), serial=5)
    seal_file(paths.mail_out / ID, whole[:-3])
    complaints = []
    for _ in range(8):
        clock.now += 20
        inbox = link.receive()
        assert inbox.envelopes == []
        complaints += inbox.complaints
    assert len(complaints) == 1
    seal_file(paths.mail_out / ID, whole)
    clock.now += 20
    assert link.receive().envelopes == [answer(WELCOME)]


def test_a_planted_link_or_pipe_in_place_of_the_mailbox_is_not_read(
    paths: SessionPaths, link: FsLink, clock: Clock
) -> None:
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    out = paths.mail_out / ID
    write_private(paths.root / "elsewhere", content(answer(WELCOME)))
    for plant in ("link", "fifo"):
        out.unlink()
        if plant == "link":
            out.symlink_to(paths.root / "elsewhere")
        else:
            os.mkfifo(out)
        clock.now += 20
        inbox = link.receive()
        assert inbox.envelopes == []
        assert len(inbox.complaints) == 1


def test_a_worker_taken_for_gone_registers_again_with_its_next_report(
    paths: SessionPaths, link: FsLink, clock: Clock
) -> None:
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    for directory in (paths.mail_in, paths.mail_out, paths.mail_new):
        (directory / ID).unlink()
    clock.now += 20
    link.receive()
    assert link.next_poll(clock.now) is None
    assert not (paths.mail_in / ID).exists(), "nothing to say, so no litter"
    link.send([said(beat(2))], lambda: [said(beat(2))])
    for directory in (paths.mail_in, paths.mail_out, paths.mail_new):
        assert (directory / ID).exists()
    seal_file(paths.mail_out / ID, content(answer(replace(WELCOME, again=True))))
    clock.now += 20
    assert len(link.receive().envelopes) == 1


def test_a_full_outbox_keeps_the_newest_report(paths: SessionPaths, link: FsLink) -> None:
    outbox = [said(outcome(n, 60_000, 10), n) for n in range(1, 12)]
    link.send([outbox[0]], lambda: [outbox[0], said(beat(1), 90)])
    assert not link.full
    link.send(outbox, lambda: [*outbox, said(beat(2), 91)])
    assert link.full
    data = opened(paths.mail_in / ID)
    assert len(data) <= mailfile.FILE_BYTES_MAX
    assert mailfile.unpack(data).frames[0] == to_frames([said(beat(2), 91)])[0][0]
    link.send([], lambda: [said(beat(3), 92)])
    assert not link.full


def test_writing_is_tried_again_until_the_directory_is_there(tmp_path: Path, clock: Clock) -> None:
    paths = SessionPaths(tmp_path / "late")
    link = FsLink(paths, ID, HEARTBEAT_S, clock)
    state = [said(REGISTER)]
    link.send(state, lambda: state)
    assert len(link.receive().complaints) == 1
    for _ in range(20):
        due = link.next_poll(clock.now)
        assert due is not None
        clock.now = max(due, clock.now)
        assert link.receive().complaints == []
    state = [said(beat(4), 4)]
    paths.make()
    write_private(mail_key_path(paths), MailKeyFile("s1", SEAL.key.decode()).encode())
    clock.now += 10
    link.receive()
    assert opened(paths.mail_in / ID)[mailfile.HEADER_BYTES + 4 :] == to_frames(state)[0][0]


def test_an_idle_worker_costs_less_than_one_operation_a_second(
    link: FsLink, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    start = clock.now
    beat_at = clock.now + HEARTBEAT_S
    hb_seq = 1
    with counted(monkeypatch) as calls:
        while clock.now < start + 600:
            due = link.next_poll(clock.now)
            assert due is not None
            clock.now = min(due, beat_at)
            if clock.now == beat_at:
                hb_seq += 1
                beat_at += HEARTBEAT_S
                report = said(beat(hb_seq), hb_seq)
                link.send([report], lambda report=report: [report])  # type: ignore[misc]
            link.receive()
    assert calls["lstat"] == calls["listdir"] == 0
    assert calls["stat"] <= 61, "the key is looked at once a report"
    assert sum(calls.values()) < 600


def test_looking_is_quick_while_an_answer_is_awaited(link: FsLink, clock: Clock) -> None:
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    for _ in range(30):
        clock.now = link.next_poll(clock.now) or clock.now
        link.receive()
    slow = link.next_poll(clock.now)
    assert slow is not None
    assert slow - clock.now == pytest.approx(HEARTBEAT_S / 2)
    link.busy(clock.now)
    quick = link.next_poll(clock.now)
    assert quick is not None
    assert quick - clock.now <= 0.002


def test_two_links_of_one_identity_never_tear_a_file(paths: SessionPaths, clock: Clock) -> None:
    links = [FsLink(paths, ID, HEARTBEAT_S, clock) for _ in range(2)]
    for hb_seq in range(1, 50):
        report = said(beat(hb_seq), hb_seq)
        links[hb_seq % 2].send([report], lambda report=report: [report])  # type: ignore[misc]
        (frame,) = mailfile.unpack(opened(paths.mail_in / ID)).frames
        assert frame == to_frames([report])[0][0]


# --- the reader ---------------------------------------------------------------------------------


class Reading:
    """A reader on a clock of the test's, and what it reported."""

    def __init__(self, paths: SessionPaths, clock: Clock) -> None:
        self.clock = clock
        self.notes: list[Note] = []
        self.reader = MailReader(paths, HEARTBEAT_S, clock, self.notes.append, SEAL)

    def run(self, seconds: float) -> list[Note]:
        """What it reports in this time, as if nothing else ran."""
        self.notes.clear()
        end = self.clock.now + seconds
        while True:
            due = self.reader.work()
            if due > end:
                break
            self.clock.now = max(self.clock.now + 1e-4, due)
        self.clock.now = end
        return list(self.notes)

    def of(self, kind: int) -> list[str]:
        return [one.worker_id for one in self.notes if one.kind == kind]


@pytest.fixture
def reading(paths: SessionPaths, clock: Clock) -> Reading:
    one = Reading(paths, clock)
    one.reader.begin()
    return one


def register(paths: SessionPaths, worker_id: str, data: bytes) -> None:
    seal_file(paths.mail_in / worker_id, data)
    write_private(paths.mail_new / worker_id, b"", fsync=False)


def test_a_new_mailbox_is_found_and_read_once(paths: SessionPaths, reading: Reading) -> None:
    reading.run(30)
    register(paths, ID, content(said(REGISTER)))
    reading.run(1.1)
    assert reading.of(mailpipe.MAIL) == [ID]
    reading.run(30)
    assert reading.of(mailpipe.MAIL) == []
    times = [
        float(line.split()[1])
        for one in reading.notes
        if one.kind == mailpipe.SAME
        for line in one.data.decode().split("\n")
    ]
    assert len(times) >= 5
    assert times == sorted(times)
    seal_file(paths.mail_in / ID, content(said(beat(1)), serial=2))
    written_at = reading.clock.now
    (mail,) = [one for one in reading.run(HEARTBEAT_S) if one.kind == mailpipe.MAIL]
    assert written_at <= mail.at <= written_at + HEARTBEAT_S / 2 + 0.2


def test_mailboxes_and_spools_from_before_are_read_before_all_is_said(
    paths: SessionPaths, clock: Clock
) -> None:
    seal_file(paths.mail_in / ID, content(said(REGISTER)))
    write_spool(paths, OTHER, [said(outcome(1), 1, OTHER)])
    reading = Reading(paths, clock)
    reading.reader.begin()
    kinds = [one.kind for one in reading.run(0.0)]
    assert sorted(kinds[:2]) == [mailpipe.MAIL, mailpipe.SPOOL]
    assert kinds[2] == mailpipe.LISTED
    reading.run(200)
    assert reading.of(mailpipe.SPOOL) == [], "handed over once"
    assert reading.of(mailpipe.LISTED) == []
    reading.reader.handle(Note(mailpipe.SPOOL_DONE, OTHER))
    assert reading.of(mailpipe.SPOOL_GONE) == [OTHER]
    assert list(paths.spool.iterdir()) == []


def test_hostile_names_and_files_are_passed_over(paths: SessionPaths, reading: Reading) -> None:
    good = content(said(REGISTER))
    hidden, odd = (".nfs0001", f".{ID}.tmp"), ("notes.txt", "w-XYZ", "-rf", "a\nb")
    for name in (*hidden, *odd):
        write_private(paths.mail_new / name, b"")
        write_private(paths.mail_in / name, good)
    seal_file(paths.root / "elsewhere", good)
    kinds = {n: f"k-{n:016x}" for n in range(5)}
    for worker_id in kinds.values():
        write_private(paths.mail_new / worker_id, b"")
    (paths.mail_in / kinds[0]).symlink_to(paths.root / "elsewhere")
    os.mkfifo(paths.mail_in / kinds[1])
    (paths.mail_in / kinds[2]).mkdir()
    write_private(paths.mail_in / kinds[3], b"x" * (mailfile.FILE_BYTES_MAX + 1))
    if os.geteuid() == 0:
        write_private(paths.mail_in / kinds[4], good)
        os.chown(paths.mail_in / kinds[4], 65534, 65534)
    register(paths, ID, good)
    reading.run(15)
    assert reading.of(mailpipe.MAIL) == [ID]
    assert sorted(reading.of(mailpipe.COMPLAINT)) == sorted(kinds.values())
    assert {one.name for one in paths.mail_new.iterdir()} == {ID, *hidden, *kinds.values()}
    # They were read in vain, and said to be read: a broken mailbox must not hold a lease.
    same = b"\n".join(one.data for one in reading.notes if one.kind == mailpipe.SAME).decode()
    for worker_id in kinds.values():
        assert worker_id in same


def foreign(reading: Reading) -> list[str]:
    """What was said of foreign files."""
    return [one.data.decode() for one in reading.notes if one.kind == mailpipe.FOREIGN]


def test_a_forged_mailbox_goes_to_quarantine_when_its_worker_would_have_replaced_it(
    paths: SessionPaths, reading: Reading
) -> None:
    good = content(said(REGISTER))
    forgeries = {
        "k-0000000000000001": good,  # no seal
        "k-0000000000000002": mailfile.Seal(b"cd" * 20).put(good, "in/k-0000000000000002"),
        "k-0000000000000003": SEAL.put(good, f"in/{ID}"),  # another worker's file
        "k-0000000000000004": SEAL.put(good, "out/k-0000000000000004"),  # the manager's own
    }
    for name, data in forgeries.items():
        write_private(paths.mail_in / name, data)
        write_private(paths.mail_new / name, b"")
    reading.run(HEARTBEAT_S)
    assert reading.of(mailpipe.MAIL) == []
    assert sorted(reading.of(mailpipe.COMPLAINT)) == sorted(forgeries)
    assert foreign(reading) == []
    reading.run(3 * HEARTBEAT_S)
    assert reading.of(mailpipe.MAIL) == []
    assert len(foreign(reading)) == len(forgeries)
    kept = list(paths.quarantine.iterdir())
    assert {one.read_bytes() for one in kept} == set(forgeries.values())
    assert list(paths.mail_in.iterdir()) == []
    # The worker itself is not locked out by what others put under its name.
    name = "k-0000000000000002"
    seal_file(paths.mail_in / name, content(said(beat(1), sender=name), serial=9))
    reading.run(HEARTBEAT_S)
    assert reading.of(mailpipe.MAIL) == [name]


def test_a_mailbox_that_its_worker_mends_in_time_is_not_moved(
    paths: SessionPaths, reading: Reading
) -> None:
    """Keys that were made anew: what was written before is not of this session any more."""
    write_private(paths.mail_in / ID, mailfile.Seal(b"cd" * 20).put(content(), f"in/{ID}"))
    write_private(paths.mail_new / ID, b"")
    reading.run(HEARTBEAT_S)
    seal_file(paths.mail_in / ID, content(said(beat(1)), serial=2))
    reading.run(3 * HEARTBEAT_S)
    assert reading.of(mailpipe.MAIL) == [ID]
    assert list(paths.quarantine.iterdir()) == []


def test_forged_spools_and_odd_names_go_to_quarantine_at_once(
    paths: SessionPaths, clock: Clock
) -> None:
    write_private(paths.spool / OTHER, content(said(outcome(1), 1, OTHER)))
    os.mkfifo(paths.spool / ID)
    (paths.spool / "report (copy).txt").symlink_to("/etc/passwd")
    (paths.mail_new / "k-0000000000000001").mkdir()
    reading = Reading(paths, clock)
    reading.reader.begin()
    reading.run(1)
    assert reading.of(mailpipe.SPOOL) == []
    assert list(paths.spool.iterdir()) == list(paths.mail_new.iterdir()) == []
    plain = {one.name.partition("-")[2] for one in paths.quarantine.iterdir()}
    wanted = {f"spool-{OTHER}", f"spool-{ID}", "spool-report__copy_.txt", "new-k-0000000000000001"}
    assert plain == wanted
    assert len(foreign(reading)) == 4
    assert [one.at for one in reading.notes if one.kind == mailpipe.FOREIGN][-1] == 4
    for one in paths.quarantine.iterdir():
        one.rmdir() if one.is_dir() and not one.is_symlink() else one.unlink()
    reading.run(61)
    assert foreign(reading) == [""], "the warning ends when they are removed"


def test_the_quarantine_is_bounded_and_each_find_is_told_of_once(
    paths: SessionPaths, reading: Reading
) -> None:
    for n in range(2 * FOREIGN_MAX + 50):
        write_private(paths.mail_new / f"junk {n}", b"", fsync=False)
    reading.run(60)
    assert len(list(paths.quarantine.iterdir())) == FOREIGN_MAX
    told = [sentence for sentence in foreign(reading) if sentence]
    assert len(told) == len(set(told)) == 2 * FOREIGN_MAX
    assert len(list(paths.mail_new.iterdir())) == FOREIGN_MAX + 50


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_registration_is_moved_away(paths: SessionPaths, reading: Reading) -> None:
    write_private(paths.mail_new / OTHER, b"")
    os.chown(paths.mail_new / OTHER, 65534, 65534)
    seal_file(paths.mail_in / OTHER, content(said(REGISTER, 1, OTHER)))
    os.chown(paths.mail_in / OTHER, 65534, 65534)
    reading.run(30)
    assert reading.of(mailpipe.MAIL) == []
    assert ["belongs to user 65534" in one for one in foreign(reading)] == [True]


def test_a_worker_reads_nothing_forged_and_follows_a_new_key(
    paths: SessionPaths, link: FsLink, clock: Clock
) -> None:
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    write_private(paths.mail_out / ID, SEAL.put(content(answer(WELCOME)), f"in/{ID}"))
    complaints = []
    for _ in range(5):
        clock.now += 20
        inbox = link.receive()
        assert inbox.envelopes == []
        complaints += inbox.complaints
    assert complaints == [
        "the manager's mailbox is not readable: its seal is not of this session and place"
    ]
    new = mailfile.Seal(b"ef" * 20)
    write_private(mail_key_path(paths), MailKeyFile("s1", new.key.decode()).encode())
    link.send([said(beat(2))], lambda: [said(beat(2))])
    new.open((paths.mail_in / ID).read_bytes(), f"in/{ID}")
    write_private(paths.mail_out / ID, new.put(content(answer(WELCOME), serial=3), f"out/{ID}"))
    clock.now += 20
    assert link.receive().envelopes == [answer(WELCOME)]


def test_without_its_key_a_worker_writes_nothing_and_tries_again(
    paths: SessionPaths, link: FsLink, clock: Clock
) -> None:
    path = mail_key_path(paths)
    path.chmod(0o640)
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    assert not (paths.mail_in / ID).exists()
    assert "open to others" in link.receive().complaints[0]
    with pytest.raises(PermissionError, match="open to others"):
        write_spool(paths, ID, [said(outcome(1))])
    path.chmod(0o600)
    clock.now += 20
    link.receive()
    assert (paths.mail_in / ID).exists()


def test_a_torn_mailbox_is_read_again_soon(paths: SessionPaths, reading: Reading) -> None:
    whole = content(said(REGISTER))
    register(paths, ID, whole[:-1])
    reading.run(0.1)
    assert reading.notes == [] or reading.of(mailpipe.MAIL) == []
    seal_file(paths.mail_in / ID, whole)
    reading.run(6)
    assert reading.of(mailpipe.MAIL) == [ID]


def test_a_mailbox_that_stays_torn_is_told_of_once_and_left(
    paths: SessionPaths, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(paths, ID, content(said(REGISTER))[:-1])
    with counted(monkeypatch) as calls:
        reading.run(100)
    assert reading.of(mailpipe.COMPLAINT) == [ID]
    assert BROKEN_PATIENCE <= calls["open"] < 50


def test_trouble_of_the_file_server_is_no_reading(
    paths: SessionPaths, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(paths, ID, content(said(REGISTER)))
    reading.run(2)
    with monkeypatch.context() as patch:

        def stale(*_: object, **__: object) -> int:
            raise OSError(116, "Stale file handle")

        patch.setattr(os, "open", stale)
        reading.run(60)
    assert reading.of(mailpipe.COMPLAINT) == [ID]
    assert reading.of(mailpipe.SAME) == [], "a lease may not expire for want of a file server"
    reading.run(10)
    assert reading.of(mailpipe.SAME) != []


def test_forgetting_removes_all_and_a_living_worker_comes_back(
    paths: SessionPaths, reading: Reading
) -> None:
    link = FsLink(paths, ID, HEARTBEAT_S, reading.clock)
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    reading.run(2)
    reading.reader.handle(Note(mailpipe.FORGET, ID))
    assert reading.of(mailpipe.GONE) == [ID]
    assert [one for one in paths.mail.rglob("*") if one.is_file()] == []
    reading.reader.handle(Note(mailpipe.POST, ID, content(answer(WELCOME))))
    assert [one for one in paths.mail.rglob("*") if one.is_file()] == [], "no litter"
    reading.run(20)
    assert reading.of(mailpipe.MAIL) == []
    link.receive()
    link.send([said(beat(2))], lambda: [said(beat(2))])
    reading.run(2)
    assert reading.of(mailpipe.MAIL) == [ID]


def test_old_temporary_files_are_swept_at_the_start(paths: SessionPaths, clock: Clock) -> None:
    old, young = paths.mail_in / f".{ID}.0a1b", paths.mail_in / f".{OTHER}.0a1b"
    foreign = paths.mail_in / ".keep"
    for one in (old, young, foreign):
        one.write_bytes(b"")
    for one in (old, foreign):
        os.utime(one, (0, 0))
    Reading(paths, clock).reader.begin()
    assert sorted(one.name for one in paths.mail_in.iterdir()) == sorted([young.name, ".keep"])


def test_an_idle_mailbox_costs_less_than_one_operation_a_second(
    paths: SessionPaths, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = [f"w-{n:016x}" for n in range(10)]
    for worker_id in workers:
        register(paths, worker_id, content(said(beat(1))))
    reading.run(60)
    with counted(monkeypatch) as calls:
        reading.run(600)
    assert calls["stat"] == calls["lstat"] == 0
    assert calls["listdir"] <= 620
    assert calls["open"] + calls["fstat"] <= 600 * len(workers) * 0.5


def test_a_busy_worker_is_looked_at_twice_a_second(paths: SessionPaths, reading: Reading) -> None:
    register(paths, ID, content(said(beat(1, (Held("t", 1),))), pace=mailfile.BUSY))
    reading.run(60)
    seal_file(paths.mail_in / ID, content(said(outcome(1)), serial=2, pace=mailfile.FLOW))
    written_at = reading.clock.now
    (mail,) = [one for one in reading.run(5) if one.kind == mailpipe.MAIL]
    assert mail.at - written_at <= 0.65


def test_five_thousand_mailboxes_fit_into_a_pass(paths: SessionPaths, reading: Reading) -> None:
    count = int(OPENS_BURST)
    data = content(said(beat(1)))
    for n in range(count):
        name = f"w-{n:016x}"
        sealed = SEAL.put(data, f"in/{name}")
        for directory, text in ((paths.mail_in, sealed), (paths.mail_new, b"")):
            fd = os.open(directory / name, os.O_WRONLY | os.O_CREAT, 0o600)
            os.write(fd, text)
            os.close(fd)
    began = time.perf_counter()
    reading.run(1.0)
    elapsed = time.perf_counter() - began
    assert len(reading.of(mailpipe.MAIL)) == count
    # The promise is a second; a machine that runs other tests too gets more.
    assert elapsed < 5.0


def test_the_budget_of_opens_bounds_a_busy_session(
    paths: SessionPaths, reading: Reading, monkeypatch: pytest.MonkeyPatch
) -> None:
    reading.reader._tokens = 0.0
    workers = [f"w-{n:016x}" for n in range(300)]
    for worker_id in workers:
        register(paths, worker_id, content(said(beat(1)), pace=mailfile.FLOW | mailfile.BUSY))
    with counted(monkeypatch) as calls:
        reading.run(1.0)
    assert calls["open"] <= 2_000 + 1
    assert len(set(reading.of(mailpipe.MAIL))) == len(workers)


# --- the process --------------------------------------------------------------------------------


def wait_for(
    client: MailboxClient, condition: Callable[[list[Mail]], object], within_s: float = 15.0
) -> list[Mail]:
    """Everything received until the condition on it holds."""
    deadline = time.monotonic() + within_s
    found: list[Mail] = []
    with select.epoll() as poll:
        poll.register(client.fileno(), select.EPOLLIN)
        while not condition(found):
            assert time.monotonic() < deadline, found
            due = client.next_deadline()
            pause = 0.25 if due is None else max(0.0, min(0.25, due - time.monotonic()))
            poll.poll(pause)
            found += client.receive()
    return found


def envelopes(found: list[Mail], worker_id: str = ID) -> list[Envelope]:
    return [one for mail in found if mail.worker_id == worker_id for one in mail.envelopes]


@pytest.fixture
def client(paths: SessionPaths) -> Iterator[MailboxClient]:
    one = MailboxClient(paths, HEARTBEAT_S)
    one.start()
    yield one
    child = one._child
    one.close()
    one.close()
    assert child is not None
    assert child.returncode is not None


def live_link(paths: SessionPaths, worker_id: str = ID) -> FsLink:
    return FsLink(paths, worker_id, HEARTBEAT_S, time.monotonic)


def heard(client: MailboxClient, link: FsLink, kind: type[FromManager]) -> list[Envelope]:
    """The worker's mail of this kind, while the daemon's end runs as well."""
    deadline = time.monotonic() + 10.0
    while True:
        client.receive()
        found = link.receive().envelopes
        if any(isinstance(one.message, kind) for one in found):
            return found
        assert time.monotonic() < deadline
        due = link.next_poll(time.monotonic())
        assert due is not None
        time.sleep(max(0.0, min(due - time.monotonic(), 0.05)))


def test_register_welcome_assign_and_result(paths: SessionPaths, client: MailboxClient) -> None:
    link = live_link(paths)
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    found = wait_for(client, lambda mail: envelopes(mail) and client.spools_read)
    assert envelopes(found) == [said(REGISTER)]
    (mail,) = [one for one in found if one.envelopes]
    assert mail.read_at is not None
    assert mail.read_at <= time.monotonic()
    assign = answer(Assign(1, 2, 0, (Assignment("t", 1, b"\x80", None, None),)), 2)
    assert client.post(ID, [answer(WELCOME), assign]) == 0
    assert heard(client, link, Assign) == [answer(WELCOME), assign]
    done = [said(outcome(2), 2), said(beat(2), 3)]
    began = time.monotonic()
    link.send(done, lambda: done)
    assert envelopes(wait_for(client, envelopes)) == done
    assert time.monotonic() - began < 2.0


def test_readings_without_news_are_reported(paths: SessionPaths) -> None:
    client = MailboxClient(paths, 0.2)
    try:
        client.start()
        live_link(paths).send([said(beat(1))], lambda: [said(beat(1))])
        found = wait_for(client, lambda mail: sum(one.read_at is not None for one in mail) >= 4)
        times = [one.read_at for one in found if one.read_at is not None]
        assert times == sorted(times)
        assert len(envelopes(found)) == 1
    finally:
        client.close()


def test_the_newest_post_wins_while_the_process_is_stuck(
    paths: SessionPaths, client: MailboxClient
) -> None:
    link = live_link(paths)
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    wait_for(client, envelopes)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)
    try:
        spec = b"s" * 100_000
        began = time.monotonic()
        for seq in range(1, 101):
            items = (Assignment(f"t{seq}", 1, spec, None, None),)
            client.post(ID, [answer(Assign(1, seq, 0, items), seq)])
        client.post(OTHER, [answer(WELCOME, recipient=OTHER)])
        client.set_heartbeat(5.0)
        client.receive()
        assert time.monotonic() - began < 5.0
        assert len(client._posts) <= 2
    finally:
        os.kill(client.pid, signal.SIGCONT)
    deadline = time.monotonic() + 10
    while not (found := link.receive().envelopes) or found[0].counter != 100:
        assert time.monotonic() < deadline
        client.receive()
        link.busy(time.monotonic())
        time.sleep(0.002)
    assert not (paths.mail_out / OTHER).exists(), "nobody registered under that name"


def test_closing_lets_the_last_posts_out(paths: SessionPaths) -> None:
    client = MailboxClient(paths, HEARTBEAT_S)
    client.start()
    workers = [f"w-{n:016x}" for n in range(40)]
    for worker_id in workers:
        register(paths, worker_id, content(said(outcome(1, 60_000, 5), 1, worker_id)))
    wait_for(client, lambda mail: len({one.worker_id for one in mail if one.envelopes}) == 40)
    for worker_id in workers:
        # News that nobody takes in any more must not cost the posts behind it.
        news = said(outcome(2, 60_000, 5), 2, worker_id)
        seal_file(paths.mail_in / worker_id, content(news, serial=2))
        spec = (Assignment("t", 1, b"s" * 60_000, None, None),)
        client.post(worker_id, [answer(Assign(1, 1, 0, spec), 1, worker_id)])
    client.close(10.0)
    for worker_id in workers:
        assert len(mailfile.unpack(opened(paths.mail_out / worker_id)).frames) == 1
    assert client.receive() == []


def test_closing_does_not_wait_for_a_process_that_hangs(paths: SessionPaths) -> None:
    client = MailboxClient(paths, HEARTBEAT_S)
    client.start()
    wait_for(client, lambda _: client.spools_read)
    assert client.pid is not None
    os.kill(client.pid, signal.SIGSTOP)
    for n in range(40):
        client.post(f"w-{n:016x}", [answer(WELCOME)])
    client.post(ID, [answer(Assign(1, 1, 0, (Assignment("t", 1, b"s" * 500_000, None, None),)))])
    began = time.monotonic()
    client.close(0.1)
    assert time.monotonic() - began < 3.0


def test_a_post_that_is_too_large_keeps_its_beginning(
    paths: SessionPaths, client: MailboxClient
) -> None:
    link = live_link(paths)
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    wait_for(client, envelopes)
    spec = b"s" * limits.SPEC_BYTES_MAX
    posts = [
        answer(Assign(1, seq, 0, (Assignment(f"t{seq}", 1, spec, None, None),)), seq)
        for seq in range(1, 13)
    ]
    assert client.post(ID, posts) > 0
    counters = [one.counter for one in heard(client, link, Assign)]
    assert 4 <= len(counters) < 12
    assert counters == list(range(1, len(counters) + 1))


def test_forget_and_spools(paths: SessionPaths, client: MailboxClient) -> None:
    live_link(paths).send([said(REGISTER)], lambda: [said(REGISTER)])
    wait_for(client, envelopes)
    client.forget(ID)
    client.forget(ID)
    found = wait_for(client, lambda mail: any(one.gone for one in mail))
    assert [one.worker_id for one in found if one.gone] == [ID]
    assert [one for one in paths.mail.rglob("*") if one.is_file()] == []


def test_a_spool_is_handed_over_until_it_is_done(paths: SessionPaths) -> None:
    assert write_spool(paths, OTHER, [said(outcome(7), 7, OTHER)])
    for _ in range(2):
        client = MailboxClient(paths, HEARTBEAT_S)
        client.start()
        found = wait_for(client, lambda mail: any(one.spooled for one in mail))
        assert envelopes(found, OTHER) == [said(outcome(7), 7, OTHER)]
        assert [one.read_at for one in found if one.spooled] == [None]
        wait_for(client, lambda _, client=client: client.spools_read)  # type: ignore[misc]
        client.close()
    client = MailboxClient(paths, HEARTBEAT_S)
    client.start()
    wait_for(client, lambda mail: any(one.spooled for one in mail))
    client.spool_done(OTHER)
    wait_for(client, lambda _: not list(paths.spool.iterdir()))
    client.close()


def test_mail_in_anothers_name_or_of_no_sense_is_complained_about(
    paths: SessionPaths, client: MailboxClient
) -> None:
    frames = [*to_frames([said(beat(1), 1, OTHER), said(beat(2), 2)])[0], b"\xc1garbage"]
    register(paths, ID, mailfile.pack(frames, 1, 0))
    found = wait_for(client, lambda mail: any(one.complaints for one in mail))
    assert [one.sender for one in envelopes(found)] == [ID]
    assert len([text for one in found for text in one.complaints]) == 2
    register(paths, OTHER, content(said(beat(3), 3, OTHER)))
    wait_for(client, lambda mail: envelopes(mail, OTHER))


def test_a_killed_process_is_replaced_and_nothing_is_heard_twice(
    paths: SessionPaths, client: MailboxClient
) -> None:
    link = live_link(paths)
    link.send([said(REGISTER)], lambda: [said(REGISTER)])
    wait_for(client, envelopes)
    first = client.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    found = wait_for(client, lambda mail: any(one.complaints for one in mail))
    assert client.pid is None
    client.post(ID, [answer(WELCOME)])
    client.forget(OTHER)
    found += wait_for(client, lambda mail: any(one.gone for one in mail))
    assert client.pid not in (None, first)
    assert client.restarts == 1
    assert envelopes(found) == [], "the same mailbox is no news"
    heard(client, link, Welcome)
    link.send([said(beat(2), 2)], lambda: [said(beat(2), 2)])
    assert envelopes(wait_for(client, envelopes)) == [said(beat(2), 2)]


def test_each_worker_reads_its_own_mailbox(paths: SessionPaths, client: MailboxClient) -> None:
    links = {}
    for worker_id in (ID, OTHER):
        hello = [said(REGISTER, 1, worker_id)]
        links[worker_id] = live_link(paths, worker_id)
        links[worker_id].send(hello, lambda hello=hello: hello)  # type: ignore[misc]
        wait_for(client, partial(envelopes, worker_id=worker_id))
    client.post(OTHER, [answer(Ack(1, 1, 0, 1), recipient=OTHER)])
    heard(client, links[OTHER], Ack)
    assert links[ID].receive().envelopes == []


DAEMON = """
import os, sys, time
from pathlib import Path
from jobflow_worker.sessionfiles import SessionPaths
from jobflowd.mailboxes import MailboxClient
client = MailboxClient(SessionPaths(Path(sys.argv[1])), 10.0)
client.start()
while not client.spools_read:
    client.receive()
    time.sleep(0.01)
print(client.pid, flush=True)
time.sleep(60)
"""


def test_the_process_dies_with_the_daemon(paths: SessionPaths, tmp_path: Path) -> None:
    # A module of that name in the current directory must not be what gets imported.
    (tmp_path / "jobflowd.py").write_text("raise SystemExit('imported from the current directory')")
    (tmp_path / "heapq.py").write_text("raise SystemExit('imported from the current directory')")
    daemon = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; sys.path[:] = [p for p in sys.path if p]\n" + DAEMON,
            str(paths.root),
        ],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    )
    with daemon:
        assert daemon.stdout is not None
        child = int(daemon.stdout.readline())
        daemon.kill()
    deadline = time.monotonic() + 10
    while is_running(child):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state not in (b"Z", b"X")
