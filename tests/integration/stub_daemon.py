"""A daemon without a run: a real AdminServer that gives prepared answers.

In a thread (`StubDaemon`) for tests of the server and the client, or as a process of its own
(`python stub_daemon.py DIRECTORY`) for tests of the wrapper, where SIGINT ends it.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from jobflowd import answers, api
from jobflowd.admin import AdminServer, Request
from jobflowd.census import Census, Here, LaunchView, TaskCounts, WorkerView

Body = dict[str, Any]
HERE = Here(4711, "login2", "0.1.0", 3.25, 47_000_000, 12_000_000, ("a warning of the daemon",))
TASK_IDS = [f"scan-{number:04d}" for number in range(2500)]


def census(state: str = "running", **changes: Any) -> Census:
    """A run in its middle."""
    values: Body = {
        "session": "t1",
        "program": "/data/conv.py:Conv",
        "state": state,
        "started_at": 1_790_000_000.0,
        "tasks": TaskCounts(queued=50, assigned=5, running=5, succeeded=38, failed=2, held=3),
        "workers": (
            WorkerView("w-busy", "busy", "n1", 11, 2, "zmq", 0.5, ("scan-0001",), 20, 1, "l1", "7"),
            WorkerView("w-idle", "idle", "n2", 12, 1, "fs", 12.0, (), 18, 1),
        ),
        "workers_offline": 1,
        "launches": (LaunchView("l1", "slurm", "online", "7", 1_790_000_001.0, "w-busy"),),
        "target": 3,
        "throughput_per_s": 2.5,
        "eta_s": 24.0,
        **changes,
    }
    return Census(**values)


def write_session(directory: Path, name: str = "t1", **owner: Any) -> api.SessionPlace:
    """The records of a session, and its pointer in the state directory of the environment."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    (directory / "session.json").write_text(json.dumps({"session": name}))
    record = {"host": api.this_host(), "pid": os.getpid(), "started_at": time.time() - 60, **owner}
    (directory / "owner.json").write_text(json.dumps(record))
    api.pointers_dir().mkdir(mode=0o700, parents=True, exist_ok=True)
    pointer = {"session": name, "dir": str(directory), **record}
    (api.pointers_dir() / f"{name}.json").write_text(json.dumps(pointer))
    return api.find_session(name)


def write_ended(directory: Path, code: int, **tasks: int) -> None:
    """The recorded end of a run."""
    ended = {"state": "done", "code": code, "ended_at": time.time(), "tasks": tasks}
    (directory / "ended.json").write_text(json.dumps(ended))


def reply(request: Request, view: Census) -> Body | tuple[str, str, str]:
    """What a daemon would answer; a tuple is a refusal."""
    args, wall = request.args, view.started_at + 100
    match request.cmd:
        case "status":
            return answers.status(view, HERE, wall)
        case "snapshot":
            return answers.snapshot(view, HERE, wall)
        case "workers":
            return answers.workers(view, after=args.get("after", ""), limit=args.get("limit", 100))
        case "launches":
            row = {"launch_id": "l1", "system": "slurm", "state": "online", "submitted_at": 1.0}
            return answers.launches(([row], None))
        case "tasks":
            return _tasks(args)
        case "task" if args["task_id"] not in TASK_IDS:
            return ("not_found", f"There is no task {args['task_id']!r}.", "See: jobflowctl tasks")
        case "task":
            return _task(args["task_id"])
        case "events":
            if args.get("last"):
                return _events(1500 - args["last"])
            return _events(int(args.get("after") or 0))
    if args.get("task_ids") == ["unknown"]:
        return {"message": "0 tasks, 1 unknown.", "unknown": ["unknown"]}
    return {"message": f"{request.cmd} is done.", "args": args}


def _tasks(args: Body) -> Body:
    start, limit = int(args.get("after") or 0), int(args.get("limit", 100))
    rows = [
        {
            "task_id": name,
            "state": "failed",
            "attempts": 3,
            "worker_id": "w-busy",
            "progress": None,
            "started_at": 1_790_000_000.0,
            "finished_at": 1_790_000_002.5,
            "error": "ValueError: no",
        }
        for name in TASK_IDS[start : start + limit]
    ]
    end = start + limit
    return answers.tasks((rows, str(end) if end < len(TASK_IDS) else None))


def _task(name: str) -> Body:
    attempt = {"attempt": 1, "worker_id": "w-busy", "host": "n1", "outcome": "failed"}
    attempt |= {"cause": "exception", "error": "ValueError: no", "output_tail": "one\ntwo\n"}
    return answers.task({"task_id": name, "state": "failed", "spec": None, "attempts": [attempt]})


def _events(after: int) -> Body:
    rows = [
        {"at": 1_790_000_000.0 + n, "kind": "task_done", "task_id": TASK_IDS[n], "text": f"n{n}"}
        for n in range(after, min(after + 1000, 1500))
    ]
    return answers.events((rows, str(after + len(rows))))


class StubDaemon:
    """Serves in a thread until `stop`; `answer` may be replaced, None means: never answer."""

    def __init__(self, *paths: Path) -> None:
        self.server = AdminServer(*paths)
        self.view = census()
        self.answer: Callable[[Request, Census], Body | tuple[str, str, str] | None] = reply
        self.requests: list[Request] = []
        self._wake, self._woken = os.pipe()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> StubDaemon:
        self.server.open()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Close the socket. Idempotent."""
        if not self._stopping:
            self._stopping = True
            os.write(self._woken, b"x")
            self._thread.join(10)
            os.close(self._wake)
            os.close(self._woken)
            self.server.close()

    def _serve(self) -> None:
        while not self._stopping:
            turn(self.server, self._take, self._wake)

    def _take(self, request: Request) -> None:
        self.requests.append(request)
        body = self.answer(request, self.view)
        if isinstance(body, tuple):
            self.server.refuse(request.ticket, *body)
        elif body is not None:
            self.server.answer(request.ticket, body)


def turn(server: AdminServer, take: Callable[[Request], None], wake: int | None = None) -> None:
    """One pass of a poll loop, as the daemon's."""
    poller = select.poll()
    for fd, events in server.interest().items():
        poller.register(fd, events)
    if wake is not None:
        poller.register(wake, select.POLLIN)
    now = time.monotonic()
    pause = max(0.0, server.next_deadline(now) - now)
    ready = [fd for fd, _ in poller.poll(pause * 1000)]
    for request in server.service(ready, time.monotonic()):
        take(request)


def main() -> None:
    """A process that is ready, answers, and ends gracefully on SIGINT: at once if idle."""
    directory = Path(sys.argv[1])
    mode = sys.argv[2] if len(sys.argv) > 2 else "idle"
    ready = os.fdopen(int(os.environ["JOBFLOW_READY_FD"]), "w")
    print("words of the daemon", file=sys.stderr, flush=True)
    if mode == "broken":
        ready.write(json.dumps({"error": "no program is named; give --program", "code": 2}) + "\n")
        ready.close()
        sys.exit(2)
    place = write_session(directory)
    server = AdminServer(api.socket_path(place.dir))
    server.open()
    interrupts = [0]
    read_fd, write_fd = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(write_fd)
    signal.signal(signal.SIGINT, lambda *_: interrupts.__setitem__(0, interrupts[0] + 1))
    message = {"session": "t1", "dir": str(directory), "pid": os.getpid(), "log": "the.log"}
    ready.write(json.dumps({"waiting": "nothing"}) + "\n" + json.dumps(message) + "\n")
    ready.close()
    deadline = time.monotonic() + 30
    view = census()

    def take(request: Request) -> None:
        body = reply(request, view)
        assert isinstance(body, dict)
        server.answer(request.ticket, body)

    wanted = 2 if mode == "stubborn" else 1
    while interrupts[0] < wanted and time.monotonic() < deadline:
        turn(server, take, read_fd)
        if interrupts[0]:
            view = census("draining", state_reason="2 workers are leaving")
    write_ended(directory, 4, succeeded=38, queued=60)
    server.close()
    sys.exit(130 if interrupts[0] > 1 else 4)


if __name__ == "__main__":
    main()
