"""The daemon's end of the mailbox process: posts go in, mail and readings come out.

Rules
-----
* Nothing here waits and nothing here touches a mailbox. While the other process hangs in a file
  server, posts are kept, the newest per worker, and no reading is reported.
* A post is the whole desired state for its worker, so a lost one is repaired by the next.
* If the process dies it is started again, with growing pauses; removals that were not confirmed
  are asked for again, and mail that it hands over a second time is recognised.

Only `daemon.py` uses this. `mailchild.py` is the other end.
"""

from __future__ import annotations

import os
import secrets
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import jobflow_worker
from jobflow_worker import limits
from jobflow_worker.codec import decode_frame
from jobflow_worker.messages import WORKER, Ack, Envelope
from jobflow_worker.sessionfiles import SessionPaths
from jobflow_worker.transport import mailfile
from jobflow_worker.transport.framing import to_frames
from jobflowd import mailpipe
from jobflowd.launchers.multiprocess import boot_code, child_environment
from jobflowd.mailpipe import Note
from jobflowd.wording import count

_RESTART_S_MIN: Final = 0.5
_RESTART_S_MAX: Final = 60.0
#: A process that lived this long was well; the pause before the next one begins anew.
_WELL_AFTER_S: Final = 60.0
_READ_BYTES: Final = 262_144
#: Mail is taken in for about this long at a time, so that other peers and operators have their
#: turn while a thousand workers write at once. Deciding and answering take twice as long again.
_RECEIVE_S: Final = 0.008


@dataclass(frozen=True, slots=True)
class Mail:
    """What the mailbox process found. `worker_id` is "" for complaints about no worker.

    `read_at` (monotonic): the mailbox was read then, with or without news; None if it was not.
    `spooled`: from a spool file, to be answered with `spool_done` once it is committed.
    `gone`: its files are removed, as `forget` asked.
    """

    worker_id: str
    envelopes: tuple[Envelope, ...] = ()
    complaints: tuple[str, ...] = ()
    read_at: float | None = None
    spooled: bool = False
    gone: bool = False


class MailboxClient:
    """Start, poll `fileno` for input, `receive`, `post`, close."""

    def __init__(
        self,
        paths: SessionPaths,
        heartbeat_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._paths = paths
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._child: subprocess.Popen[bytes] | None = None
        self._pipe: socket.socket | None = None
        self._epoll = select.epoll()
        self._decoder = mailpipe.Decoder()
        self._notes: deque[Note] = deque()
        self._sending = memoryview(b"")
        self._waiting = False
        self._posts: dict[str, bytes] = {}
        self._requests: deque[Note] = deque()
        self._unconfirmed: dict[tuple[int, str], None] = {}
        self._headers: dict[str, bytes] = {}
        self._serial = secrets.randbits(62)
        self._restart_s = _RESTART_S_MIN
        self._restart_at: float | None = None
        self._started_at = 0.0
        self._closed = False
        #: Every mailbox and spool that was there at the start has been handed over.
        self.spools_read = False
        self.restarts = 0
        #: Files that are not of this session and lie in quarantine or could not be moved there.
        self.foreign = 0

    # --- life -------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the process. Raises OSError if that is not possible."""
        ours, theirs = socket.socketpair()
        try:
            self._child = self._spawn(theirs.fileno())
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        ours.setblocking(False)
        self._pipe = ours
        self._epoll.register(ours, select.EPOLLIN)
        self._decoder = mailpipe.Decoder()
        self._sending = memoryview(b"")
        self._waiting = False
        self._started_at = self._clock()
        self._restart_at = None
        self._requests = deque(Note(kind, name) for kind, name in self._unconfirmed)
        self._flush()

    def _spawn(self, fd: int) -> subprocess.Popen[bytes]:
        home = os.path.dirname(os.path.dirname(os.path.abspath(jobflow_worker.__file__)))
        return subprocess.Popen(
            [
                sys.executable,
                "-c",
                boot_code("jobflowd.mailchild", "main", home),
                os.fspath(self._paths.root.absolute()),
                str(fd),
                str(os.getpid()),
                repr(self._heartbeat_s),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            cwd="/",
            env=child_environment(os.environ),
            pass_fds=(fd,),
            start_new_session=True,
        )

    @property
    def pid(self) -> int | None:
        """The process, while it runs."""
        return None if self._child is None or self._pipe is None else self._child.pid

    def notices(self) -> tuple[str, ...]:
        """Sentences for `status`, as long as they are true."""
        if not self.foreign:
            return ()
        return (
            f"{count(self.foreign, 'foreign file was', 'foreign files were')} found among the"
            " mailboxes: something else writes into this session's directory."
            f" Look at them in {self._paths.quarantine}, and remove them",
        )

    def fileno(self) -> int:
        """Readable while `receive` has something to do; the same for life."""
        return self._epoll.fileno()

    def next_deadline(self) -> float | None:
        """When to call `receive` at the latest (monotonic), or None."""
        return 0.0 if self._notes else self._restart_at

    def close(self, linger_s: float = 2.0) -> None:
        """Let it finish what was asked, at most `linger_s`, and end it. Idempotent.

        One that hangs in a file server is killed, and left to the kernel if that takes long.
        """
        if self._closed:
            return
        self._closed = True
        if self._pipe is not None:
            self._finish(self._pipe, time.monotonic() + linger_s)
        self._hang_up()
        self._restart_at = None
        self._epoll.close()
        if self._child is not None:
            _end(self._child)

    def _finish(self, pipe: socket.socket, deadline: float) -> None:
        """Send what waits, say that this is all, and listen until the process has done it.

        Closing at once would lose it: the kernel resets a pipe that still holds unread reports.
        """
        said_all = False
        while (left_s := deadline - time.monotonic()) > 0:
            # Both ways at once: it takes no request while it waits for us to read.
            self._flush()
            try:
                if not (said_all or self._waiting):
                    said_all = True
                    pipe.shutdown(socket.SHUT_WR)
                self._epoll.poll(left_s)
                if not pipe.recv(_READ_BYTES):
                    return
            except BlockingIOError:
                pass  # There was room to send, and nothing to read.
            except OSError:
                return  # It is dead.

    def _hang_up(self) -> None:
        if self._pipe is not None:
            self._epoll.unregister(self._pipe)
            self._pipe.close()
            self._pipe = None

    def _lost(self, why: str) -> Mail:
        """The process is gone: plan the next one."""
        now = self._clock()
        self._hang_up()
        if self._child is not None:
            # Its end of the pipe is closed, so it is ending; killing makes sure of it.
            self._child.kill()
        if now - self._started_at > _WELL_AFTER_S:
            self._restart_s = _RESTART_S_MIN
        self._restart_at = now + self._restart_s
        self._restart_s = min(self._restart_s * 2, _RESTART_S_MAX)
        return Mail("", complaints=(f"the mailbox process ended ({why}) and is started again",))

    def _restart(self) -> list[Mail]:
        if self._child is not None and self._child.poll() is None:
            # Not dead yet: two of them must not write the same files.
            self._restart_at = self._clock() + _RESTART_S_MIN
            return []
        try:
            self.start()
        except OSError as error:
            return [self._lost(f"not started: {error.strerror}")]
        self.restarts += 1
        return []

    # --- out --------------------------------------------------------------------------------

    def post(self, worker_id: str, envelopes: Sequence[Envelope]) -> int:
        """Replace the worker's mailbox by these messages, in order; the newest post wins.

        Returns how many frames at the end did not fit: they come with a later post, since the
        worker's `seen` moves on with those before them.
        """
        frames, complaints = to_frames(envelopes)
        room = limits.MAILBOX_BYTES_MAX
        fitting = []
        for frame in frames:
            room -= len(frame)
            if room < 0:
                break
            fitting.append(frame)
        awaited = any(
            not isinstance(one.message, Ack) or one.message.want_full for one in envelopes
        )
        self._serial += 1
        pace = mailfile.FLOW if awaited else mailfile.IDLE
        self._posts.pop(worker_id, None)
        self._posts[worker_id] = mailfile.pack(fitting, self._serial, pace)
        self._flush()
        return len(frames) - len(fitting) + len(complaints)

    def forget(self, worker_id: str) -> None:
        """Remove both mailboxes and the registration; `receive` tells when they are gone."""
        self._posts.pop(worker_id, None)
        self._headers.pop(worker_id, None)
        self._ask(mailpipe.FORGET, worker_id)

    def spool_done(self, worker_id: str) -> None:
        """Remove a spool file: what was in it is committed."""
        self._ask(mailpipe.SPOOL_DONE, worker_id)

    def set_heartbeat(self, heartbeat_s: float) -> None:
        """Idle mailboxes are read every half of this from now on."""
        self._heartbeat_s = heartbeat_s
        self._requests.append(Note(mailpipe.HEARTBEAT, at=heartbeat_s))
        self._flush()

    def _ask(self, kind: int, worker_id: str) -> None:
        if (kind, worker_id) not in self._unconfirmed:
            self._unconfirmed[kind, worker_id] = None
            self._requests.append(Note(kind, worker_id))
            self._flush()

    def _flush(self) -> None:
        """Write what the pipe takes. The rest waits, and posts among it may still be replaced."""
        if self._pipe is None:
            return
        waiting = False
        try:
            while self._sending or self._next_note():
                self._sending = self._sending[self._pipe.send(self._sending) :]
        except BlockingIOError:
            waiting = True
        except OSError:
            pass  # The end of the process shows when reading.
        if waiting != self._waiting:
            self._waiting = waiting
            events = select.EPOLLIN | select.EPOLLOUT if waiting else select.EPOLLIN
            self._epoll.modify(self._pipe, events)

    def _next_note(self) -> bool:
        if self._requests:
            note = self._requests.popleft()
        elif self._posts:
            worker_id = next(iter(self._posts))
            note = Note(mailpipe.POST, worker_id, self._posts.pop(worker_id))
        else:
            return False
        self._sending = memoryview(note.encode())
        return True

    # --- in ---------------------------------------------------------------------------------

    def receive(self) -> list[Mail]:
        """What has come, bounded. Never raises for what a worker wrote."""
        if self._closed:
            return []
        found: list[Mail] = []
        self._flush()
        ends = self._clock() + _RECEIVE_S
        while self._notes or self._read(found):
            while self._notes:
                found += self._mail(self._notes.popleft())
                if self._clock() >= ends:
                    return found
        return found

    def _read(self, found: list[Mail]) -> bool:
        """Take some of what the process said; False if there is nothing. May find that it ended."""
        if self._pipe is None:
            if self._restart_at is not None and self._clock() >= self._restart_at:
                found += self._restart()
            return False
        try:
            data = self._pipe.recv(_READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            found.append(self._lost("its pipe closed"))
            return False
        self._notes.extend(self._decoder.feed(data))
        return True

    def _mail(self, note: Note) -> list[Mail]:
        worker_id = note.worker_id
        if note.kind == mailpipe.SAME:
            pairs = (line.split(" ") for line in note.data.decode().split("\n"))
            return [Mail(name, read_at=float(at)) for name, at in pairs if self._is_kept(name)]
        if note.kind == mailpipe.MAIL:
            return [self._opened(note)] if self._is_kept(worker_id) else []
        if note.kind == mailpipe.SPOOL:
            envelopes, complaints = _decode(worker_id, note.data)
            return [Mail(worker_id, envelopes, complaints, spooled=True)]
        if note.kind == mailpipe.GONE:
            self._unconfirmed.pop((mailpipe.FORGET, worker_id), None)
            return [Mail(worker_id, gone=True)]
        if note.kind == mailpipe.SPOOL_GONE:
            self._unconfirmed.pop((mailpipe.SPOOL_DONE, worker_id), None)
        elif note.kind == mailpipe.COMPLAINT:
            return [Mail(worker_id, complaints=(note.data.decode(errors="replace"),))]
        elif note.kind == mailpipe.LISTED:
            self.spools_read = True
        elif note.kind == mailpipe.FOREIGN:
            self.foreign = int(note.at)
            if note.data:
                return [Mail("", complaints=(note.data.decode(errors="replace"),))]
        return []

    def _is_kept(self, worker_id: str) -> bool:
        return (mailpipe.FORGET, worker_id) not in self._unconfirmed

    def _opened(self, note: Note) -> Mail:
        header = note.data[: mailfile.HEADER_BYTES]
        if self._headers.get(note.worker_id) == header:
            return Mail(note.worker_id, read_at=note.at)
        self._headers[note.worker_id] = header
        envelopes, complaints = _decode(note.worker_id, note.data)
        return Mail(note.worker_id, envelopes, complaints, note.at)


def _decode(worker_id: str, data: bytes) -> tuple[tuple[Envelope, ...], tuple[str, ...]]:
    """The valid envelopes of this worker in a mailbox file, and complaints."""
    try:
        frames = mailfile.unpack(data).frames
    except mailfile.Torn as error:
        return (), (str(error),)
    good: list[Envelope] = []
    complaints: list[str] = []
    for frame in frames:
        envelopes, bad = decode_frame(frame, sent_by=WORKER)
        complaints += bad
        good += [one for one in envelopes if one.sender == worker_id]
        if any(one.sender != worker_id for one in envelopes):
            complaints.append("a message in another worker's name")
    return tuple(good), tuple(complaints)


def _end(child: subprocess.Popen[bytes]) -> None:
    for grace_s in (1.0, 0.5):
        try:
            child.wait(grace_s)
            return
        except subprocess.TimeoutExpired:
            child.kill()
