"""The session's keys: the manager's own pair, one pair per launch, and those that all share.

    keys/server.key     kept as long as the session, so that survivors of a restart know us again
    keys/<launch>.key   made before the launch is submitted, withdrawn when it is over
    keys/mail.key       seals mailbox files, in every mode; kept as long as the session
    keys/hand.key       for `jobflow-worker --session NAME`; withdrawn when the run is over

Rules
-----
* A key is in memory (the allow-list) only while its file is on disk: it is written before it
  counts, and withdrawn from memory before its file goes.
* Files are 0600 from their first instant, whole or not there. One that others could have read
  stops the start: keys that may be known are no keys.
* Only paths leave this module towards launchers and scripts, never keys.

Used by `opening.py`, the performer and the daemon.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Collection, Iterable
from pathlib import Path

import zmq

from jobflow_worker.keyfile import (
    DamagedKeyError,
    KeyFile,
    MailKeyFile,
    ServerKeyFile,
    key_path,
    mail_key_path,
    read_key_file,
    read_mail_key,
    read_server_key,
    server_key_path,
)
from jobflow_worker.messages import HAND
from jobflow_worker.record import replace
from jobflow_worker.sessionfiles import SessionPaths, write_private
from jobflowd.zap import DOMAIN
from jobflowd.zmqserver import CurveServer


def open_mail_key(paths: SessionPaths, session: str, *, fresh: bool) -> list[str]:
    """Make the mailboxes' key unless it is there; with `fresh`, make it anew.

    Returns sentences for the log. Raises `KeyFileError` (exit code 77) for a file that others
    could know or have made, and OSError. Needs no zmq: it serves hosts without CURVE, too.
    """
    path = mail_key_path(paths)
    notes = []
    if not fresh:
        try:
            if read_mail_key(path).session == session:
                return []
            notes.append(f"{path} was made for another session; a new one is made")
        except FileNotFoundError:
            pass
        except DamagedKeyError as error:
            notes.append(f"{error}; a new one is made")
    write_private(path, MailKeyFile(session, secrets.token_hex(20)).encode())
    return notes


class KeyRing:
    """All keys of one session; `open` before anything else."""

    def __init__(self, paths: SessionPaths, session: str) -> None:
        self._paths = paths
        self._session = session
        self._server: ServerKeyFile | None = None
        #: Public key (Z85) to its holder, and back: the allow-list.
        self._holders: dict[str, str] = {}
        self._publics: dict[str, str] = {}
        #: Sentences for the log.
        self.notes: list[str] = []

    def open(self, launches: Iterable[str], *, fresh: bool) -> None:
        """Read or make the keys of the manager, of workers by hand and of these launches.

        All others are removed; with `fresh`, everything is made anew. Raises `KeyFileError`
        (exit code 77) for a file that others could know or have made, and OSError.
        """
        if fresh:
            self._remove_all(())
        self._server = self._own_pair()
        wanted = dict.fromkeys((HAND, *launches))
        self._remove_all(wanted)
        for holder in wanted:
            self.ensure_launch_key(holder)

    @property
    def server_public(self) -> str:
        """What the beacon tells the workers to expect."""
        return self._pair().server_public

    def curve(self) -> CurveServer:
        """For the socket, guarded in our ZAP domain."""
        pair = self._pair()
        return CurveServer(pair.server_public.encode(), pair.server_secret.encode(), DOMAIN)

    def holder_of(self, public: str) -> str | None:
        """Whose key this is: a launch id, `HAND`, or None for nobody's."""
        return self._holders.get(public)

    def ensure_launch_key(self, launch_id: str) -> Path:
        """Make the launch's key file unless it is there, and let its key in; returns its path.

        Raises ValueError for what cannot be a launch id, `KeyFileError` and OSError.
        """
        path = key_path(self._paths, launch_id)
        if launch_id in self._publics:
            return path
        keys = self._known(path, launch_id)
        if keys is None:
            public, secret = zmq.curve_keypair()
            keys = KeyFile(
                self._session, launch_id, self.server_public, public.decode(), secret.decode()
            )
            write_private(path, keys.encode())
        elif keys.server_public != self.server_public:
            write_private(path, replace(keys, server_public=self.server_public).encode())
        self._holders[keys.client_public] = launch_id
        self._publics[launch_id] = keys.client_public
        return path

    def revoke(self, launch_id: str) -> None:
        """The launch is over: nobody gets in with its key any more. Idempotent, never raises."""
        public = self._publics.pop(launch_id, None)
        if public is not None:
            self._holders.pop(public, None)
            with contextlib.suppress(OSError):
                os.unlink(key_path(self._paths, launch_id))

    def withdraw(self) -> None:
        """The run is over: all keys but the manager's own. Idempotent, never raises."""
        for holder in list(self._publics):
            self.revoke(holder)

    # --- inside -----------------------------------------------------------------------------

    def _pair(self) -> ServerKeyFile:
        assert self._server is not None, "the key ring is not open"
        return self._server

    def _own_pair(self) -> ServerKeyFile:
        path = server_key_path(self._paths)
        try:
            found = read_server_key(path)
            if zmq.curve_public(found.server_secret.encode()) == found.server_public.encode():
                return found
            self.notes.append(f"{path} holds two halves that do not fit: a new pair is made")
        except FileNotFoundError:
            pass
        except DamagedKeyError as error:
            self.notes.append(f"{error}; a new pair is made")
        public, secret = zmq.curve_keypair()
        made = ServerKeyFile(self._session, public.decode(), secret.decode())
        write_private(path, made.encode())
        return made

    def _known(self, path: Path, holder: str) -> KeyFile | None:
        """The keys that this holder has already, if they are its own."""
        try:
            found = read_key_file(path)
        except FileNotFoundError:
            return None
        except DamagedKeyError as error:
            self.notes.append(f"{error}; new keys are made for {holder}")
            return None
        if (found.holder, found.session) != (holder, self._session):
            self.notes.append(f"{path} was made for {found.holder}; new keys are made")
            return None
        return found

    def _remove_all(self, wanted: Collection[str]) -> None:
        """Remove the key files of everybody else: ended launches, and half-written ones."""
        keep = {key_path(self._paths, one).name for one in wanted}
        keep.add(mail_key_path(self._paths).name)
        if wanted:
            keep.add(server_key_path(self._paths).name)
        for name in os.listdir(self._paths.keys):
            if name not in keep and ".key" in name:
                os.unlink(self._paths.keys / name)
