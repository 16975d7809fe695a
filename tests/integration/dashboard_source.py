"""A source for tests of the full-screen view: prepared answers, as slow or as hostile as wished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jobflowctl import errors
from jobflowctl.waiting import Outcome
from jobflowd import api

Body = dict[str, Any]

AT = "2026-09-21T14:13:20.000Z"
#: Moves the cursor, sets a title, reverses the line, and would be markup.
HOSTILE = "\x1b[2J\x1b]0;owned\x07[red]\u202eevil[/]"


def worker(number: int, **changes: Any) -> Body:
    """A row of `workers`."""
    return {
        "worker_id": f"w-{number:05d}",
        "state": "busy" if number % 2 else "idle",
        "host": f"n{number % 100}",
        "pid": 100 + number,
        "slots": 1,
        "transport": "zmq",
        "heartbeat_age_s": float(number % 50),
        "running": [f"task-{number:05d}"] if number % 2 else [],
        "done": number,
        "failed": 0,
        "launch_id": f"l{number}",
        "batch_job_id": None,
        "time_left_s": None,
        "progress": {f"task-{number:05d}": 0.5} if number % 2 else {},
        **changes,
    }


def snapshot(**changes: Any) -> Body:
    """A run in its middle."""
    return {
        "session": "t1",
        "program": "/data/conv.py:Conv",
        "state": "running",
        "state_reason": "",
        "started_at": AT,
        "uptime_s": 3725.0,
        "pid": 4711,
        "host": "login2",
        "tasks": {
            "total": 1000,
            "queued": 580,
            "assigned": 4,
            "running": 16,
            "succeeded": 390,
            "failed": 10,
            "canceled": 0,
            "held": 0,
        },
        "workers": {"target": 20, "online": 18, "idle": 2, "busy": 16, "draining": 1},
        "launches": {"online": 18, "pending": 2},
        "throughput_per_s": 2.5,
        "eta_range_s": [200.0, 280.0],
        "eta_reason": "",
        "stalled_s": None,
        "pace": {"bucket_s": 32.0, "ended": list(range(100))},
        "launching": {"paused": False, "reason": "", "canary": False},
        "resources": {"cpu_s": 3.25, "rss_bytes": 47_000_000, "db_bytes": 12_000_000},
        "warnings": [],
        "worker_list": [worker(number) for number in range(20)],
        "launch_list": [
            {
                "launch_id": "l19",
                "state": "pending",
                "batch_job_id": "4242",
                "reason": "QOSMaxJobsPerUserLimit",
            }
        ],
        **changes,
    }


def task_row(number: int, state: str) -> Body:
    """A row of `tasks`."""
    error = "ValueError: no\n  at line 2" if state == "failed" else None
    return {
        "task_id": f"task-{number:05d}",
        "state": state,
        "attempts": 1,
        "worker_id": "w-00001",
        "progress": None,
        "started_at": AT,
        "finished_at": "2026-09-21T14:13:22.500Z",
        "error": error,
    }


class FakeSource:
    """Answers from its fields; `down` makes it silent, `calls` are what was asked."""

    def __init__(self, **changes: Any) -> None:
        self.name = "t1"
        self.reads = api.READS
        self.body = snapshot(**changes)
        self.workers = [worker(number) for number in range(40)]
        self.events: list[Body] = [
            {"at": AT, "kind": "task_failed", "task_id": "task-00003", "text": "ValueError: no"}
        ]
        self.groups = [
            {
                "group": 7,
                "count": 10,
                "signature": "ValueError: bad N at conv.py:12",
                "example_task_id": "task-00003",
                "hosts": ["n1", "n2"],
                "last_at": AT,
            }
        ]
        self.down = False
        self.ended: Outcome | None = None
        self.calls: list[tuple[str, Body]] = []

    def call(self, cmd: str, args: Mapping[str, Any] | None = None) -> Body:
        given = {key: one for key, one in (args or {}).items() if one is not None}
        self.calls.append((cmd, given))
        if self.down:
            raise errors.NoSession("The daemon of session t1 does not run.", "Start it.")
        match cmd:
            case "snapshot":
                return self.body
            case "events":
                mark = int(given.get("after") or 0)
                return {"events": self.events[mark:], "next": str(len(self.events))}
            case "failures":
                return {"groups": self.groups}
            case "workers":
                start = int(given.get("after") or 0)
                end = start + int(given["limit"])
                following = str(end) if end < len(self.workers) else None
                return {"workers": self.workers[start:end], "next": following}
            case "launches":
                return {"launches": self.body["launch_list"], "next": None}
            case "tasks":
                state = given.get("state") or "succeeded"
                first = int(given.get("after") or 0)
                rows = [task_row(n, state) for n in range(first, first + given["limit"])]
                return {"tasks": rows, "next": str(first + given["limit"])}
            case "task":
                return {
                    **task_row(3, "failed"),
                    "task_id": given["task_id"],
                    "spec": {"n": 3},
                    "attempts": [
                        {
                            "attempt": 1,
                            "worker_id": "w-00001",
                            "host": "n1",
                            "outcome": "failed",
                            "cause": "exception",
                            "traceback": f"Traceback\n  here {HOSTILE}",
                            "output_tail": "printed by the task\n",
                        }
                    ],
                }
        return {"message": f"{cmd} is done."}

    def outcome(self) -> Outcome | None:
        return self.ended

    def close(self) -> None:
        self.calls.append(("close", {}))

    def changes(self) -> list[tuple[str, Body]]:
        """The requests that change something."""
        return [one for one in self.calls if one[0] not in (*api.READS, "close")]
