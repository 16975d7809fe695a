"""Five thousand mailboxes in fs mode: one pass over all of them, and whether the loop ever waits.

    python -m bench.mailboxes [--workers N]

Simulated workers (`agents.py`) with real mailbox files on a local directory, heartbeats of 10 s. A
value is the seconds that the daemon's own `MailReader` needs, in this process, to find and read
every mailbox of the living session once. `blocked_*_ms` are the longest round trips of `ping`,
asked every 10 ms, while all of them register and at rest: the loop was never busy longer.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from bench.connected import swarm
from bench.measure import Result, Target, arguments, emit, parse, say
from bench.rig import Rig
from jobflow_worker.keyfile import mail_key_path, read_mail_key
from jobflow_worker.sessionfiles import SessionPaths
from jobflow_worker.transport.mailfile import Seal
from jobflowd import mailpipe
from jobflowd.mailchild import MailReader
from jobflowd.mailpipe import Note

_BLOCKED_MS_MAX = 50.0
_HEARTBEAT_S = 10.0
_GIVE_UP_S = 60.0


def one_pass(rig: Rig, workers: int) -> tuple[float, int]:
    """Seconds until every mailbox was read once, and how many of them had something in them."""
    read: set[str] = set()

    def take(note: Note) -> None:
        if note.kind == mailpipe.MAIL:
            read.add(note.worker_id)

    paths = SessionPaths(rig.session)
    seal = Seal(read_mail_key(mail_key_path(paths)).mail_secret.encode())
    began = time.monotonic()
    reader = MailReader(paths, _HEARTBEAT_S, time.monotonic, take, seal)
    reader.begin()
    while len(read) < workers and time.monotonic() - began < _GIVE_UP_S:
        time.sleep(max(0.0, min(0.1, reader.work() - time.monotonic())))
    return time.monotonic() - began, len(read)


def pings_ms(rig: Rig, seconds: float, until: int | None = None) -> list[float]:
    """Round trips of `ping`, for so long or until so many workers are there."""
    found: list[float] = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        began = time.monotonic()
        rig.ask("ping")
        found.append(1000 * (time.monotonic() - began))
        if until is not None and len(found) % 50 == 0 and rig.online() >= until:
            break
        time.sleep(0.01)
    return found


def one_run(workers: int, seconds: float, result: Result) -> None:
    """Add one run to the result."""
    with (
        Rig("noop", {"n": 1, "warm": 1}, launcher="none", mode="fs") as rig,
        swarm(rig, workers, "fs"),
    ):
        began = time.monotonic()
        registering = pings_ms(rig, 300.0, workers)
        joined_s = time.monotonic() - began
        say(f"mailboxes: {rig.online()} workers after {joined_s:.1f} s")
        time.sleep(min(5.0, seconds))
        before, began = rig.cpu(), time.monotonic()
        at_rest = pings_ms(rig, seconds)
        cost = (rig.cpu() - before).per(time.monotonic() - began, 100)
        took, read = one_pass(rig, workers)
        details = result.details
        details["online"].append(rig.online())
        details["read"].append(read)
        details["joined_s"].append(round(joined_s, 2))
        details["blocked_registering_ms"].append(round(max(registering), 2))
        details["blocked_at_rest_ms"].append(round(max(at_rest), 2))
        details["cpu_percent"].append(cost)
        result.add(took)


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = arguments(__doc__, runs=1)
    parser.add_argument("--workers", type=int, default=None)
    args = parse(parser, argv)
    workers = args.workers or (100 if args.quick else 5000)
    text = "a pass under 1 s; the loop never blocked longer than 50 ms"
    result = Result("fs-mailboxes", "s", Target(text, at_most=1.0))
    names = ("online", "read", "joined_s", "blocked_registering_ms", "blocked_at_rest_ms")
    result.details = {"workers": workers, **{name: [] for name in (*names, "cpu_percent")}}
    for _ in range(args.runs):
        one_run(workers, 2.0 if args.quick else 30.0, result)
    blocked = [*result.details["blocked_registering_ms"], *result.details["blocked_at_rest_ms"]]
    result.also_ok = max(blocked) <= _BLOCKED_MS_MAX
    return emit(result)


if __name__ == "__main__":
    sys.exit(main())
