"""The full-screen view under Textual's pilot: what is on the screen, and what keys do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from dashboard_source import AT, HOSTILE, FakeSource, snapshot, worker
from textual.pilot import Pilot

from jobflowctl.waiting import Outcome
from jobflowctl.watch.app import Dashboard
from jobflowctl.watch.rows import RowList
from jobflowctl.watch.source import FileSource, Source

pytestmark = pytest.mark.slow

SIZES = [(80, 24), (200, 60)]
Play = Callable[[Dashboard, "Screen"], Awaitable[None]]


class Screen:
    """What a person sees and types."""

    def __init__(self, app: Dashboard, pilot: Pilot[None]) -> None:
        self.app = app
        self._pilot = pilot

    def text(self) -> str:
        """The characters of the whole screen."""
        width, height = self.app.size
        strips = self.app.screen._compositor.render_strips()
        lines = ["".join(one.text for one in strip) for strip in strips]
        assert len(lines) == height
        assert all(len(line) <= width for line in lines)
        return "\n".join(line.rstrip() for line in lines)

    async def shows(self, words: str) -> str:
        """Wait until the words are there; fails after 10 s."""
        deadline = time.monotonic() + 10
        while words not in self.text():
            if time.monotonic() > deadline:
                pytest.fail(f"never shown: {words!r}\n{self.text()}")
            await self._pilot.pause(0.02)
        return self.text()

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait for something beside the screen; fails after 10 s."""
        deadline = time.monotonic() + 10
        while not condition():
            if time.monotonic() > deadline:
                pytest.fail(f"never happened\n{self.text()}")
            await self._pilot.pause(0.02)

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)


def play(source: Source, script: Play, size: tuple[int, int] = (80, 24), **options: Any) -> None:
    """Run the view on the source, and the script on the view."""

    async def run() -> None:
        app = Dashboard(source, interval_s=0.05, **options)
        async with app.run_test(size=size, notifications=True) as pilot:
            await script(app, Screen(app, pilot))
        app._feed.join(10)

    asyncio.run(run())


@pytest.mark.parametrize("size", SIZES)
def test_the_overview_says_everything_at_a_glance(size: tuple[int, int]) -> None:
    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("ValueError: bad N at conv.py:12")
        text = await screen.shows("q Leave")
        for words in (
            "t1  running",
            "up 1 h 2 min",
            "pid 4711 on login2",
            "40.0 %  400 of 1,000",
            "390 succeeded",
            "10 failed",
            "2.5 tasks/s",
            "3 min 20 s to 4 min 40 s left",
            "18 of 20 wanted",
            "2 pending",
            "QOSMaxJobsPerUserLimit",
            "task-00001",
            "50 %",
            "task_failed",
        ):
            assert words in text
        assert "█" in text
        assert "▂" in text

    play(FakeSource(), script, size)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("key", "words"),
    [
        ("2", "task-00000"),
        ("3", "w-00001"),
        ("4", "QOSMaxJobsPerUserLimit"),
        ("5", "ValueError: bad N"),
        ("6", "task_failed"),
    ],
)
def test_every_screen_shows_its_rows(size: tuple[int, int], key: str, words: str) -> None:
    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press(key)
        await screen.shows(words)

    play(FakeSource(), script, size)


def test_one_task_is_shown_with_its_traceback_and_output() -> None:
    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press("5")
        await screen.shows("ValueError: bad N")
        await screen.press("enter")
        text = await screen.shows("printed by the task")
        assert "task task-00003" in text
        assert "\\x1b[2J" in text
        assert "\x1b" not in text
        await screen.press("escape")
        await screen.shows("WHAT THEY HAVE IN COMMON")

    play(FakeSource(), script)


def test_data_can_never_steer_the_terminal() -> None:
    source = FakeSource(session=HOSTILE, state_reason=HOSTILE, warnings=[HOSTILE])
    source.body["worker_list"] = [worker(1, host=HOSTILE, running=[HOSTILE])]
    source.workers = [worker(1, worker_id=HOSTILE, host=HOSTILE, running=[HOSTILE])]
    source.groups[0]["signature"] = HOSTILE
    source.events = [{"at": AT, "kind": HOSTILE, "text": HOSTILE, "task_id": HOSTILE}]
    source.body["launch_list"][0]["reason"] = HOSTILE

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("[red]")
        for key in "123456":
            await screen.press(key)
            text = await screen.shows("\\x1b")
            assert all(char.isprintable() or char == "\n" for char in text)

    play(source, script, (200, 60))


def test_ten_thousand_workers_cost_what_is_seen() -> None:
    source = FakeSource()
    source.workers = [worker(number) for number in range(10_000)]
    formatted = 0

    async def script(app: Dashboard, screen: Screen) -> None:
        nonlocal formatted
        await screen.shows("390 succeeded")
        rows = app.query_one("#workers", RowList)
        host = rows._fields[2].words

        def counted(row: Any) -> Any:
            nonlocal formatted
            formatted += 1
            return host(row)

        object.__setattr__(rows._fields[2], "words", counted)
        await screen.press("3")
        await screen.shows("10,000 rows")
        assert formatted < 2_000
        await screen.press("end")
        await screen.shows("w-09999")
        await screen.press("s", "s")
        await screen.shows("WORKER ▼")
        assert formatted < 5_000

    play(source, script)


def test_a_filter_and_the_order_of_rows() -> None:
    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press("3")
        await screen.shows("40 rows")
        await screen.press("slash", *"00007", "enter")
        text = await screen.shows("1 row ")
        assert "w-00007" in text
        assert "w-00008" not in text
        await screen.press("escape")
        await screen.shows("40 rows")
        await screen.press("s", "s")
        text = await screen.shows("by worker, descending")
        assert text.index("w-00039") < text.index("w-00038")

    play(FakeSource(), script)


def test_tasks_are_filtered_by_the_daemon_and_come_in_pages() -> None:
    source = FakeSource()

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press("2")
        await screen.shows("page 1 (n: next)")
        await screen.press("n")
        await screen.shows("task-00500")
        await screen.press("b")
        await screen.shows("task-00000")
        for _ in range(5):
            await screen.press("f")
        await screen.until(lambda: any(one[1].get("state") == "failed" for one in source.calls))
        await screen.shows("state: failed")
        await screen.shows("ValueError: no")

    play(source, script)


def test_changes_ask_first() -> None:
    source = FakeSource()

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press("plus")
        await screen.shows("Want 21 workers instead of 20")
        await screen.press("n")
        await screen.shows("nothing was done")
        assert source.changes() == []
        await screen.press("plus", "y")
        await screen.until(lambda: source.changes() == [("scale", {"workers": 21})])
        await screen.shows("scale is done.")
        await screen.press("P", "y")
        await screen.until(lambda: source.changes()[-1] == ("pause", {}))
        await screen.press("5")
        await screen.shows("ValueError: bad N")
        await screen.press("r")
        await screen.shows("10 tasks of this group")
        await screen.press("y")
        await screen.until(lambda: source.changes()[-1] == ("retry", {"group": 7}))
        await screen.press("3")
        await screen.shows("40 rows")
        await screen.press("d", "y")
        await screen.until(lambda: source.changes()[-1] == ("drain", {"worker": "w-00000"}))

    play(source, script)


def test_ending_the_run_takes_its_name() -> None:
    source = FakeSource()

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press("S")
        await screen.shows("Type t1 to do it")
        await screen.press(*"yes", "enter")
        await screen.shows("nothing was done")
        assert source.changes() == []
        await screen.press("S", *"t1", "enter")
        await screen.until(lambda: source.changes() == [("shutdown", {})])

    play(source, script)


def test_read_only_has_no_such_keys() -> None:
    source = FakeSource()

    async def script(app: Dashboard, screen: Screen) -> None:
        text = await screen.shows("390 succeeded")
        assert "Pause" not in text
        await screen.press("plus", "P", "r", "S")
        assert "y yes" not in screen.text()
        assert source.changes() == []

    play(source, script, read_only=True)


@pytest.mark.parametrize("key", ["q", "ctrl+c", "ctrl+q"])
def test_leaving_changes_nothing(key: str) -> None:
    source = FakeSource()

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press(key)
        await screen.until(lambda: app._exit)

    play(source, script)
    assert source.changes() == []
    assert source.calls[-1] == ("close", {})


def test_a_daemon_that_restarts_is_a_banner_and_then_none() -> None:
    source = FakeSource()

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        source.down = True
        text = await screen.shows("does not run")
        assert "390 succeeded" in text
        source.down = False
        await screen.until(lambda: "does not run" not in screen.text())
        source.ended = Outcome("t1", "failed", 3, 3, 0.0, {"succeeded": 990, "failed": 10})
        source.down = True
        await screen.shows("the run has ended (failed): 990 succeeded, 10 failed")

    play(source, script)


def test_a_frozen_picture_stays() -> None:
    source = FakeSource()

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press("space")
        await screen.shows("FROZEN")
        source.body = {**source.body, "state": "paused"}
        asked = len(source.calls)
        await screen.until(lambda: len(source.calls) > asked + 5)
        assert "paused" not in screen.text()
        await screen.press("space")
        await screen.shows("paused")

    play(source, script)


def telemetry(folder: Path, *, stale_s: float) -> FileSource:
    """A file that nobody writes any more."""
    file = folder / "snapshot.json"
    file.write_text(json.dumps({**snapshot(), "schema": "jobflow.snapshot/1", "seq": 1}))
    return FileSource(file, stale_s=stale_s)


def test_a_telemetry_file_shows_what_it_has(tmp_path: Path) -> None:
    source = telemetry(tmp_path, stale_s=60)

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press("3")
        await screen.shows("20 rows")
        await screen.press("4")
        await screen.shows("QOSMaxJobsPerUserLimit")
        await screen.press("2")
        await screen.shows("a telemetry file does not have this")

    play(source, script, read_only=True)


def test_a_telemetry_file_that_stands_still_is_a_banner(tmp_path: Path) -> None:
    source = telemetry(tmp_path, stale_s=0.3)

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.shows("The file has not changed for")

    play(source, script, read_only=True)


class Steered:
    """The wrapper's side: stops are counted, the second one ends it."""

    def __init__(self) -> None:
        self.stops = 0

    def stop(self) -> str:
        self.stops += 1
        return f"stop {self.stops}"

    def ended(self) -> bool:
        return self.stops > 1


def test_in_the_wrapper_leaving_stops_the_run() -> None:
    steering = Steered()
    source = FakeSource()

    async def script(app: Dashboard, screen: Screen) -> None:
        await screen.shows("390 succeeded")
        await screen.press("q")
        await screen.shows("stop 1")
        await screen.press("ctrl+c")
        await screen.until(lambda: app._exit)

    play(source, script, steering=steering)
    assert steering.stops == 2
