"""`events -f` and `logs -f` over the life of a run: a kill, a restart, an end; nothing twice."""

from __future__ import annotations

import json
from typing import Any

import pytest
from e2e_world import World, kill

TASKS = 6


def told(following: Any) -> list[dict[str, Any]]:
    """The events that it has printed in whole lines."""
    lines = following.stdout.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def stored(world: World) -> list[dict[str, Any]]:
    found = world.ask("events", last=1000)["events"]
    return [{"schema": "jobflow.event/1", **one} for one in found]


def test_events_are_followed_across_a_kill_and_a_restart(world: World) -> None:
    daemon = world.start("--workers", "2", "--stay", n=TASKS, spec={"do": "wait"})
    following = world.cli.spawn(
        *("jobflowctl", "-s", world.name, "events", "-f", "-n", "1000", "--json")
    )
    world.until_running(2)
    world.until(lambda: told(following), "the first events")
    before = len(told(following))
    kill(daemon.process.pid)
    daemon.process.wait(10)
    world.until(lambda: "Waiting for another" in following.stderr.read_text(), "its remark")
    again = world.again("--stay")
    world.open_gate()
    world.until(lambda: world.tasks() == {"succeeded": TASKS}, "the end of all tasks")
    world.until(lambda: told(following) == stored(world), "every event, once and in order")
    assert len(told(following)) > before
    world.ctl("shutdown", "--yes")
    world.ended(again, 0)
    assert following.process.wait(20) == 0, following.printed()
    assert "ended" in following.stderr.read_text()
    assert f"jobflowctl -s {world.name} events" in following.stderr.read_text()


def test_the_log_of_the_daemon_is_followed_across_a_restart(world: World) -> None:
    daemon = world.start("--workers", "1", "--stay", n=1, spec={"do": "wait"})
    following = world.cli.spawn("jobflowctl", "-s", world.name, "logs", "-f")
    world.until(following.stdout.read_text, "the first lines")
    kill(daemon.process.pid)
    daemon.process.wait(10)
    again = world.again("--stay")
    world.open_gate()

    def all_of_it() -> bool:
        lines = following.stdout.read_text().splitlines()
        return bool(lines) and str(again.process.pid) in "\n".join(lines[1:])

    world.until(all_of_it, "the second daemon's lines")
    world.until(lambda: world.tasks() == {"succeeded": 1}, "the task")
    lines = following.stdout.read_text().splitlines()
    assert len(set(lines)) == len(lines), "no line twice"
    world.ctl("shutdown", "--yes")
    world.ended(again, 0)
    assert following.process.wait(20) == 0, following.printed()


@pytest.mark.parametrize("verb", [["events", "-f"], ["logs", "-f"]])
def test_whoever_follows_leaves_with_the_run_and_opens_nothing(
    world: World, verb: list[str]
) -> None:
    daemon = world.start("--workers", "1", n=2, spec={"do": "wait"})
    following = world.cli.spawn("jobflowctl", "-s", world.name, *verb)
    world.until(following.stdout.read_text, "the first lines")
    world.open_gate()
    world.ended(daemon, 0)
    assert following.process.wait(20) == 0, following.printed()
    with pytest.raises(FileNotFoundError):
        world.ask("ping")
