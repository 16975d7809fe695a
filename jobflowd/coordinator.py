"""The pure heart: events in, one `Turn` (changes and effects) out.

Rules
-----
* `turn` is the only entrance. No clock, no I/O, no randomness: time and ids come in with the call.
* Order inside a turn: facts, handlers, expiry, scheduling, posts. Handlers never send: they mark
  workers dirty, and each dirty worker gets one post at the end.
* Iteration is over dicts and lists only, so a run is the same whatever the hash seed.
* The rooms (`reports`, `outcomes`, `launching`, `schedule`, `outbound`, `operators`) decide; this
  module says in which order they are asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from jobflow_worker.messages import (
    Heartbeat,
    Held,
    Register,
    RequestWork,
    ShutdownAck,
    TaskFailed,
    TaskFinished,
    TaskReturned,
)
from jobflowd import events as ev
from jobflowd import operators, outbound, outcomes, quarantine, reports, schedule
from jobflowd.book import Book, Settings
from jobflowd.effects import Post, StopGenerator, Turn
from jobflowd.launching import Launching
from jobflowd.model import (
    Definition,
    Facts,
    LaunchState,
    NewTask,
    Questions,
    Snapshot,
    Task,
    TaskState,
)
from jobflowd.window import PAGE
from jobflowd.wording import count

#: How often tasks whose back-off ends are looked for on disk.
DUE_STEP_S = 0.25
#: Tasks that leave their back-off in one turn.
DUE_PAGE = 2_000
#: What is left of a run after its grace: cancelled launches may take this long to vanish.
CANCEL_GRACE_S = 10.0
#: Between samples of the number of completed tasks, for throughput.
SAMPLE_S = 1.0


class Coordinator:
    """The owner of the truth about one session."""

    def __init__(self, settings: Settings, snapshot: Snapshot, epoch: int) -> None:
        self.book = Book(settings, snapshot, epoch)
        self.launching = Launching(self.book)
        self._last_turn: float | None = None
        self._first_new_row = snapshot.next_task_row
        self._fresh: dict[str, NewTask] = {}
        self._known_again = 0
        self._changed_specs = 0

    @property
    def finished(self) -> int | None:
        """The exit code once the run is over, None before."""
        return self.book.finished

    def next_deadline(self) -> float | None:
        """When the next turn is due even if nothing happens."""
        return self.book.deadlines.next()

    # --- questions ----------------------------------------------------------------------------

    def questions(self, now: float, events: Sequence[ev.Event]) -> Questions:
        """The rows that a turn with these events needs and memory does not hold."""
        asked = Questions()
        for event in events:
            if isinstance(event, ev.Heard):
                self._ask_about(event, asked)
            elif isinstance(event, ev.LaunchSeen):
                self._ask_about_charges(event, asked)
            elif isinstance(event, ev.Generated):
                asked.definitions.extend(one.task_id for one in event.definitions)
            elif isinstance(event, ev.Asked):
                asked.tasks.extend(
                    task_id
                    for task_id in event.args.get("task_ids") or ()
                    if not self.book.knows(task_id)
                )
        after = self.book.ready.hungry
        if after is not None:
            asked.ready_after, asked.ready_limit = after, PAGE
        due = self.book.deadlines.get("due")
        if due is not None and due <= now:
            asked.due_before, asked.due_limit = now, DUE_PAGE
        return asked

    def _ask_about_charges(self, event: ev.LaunchSeen, asked: Questions) -> None:
        launch = self.book.launches.get(event.launch_id) if event.blameless else None
        worker = self.book.by_row.get(launch.worker or -1) if launch is not None else None
        for held in worker.charged if worker is not None else ():
            asked.attempts.append(held)
            if not self.book.knows(held.task_id):
                asked.tasks.append(held.task_id)

    def _ask_about(self, event: ev.Heard, asked: Questions) -> None:
        worker = self.book.workers.get(event.worker_id)
        if worker is None:
            # It may have ended in an earlier life: its attempts and verdicts are under its row.
            asked.workers.append(event.worker_id)
        message = event.message
        named: Iterable[tuple[str, int]] = ()
        if isinstance(message, TaskFinished | TaskFailed | TaskReturned):
            if worker is not None and outcomes.judged(worker, event.counter):
                return  # Repeated until its verdict arrives: nothing of it is applied again.
            named = ((item.task_id, item.attempt) for item in message.items)
        elif isinstance(message, Heartbeat | RequestWork):
            named = (*message.report.running, *message.report.waiting)
        elif isinstance(message, Register):
            named = message.held
        known = worker.attempts if worker is not None else {}
        for task_id, attempt in named:
            attempting = known.get(task_id)
            if attempting is not None and attempting.attempt == attempt:
                continue
            asked.attempts.append(Held(task_id, attempt))
            if not self.book.knows(task_id):
                asked.tasks.append(task_id)

    # --- the turn -----------------------------------------------------------------------------

    def turn(self, now: float, wall: float, events: Sequence[ev.Event], facts: Facts) -> Turn:
        """Decide. Raises `InvariantBroken` (or anything else) only for a bug of ours."""
        book = self.book
        self._mind_the_gap(now)
        self._absorb(facts)
        book.begin(now, wall, facts)
        self._fresh = {}
        for event in events:
            self._handle(event)
        self._expire()
        self._due()
        self._sample()
        self.launching.step(changed=bool(events))
        schedule.assign_ready(book)
        self._decide_end()
        self._compose()
        self._decide_exit()
        return book.turn

    def last_turn(self, now: float, wall: float, *, at_once: bool) -> Turn:
        """After the run is over: take every launch back that is not."""
        self.book.begin(now, wall, Facts())
        self.launching.cancel_all(now=at_once)
        return self.book.turn

    def _mind_the_gap(self, now: float) -> None:
        """After a pause of our own, silence proves nothing: every lease gets a fresh term.

        A turn is due every heartbeat even if nothing happens, so a longer gap is a pause.
        """
        book = self.book
        before, self._last_turn = self._last_turn, now
        if before is not None and now - before > 2 * book.settings.heartbeat_s:
            book.now = now
            reports.refresh_leases(book)
        book.deadlines.set("pulse", now + book.settings.heartbeat_s)

    def _absorb(self, facts: Facts) -> None:
        """Rows read from disk become memory's objects: one object per task."""
        book = self.book
        if facts.ready or book.ready.hungry is not None:
            book.ready.absorb(facts.ready, PAGE, book.in_flight)
        for worker in facts.workers.values():
            book.know(worker)
        for task in facts.due:
            facts.tasks.setdefault(task.task_id, task)
        for task_id in [task_id for task_id in facts.tasks if book.knows(task_id)]:
            del facts.tasks[task_id]

    def _handle(self, event: ev.Event) -> None:
        book, launching = self.book, self.launching
        match event:
            case ev.Heard():
                self._heard(event)
            case ev.MailRead(at, None):
                book.mail_read_at = max(book.mail_read_at, at)
            case ev.MailRead(at, worker_id):
                reader = book.workers.get(worker_id or "")
                if reader is not None:
                    reader.read_at = max(reader.read_at, at)
            case ev.Generated(definitions):
                self._generated(definitions)
            case ev.GenerationEnded(error, detail):
                self._generation_ended(error, detail)
            case ev.Submitted():
                launching.on_submitted(event)
            case ev.SubmitFailed():
                launching.on_submit_failed(event)
            case ev.LaunchSeen():
                launching.on_seen(event)
            case ev.QueryAnswered(absent):
                launching.on_answered(absent)
            case ev.QueryFailed(reason):
                launching.on_query_failed(reason)
            case ev.ProgramChanged(program_hash):
                self._program_changed(program_hash)
            case ev.TransportsReady():
                if not book.hold_over:
                    book.deadlines.set("hold", book.now + book.settings.hold_s)
            case ev.Asked():
                operators.on_asked(book, launching, event)
            case ev.StopAsked():
                operators.on_stop(book, launching, event)

    def _heard(self, event: ev.Heard) -> None:
        book = self.book
        worker = book.workers.get(event.worker_id)
        message = event.message
        known_as = worker.launch_id if worker is not None else None
        if worker is not None and not reports.is_proven(book, event.peer, known_as):
            reports.on_foreign_key(book, worker, event.peer)
            return
        if event.spooled:
            if worker is not None and isinstance(message, TaskFinished | TaskFailed | TaskReturned):
                outcomes.on_outcome(book, worker, event.counter, message)
            return
        if isinstance(message, Register):
            was = worker is not None and worker.registered
            reports.on_register(book, event.worker_id, event.transport, message, event.peer)
            if not was and event.worker_id in book.workers:
                self.launching.on_registered()
            return
        if worker is None or not worker.registered:
            book.strangers[event.worker_id] = event.transport
            return
        if isinstance(message, Heartbeat | RequestWork):
            if message.report.epoch != book.epoch:
                book.strangers[event.worker_id] = event.transport
            else:
                reports.on_report(book, worker, message.report)
        elif isinstance(message, ShutdownAck):
            reports.leave(book, worker, message.reason)
        else:
            outcomes.on_outcome(book, worker, event.counter, message)

    # --- time ---------------------------------------------------------------------------------

    def _expire(self) -> None:
        book = self.book
        for key in book.deadlines.due(book.now):
            match key:
                case ("lease", worker_id):
                    worker = book.workers.get(str(worker_id))
                    if worker is not None:
                        reports.expire(book, worker)
                case ("quarantine", worker_id):
                    worker = book.workers.get(str(worker_id))
                    if worker is not None:
                        quarantine.end(book, worker, "its time is over")
                case "hold":
                    self._hold_ended()
                case "query":
                    self.launching.query()
                case "grace":
                    self.launching.cancel_all(now=False)
                    book.deadlines.set("end", book.now + CANCEL_GRACE_S)
                case "end":
                    book.finished = operators.exit_code(book)
                case _:  # The others only wake the loop: their work is every turn's.
                    pass

    def _hold_ended(self) -> None:
        book = self.book
        book.hold_over = True
        for task in list(book.held.values()):
            outcomes.release_held(book, task, "manager restart")
        self.launching.hold_ended()

    def _due(self) -> None:
        """Delayed tasks whose back-off is over become ready."""
        book = self.book
        for task in book.facts.due:
            task = book.facts.tasks.get(task.task_id, task)
            if task.due is not None and task.due <= book.now:
                task.due = None
                book.delayed -= 1
                book.ready.offer(task)
                book.touch(task)
        if book.delayed and book.deadlines.get("due") is None:
            book.deadlines.set("due", book.now + DUE_STEP_S)

    def _sample(self) -> None:
        book = self.book
        samples = book.samples
        if not samples or book.now - samples[-1][0] >= SAMPLE_S:
            samples.append((book.now, book.completed))
            book.pace.note(book.now, book.completed, book.busy_slots)

    # --- the program's tasks ------------------------------------------------------------------

    def _generated(self, definitions: Sequence[Definition]) -> None:
        book = self.book
        if book.generation_error is not None:
            return
        # Two batches may arrive in one turn: the second must see what the first brought.
        fresh, all_known = self._fresh, book.facts.known
        new_tasks = book.turn.changes.new_tasks
        for one in definitions:
            twin = fresh.get(one.task_id)
            if twin is not None:
                if twin.definition.spec_hash != one.spec_hash:
                    self._clash(one.task_id, twin.row)
                    break
                self._known_again += 1
                continue
            known = all_known.get(one.task_id)
            if known is None:
                fresh[one.task_id] = new = self._new_task(one)
                new_tasks.append(new)
            elif known.spec_hash != one.spec_hash:
                if known.row >= self._first_new_row:
                    self._clash(one.task_id, known.row)
                    break
                waits = known.state is TaskState.QUEUED and one.task_id not in book.in_flight
                self._spec_changed(one, known.row, waits=waits)
            else:
                self._known_again += 1

    def _new_task(self, one: Definition) -> NewTask:
        book = self.book
        new = NewTask(book.next_task_row, book.next_order_no, one)
        book.next_task_row += 1
        book.next_order_no += 1
        book.counts[TaskState.QUEUED] += 1
        if book.ready.takes((-one.priority, new.order_no)):
            book.ready.offer(
                Task(
                    new.row,
                    one.task_id,
                    TaskState.QUEUED,
                    one.priority,
                    new.order_no,
                    max_retries=one.max_retries,
                    timeout_s=one.timeout_s,
                    time_request_s=one.time_request_s,
                    memory_bytes=one.memory_bytes,
                    spec_bytes=len(one.spec),
                )
            )
        return new

    def _clash(self, task_id: str, first_row: int) -> None:
        first = first_row - self._first_new_row + 1
        second = self.book.next_task_row - self._first_new_row + self._known_again + 1
        self._generation_ended(
            f"two tasks have the id {task_id!r} and different specs: new task {first} of this "
            f"generation, and definition {second} or later. Task ids must tell tasks apart; derive "
            "them from the whole spec, for instance by generate_task_id(spec).",
            "",
            ours=True,
        )
        self.book.effect(StopGenerator())

    def _spec_changed(self, one: Definition, row: int, *, waits: bool) -> None:
        self._changed_specs += 1
        if self.book.settings.on_spec_change == "update" and waits:
            self.book.turn.changes.new_specs.append((row, one.spec_hash, one.spec))

    def _generation_ended(self, error: str | None, detail: str, *, ours: bool = False) -> None:
        book = self.book
        if book.generated or book.generation_error is not None:
            return
        if error is None:
            book.generated = True
            book.meta("generated", 1)
            new = book.next_task_row - self._first_new_row
            text = f"{count(new, 'new task')}, {self._known_again} known, {book.total} in all"
            book.story("generated", text)
            if self._changed_specs:
                kept = (
                    "updated where queued" if book.settings.on_spec_change == "update" else "kept"
                )
                book.warnings["specs"] = (
                    f"{count(self._changed_specs, 'task')} changed their spec: {kept}"
                )
            return
        if book.generated_before and not ours:
            book.generated = True
            book.warnings["generate"] = (
                f"generate_tasks failed, the tasks of before are used: {error}"
            )
            book.story("generate_failed", error, level="warning")
            return
        book.generation_error = error
        book.story("generate_failed", f"{error}\n{detail}".rstrip(), level="error")

    def _program_changed(self, program_hash: str) -> None:
        book = self.book
        before, book.program_hash = book.program_hash, program_hash
        if not before or before == program_hash:
            return
        book.warnings["program"] = (
            "the program's text changed: workers of the old text are replaced"
        )
        book.story("program_changed", book.warnings["program"])
        for worker in book.workers.values():
            if worker.registered and worker.program_hash != program_hash:
                outbound.shut_down(book, worker, "program", now=False)

    # --- the end of a turn, and of the run ----------------------------------------------------

    def _compose(self) -> None:
        book = self.book
        for worker in book.dirty.values():
            if worker.registered:
                post = outbound.compose(book, worker)
                if post is not None:
                    book.effect(post)
        for worker_id, transport in book.strangers.items():
            if worker_id not in book.dirty:
                book.effect(Post(worker_id, transport, (outbound.stranger(book),)))

    def _decide_end(self) -> None:
        """All tasks terminal, or nothing more to start: the run ends."""
        book = self.book
        if book.finishing is not None:
            return
        if book.generation_error is not None:
            if not book.in_flight and not book.held:
                operators.begin_finish(book, self.launching, "shutdown", now=False)
        elif book.generated and book.remaining == 0 and not book.settings.stay:
            operators.begin_finish(book, self.launching, "done", now=False)

    def _decide_exit(self) -> None:
        book = self.book
        if book.finishing is None or book.finished is not None:
            return
        if book.finishing == "detach":
            # Decided at the end of the turn: its later events may have brought the last result.
            book.finished = 4 if book.remaining or not book.generated else operators.exit_code(book)
            return
        online = any(worker.registered for worker in book.workers.values())
        if not online and not self._awaited_launches():
            book.finished = operators.exit_code(book)

    def _awaited_launches(self) -> bool:
        """Launches whose end the run waits for: all that may still be somewhere."""
        return any(
            launch.state is not LaunchState.STALE or launch.cancel_asked
            for launch in self.launching.open_launches()
        )
