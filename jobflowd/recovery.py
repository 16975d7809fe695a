"""What the daemon does when a turn cannot be decided or committed.

Rules
-----
* A failed commit means that nothing was sent. The events that nobody will repeat are kept;
  workers repeat theirs. When the disk works again the coordinator is rebuilt from the store, as
  after a restart, and the kept events run.
* An exception inside a turn is a bug. The evidence is saved, the coordinator is rebuilt, and the
  events run one at a time: one that fails again is refused if a peer sent it.
"""

from __future__ import annotations

import time
import traceback
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from jobflow_worker.messages import Ack, Heartbeat, RequestWork
from jobflow_worker.sessionfiles import write_private
from jobflowd import events as ev
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.dbfile import DiskFull, ReadOnly, StoreBroken
from jobflowd.effects import Effect, Post
from jobflowd.model import Changes
from jobflowd.store import Store

#: How often a full disk is tried again.
RETRY_S = 1.0
#: A file system that made itself read-only is waited for this long (RELIABILITY D4).
READ_ONLY_S = 600.0
#: Events kept while degraded: operators are refused and workers repeat, so few come.
KEPT_MAX = 10_000
#: Bugs survived in an hour before the daemon gives up.
BUGS_MAX = 3
BUGS_PERIOD_S = 3600.0
#: Saved evidence, in bytes of text.
EVIDENCE_MAX = 4_000_000


class Recovery:
    """Degraded mode, and life after a bug."""

    def __init__(self, store: Store, settings: Settings, root: Path) -> None:
        self._store = store
        self._settings = settings
        self._root = root
        self._kept: deque[ev.Event] = deque(maxlen=KEPT_MAX)
        self._bugs: deque[float] = deque(maxlen=BUGS_MAX + 1)
        self.degraded: str | None = None
        self.retry_at: float | None = None
        self._since = 0.0

    # --- a full disk ----------------------------------------------------------------------------

    def degrade(self, events: Sequence[ev.Event], why: str) -> None:
        """The commit of a turn with these events failed for want of space, or of a disk that
        takes writes."""
        self.degraded = why
        self._since = time.monotonic()
        self.retry_at = self._since + RETRY_S
        self.keep(events)

    def keep(self, events: Sequence[ev.Event]) -> None:
        """Keep what nobody repeats: workers that spooled their outcomes are gone."""
        lasting = (
            ev.Generated,
            ev.GenerationEnded,
            ev.Submitted,
            ev.SubmitFailed,
            ev.StopAsked,
            ev.ProgramChanged,
        )
        self._kept.extend(
            one
            for one in events
            if isinstance(one, lasting) or (isinstance(one, ev.Heard) and one.spooled)
        )

    def bare_answers(self, events: Sequence[ev.Event], epoch: int) -> list[Effect]:
        """Workers must not think that their manager is gone; nothing is acknowledged."""
        answers: list[Effect] = []
        for event in events:
            message = event.message if isinstance(event, ev.Heard) else None
            if isinstance(event, ev.Heard) and isinstance(message, Heartbeat | RequestWork):
                ack = Ack(epoch, 0, 0, message.report.hb_seq)
                answers.append(Post(event.worker_id, event.transport, (ack,)))
        return answers

    def try_again(self, before: Coordinator) -> tuple[Coordinator, list[ev.Event]] | None:
        """Is there room again? Then a new coordinator and the kept events, else None.

        Raises `StoreBroken` if the file system stays read-only.
        """
        self.retry_at = time.monotonic() + RETRY_S
        try:
            self._store.commit(Changes(meta={"recovered_at": time.time()}))
            coordinator = self._rebuild(before)
        except ReadOnly as error:
            if self.retry_at - self._since > READ_ONLY_S:
                raise StoreBroken(error.sentence) from error
            return None
        except DiskFull:
            return None
        events = [*self._opening(before), *self._kept]
        self._kept.clear()
        self.degraded = self.retry_at = None
        return coordinator, events

    # --- a bug ------------------------------------------------------------------------------------

    @property
    def too_many(self) -> bool:
        """More bugs within the hour than a daemon should survive."""
        recent = [at for at in self._bugs if time.monotonic() - at < BUGS_PERIOD_S]
        return len(recent) > BUGS_MAX

    def save(self, events: Sequence[ev.Event], error: Exception) -> Path | None:
        """Leave the events and the traceback in the session directory."""
        self._bugs.append(time.monotonic())
        path = self._root / f"bug-{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}.txt"
        lines = [*traceback.format_exception(error), "\nevents:\n", *(f"{e!r}\n" for e in events)]
        try:
            write_private(path, "".join(lines).encode("utf-8", "replace")[:EVIDENCE_MAX])
        except OSError:
            return None
        return path

    def replay(
        self, events: Sequence[ev.Event], before: Coordinator
    ) -> tuple[Coordinator, list[list[Effect]], bool]:
        """Run the events one at a time on a rebuilt coordinator.

        Returns it, the effects of each good turn, and whether an event was lost that no peer sent.
        """
        coordinator = self._rebuild(before)
        done: list[list[Effect]] = []
        lost = False
        for event in [*self._opening(before), *events]:
            now = time.monotonic()
            try:
                facts = self._store.lookup(coordinator.questions(now, [event]))
                turn = coordinator.turn(now, time.time(), [event], facts)
                self._store.commit(turn.changes)
            except Exception as error:
                self.save([event], error)
                lost = lost or not isinstance(event, ev.Heard)
                coordinator = self._rebuild(before)
                continue
            done.append(turn.effects)
        return coordinator, done, lost

    def _rebuild(self, before: Coordinator) -> Coordinator:
        snapshot = self._store.begin_epoch("adopt", wall=time.time())
        return Coordinator(self._settings, snapshot, int(snapshot.meta["epoch"]))

    def _opening(self, before: Coordinator) -> list[ev.Event]:
        """What a new coordinator must be told again of this daemon's life."""
        book = before.book
        events: list[ev.Event] = [ev.ProgramChanged(book.program_hash), ev.TransportsReady()]
        if book.generated:
            events.append(ev.GenerationEnded())
        elif book.generation_error is not None:
            events.append(ev.GenerationEnded(book.generation_error))
        if book.finishing in ("shutdown", "detach"):
            # Who asked for the end of the run does not ask again.
            detach = book.finishing == "detach"
            events.append(ev.StopAsked("asked for before", now=book.finishing_now, detach=detach))
        return events
