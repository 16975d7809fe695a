"""What reaches a terminal: safe, fitting, in the right stream, in the right mode."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflowctl import text
from jobflowctl.errors import UsageError
from jobflowctl.output import Output
from jobflowctl.screens import SCREENS, done
from jobflowctl.statusscreen import status, status_line
from jobflowctl.style import Style

EVIL: dict[str, str] = {
    "plain": "plain",
    "Ümläut 日本語 ✓": "Ümläut 日本語 ✓",
    "\x1b[2J\x1b]0;title\x07": "\\x1b[2J\\x1b]0;title\\x07",
    "a\r\nb\tc": "a\\r\\nb\\tc",
    "c1 \x9b31m \x85": "c1 \\x9b31m \\x85",
    "del \x7f nul \x00": "del \\x7f nul \\x00",
    "bidi \u202egnp.exe \u2066x\u2069 \u061c": "bidi \\u202egnp.exe \\u2066x\\u2069 \\u061c",
    "zero\u200bwidth\u200d\ufeff": "zero\\u200bwidth\\u200d\\ufeff",
    "line\u2028para\u2029": "line\\u2028para\\u2029",
    "lone \udc80 \ud83d": "lone \\udc80 \\ud83d",
    "private \ue000 \U000e0041 \U0010ffff": "private \\ue000 \\U000e0041 \\U0010ffff",
}


@pytest.mark.parametrize(("evil", "shown"), EVIL.items())
def test_evil_strings_are_shown_escaped(evil: str, shown: str) -> None:
    assert text.safe(evil) == shown


@given(st.text(st.characters()))
def test_safe_text_is_printable_and_stays_so(value: str) -> None:
    shown = text.safe(value)
    assert shown.isprintable()
    assert text.safe(shown) == shown


@given(st.lists(st.tuples(st.text(), st.text(), st.integers()), max_size=5), st.integers(30, 120))
def test_a_table_fits(rows: list[tuple[str, str, int]], columns: int) -> None:
    titles = [text.Column("ID", middle=True), text.Column("ERROR"), text.Column("N", right=True)]
    lines = text.table(titles, rows, columns_max=columns)
    assert len(lines) == len(rows) + 1
    assert all(text.width(line) <= columns for line in lines)
    assert all(line.isprintable() for line in lines)


def test_columns_without_content_are_left_out() -> None:
    lines = text.table([text.Column("A"), text.Column("B")], [("x", None), ("y", "")])
    assert lines == ["A", "x", "y"]


def test_ids_are_cut_in_the_middle_and_wide_letters_count_twice() -> None:
    assert text.clip("patient-0000017", 9, middle=True) == "pati…0017"
    assert text.clip("patient-0000017", 9) == "patient-…"
    assert text.width("日本") == 4
    assert text.clip("日本語", 5) == "日本…"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0 s"),
        (0.42, "0.4 s"),
        (12.4, "12 s"),
        (200, "3 min 20 s"),
        (7500, "2 h 5 min"),
        (7200, "2 h"),
        (90_000, "1 d 1 h"),
        (None, "-"),
    ],
)
def test_durations(value: float | None, words: str) -> None:
    assert text.duration(value) == words


@pytest.mark.parametrize(("word", "value"), [("90", 90), ("1.5s", 1.5), ("5m", 300), ("2H", 7200)])
def test_durations_are_read(word: str, value: float) -> None:
    assert text.seconds(word) == value


@pytest.mark.parametrize("word", ["", "s", "5x", "-1", "nan", "inf", "1e99d"])
def test_what_is_no_duration(word: str) -> None:
    with pytest.raises(ValueError, match=r"duration|float"):
        text.seconds(word)


def test_sizes_and_rates() -> None:
    assert [text.size(n) for n in (0, 1023, 1536, 5 * 2**30)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "5.0 GiB",
    ]
    assert [text.rate(r) for r in (1234.5, 2.5, 0.1, 0.001)] == [
        "1,234 tasks/s",
        "2.5 tasks/s",
        "6.0 tasks/min",
        "3.6 tasks/h",
    ]


@given(st.lists(st.integers(0, 100), min_size=3, max_size=3), st.integers(0, 500))
def test_a_bar_has_its_width_and_hides_nothing(parts: list[int], extra: int) -> None:
    drawn = text.bar(list(zip(parts, "#!>", strict=True)), sum(parts) + extra, 40, ".")
    assert len(drawn) == 40
    for number, char in zip(parts, "#!>", strict=True):
        assert (char in drawn) == (number > 0)


# --- screens ----------------------------------------------------------------------------------

STATUS: dict[str, Any] = {
    "session": "t1",
    "program": "/data/conv.py:Conv",
    "state": "running",
    "state_reason": "3 tasks wait for workers of before the restart",
    "uptime_s": 725.0,
    "pid": 4711,
    "host": "login2",
    "tasks": {
        "total": 100,
        "queued": 50,
        "assigned": 5,
        "running": 5,
        "succeeded": 38,
        "failed": 2,
        "canceled": 0,
        "held": 3,
    },
    "workers": {"target": 3, "online": 2, "idle": 1, "busy": 1, "draining": 0, "offline": 1},
    "launches": {"planned": 0, "pending": 1, "online": 2},
    "throughput_per_s": 2.5,
    "eta_s": 24.0,
    "eta_range_s": [20.0, 31.0],
    "launching": {"paused": False, "reason": "", "canary": False},
    "resources": {"cpu_s": 3.25, "rss_bytes": 47_000_000, "db_bytes": 12_000_000},
    "warnings": ["2 workers run an older program text"],
}

GOLDEN = """\
t1  running · up 12 min 5 s · pid 4711 on login2
/data/conv.py:Conv
  3 tasks wait for workers of before the restart

  [██████████████████▓▒▒░░░░░░░░░░░░░░░░░░░░░░░░░░░]  40.0 %  40 of 100 tasks

  tasks     38 succeeded · 2 failed · 5 running · 5 assigned · 50 queued (3 held)
  speed     2.5 tasks/s, 20 s to 31 s left
  workers   2 of 3 wanted: 1 busy, 1 idle
  launches  1 pending · 2 online
  uses      3.2 s of CPU, 44.8 MiB of memory, 11.4 MiB of database

! 2 workers run an older program text

next  jobflowctl -s t1 failures"""


def test_the_status_screen() -> None:
    assert "\n".join(status(STATUS, Style(columns=80, session="t1"))) == GOLDEN


def test_the_status_screen_in_ascii() -> None:
    lines = status(STATUS, Style(columns=80, unicode=False, session="t1"))
    assert "\n".join(lines).isascii()


@pytest.mark.parametrize(
    ("changes", "command"),
    [
        ({"launching": {"paused": True, "reason": "why\ntail\x1b[0m"}}, "release launcher"),
        ({"state": "paused"}, "resume"),
        ({"tasks": {"total": 1, "queued": 1}}, "watch"),
        ({"state": "done", "tasks": {"total": 1, "succeeded": 1}}, "wait"),
    ],
)
def test_status_proposes_what_to_type_next(changes: dict[str, Any], command: str) -> None:
    lines = status({**STATUS, **changes}, Style(session="t1"))
    assert lines[-1] == f"next  jobflowctl -s t1 {command}"
    assert not any("\x1b" in line for line in lines)


def test_the_status_line() -> None:
    line = status_line(STATUS, Style())
    assert re.sub(r"^\d\d:\d\d:\d\d  ", "", line) == (
        "running · 40.0 %  40/100 tasks · 5 running · 2 failed · 2/3 workers · 2.5 tasks/s"
        " · 20 s to 31 s left"
    )


def test_the_end_is_a_range_and_nothing_is_said_of_a_speed_that_is_over() -> None:
    def speed(**changes: Any) -> str:
        lines = status({**STATUS, **changes}, Style(session="t1"))
        return next((one for one in lines if one.startswith("  speed")), "")

    assert speed() == "  speed     2.5 tasks/s, 20 s to 31 s left"
    assert speed(eta_range_s=[20.0, 20.1]) == "  speed     2.5 tasks/s, about 20 s left"
    # An older daemon has no range.
    assert speed(eta_range_s=None) == "  speed     2.5 tasks/s, about 24 s left"
    assert speed(eta_range_s=None, eta_s=None) == "  speed     2.5 tasks/s"
    assert speed(state="done") == ""


def test_a_canary_is_explained() -> None:
    body = {**STATUS, "launching": {"paused": False, "reason": "", "canary": True}}
    assert "! a few launches go ahead" in "\n".join(status(body, Style(session="t1")))


def _evil_bodies() -> list[tuple[str, dict[str, Any]]]:
    bad = "".join(EVIL)
    row = dict.fromkeys(
        ("task_id", "worker_id", "launch_id", "state", "host", "error", "reason", "kind", "text",
         "batch_job_id", "outcome", "cause", "exit_signal", "traceback", "output_tail", "session",
         "dir", "system"),
        bad,
    )  # fmt: skip
    row_full: dict[str, Any] = {**row, "attempt": 1, "at": bad, "started_at": bad, "running": [bad]}
    return [
        ("status", {**STATUS, "session": bad, "program": bad, "state": bad, "state_reason": bad,
                    "host": bad, "pid": bad, "warnings": [bad],
                    "launching": {"paused": True, "reason": bad}, "launches": {bad: 1}}),
        ("tasks", {"tasks": [row_full], "next": bad}),
        ("task", {**row_full, "spec": {bad: bad}, "result": bad, "attempts": [row_full]}),
        ("workers", {"workers": [row_full]}),
        ("launches", {"launches": [row_full]}),
        ("events", {"events": [row_full]}),
        ("sessions", {"sessions": [row_full]}),
        ("wait", {"session": bad, "state": bad, "tasks": {"failed": 1}}),
        ("snapshot", {**STATUS, "worker_list": [row_full], "launch_list": [row_full]}),
        ("scale", {"message": bad, "unknown": [bad], "unchanged": [bad]}),
    ]  # fmt: skip


@pytest.mark.parametrize(("verb", "body"), _evil_bodies())
@pytest.mark.parametrize("mode", ["human", "json", "quiet"])
def test_no_verb_lets_evil_through(verb: str, body: dict[str, Any], mode: str) -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    output = Output(mode, stdout=stdout, stderr=stderr, wall=lambda: 0.0)
    output.session = "".join(EVIL)
    output.data(verb, body)
    output.say("".join(EVIL))
    output.fail(UsageError("".join(EVIL), "".join(EVIL)))
    for shown in (stdout.getvalue(), stderr.getvalue()):
        assert shown.replace("\n", "").isprintable()


@pytest.mark.parametrize("verb", [*SCREENS, "scale"])
def test_an_empty_body_is_no_crash(verb: str) -> None:
    assert SCREENS.get(verb, done)({}, Style(columns=40))


# --- the output -------------------------------------------------------------------------------


def test_json_is_one_object_with_its_schema_and_no_talk_in_it() -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    output = Output("json", stdout=stdout, stderr=stderr)
    output.say("a remark")
    output.data("status", {"state": "running", "text": "\x7f\x9b"})
    assert json.loads(stdout.getvalue()) == {
        "schema": "jobflow.status/1",
        "state": "running",
        "text": "\x7f\x9b",
    }
    assert stdout.getvalue().count("\n") == 1
    assert stderr.getvalue() == "a remark\n"


def test_quiet_is_what_a_script_picks_out() -> None:
    stdout, stderr = io.StringIO(), io.StringIO()
    output = Output("quiet", stdout=stdout, stderr=stderr)
    output.say("a remark")
    output.data("tasks", {"tasks": [{"task_id": "a"}, {"task_id": "b"}]})
    output.data("status", {"state": "running"})
    output.data("scale", {"message": "done"})
    assert (stdout.getvalue(), stderr.getvalue()) == ("a\nb\nrunning\n", "")


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_colours_only_where_they_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")

    def coloured(stream: io.StringIO, wish: str = "auto") -> bool:
        output = Output(colour=wish, stdout=stream, stderr=io.StringIO())
        output.data("status", STATUS)
        return "\x1b[" in stream.getvalue()

    assert coloured(_Terminal())
    assert not coloured(io.StringIO())
    assert coloured(io.StringIO(), "always")
    assert not coloured(_Terminal(), "never")
    monkeypatch.setenv("NO_COLOR", "1")
    assert not coloured(_Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not coloured(_Terminal())


def test_nobody_is_asked_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("n\n"))
    stderr = io.StringIO()
    assert Output(stdout=io.StringIO(), stderr=stderr).ask("Sure?")
    assert stderr.getvalue() == ""


@pytest.mark.parametrize(("typed", "answer"), [("y\n", True), ("YES\n", True), ("\n", False)])
def test_a_person_is_asked(monkeypatch: pytest.MonkeyPatch, typed: str, answer: bool) -> None:
    monkeypatch.setattr("sys.stdin", _Terminal(typed))
    stderr = _Terminal()
    assert Output(stdout=io.StringIO(), stderr=stderr).ask("Sure?\x1b[2J") is answer
    assert stderr.getvalue() == "Sure?\\x1b[2J [y/N] "


@pytest.mark.parametrize(
    ("columns", "titles"),
    [
        (200, "WORKER STATE HOST JOB RUNNING"),
        (60, "WORKER STATE HOST JOB RUNNING"),
        (50, "WORKER STATE HOST RUNNING"),
        (40, "WORKER STATE RUNNING"),
    ],
)
def test_spare_columns_make_room_for_those_that_matter(columns: int, titles: str) -> None:
    head = [
        text.Column("WORKER", middle=True),
        text.Column("STATE"),
        text.Column("HOST", spare=True),
        text.Column("JOB", spare=True),
        text.Column("RUNNING"),
    ]
    row = ("jf-5aa381-3-9773f0b44a7525ec", "idle", "node-1234567", "9876543210", "scan-0000000001")
    lines = text.table(head, [row], columns_max=columns)
    assert lines[0].split() == titles.split()
    assert all(len(line) <= columns for line in lines)
    assert len(lines[1].split()[0]) >= 12, "who it is can be told"
