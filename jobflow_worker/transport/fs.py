"""The worker's link through two files on a shared file system.

Rules
-----
* mail/in/<id> is this worker's whole present state, mail/out/<id> the manager's whole wish for
  it; each has one writer, is replaced by rename and read by a fresh open. A lost or late version
  costs nothing, since the next one says everything again.
* Order at the start: the out file (empty), the in file, and last the entry in mail/new, the one
  directory that the manager lists. So nobody ever looks in vain for a name that is to come,
  which a network file system would believe missing for up to a minute.
* Looking starts at milliseconds when an answer is expected and doubles up to half a heartbeat:
  an idle worker costs two operations per look and three per report.
* Every file is sealed with the session's mail key. The key is looked at before each writing, so
  that a worker follows a manager whose keys were made anew.
* No file error is raised: the writing is tried again, and the session's own patience decides.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from typing import Final

from jobflow_worker.keyfile import CurveKeys, KeyFileError, mail_key_path, read_mail_key
from jobflow_worker.messages import Envelope, Heartbeat, Welcome
from jobflow_worker.sessionfiles import SessionPaths, UnsafeFileError, write_private
from jobflow_worker.transport import mailfile
from jobflow_worker.transport.base import Everything, Inbox, Pollable
from jobflow_worker.transport.framing import fit_mailbox, from_manager, pace_of_worker

LOOK_S_MIN: Final = 0.002
_RETRY_S_MIN: Final = 0.05
_RETRY_S_MAX: Final = 5.0
#: A torn file is looked at again this often before it is complained about.
_TORN_PATIENCE: Final = 3


def _random_62_bits() -> int:
    return int.from_bytes(os.urandom(8), "big") >> 2


class FsLink:
    """A mailbox link; see `base.Link`."""

    def __init__(
        self,
        paths: SessionPaths,
        worker_id: str,
        heartbeat_s: float,
        clock: Callable[[], float],
    ) -> None:
        self.notes: list[str] = []
        self._out = paths.mail_out / worker_id
        self._in = paths.mail_in / worker_id
        self._new = paths.mail_new / worker_id
        self._key_path = mail_key_path(paths)
        self._key_mark: tuple[int, ...] = ()
        self._seal: mailfile.Seal | None = None
        self._worker_id = worker_id
        self._clock = clock
        self._look_s_max = max(heartbeat_s / 2, LOOK_S_MIN)
        self._look_s = LOOK_S_MIN
        self._look_at = clock()
        self._known = b""
        self._torn = 0
        self._registered = False
        self._full = False
        self._pace = mailfile.IDLE
        # A random start: the serial differs from that of any earlier writer under this name.
        self._serial = _random_62_bits()
        self._unsent: Everything | None = None
        self._retry_s = _RETRY_S_MIN
        self._retry_at = 0.0
        self._trouble = ""
        self._complaints: list[str] = []

    @property
    def kind(self) -> str:
        return "fs"

    @property
    def full(self) -> bool:
        return self._full

    @property
    def refused(self) -> bool:
        return False

    def rekey(self, keys: CurveKeys | None) -> None:
        """Nothing to do: who can read the mail key is of this session."""

    def sockets(self) -> list[Pollable]:
        return []

    def send(self, fresh: Sequence[Envelope], everything: Everything) -> None:
        self._unsent = everything
        self._write(self._clock())
        if not fresh or not all(isinstance(one.message, Heartbeat) for one in fresh):
            self.busy(self._clock())

    def _write(self, now: float) -> None:
        """Replace the mailbox with the whole state, or keep it for the next try."""
        if self._unsent is None:
            return
        envelopes = self._unsent()
        frames, complaints, full = fit_mailbox(envelopes)
        pace = pace_of_worker(envelopes, self._pace)
        try:
            seal = self._sealer()
            if not self._registered:
                empty = mailfile.pack([], self._next_serial(), mailfile.IDLE)
                write_private(self._out, seal.put(empty, f"out/{self._worker_id}"), fsync=False)
            content = mailfile.pack(frames, self._next_serial(), pace)
            write_private(self._in, seal.put(content, f"in/{self._worker_id}"), fsync=False)
            if not self._registered:
                write_private(self._new, b"", fsync=False)
        except (OSError, KeyFileError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            self._complain(f"the mailbox cannot be written: {why}; trying again")
            self._retry_s = min(self._retry_s * 2, _RETRY_S_MAX)
            self._retry_at = now + self._retry_s
            return
        self._unsent = None
        self._registered = True
        self._retry_s = _RETRY_S_MIN
        self._trouble = ""
        self._pace = pace
        self._full = full
        self._complaints += complaints

    def _sealer(self) -> mailfile.Seal:
        """The seal as of now; read again only if the key file is another one."""
        info = os.stat(self._key_path, follow_symlinks=False)
        mark = (info.st_ino, info.st_mtime_ns, info.st_mode, info.st_uid)
        if self._seal is None or mark != self._key_mark:
            self._seal = mailfile.Seal(read_mail_key(self._key_path).mail_secret.encode())
            self._key_mark = mark
        return self._seal

    def _next_serial(self) -> int:
        self._serial += 1
        return self._serial

    def _complain(self, sentence: str) -> None:
        """Once per kind of trouble, not once per look."""
        if sentence != self._trouble:
            self._trouble = sentence
            self._complaints.append(sentence)

    def receive(self) -> Inbox:
        now = self._clock()
        if self._unsent is not None and now >= self._retry_at:
            self._write(now)
        envelopes = self._look(now) if self._registered and now >= self._look_at else []
        inbox = Inbox(envelopes, self._complaints)
        self._complaints = []
        return inbox

    def _look(self, now: float) -> list[Envelope]:
        data = self._read()
        if data is None:
            self._look_s = min(self._look_s * 2, self._look_s_max)
            self._look_at = now + self._look_s
            return []
        try:
            mail = mailfile.unpack(self._sealer().open(data, f"out/{self._worker_id}"))
        except (mailfile.Torn, mailfile.Forged, KeyFileError, OSError) as error:
            self._torn += 1
            if self._torn >= _TORN_PATIENCE:
                self._complain(f"the manager's mailbox is not readable: {error}")
            self._look_s = min(self._look_s * 2, self._look_s_max)
            self._look_at = now + self._look_s
            return []
        self._known = mail.header
        self._torn = 0
        envelopes, complaints = from_manager(mail.frames, self._worker_id)
        self._complaints += complaints
        for one in envelopes:
            if isinstance(one.message, Welcome):
                self._look_s_max = max(one.message.heartbeat_s / 2, LOOK_S_MIN)
        if mail.pace & mailfile.FLOW:
            self._look_s = LOOK_S_MIN
        self._look_at = now + self._look_s
        return envelopes

    def _read(self) -> bytes | None:
        try:
            return mailfile.read_if_new(self._out, self._known)
        except FileNotFoundError:
            # The manager took us for gone and cleaned up. The next report registers again; a
            # worker that has nothing more to say leaves no litter behind.
            self._registered = False
            self._known = b""
        except UnsafeFileError as error:
            self._complain(str(error))
        except OSError as error:
            self._complain(f"the manager's mailbox cannot be read: {error.strerror}")
        return None

    def next_poll(self, now: float) -> float | None:
        due = self._look_at if self._registered else None
        if self._unsent is not None:
            due = self._retry_at if due is None else min(due, self._retry_at)
        return None if due is None else max(now, due)

    def busy(self, now: float) -> None:
        self._look_s = LOOK_S_MIN
        self._look_at = min(self._look_at, now + LOOK_S_MIN)

    def reconnect(self, endpoints: Sequence[str]) -> None:
        """Nothing to do: the files stay where they are."""

    def close(self, linger_s: float = 2.0) -> None:
        """Nothing to do: what is written stays, and the manager removes it in the end."""


def write_spool(paths: SessionPaths, worker_id: str, outbox: Sequence[Envelope]) -> bool:
    """Leave the outbox for a manager that could not be reached; durable when this returns.

    False if some of it did not fit. Raises OSError, also for a mail key that cannot be used.
    """
    try:
        key = read_mail_key(mail_key_path(paths))
    except KeyFileError as error:
        raise PermissionError(errno.EACCES, str(error)) from None
    frames, _, cut = fit_mailbox(outbox)
    content = mailfile.pack(frames, _random_62_bits(), mailfile.IDLE)
    sealed = mailfile.Seal(key.mail_secret.encode()).put(content, f"spool/{worker_id}")
    write_private(paths.spool / worker_id, sealed)
    return not cut
