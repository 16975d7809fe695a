"""Where events come from: operators, processes, workers. One bounded drain each per pass.

Decodes and names things; decides nothing. The daemon asks in this order, operators before workers.
"""

from __future__ import annotations

import select
import time
from collections.abc import Callable, Collection
from typing import Any

from jobflow_worker.messages import Envelope, Register
from jobflowd import events as ev
from jobflowd import logs
from jobflowd.admin import AdminServer, Request
from jobflowd.api import READS
from jobflowd.batchdesk import BatchDesk
from jobflowd.book import Book
from jobflowd.bulk import Bulk
from jobflowd.company import Company
from jobflowd.generate import GeneratorProcess
from jobflowd.mailboxes import Mail
from jobflowd.opening import Transports
from jobflowd.processes import LocalDesk
from jobflowd.store import Store

_log = logs.get(__name__)

#: Frames of workers and outcomes in them that one pass takes in: bounds the turn, and so how long
#: an operator waits. What is left makes the next pass begin at once.
FRAMES_PER_PASS = 16
OUTCOMES_PER_PASS = 500
#: Batches of new tasks in one pass while workers are silent, and while they are not.
BATCHES_PER_PASS = 4
BATCHES_BESIDE_WORK = 1

Ready = Collection[Any]


class Sources:
    """All inputs of the loop but signals and time."""

    def __init__(
        self,
        store: Store,
        admin: AdminServer,
        transports: Transports,
        desk: LocalDesk | BatchDesk | None,
        generator: GeneratorProcess | None,
        on_register: Callable[[Register], None],
    ) -> None:
        self._admin = admin
        self._transports = transports
        self._desk = desk
        self._generator = generator
        self._on_register = on_register
        #: Answers to changing requests go through here.
        self.bulk = Bulk(store, admin)
        #: Workers whose spool was handed over in this pass: done with once it is committed.
        self.spools: list[str] = []
        self._company = Company()
        self.transports_ready = False
        self._silent = True

    def interest(self) -> dict[Any, int]:
        """What to poll now."""
        interest: dict[Any, int] = {}
        interest.update(self._admin.interest())
        if self._transports.zmq is not None:
            interest.update(dict.fromkeys(self._transports.zmq.sockets(), select.POLLIN))
        interest[self._transports.mail.fileno()] = select.POLLIN
        if self._desk is not None:
            interest[self._desk.wake_fd()] = select.POLLIN
        if self._generator is not None:
            interest[self._generator.fileno()] = select.POLLIN
        return interest

    def next_deadline(self, now: float) -> float:
        """When to drain even if nothing is readable."""
        if self.bulk.busy:
            return now
        times = [self._admin.next_deadline(now), self._transports.mail.next_deadline()]
        times.append(self._company.until)
        if self._desk is not None:
            times.append(self._desk.next_deadline())
        if self._generator is not None:
            times.append(self._generator.next_deadline())
        return min(at for at in times if at is not None)

    # --- operators ------------------------------------------------------------------------------

    def operators(self, ready: Ready, now: float, events: list[ev.Event]) -> list[Request]:
        """Changing requests become events; reading ones are returned, to be answered at once."""
        reads = []
        for request in self._admin.service([one for one in ready if isinstance(one, int)], now):
            if request.cmd in READS:
                reads.append(request)
                continue
            _log.info("asked", cmd=request.cmd, args=request.args, pid=request.pid, uid=request.uid)
            if request.cmd == "yield":
                self._admin.refuse(
                    request.ticket, "conflict", "This daemon runs its session.", "See: status"
                )
            elif not self.bulk.takes(request.ticket, request.cmd, request.args, time.time()):
                events.append(ev.Asked(request.ticket, request.cmd, dict(request.args)))
        events += self.bulk.events()
        return reads

    # --- processes ------------------------------------------------------------------------------

    def processes(self, ready: Ready, now: float, events: list[ev.Event]) -> None:
        """Local workers that ended, and tasks that the program named."""
        desk, generator = self._desk, self._generator
        if desk is not None:
            due = desk.next_deadline()
            if desk.wake_fd() in ready or (due is not None and due <= now):
                desk.tick(now)
                events += desk.reap()
        if generator is not None:
            generator.tick(now)
            events += generator.receive(BATCHES_PER_PASS if self._silent else BATCHES_BESIDE_WORK)
            if generator.pid is None:
                self.stop_generator()

    def pause_generator(self, paused: bool) -> None:
        """Take no definitions while they cannot be stored: the pipe makes the program wait."""
        if self._generator is not None:
            if paused:
                self._generator.pause()
            else:
                self._generator.resume()

    def stop_generator(self) -> None:
        """Its definitions are all here, or are no use. Idempotent."""
        if self._generator is not None:
            self._generator.close()
            self._generator = None

    # --- workers --------------------------------------------------------------------------------

    def workers(
        self, events: list[ev.Event], book: Book, now: float, *, expiring: bool
    ) -> list[ev.Event]:
        """Everything that workers sent, both ways, behind these events; nothing if all of it can
        wait. `expiring`: a deadline is due, so there is a turn, and it must be known up to when
        mail was read, even if there is none."""
        complaints: list[str] = []
        server = self._transports.zmq
        if server is not None:
            received = server.receive(FRAMES_PER_PASS, OUTCOMES_PER_PASS)
            complaints += received.complaints
            events += [self._heard(one, "zmq", key) for one, key in received.items]
            self._silent = not received.items
            if received.read_at is not None and (events or expiring):
                events.append(ev.MailRead(received.read_at))
        for mail in self._transports.mail.receive():
            complaints += mail.complaints
            self._take_mail(mail, events)
        if self._transports.mail.spools_read and not self.transports_ready:
            self.transports_ready = True
            events.append(ev.TransportsReady())
        for complaint in complaints:
            _log.repeated("bad_message", key=complaint[:40], text=complaint)
        return self._company.join(events, book, now, due=expiring)

    def _take_mail(self, mail: Mail, events: list[ev.Event]) -> None:
        events += [self._heard(one, "fs", None, spooled=mail.spooled) for one in mail.envelopes]
        if mail.spooled:
            self.spools.append(mail.worker_id)
        if mail.read_at is not None:
            events.append(ev.MailRead(mail.read_at, mail.worker_id))

    def _heard(
        self, envelope: Envelope, transport: str, key: str | None, *, spooled: bool = False
    ) -> ev.Heard:
        message: Any = envelope.message  # The codec let only a worker's messages through.
        if isinstance(message, Register):
            self._on_register(message)
        return ev.Heard(envelope.sender, envelope.counter, transport, message, key, spooled)

    def done_with_spools(self) -> None:
        """What was in them is committed."""
        for worker_id in self.spools:
            self._transports.mail.spool_done(worker_id)
        self.spools = []

    def see_workers_out(self, wait: Callable[[int, float], None], grace_s: float) -> None:
        """Local workers have said good-bye: wait until they have ended, then end the rest."""
        desk = self._desk
        if desk is None:
            return
        give_up_at = time.monotonic() + grace_s
        while desk.living() and time.monotonic() < give_up_at:
            wait(desk.wake_fd(), 0.1)
            desk.tick(time.monotonic())
            desk.reap()
        for launch_id in desk.living():
            desk.cancel(launch_id, None, True)

    def close(self) -> None:
        """Give everything back; workers live on."""
        self.stop_generator()
        if self._desk is not None:
            self._desk.close()
        if self._transports.zmq is not None:
            self._transports.zmq.close(2.0)
        self._transports.mail.close()
