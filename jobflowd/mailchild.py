"""The process that does all mailbox I/O, so that a hung file server never stops the daemon.

Rules
-----
* New workers are found by listing mail/new (and, at the start, mail/in); then each mailbox is
  opened by its name, which exists. Nothing is looked up that may be missing.
* Each mailbox has its own pace: milliseconds after news, doubling to half a second while its
  worker is busy and to half a heartbeat while it is idle, all within a budget of opens a second.
* A read is reported even if it brought nothing: only then may the daemon let a lease expire. A
  read that failed for the file server's sake is not reported, so leases wait with it; one that
  failed for the file's own sake is, after a few tries, so a broken mailbox cannot hold a task.
* Contents are passed on as bytes once checksum and seal are right; the daemon decodes them. What
  is not of this session goes to quarantine (`foreign.py`): odd names at once, a mailbox when its
  worker would have replaced it by now, if it lived.
* It ends with the daemon: by the end of the socket pair, and by the kernel.

Started by `mailboxes.py` only. Imports nothing heavy: it lives as long as the daemon does.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import math
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from jobflow_worker.keyfile import KeyFileError, mail_key_path, read_mail_key
from jobflow_worker.messages import is_worker_id
from jobflow_worker.processes import die_with_parent
from jobflow_worker.sessionfiles import SessionPaths, UnsafeFileError, write_private
from jobflow_worker.transport import mailfile
from jobflowd import mailpipe
from jobflowd.foreign import Quarantine, entry_trouble
from jobflowd.mailpipe import Note

LOOK_S_MIN: Final = 0.002
BUSY_LOOK_S_MAX: Final = 0.5
LIST_S_MIN: Final = 0.05
LIST_S_MAX: Final = 1.0
SPOOL_LIST_S: Final = 60.0
#: Readings that brought nothing are reported this often at most.
SAME_S: Final = 0.25
#: So many names go into one note: the daemon takes notes in until its time for that is over.
SAME_PER_NOTE: Final = 500
#: What a shared file server does not feel, and a burst for one pass over 5,000 mailboxes.
OPENS_PER_S: Final = 2_000.0
OPENS_BURST: Final = 5_000.0
#: Mailboxes read before the daemon's requests are looked at again.
READS_PER_PASS: Final = 512
#: A torn or unsafe file is read this often before it is complained about.
BROKEN_PATIENCE: Final = 3
#: Temporary files of writers that died are removed at the start when they are older than this.
_LEFTOVER_AGE_S: Final = 3600.0
#: These say something about the file server, not about the file.
_SERVER_ERRORS: Final = frozenset(
    {
        errno.ESTALE,
        errno.EIO,
        errno.ETIMEDOUT,
        errno.EINTR,
        errno.EAGAIN,
        errno.ENOMEM,
        errno.EMFILE,
        errno.ENFILE,
    }
)

Report = Callable[[Note], None]


@dataclass(slots=True)
class _Box:
    """A mailbox as it was last seen; `due` is when to look again."""

    due: float
    look_s: float = LOOK_S_MIN
    header: bytes = b""
    pace: int = mailfile.IDLE
    broken: int = 0
    broken_at: float = 0.0
    trouble: str = ""


class MailReader:
    """Everything but the process around it: call `work` when it is due."""

    def __init__(
        self,
        paths: SessionPaths,
        heartbeat_s: float,
        clock: Callable[[], float],
        report: Report,
        seal: mailfile.Seal,
    ) -> None:
        self._paths = paths
        self._seal = seal
        self._quarantine = Quarantine(paths.quarantine)
        self._foreign_told = 0
        self._in = os.fspath(paths.mail_in)
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._report = report
        self._boxes: dict[str, _Box] = {}
        self._queue: list[tuple[float, int, str]] = []
        self._numbers = itertools.count()
        self._list_s = LIST_S_MIN
        self._list_at = 0.0
        self._spool_at = 0.0
        self._spools: dict[str, bytes] = {}
        self._removals: dict[tuple[int, str], None] = {}
        self._tokens = OPENS_BURST
        self._tokens_at = clock()
        self._same: dict[str, float] = {}
        self._same_at = 0.0
        self._missing = False
        self._trouble = ""
        self._listed = False

    # --- requests of the daemon -------------------------------------------------------------

    def handle(self, note: Note) -> None:
        """One request. Failures become complaints or are tried again; nothing is raised."""
        worker_id = note.worker_id
        if note.kind == mailpipe.POST:
            self._post(worker_id, note.data)
        elif note.kind == mailpipe.FORGET:
            self._boxes.pop(worker_id, None)
            self._removals[note.kind, worker_id] = None
            self._remove_all()
        elif note.kind == mailpipe.SPOOL_DONE:
            self._removals[note.kind, worker_id] = None
            self._remove_all()
        elif note.kind == mailpipe.HEARTBEAT:
            self._heartbeat_s = note.at

    def _post(self, worker_id: str, data: bytes) -> None:
        box = self._boxes.get(worker_id)
        if box is None:
            # It was forgotten since: a file written now would stay for ever.
            return
        try:
            sealed = self._seal.put(data, f"out/{worker_id}")
            write_private(self._paths.mail_out / worker_id, sealed, fsync=False)
        except OSError as error:
            self._complain(worker_id, box, f"its mailbox cannot be written: {error.strerror}")
            return
        if mailfile.pace_of(data) & mailfile.FLOW:
            box.look_s = LOOK_S_MIN
            self._schedule(worker_id, box, self._clock())

    def _remove_all(self) -> None:
        for kind, worker_id in list(self._removals):
            if kind == mailpipe.FORGET:
                done = mailpipe.GONE
                # The registration last: if this stops half-way, the next start finds the rest.
                doomed = [self._paths.mail_in, self._paths.mail_out, self._paths.mail_new]
            else:
                done = mailpipe.SPOOL_GONE
                doomed = [self._paths.spool]
                self._spools.pop(worker_id, None)
            if all(_unlink(directory / worker_id) for directory in doomed):
                del self._removals[kind, worker_id]
                self._report(Note(done, worker_id))

    # --- the work ---------------------------------------------------------------------------

    def begin(self) -> None:
        """Find what is there from before, spools included, and clean up after dead writers."""
        now = self._clock()
        for name in self._names(self._paths.mail_in, sweep=True):
            self._add(name, now)
        self._names(self._paths.mail_out, sweep=True)

    def work(self) -> float:
        """One bounded pass over what is due. Returns when the next one is due."""
        now = self._clock()
        if now >= self._list_at:
            self._list_new(now)
        if now >= self._spool_at:
            self._spool_at = now + SPOOL_LIST_S
            self._read_spools(now)
            self._quarantine.recount()
            self._tell_foreign(None)
        self._refill(now)
        reads = 0
        while self._queue and self._queue[0][0] <= now:
            if reads >= READS_PER_PASS or self._tokens < 1:
                break
            due, _, worker_id = heapq.heappop(self._queue)
            box = self._boxes.get(worker_id)
            if box is None or box.due != due:
                continue
            reads += 1
            self._tokens -= 1
            self._read(worker_id, box, now)
        self._flush_same(now)
        if not self._listed and not (self._queue and self._queue[0][0] <= now):
            self._listed = True
            self._report(Note(mailpipe.LISTED, at=now))
        return self._next_due(now)

    def _next_due(self, now: float) -> float:
        due = min(self._list_at, self._spool_at)
        if self._same:
            due = min(due, self._same_at)
        if self._queue:
            ready = now if self._tokens >= 1 else now + (1 - self._tokens) / OPENS_PER_S
            due = min(due, max(self._queue[0][0], ready))
        return due

    def _refill(self, now: float) -> None:
        gained = (now - self._tokens_at) * OPENS_PER_S
        self._tokens = min(OPENS_BURST, self._tokens + gained)
        self._tokens_at = now

    def _list_new(self, now: float) -> None:
        self._remove_all()
        fresh = [name for name in self._names(self._paths.mail_new) if name not in self._boxes]
        for name in fresh:
            if self._is_ours(self._paths.mail_new / name):
                self._add(name, now)
        if self._missing:
            # A network file system believes a name missing that was once looked up in vain;
            # listing its directory is what cures it.
            self._missing = False
            self._names(self._paths.mail_in)
        longest = min(LIST_S_MAX, self._heartbeat_s / 2)
        self._list_s = LIST_S_MIN if fresh else min(self._list_s * 2, longest)
        self._list_at = now + self._list_s

    def _names(self, directory: Path, *, sweep: bool = False) -> list[str]:
        """Names of mailboxes in a directory; temporary and `.nfs` names are left out."""
        try:
            names = os.listdir(directory)
        except OSError as error:
            sentence = f"{directory} cannot be listed: {error.strerror}"
            if sentence != self._trouble:
                self._trouble = sentence
                self._report(Note(mailpipe.COMPLAINT, data=sentence.encode()))
            return []
        if sweep:
            for name in names:
                _sweep(directory, name)
        good = []
        for name in names:
            if is_worker_id(name):
                if (mailpipe.FORGET, name) not in self._removals:
                    good.append(name)
            elif not name.startswith("."):
                self._tell_foreign(self._quarantine.take(directory / name, "nobody's mailbox"))
        return good

    def _is_ours(self, entry: Path) -> bool:
        try:
            trouble = entry_trouble(entry)
        except OSError:
            return True  # The file server is in trouble; the mailbox itself is judged when read.
        if trouble is not None:
            self._tell_foreign(self._quarantine.take(entry, trouble))
        return trouble is None

    def _tell_foreign(self, sentence: str | None) -> None:
        count = self._quarantine.count
        if sentence is not None or count != self._foreign_told:
            self._foreign_told = count
            self._report(Note(mailpipe.FOREIGN, data=(sentence or "").encode(), at=float(count)))

    def _add(self, worker_id: str, now: float) -> None:
        self._schedule(worker_id, self._boxes.setdefault(worker_id, _Box(now)), now)

    def _schedule(self, worker_id: str, box: _Box, due: float) -> None:
        box.due = due
        heapq.heappush(self._queue, (due, next(self._numbers), worker_id))

    def _read(self, worker_id: str, box: _Box, now: float) -> None:
        try:
            data = mailfile.read_if_new(f"{self._in}/{worker_id}", box.header)
            if data is not None:
                data = self._seal.open(data, f"in/{worker_id}")
        except mailfile.Torn as error:
            self._broken(worker_id, box, str(error), now)
        except (mailfile.Forged, UnsafeFileError) as error:
            self._broken(worker_id, box, str(error), now)
            if now - box.broken_at >= 2 * self._heartbeat_s:
                path = self._paths.mail_in / worker_id
                self._tell_foreign(self._quarantine.take(path, str(error)))
        except FileNotFoundError:
            self._missing = True
            self._list_at = now
            self._broken(worker_id, box, "its mailbox is not there", now)
        except OSError as error:
            self._complain(worker_id, box, f"its mailbox cannot be read: {error.strerror}")
            if error.errno not in _SERVER_ERRORS:
                self._same[worker_id] = now
        else:
            box.broken = 0
            box.trouble = ""
            if data is None:
                self._same[worker_id] = now
            else:
                self._news(worker_id, box, data, now)
        self._schedule(worker_id, box, self._next_look(box, now))

    def _news(self, worker_id: str, box: _Box, data: bytes, now: float) -> None:
        self._same.pop(worker_id, None)
        self._report(Note(mailpipe.MAIL, worker_id, data, now))
        box.header = data[: mailfile.HEADER_BYTES]
        box.pace = mailfile.pace_of(data)
        if box.pace & mailfile.FLOW:
            box.look_s = LOOK_S_MIN / 2

    def _broken(self, worker_id: str, box: _Box, why: str, now: float) -> None:
        box.broken += 1
        if box.broken == 1:
            box.broken_at = now
            box.look_s = LOOK_S_MIN
        if box.broken >= BROKEN_PATIENCE:
            self._complain(worker_id, box, why)
            self._same[worker_id] = now

    def _complain(self, worker_id: str, box: _Box, sentence: str) -> None:
        if sentence != box.trouble:
            box.trouble = sentence
            self._report(Note(mailpipe.COMPLAINT, worker_id, sentence.encode()))

    def _next_look(self, box: _Box, now: float) -> float:
        longest = self._heartbeat_s / 2
        if box.pace & mailfile.BUSY:
            longest = min(longest, BUSY_LOOK_S_MAX)
        box.look_s = min(box.look_s * 2, longest)
        due = now + box.look_s
        # Slow looks are brought together on a grid, so that a thousand idle mailboxes wake this
        # process a few times a second and not a thousand times.
        return due if box.look_s < 0.25 else math.ceil(due * 10) / 10

    def _flush_same(self, now: float) -> None:
        """Readings without news, a few times a second: each wakes the daemon for a turn."""
        if self._same and now >= self._same_at:
            lines = [f"{name} {at!r}" for name, at in self._same.items()]
            for first in range(0, len(lines), SAME_PER_NOTE):
                data = "\n".join(lines[first : first + SAME_PER_NOTE]).encode()
                self._report(Note(mailpipe.SAME, data=data))
            self._same.clear()
            self._same_at = now + SAME_S

    def _read_spools(self, now: float) -> None:
        for name in self._names(self._paths.spool):
            known = self._spools.get(name, b"")
            try:
                data = mailfile.read_if_new(self._paths.spool / name, known)
                if data is None:
                    continue
                data = self._seal.open(data, f"spool/{name}")
            except (mailfile.Forged, UnsafeFileError) as error:
                path = self._paths.spool / name
                self._tell_foreign(self._quarantine.take(path, str(error)))
                continue
            except (OSError, mailfile.Torn) as error:
                sentence = f"its spool cannot be read: {error}"
                self._report(Note(mailpipe.COMPLAINT, name, sentence.encode()))
                continue
            self._spools[name] = data[: mailfile.HEADER_BYTES]
            self._report(Note(mailpipe.SPOOL, name, data, now))


def _unlink(path: Path) -> bool:
    """True once the name is gone; False for an error that may pass."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        # A directory under that name is not ours to remove, and trying again would not help.
        return error.errno in (errno.EISDIR, errno.EPERM, errno.ENOTDIR)
    return True


def _sweep(directory: Path, name: str) -> None:
    """Remove an old temporary file: `.<worker id>.<random>`."""
    if not (name.startswith(".") and is_worker_id(name[1:].rpartition(".")[0])):
        return
    path = directory / name
    try:
        if time.time() - os.lstat(path).st_mtime > _LEFTOVER_AGE_S:
            os.unlink(path)
    except OSError:
        pass


# --- the process ------------------------------------------------------------------------------


def main() -> int:
    """Entry point: `SESSION_DIR FD PARENT_PID HEARTBEAT_S` in argv."""
    session_dir, fd, parent, heartbeat_s = sys.argv[1:5]
    die_with_parent(int(parent))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=int(fd)) as pipe:
        os.set_inheritable(pipe.fileno(), False)
        paths = SessionPaths(Path(session_dir))
        try:
            seal = _seal_of(pipe, paths)
            if seal is not None:
                _serve(pipe, paths, float(heartbeat_s), seal)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The daemon is gone, and so are we.
    return 0


def _seal_of(pipe: socket.socket, paths: SessionPaths) -> mailfile.Seal | None:
    """The session's seal; without it, says why not, and the daemon starts us again later."""
    try:
        return mailfile.Seal(read_mail_key(mail_key_path(paths)).mail_secret.encode())
    except (KeyFileError, OSError) as error:
        sentence = f"mailboxes cannot be served: {error}"
        pipe.sendall(Note(mailpipe.COMPLAINT, data=sentence.encode()).encode())
        return None


def _serve(
    pipe: socket.socket, paths: SessionPaths, heartbeat_s: float, seal: mailfile.Seal
) -> None:
    """Read, report, obey, until the daemon closes its end.

    Reports are sent blocking: while the daemon does not read, nothing is read for it either.
    """
    reader = MailReader(
        paths, heartbeat_s, time.monotonic, lambda note: pipe.sendall(note.encode()), seal
    )
    reader.begin()
    decoder = mailpipe.Decoder()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    due = 0.0
    while True:
        pause_ms = max(0.0, min(due - time.monotonic(), 60.0)) * 1000
        if poll.poll(math.ceil(pause_ms)):
            data = pipe.recv(262_144)
            if not data:
                return
            for note in decoder.feed(data):
                reader.handle(note)
        due = reader.work()
