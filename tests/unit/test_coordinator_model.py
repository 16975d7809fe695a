"""Random histories: the coordinator does with every task what a plain model of the rules does.

The model is in `coordinator_rules.py`. Workers are toys that tell the truth, often late, twice, or
after they were given up. What is assigned, and when a lease ends, is the coordinator's choice:
there the model says whether that was allowed.
"""

from __future__ import annotations

from collections.abc import Callable

from coordinator_rules import (
    FAILED,
    MAX_DELIVERIES,
    MAX_LOSSES,
    MAX_RETRIES,
    QUEUED,
    ROOM,
    SUCCEEDED,
    USAGE,
    Entry,
    Model,
    Outcome,
    Toy,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from pairing import HEARTBEAT_S, LEASE_S, Pair, as_stored

from jobflow_worker.messages import (
    Ack,
    Failed,
    Finished,
    FromWorker,
    Heartbeat,
    Held,
    Register,
    Report,
    ShutdownAck,
    TaskFailed,
    TaskFinished,
)
from jobflowd import events as ev
from jobflowd.book import Settings
from jobflowd.coordinator import Coordinator
from jobflowd.effects import Deliver, Post, Turn
from jobflowd.model import SOLO_WORKER, TASK_TERMINAL, Definition, TaskState
from jobflowd.store import Store

# --- the machine --------------------------------------------------------------------------------


class CoordinatorMachine(RuleBasedStateMachine):
    """The coordinator over a store in memory, three toys, and the model beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store(":memory:")
        self.store.open()
        terms = {"zmq": (HEARTBEAT_S, LEASE_S), "fs": (HEARTBEAT_S, LEASE_S)}
        self.settings = Settings(
            *("s", "p.py:P"),
            terms=terms,
            stay=True,
            max_losses=MAX_LOSSES,
            max_deliveries=MAX_DELIVERIES,
            retry_backoff_max_s=8.0,
        )
        self.model = Model()
        self.toys = [Toy(number) for number in (1, 2, 3)]
        self.made = 3
        self.now, self.last_turn = 1000.0, None
        self.lose_posts, self.reads_mail = False, True
        self.old_reports: list[tuple[Toy, int, Heartbeat]] = []
        self.final: dict[str, TaskState] = {}
        self._start()

    def teardown(self) -> None:
        """Everything is put right, and every task must come to its end."""
        try:
            self._heal()
        finally:
            self.store.close()

    def _heal(self) -> None:
        self.lose_posts, self.reads_mail = False, True
        self.resume()
        self.toys = [Toy(self.made + 1)]
        for _ in range(60):
            if all(task.state in TASK_TERMINAL for task in self.model.tasks.values()):
                break
            toy = self.toys[0]
            self._talk(toy, brief=False)
            for held in list(toy.holds):
                toy.holds[held] = True
                toy.settle(held, "finished")
            for counter in list(toy.outbox):
                self._say(toy, counter, toy.outbox[counter])
            self.time_passes(9.0)
        states = {task_id: task.state.word for task_id, task in self.model.tasks.items()}
        assert all(task.state in TASK_TERMINAL for task in self.model.tasks.values()), states

    # --- turns ----------------------------------------------------------------------------------

    def _start(self) -> None:
        snapshot = self.store.begin_epoch("adopt", wall=1e9)
        self.coordinator = Coordinator(self.settings, snapshot, int(snapshot.meta["epoch"]))
        self.last_turn = None
        self._turn(ev.ProgramChanged("hash"), ev.TransportsReady())

    def _turn(self, *events: ev.Event) -> Turn:
        """The model must have been told of the events; what the turn chose is told to it here."""
        self.now += 0.001
        coordinator, now = self.coordinator, self.now
        if self.last_turn is not None and now - self.last_turn > 2 * HEARTBEAT_S:
            for contact in self.model.contacts.values():
                contact.heard_at = now
        self.last_turn = self.model.now = now
        for event in events:
            self._tell_model(event)
        if self.reads_mail:
            self.model.read_at = now
            events = (*events, ev.MailRead(now))
        facts = self.store.lookup(coordinator.questions(now, events))
        turn = coordinator.turn(now, 1e9 + now, events, facts)
        self.store.commit(turn.changes)
        for story in turn.changes.stories:
            if story.kind == "worker_lost":
                self.model.lost(str(story.worker_id))
        self.model.pass_time()
        self._follow(turn)
        posts = [one for one in turn.effects if isinstance(one, Post)]
        self._judge_verdicts(posts)
        toys = {toy.worker_id: toy for toy in self.toys}
        for post in posts:
            if post.worker_id in toys and not self.lose_posts:
                toys[post.worker_id].receive(post)
        return turn

    def _tell_model(self, event: ev.Event) -> None:
        model = self.model
        if not isinstance(event, ev.Heard):
            return
        contact, message = model.contacts.get(event.worker_id), event.message
        if isinstance(message, Register):
            model.register(event.worker_id, message)
        elif contact is not None and event.spooled:
            if isinstance(message, Outcome):
                model.outcome(event.worker_id, event.counter, message)
        elif contact is None or not contact.registered:
            return
        elif isinstance(message, Heartbeat):
            if message.report.epoch == self.coordinator.book.epoch:
                model.report(event.worker_id, message.report)
        elif isinstance(message, ShutdownAck):
            model.offline(event.worker_id, charge=False)
        elif isinstance(message, Outcome):
            model.outcome(event.worker_id, event.counter, message)

    def _follow(self, turn: Turn) -> None:
        """New attempts: each in exactly one post, to the worker that the row names."""
        named = [
            (post.worker_id, item.task_id, item.attempt)
            for post in turn.effects
            if isinstance(post, Post)
            for message in post.messages
            if isinstance(message, Deliver)
            for item in message.items
        ]
        assert len(named) == len(set(named))
        for task in turn.changes.all_tasks.values():
            known = self.model.tasks[task.task_id].tries
            if task.issued > max(known, default=0):
                worker = self.coordinator.book.by_row[task.worker or 0].worker_id
                self.model.assigned(task, worker)
                assert (worker, task.task_id, task.current) in named, "assigned and not said"
        for worker, task_id, attempt in named:
            assert self.model._has(worker, Held(task_id, attempt)), "delivered and not its own"

    def _judge_verdicts(self, posts: list[Post]) -> None:
        for post in posts:
            for message in post.messages:
                for verdict in message.verdicts if isinstance(message, Ack) else ():
                    due = self.model.contacts[post.worker_id].verdicts[verdict.counter]
                    assert verdict.verdict in (due, "duplicate"), (verdict, due)

    def _say(self, toy: Toy, counter: int, message: FromWorker, *, spooled: bool = False) -> None:
        self._turn(ev.Heard(toy.worker_id, counter, "zmq", message, spooled=spooled))

    def _talk(self, toy: Toy, *, brief: bool) -> None:
        if toy.registers or not toy.epoch:
            toy.registers = False
            self._say(toy, toy.next(), toy.registration())
        if toy.epoch:
            self.old_reports.append((toy, toy.next(), toy.report(brief=brief)))
            self._say(*self.old_reports[-1])

    # --- rules: the workers ---------------------------------------------------------------------

    pick = st.integers(0, 2)

    @rule(count=st.integers(1, 4))
    def tasks_are_generated(self, count: int) -> None:
        fresh = [f"t{len(self.model.tasks) + n}" for n in range(count)]
        self.model.tasks |= {task_id: Entry() for task_id in fresh}
        made = [Definition(one, b"\x80", bytes(16), MAX_RETRIES, 0, None, None, None)
                for one in fresh]  # fmt: skip
        self._turn(ev.Generated(tuple(made)))

    @initialize(count=st.integers(1, 4))
    def all_begin(self, count: int) -> None:
        self.tasks_are_generated(count)
        self.all_report(True)

    @rule(which=pick, begin=st.booleans(), brief=st.booleans())
    def report(self, which: int, begin: bool, brief: bool) -> None:
        toy = self.toys[which]
        if begin:
            toy.begin()
        self._talk(toy, brief=brief)

    @rule(begin=st.booleans())
    def all_report(self, begin: bool) -> None:
        for _ in range(2):
            for toy in self.toys:
                if begin:
                    toy.begin()
                self._talk(toy, brief=False)

    @rule(nth=st.integers(1, 12))
    def an_old_report_comes_again(self, nth: int) -> None:
        if self.old_reports:
            self._say(*self.old_reports[-min(nth, len(self.old_reports))])

    @rule(which=pick)
    def register_again(self, which: int) -> None:
        toy = self.toys[which]
        self._say(toy, toy.next(), toy.registration())

    @rule(
        which=pick,
        nth=st.integers(0, ROOM - 1),
        how=st.sampled_from(("finished", "exception", "crash", "nonretryable", "returned")),
        tell=st.booleans(),
    )
    def work_ends(self, which: int, nth: int, how: str, tell: bool) -> None:
        toy = self.toys[which]
        begun = [held for held, runs in toy.holds.items() if runs or how == "returned"]
        if begun:
            toy.settle(begun[nth % len(begun)], how)
            if tell:
                counter = toy.counter
                self._say(toy, counter, toy.outbox[counter])

    @rule(which=pick, nth=st.integers(0, 20))
    def an_outcome_comes_late_or_again(self, which: int, nth: int) -> None:
        toy = self.toys[which]
        if toy.told:
            counter = sorted(toy.told)[nth % len(toy.told)]
            self._say(toy, counter, toy.told[counter])

    @rule(which=pick, nth=st.integers(0, 20), beyond=st.booleans())
    def an_outcome_of_anothers_attempt(self, which: int, nth: int, beyond: bool) -> None:
        toy, tasks = self.toys[which], self.model.tasks
        issued = [(task_id, max(task.tries)) for task_id, task in tasks.items() if task.tries]
        if not issued:
            return
        task_id, attempt = issued[nth % len(issued)]
        if not beyond and tasks[task_id].tries[attempt].worker == toy.worker_id:
            return
        item = Finished(task_id, attempt + beyond, b"\x01", None, USAGE, "")
        self._say(toy, toy.next(), TaskFinished(toy.floor, (item,)))

    @rule(which=pick, spool=st.booleans())
    def a_worker_dies(self, which: int, spool: bool) -> None:
        """Another takes its place; its last words may be in a spool."""
        toy = self.toys[which]
        self.made += 1
        self.toys[which] = Toy(self.made)
        for counter, message in toy.outbox.items() if spool else ():
            self._say(toy, counter, message, spooled=True)

    @rule(which=pick, tidy=st.booleans())
    def a_worker_leaves(self, which: int, tidy: bool) -> None:
        """With everything handed back; or without, when its time is over."""
        toy = self.toys[which]
        for held in list(toy.holds) if tidy else ():
            toy.settle(held, "returned")
        for counter in list(toy.outbox) if tidy else ():
            self._say(toy, counter, toy.told[counter])
        self._say(toy, toy.next(), ShutdownAck("draining"))
        self.made += 1
        self.toys[which] = Toy(self.made)

    @rule(lose=st.booleans(), read=st.booleans())
    def the_network(self, lose: bool, read: bool) -> None:
        """From now on posts are lost, or the manager does not come to the end of its mail."""
        self.lose_posts, self.reads_mail = lose, read

    @rule(which=pick, how=st.sampled_from(("finished", "exception", "crash")))
    def a_worker_is_given_up_and_finishes(self, which: int, how: str) -> None:
        """Its lease ends while it works; then it comes back, with an outcome or still at it."""
        toy = self.toys[which]
        self.time_passes(65.0)
        for held in [held for held, runs in toy.holds.items() if runs][:1]:
            toy.settle(held, how)
        self._talk(toy, brief=False)
        self._talk(toy, brief=False)
        for counter in list(toy.outbox):
            self._say(toy, counter, toy.told[counter])

    # --- rules: time, operators, the manager ------------------------------------------------------

    @rule(seconds=st.sampled_from((0.5, 3.0, 12.0, 65.0, 80.0)))
    def time_passes(self, seconds: float) -> None:
        end = self.now + seconds
        while True:
            due = self.coordinator.next_deadline()
            if due is None or due > end:
                break
            self.now = max(self.now, due)
            self._turn()
        self.now = max(self.now, end)

    @rule(seconds=st.sampled_from((15.0, 100.0)))
    def the_manager_is_stopped(self, seconds: float) -> None:
        self.now += seconds
        self._turn()

    @precondition(lambda self: self.model.tasks)
    @rule(word=st.sampled_from(("cancel", "retry")), nth=st.integers(0, 20))
    def an_operator_acts(self, word: str, nth: int) -> None:
        task_id = sorted(self.model.tasks)[nth % len(self.model.tasks)]
        self.model.now = self.now
        if word == "retry":
            self.final.pop(task_id, None)
        getattr(self.model, word)(task_id)
        self._turn(ev.Asked(1, word, {"task_ids": [task_id]}))

    @rule(which=pick)
    def drain(self, which: int) -> None:
        contact = self.model.contacts.get(self.toys[which].worker_id)
        if contact is not None and contact.registered:
            contact.draining = True
        self._turn(ev.Asked(1, "drain", {"worker": self.toys[which].worker_id}))

    @rule()
    def pause(self) -> None:
        self.model.paused = True
        self._turn(ev.Asked(1, "pause", {}))

    @rule()
    def resume(self) -> None:
        self.model.paused = False
        self._turn(ev.Asked(1, "resume", {}))

    @rule()
    def restart(self) -> None:
        self.model.now = self.now + 0.001
        self.model.restart()
        self._start()

    # --- checks ---------------------------------------------------------------------------------

    @invariant()
    def every_task_is_what_the_rules_say(self) -> None:
        stored = as_stored(self.store, list(self.model.tasks))
        assert stored.keys() == self.model.tasks.keys()
        for task_id, entry in self.model.tasks.items():
            task = stored[task_id]
            assert (task.state, task.held) == (entry.state, entry.held), (task, entry)
            assert task.issued == max(entry.tries, default=0), (task, entry)
            budgets = (task.failures, task.losses, task.deliveries)
            assert budgets == (entry.failures, entry.losses, entry.deliveries), (task, entry)
            assert task.losses <= MAX_LOSSES + 1
            assert task.deliveries <= MAX_DELIVERIES
            if entry.current:
                assert task.current == entry.current, (task, entry)
                holder = self.coordinator.book.by_row[task.worker or 0]
                assert holder.worker_id == entry.holder

    @invariant()
    def what_has_ended_stays(self) -> None:
        for task_id, entry in self.model.tasks.items():
            if entry.state in TASK_TERMINAL:
                assert self.final.setdefault(task_id, entry.state) is entry.state
            else:
                assert task_id not in self.final

    @invariant()
    def each_success_has_one_result(self) -> None:
        rows = self.store.read(
            "SELECT t.task_id, r.attempt FROM task_results r JOIN tasks t USING (id)", ()
        )
        won = {name: one.winner for name, one in self.model.tasks.items() if one.winner}
        assert sorted(tuple(row) for row in rows) == sorted(won.items())

    @invariant()
    def charges_are_what_is_on_record(self) -> None:
        rows = self.store.read(
            "SELECT t.task_id, a.attempt, a.charged FROM attempts a JOIN tasks t ON t.id = a.task"
            " WHERE a.charged != ''",
            (),
        )
        for task_id, entry in self.model.tasks.items():
            if entry.state not in TASK_TERMINAL:
                mine = [row[2] for row in rows if row[0] == task_id and row[1] > entry.barred]
                counted = (mine.count("retries"), mine.count("losses"))
                assert counted == (entry.failures, entry.losses), (task_id, mine, entry)

    @invariant()
    def memory_is_what_a_new_start_would_find(self) -> None:
        book, snapshot = self.coordinator.book, self.store.load()
        book.check()
        states = [entry.state for entry in self.model.tasks.values()]
        assert {s: n for s, n in book.counts.items() if n} == {s: states.count(s) for s in states}
        assert snapshot.counts == {s: states.count(s) for s in states}
        live = book.in_flight | book.held
        assert live == {task.task_id: task for task in snapshot.held}
        assert book.delayed == snapshot.delayed

    @invariant()
    def nobody_waits_for_nothing(self) -> None:
        """What is ready is in the window, and whoever may take it has taken it."""
        book, model = self.coordinator.book, self.model
        queued = [one for one in model.tasks.values() if one.state is QUEUED and not one.held]
        assert len(book.ready) == book.ready_count == len(queued) - book.delayed
        online = {name for name, one in model.contacts.items() if one.registered}
        assert {name for name, one in book.workers.items() if one.registered} == online
        if len(book.ready) and not model.paused and not any(one.solo for one in queued):
            for name in online:
                worker = book.workers[name]
                solo = any(task.solo for _, task, _ in model.out_at(name))
                assert solo or model.contacts[name].draining or worker.credit == 0, worker


CoordinatorMachine.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
TestCoordinatorMachine = CoordinatorMachine.TestCase


# --- found by random histories, here and in tests/sim -------------------------------------------


def given_up(pair: Pair, task_id: str) -> Held:
    """Its only worker is silent until its lease is over."""
    held = Held(task_id, pair.task(task_id).current)
    pair.advance(LEASE_S + HEARTBEAT_S, beats=False)
    return held


def test_a_late_failure_that_uses_up_the_budget_ends_the_task(pair: Pair) -> None:
    pair.define("a", max_retries=0)
    seat = pair.worker()
    held = given_up(pair, "a")
    pair.ask("pause")
    identity = Register(*(1, 1, "1", "3.11", "h1", 1, 1, "zmq", "hash", 90))
    pair.say(seat, 90, identity)
    failed = Failed(*held, "exception", "exception!", "", None, None, USAGE, "")
    pair.say(seat, 91, TaskFailed(90, (failed,)))
    assert pair.state("a") is FAILED


def test_what_was_taken_back_unseen_still_takes_up_room(pair: Pair) -> None:
    seat = pair.worker(slots=3)
    worker = pair.coordinator.book.workers[seat.worker_id]
    seen, room = worker.seen, worker.credit
    pair.define(*"abcdefghij")
    assert len(worker.attempts) == room
    pair.ask("cancel", task_ids=["a"])
    # A report of before all that: "a" is on its way, and so is the word that it must not run.
    report = Report(pair.coordinator.book.epoch, worker.hb_seq + 1, seen, worker.floor, room)
    pair.say(seat, 99, Heartbeat(report))
    assert len(worker.attempts) == room - 1


def test_a_result_in_the_turn_of_a_detach_counts_for_the_exit_code(pair: Pair) -> None:
    pair.define("a")
    pair.turn(ev.GenerationEnded())
    seat = pair.worker()
    seat.finish("a")
    mail, pair.mail = pair.mail, []
    pair.turn(ev.StopAsked("a signal", detach=True), *mail)
    assert pair.state("a") is SUCCEEDED
    assert pair.coordinator.finished == 0


def test_a_suspect_that_is_taken_back_is_still_alone(make_pair: Callable[..., Pair]) -> None:
    pair = make_pair(max_losses=0)
    pair.define("a")
    seat = pair.worker(slots=2)
    held = given_up(pair, "a")
    task = pair.task("a")
    task.solo = SOLO_WORKER
    identity = Register(*(1, 1, "1", "3.11", "h1", 1, 2, "zmq", "hash", 90), held=(held,))
    pair.say(seat, 90, identity)
    worker = pair.coordinator.book.workers[seat.worker_id]
    assert list(worker.attempts) == ["a"]
    report = Report(1, worker.hb_seq + 1, worker.seq, 90, 3, (held,))
    pair.say(seat, 91, Heartbeat(report))
    pair.define("b")
    assert list(worker.attempts) == ["a"]
