"""Numbers and their words agree, in every message: by what messages say, and by the source."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_explaining import a_run, a_task, a_worker, why

from jobflowctl import screens
from jobflowctl.style import Style
from jobflowd import operators, views
from jobflowd.bulk import _answer, _Job
from jobflowd.census import Census, TaskCounts
from jobflowd.console import line, summary
from jobflowd.coordinator import Coordinator
from jobflowd.effects import Reply
from jobflowd.events import Asked
from jobflowd.model import Attempting
from jobflowd.wording import count

ROOT = Path(__file__).parents[2]
NOUNS = (
    "task|worker|launch|attempt|slot|session|result|warning|job|file|start|event|group|row|line|"
    "time|try|trie|retry|retrie|loss|losse|second|minute|host|submission|process|processe|message|"
    "copy|copie|day|hour|program|child|children|record|name|mailbox|mailboxe"
)
PLURAL = re.compile(rf"^(?!(?:for|of|in|to|on|by|from|at) )(?:[a-z]+ )?(?:{NOUNS})e?s\b")
LAZY = re.compile(r"\w\(e?s\)(?!\w)")
#: Lines whose number is never 1, by what follows the number.
NEVER_ONE = {
    "jobflow_worker/slots.py": [" times in a row"],
    "jobflowctl/client.py": [" sessions run here"],
    "jobflowctl/text.py": [" tasks/"],
    "jobflowctl/verbs.py": [" events"],
    "jobflowd/explaining.py": [" workers are"],
    "jobflowd/ownership.py": [" minutes for a sign"],
    "jobflowd/preflight.py": [" open files are allowed", " slots share"],
    "jobflowd/quarantine.py": [" different tasks in a row"],
    "jobflowd/rlimits.py": [" files may be open"],
}


def test_none_one_and_many() -> None:
    assert [count(number, "task") for number in (0, 1, 2, 50_000)] == [
        *("0 tasks", "1 task", "2 tasks", "50,000 tasks")
    ]
    assert count(1, "loss", "losses") == "1 loss"
    assert count(0, "worker leaves", "workers leave") == "0 workers leave"


# --- what is said ---------------------------------------------------------------------------------


def messages(number: int) -> Iterator[str]:
    """Whatever is said with this number in it."""
    run = a_run(*[a_worker(worker_id=f"w-{one}", row=one) for one in range(1, number + 1)])
    book = run.book
    yield why(run, a_task(), before=number)
    for worker in book.workers.values():
        worker.attempts = {f"t{n}": Attempting(a_task(), 1, 1, 0.0) for n in range(number)}
        yield why(run, a_task())
    for args in ({"workers": number}, {"workers": number, "now": True}):
        yield _asked(run, "scale", args)
    for worker_id in list(book.workers):
        yield _asked(run, "drain", {"worker": worker_id})
    yield _asked(run, "shutdown", {"now": False})
    yield views.take_census(run, started_at=0.0).state_reason
    for cmd, done in (("cancel", "canceled"), ("retry", "queued")):
        yield _answer(_Job(1, cmd, "failed", None, 9, 0.0, counts={done: number}))["message"]
    counts = TaskCounts(queued=0, assigned=0, running=0, succeeded=number, failed=0, held=0)
    census = Census(session="s", program="p", state="done", started_at=0.0, tasks=counts)
    yield line(census)
    yield summary(census, 0, "log", ran=number)
    group = {"group": 1, "count": number, "signature": "x", "example_task_id": "t"}
    yield "\n".join(screens.SCREENS["failures"]({"groups": [group] * number}, Style()))
    budgets = {"retries_left": number, "losses_left": number, "deliveries_left": number}
    yield "\n".join(screens.SCREENS["explain"]({"budgets": budgets}, Style()))
    yield "\n".join(screens.SCREENS["task"]({"task_id": "t", **budgets}, Style()))


def _asked(run: Coordinator, cmd: str, args: dict[str, Any]) -> str:
    operators.on_asked(run.book, run.launching, Asked(1, cmd, args))
    reply = run.book.turn.effects[-1]
    assert isinstance(reply, Reply)
    assert reply.body is not None
    return str(reply.body["message"])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_message_agrees_with_its_number(number: int) -> None:
    said = list(messages(number))
    assert said
    verbs = r"(?: (?:leave|wait|remain|are|were)\b)?"
    for text in said:
        assert not LAZY.search(text), text
        assert not re.search(rf"\b1 (?:[a-z]+ )?(?:{NOUNS})e?s\b", text), text
        assert not re.search(rf"\b1 (?:{NOUNS}) (?:leave|wait|remain|are|were)\b", text), text
        found = re.search(rf"\b[02] (?:task|worker|launch|attempt|slot)\b{verbs}", text)
        assert not found, text


# --- what the source says -------------------------------------------------------------------------


def offences(source: str) -> Iterator[str]:
    """Texts that put a plural behind a number without `count`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant) and type(node.value) is str:
            if LAZY.search(node.value):
                yield node.value
        elif isinstance(node, ast.JoinedStr):
            for value, text in zip(node.values, node.values[1:], strict=False):
                if (
                    isinstance(value, ast.FormattedValue)
                    and isinstance(text, ast.Constant)
                    and text.value[:1] == " "
                    and PLURAL.match(text.value[1:])
                    and not _may(value.value)
                ):
                    yield text.value


def _may(number: ast.expr) -> bool:
    """A constant of ours is what it is; other calls and texts are no numbers."""
    names = [one.id for one in ast.walk(number) if isinstance(one, ast.Name)]
    return any(name.isupper() for name in names)


def test_no_message_counts_by_itself() -> None:
    found = []
    for package in ("jobflow_worker", "jobflowd", "jobflowctl"):
        for path in sorted((ROOT / package).rglob("*.py")):
            name = str(path.relative_to(ROOT))
            known = NEVER_ONE.get(name, [])
            texts = offences(path.read_text())
            found += [(name, text) for text in texts if not any(one in text for one in known)]
    assert found == []


@pytest.mark.parametrize("text", ['f"{n} tasks left"', 'f"{n:,} more tasks"', '"1 slot(s)"'])
def test_the_check_finds_what_it_is_for(text: str) -> None:
    assert list(offences(f"x = {text}"))


@pytest.mark.parametrize("text", ["f\"{count(n, 'task')} left\"", 'f"{LEAST} tasks"', 'f"{n} is"'])
def test_the_check_leaves_the_rest(text: str) -> None:
    assert not list(offences(f"x = {text}"))
