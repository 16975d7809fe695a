"""Carries a turn's effects out, after its commit: messages, launches, replies.

The only place that sends. Specs are added here, in one read for the whole turn; a body never
passes through the coordinator.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from jobflow_worker.messages import MANAGER, Assign, Assignment, Envelope
from jobflow_worker.sessionfiles import SessionFileError
from jobflowd.batchdesk import BatchDesk
from jobflowd.bulk import Answering
from jobflowd.effects import (
    CancelLaunch,
    Deliver,
    Effect,
    Forget,
    Post,
    QueryLaunches,
    Reply,
    StopGenerator,
    Submit,
)
from jobflowd.events import Event, QueryAnswered, SubmitFailed
from jobflowd.keys import KeyRing
from jobflowd.processes import LocalDesk
from jobflowd.store import Store


class Carrier(NamedTuple):
    """A transport's sending side, of `ZmqServer` or `MailboxClient`. `post` sends now or drops:
    it never blocks, and never raises for a missing peer."""

    post: Callable[[str, Sequence[Envelope]], object]
    forget: Callable[[str], None]


class Performer:
    """Effects out; what they bring at once comes back as events for the next turn."""

    def __init__(
        self,
        store: Store,
        carriers: dict[str, Carrier],
        admin: Answering,
        desk: LocalDesk | BatchDesk | None,
        stop_generator: Callable[[], None],
        keys: KeyRing | None = None,
    ) -> None:
        self._store = store
        self._carriers = carriers
        self._admin = admin
        self._desk = desk
        self._stop_generator = stop_generator
        self._keys = keys
        self._counter = 0

    def perform(self, effects: Sequence[Effect]) -> list[Event]:
        """Carry effects out in order."""
        specs = self._specs(effects)
        events: list[Event] = []
        for effect in effects:
            match effect:
                case Post():
                    self._post(effect, specs)
                case Forget(worker_id, transport):
                    carrier = self._carriers.get(transport)
                    if carrier is not None:
                        carrier.forget(worker_id)
                case Reply(ticket, body, None):
                    self._admin.answer(ticket, body)
                case Reply(ticket, _, (code, message, hint)):
                    self._admin.refuse(ticket, code, message, hint)
                case StopGenerator():
                    self._stop_generator()
                case Submit() | CancelLaunch() | QueryLaunches():
                    events.extend(self._launch(effect))
        return events

    def _specs(self, effects: Sequence[Effect]) -> dict[int, bytes]:
        rows = [
            item.row
            for effect in effects
            if isinstance(effect, Post)
            for message in effect.messages
            if isinstance(message, Deliver)
            for item in message.items
        ]
        return self._store.specs(rows) if rows else {}

    def _post(self, post: Post, specs: dict[int, bytes]) -> None:
        carrier = self._carriers.get(post.transport)
        if carrier is None:
            return
        ts = time.time()
        envelopes = []
        for message in post.messages:
            if isinstance(message, Deliver):
                message = filled(message, specs)
            self._counter += 1
            envelopes.append(Envelope(MANAGER, MANAGER, post.worker_id, self._counter, ts, message))
        carrier.post(post.worker_id, envelopes)

    def _launch(self, effect: Submit | CancelLaunch | QueryLaunches) -> list[Event]:
        desk = self._desk
        if desk is None:
            return []
        match effect:
            case Submit(launch_id, exclude):
                if (refusal := self._make_key(launch_id)) is not None:
                    return [refusal]
                answer = desk.submit(launch_id, exclude)
                return [] if answer is None else [answer]
            case CancelLaunch(launch_id, batch_job_id, now):
                desk.cancel(launch_id, batch_job_id, now)
                return []
            case QueryLaunches(launches):
                seen = desk.query(launches)
                # A batch system answers later; the process table at once.
                return [] if seen is None else [*seen, QueryAnswered()]

    def _make_key(self, launch_id: str) -> SubmitFailed | None:
        """The launch's key is on disk before anything that needs it starts."""
        try:
            if self._keys is not None:
                self._keys.ensure_launch_key(launch_id)
        except (OSError, SessionFileError) as error:
            return SubmitFailed(launch_id, f"its key file cannot be made: {error}")
        return None


def filled(deliver: Deliver, specs: dict[int, bytes]) -> Assign:
    """The message for the worker: a delivery with the specs of its task rows."""
    items = tuple(
        Assignment(one.task_id, one.attempt, specs[one.row], one.timeout_s, one.memory_bytes)
        for one in deliver.items
    )
    return Assign(deliver.epoch, deliver.seq, deliver.base, items)
