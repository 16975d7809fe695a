"""What a daemon is made of, built from its session: settings, transports, local launches.

Opening only: nothing here runs again while the daemon serves.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import psutil

from jobflow_worker.program import describe
from jobflow_worker.sessionfiles import read_beacon
from jobflowd import guard, rlimits
from jobflowd.batchdesk import BatchDesk
from jobflowd.batchopening import open_batch_desk, warning_s
from jobflowd.book import Settings
from jobflowd.config import BATCH_LAUNCHERS, StartConfig, terms
from jobflowd.dbfile import EXIT_CONFIG, StoreError
from jobflowd.keys import KeyRing, open_mail_key
from jobflowd.mailboxes import MailboxClient
from jobflowd.model import Changes
from jobflowd.performer import Carrier
from jobflowd.processes import LocalDesk
from jobflowd.sessiondir import Session
from jobflowd.store import Store
from jobflowd.telemetry import FilePublisher
from jobflowd.wording import count
from jobflowd.zmqserver import ZmqServer

#: Local workers are asked about this often, whatever the interval for a batch system is: the
#: process table is ours to read.
LOCAL_POLL_S = 5.0


@dataclass(frozen=True, slots=True)
class Transports:
    """Both transports, bound and started; `zmq` is None in `--mode fs`. `keys` is None where no
    TCP is served, or in the clear; `warnings` of the start are for the log and for `status`."""

    zmq: ZmqServer | None
    mail: MailboxClient
    endpoints: tuple[str, ...]
    keys: KeyRing | None = None
    warnings: tuple[str, ...] = ()

    def notices(self) -> tuple[str, ...]:
        """All that `status` is to warn of now."""
        return (*self.warnings, *self.mail.notices())

    def carriers(self) -> dict[str, Carrier]:
        """Their sending sides, by the names that workers register with."""
        found = {"fs": Carrier(self.mail.post, self.mail.forget)}
        if self.zmq is not None:
            found["zmq"] = Carrier(self.zmq.send, self.zmq.forget)
        return found


def lost_epoch(session: Session, epoch: int) -> int | None:
    """The epoch to go on from if the database, at `epoch`, is behind what workers have seen.

    Every start of a daemon is an epoch, stored before its beacon is written, so a beacon that is
    ahead proves that the database was put back or lost: what it had acknowledged since may be
    gone. Raises `StoreError` (78) then, unless that was allowed (RELIABILITY X8).
    """
    seen = read_beacon(session.paths.beacon)
    if seen is None or seen.epoch <= epoch:
        return None
    if not session.config.accept_rollback:
        state = f"is of start {epoch}" if epoch else "is new"
        raise StoreError(
            f"the database {session.db_path} {state}, but this session was started "
            f"{count(seen.epoch, 'time')}: it is an older copy, or not the one. Results since then"
            " are not in it. Put the newest database back, or go on from this one with"
            " --accept-rollback",
            EXIT_CONFIG,
        )
    return seen.epoch


def make_settings(session: Session, store: Store, meta: dict[str, Any]) -> Settings:
    """The coordinator's settings; a new session gets the mark that its launches are named by."""
    config = session.config
    uid = meta.get("uid")
    if uid is None:
        uid = os.urandom(3).hex()
        store.commit(Changes(meta={"uid": uid}))
    poll_s = config.launch_poll_interval
    return Settings(
        session=session.name,
        program=describe(session.program),
        launcher=config.launcher,
        launch_prefix=f"jf-{uid}",
        workers=config.workers,
        slots=config.slots,
        terms={kind: _term(config, kind, session.network_fs) for kind in ("zmq", "fs")},
        worker_timeout_s=config.worker_timeout,
        max_losses=config.max_losses,
        max_deliveries=config.max_deliveries,
        retry_backoff_s=config.retry_backoff,
        task_timeout_s=config.task_timeout,
        task_memory=config.task_memory,
        max_inflight_per_worker=config.max_inflight_per_worker,
        grace_s=config.shutdown_grace_period,
        idle_timeout_s=config.worker_idle_timeout,
        manager_timeout_s=60.0 * config.worker_manager_timeout_minutes,
        launch_poll_s=min(LOCAL_POLL_S, poll_s) if config.launcher == "multiprocess" else poll_s,
        launch_stale_s=config.launch_stale_timeout,
        canary=config.launcher in BATCH_LAUNCHERS and not config.no_canary,
        warning_s=warning_s(config),
        stay=config.stay,
        on_spec_change=config.on_spec_change,
    )


def _term(config: StartConfig, kind: str, network_fs: bool) -> tuple[float, float]:
    """Heartbeat and lease of a transport; a worker time-out that was given is its lease."""
    heartbeat, lease = terms(config, kind, network_fs)
    if not config.is_default("worker_timeout"):
        lease = config.worker_timeout
    return heartbeat, lease


def open_transports(
    session: Session,
    store: Store,
    settings: Settings,
    meta: dict[str, Any],
    launches: Iterable[str],
) -> Transports:
    """Bind and start what the mode asks for. The port of before is kept if it is free.

    Mailboxes are served in every mode: any worker may leave its outbox in the spool. The keys of
    `launches`, which are not over, are known before anybody can connect, so that survivors of a
    restart are let in at once. Raises `GuardError`, `KeyFileError`, `BindError` and OSError.
    """
    config = session.config
    mail = MailboxClient(session.paths, settings.terms["fs"][0])
    server: ZmqServer | None = None
    endpoints: tuple[str, ...] = ()
    keys: KeyRing | None = None
    warnings = tuple(open_mail_key(session.paths, session.name, fresh=not session.resumed))
    warnings += rlimits.notices()
    if config.mode in ("zmq", "auto"):
        port = config.port or int(meta.get("port", 0))
        if config.insecure_plaintext:
            warnings += (guard.PLAINTEXT_WARNING,)
            server = ZmqServer(config.bind_host, port)
        else:
            guard.check_library()
            keys = KeyRing(session.paths, session.name)
            keys.open(launches, fresh=not session.resumed)
            warnings += tuple(keys.notes)
            server = ZmqServer(config.bind_host, port, keys.curve(), holder_of=keys.holder_of)
        try:
            server.bind()
            if keys is not None:
                guard.prove_closed(server, keys.curve().public, own_hosts(config.bind_host)[-1])
        except BaseException:
            server.close()
            raise
        store.commit(Changes(meta={"port": server.port}))
        hosts = [config.manager_host] if config.manager_host else own_hosts(config.bind_host)
        endpoints = tuple(server.endpoints(hosts))
    mail.start()
    return Transports(server, mail, endpoints, keys, warnings)


def open_desk(session: Session, umask: int, prefix: str) -> LocalDesk | BatchDesk | None:
    """Where workers come from; None if they are started by hand.

    Raises `ConfigError` (69) if the batch system's commands are not there.
    """
    config = session.config
    if config.launcher in BATCH_LAUNCHERS:
        return open_batch_desk(session, umask, prefix)
    if config.launcher != "multiprocess":
        return None
    return LocalDesk(
        session.paths.root,
        start_dir=session.record.cwd,
        slots=config.slots,
        mode=config.mode,
        umask=umask,
    )


def open_telemetry(session: Session, epoch: int) -> FilePublisher | None:
    """The snapshots in a file, if they are wanted."""
    config = session.config
    if config.telemetry_mode != "file":
        return None
    return FilePublisher(
        config.telemetry_file or session.paths.snapshot,
        config.telemetry_queue_size,
        config.telemetry_refresh,
        session=session.name,
        epoch=epoch,
    )


def own_hosts(bind_host: str) -> list[str]:
    """The addresses under which this daemon can be reached, the likeliest first."""
    if bind_host not in ("0.0.0.0", "::", "*"):
        return [bind_host]
    found = [
        address.address
        for addresses in psutil.net_if_addrs().values()
        for address in addresses
        if address.family.name == "AF_INET"
    ]
    return sorted(dict.fromkeys(found), key=lambda one: one.startswith("127."))[:16]
