"""Entry point `jobflow-worker`: what batch jobs run, and people by hand.

argparse only: it starts a thousand times from a shared file system. Reads everything else, the
program's arguments included, from the session directory.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from jobflow_worker import __version__, collector, limits

if TYPE_CHECKING:
    from jobflow_worker.sessionfiles import Beacon, SessionPaths

#: How long a worker waits for the first beacon of its session, and how often it looks.
BEACON_PATIENCE_S = 60.0
BEACON_LOOK_S = 0.5

EPILOG = """examples:
  jobflow-worker --session t1                 join session t1 with one slot
  jobflow-worker --session t1 --slots 4       four tasks at a time
  jobflow-worker --session /shared/t1 --mode fs

exit codes: 0 done, 2 usage, 5 no such session, 77 permissions, 78 program, version or identity
"""


class WorkerError(Exception):
    """Something the user can mend: a sentence and an exit code."""

    def __init__(self, sentence: str, exit_code: int) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code


def parser() -> argparse.ArgumentParser:
    """The command line; `--help` shows it."""
    made = argparse.ArgumentParser(
        prog="jobflow-worker",
        description="Pull tasks of a jobflowd session and run them here.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--session", "-s", metavar="NAME-or-DIR", help="session to join, by name or directory")
    add("--slots", type=_slots, default=1, metavar="N", help="tasks at a time (default 1)")
    add("--mode", "-m", choices=("auto", "zmq", "fs"), default="auto", help="transport")
    add("--worker-id", metavar="LABEL", help="readable label in the worker's identity")
    add("--launch-id", metavar="ID", help="launch that this worker answers (set by jobflowd)")
    add("--batch-job-id", metavar="ID", help="job id in the batch system")
    add("--manager-timeout-minutes", type=float, metavar="M", help="leave after this silence")
    add("--log-level", choices=("info", "quiet"), default="info", help=argparse.SUPPRESS)
    hand = made.add_argument_group("without a session directory, or by its parts")
    hand.add_argument(
        "--shared-dir", metavar="DIR", help="with --session-id: DIR/ID is the session"
    )
    hand.add_argument("--session-id", metavar="ID")
    hand.add_argument("--manager-host", metavar="HOST", help="zmq: where the manager listens")
    hand.add_argument("--port", type=int, metavar="N")
    hand.add_argument("--program", "-P", metavar="PROGRAM", help="as for jobflowd start")
    hand.add_argument("--program-args", "-A", metavar="JSON", default="{}")
    hand.add_argument("--key-file", metavar="FILE", help="the session's keys/hand.key")
    hand.add_argument(
        "--insecure-plaintext",
        action="store_true",
        help="no keys: the manager was started with this flag",
    )
    hand.add_argument("--heartbeat-interval", type=float, default=10.0, metavar="S")
    made.add_argument("--version", action="version", version=f"jobflow-worker {__version__}")
    return made


def _slots(text: str) -> int:
    number = int(text)
    if not 1 <= number <= limits.SLOTS_MAX:
        raise argparse.ArgumentTypeError(f"must be 1 to {limits.SLOTS_MAX}")
    return number


def main(argv: Sequence[str] | None = None) -> int:
    """Run a worker; returns its exit code."""
    umask = os.umask(0o077)
    collector.stop()
    args = parser().parse_args(argv)
    try:
        return _run(args, umask)
    except Exception as error:
        code = getattr(error, "exit_code", None)
        if code is None:
            raise
        detail = getattr(error, "detail", "")
        sys.stderr.write(f"jobflow-worker: error: {error}\n{detail}")
        return int(code)


def _run(args: argparse.Namespace, umask: int) -> int:
    # Imported only now: --help and usage errors need none of it.
    from jobflow_worker import batchjob
    from jobflow_worker.agent import Agent, Options
    from jobflow_worker.keyfile import worker_keys
    from jobflow_worker.programref import ProgramRef, program_hash, resolve_program
    from jobflow_worker.sessionfiles import Beacon, SessionPaths, SessionRecord
    from jobflow_worker.vocabulary import Identity

    directory = _directory(args)
    paths: SessionPaths | None = None
    if directory is not None:
        paths = SessionPaths(directory)
        record = SessionRecord.load(paths.session_file)
        program = ProgramRef.from_json(record.program)
        program_args, cwd = dict(record.program_args), record.cwd
        beacon = _first_beacon(paths)
    else:
        program = resolve_program(args.program, Path.cwd())
        program_args, cwd = _json_object(args.program_args), os.getcwd()
        endpoint = f"tcp://{args.manager_host}:{args.port}"
        beacon = Beacon(0, "open", (endpoint,), None, "", args.heartbeat_interval, 0)
    host = os.uname().nodename
    launch_id = args.launch_id or os.environ.get("JOBFLOW_LAUNCH_ID")
    label = args.worker_id or _label(launch_id or host)
    key_file = Path(args.key_file).absolute() if args.key_file else None
    keys = None
    if args.mode != "fs" and not (paths is None and args.insecure_plaintext):
        keys = worker_keys(paths, beacon, launch_id, key_file)
    identity = Identity(
        version=__version__,
        python=sys.version.split()[0].rstrip("+"),
        host=host,
        pid=os.getpid(),
        slots=args.slots,
        program_hash=program_hash(program),
        launch_id=launch_id,
        batch_job_id=args.batch_job_id or batchjob.job_id(os.environ),
    )
    minutes = args.manager_timeout_minutes
    options = Options(
        worker_id=f"{label}-{os.urandom(8).hex()}",
        identity=identity,
        mode=args.mode,
        program=program,
        program_args=program_args,
        cwd=cwd,
        beacon=beacon,
        paths=paths,
        manager_timeout_s=900.0 if minutes is None else 60.0 * minutes,
        umask=umask,
        end_at=batchjob.end_at(os.environ),
        keys=keys,
        key_file=key_file,
    )
    return Agent(options).run()


def _directory(args: argparse.Namespace) -> Path | None:
    """The session directory that the flags name; None to work without one."""
    from jobflow_worker.messages import is_label
    from jobflow_worker.pointers import session_directory

    if args.worker_id is not None and not is_label(args.worker_id):
        raise WorkerError(
            f"--worker-id {args.worker_id!r} is not a plain name: use letters, digits, '.', '_' "
            "and '-', at most 64 of them.",
            2,
        )
    named = args.session or os.environ.get("JOBFLOW_SESSION_DIR")
    if args.shared_dir and args.session_id:
        named = str(Path(args.shared_dir) / args.session_id)
    if named:
        directory = session_directory(named)
        if directory is None:
            raise WorkerError(
                f"There is no session {named!r} for this user on {os.uname().nodename}. Name it as "
                "`jobflowd start` printed it, or give its directory.",
                5,
            )
        return directory
    if args.manager_host and args.port and args.program and args.mode != "fs":
        return None
    raise WorkerError(
        "No session is named. Use --session NAME-or-DIR; without a session directory, "
        "--manager-host, --port and --program are all needed.",
        2,
    )


def _json_object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise WorkerError(f"--program-args is not JSON: {error}.", 2) from None
    if not isinstance(value, dict):
        raise WorkerError("--program-args must be a JSON object, like '{\"key\": 1}'.", 2)
    return value


def _label(text: str) -> str:
    """A readable part for the identity, made of what is known."""
    from jobflow_worker.messages import is_label

    label = re.sub(r"[^A-Za-z0-9._-]", "-", text)[:40].strip("-._")
    return label if is_label(label) else "worker"


def _first_beacon(paths: SessionPaths) -> Beacon:
    """The daemon's beacon; a worker may be faster than its manager's restart, so it waits."""
    from jobflow_worker.sessionfiles import read_beacon

    give_up_at = time.monotonic() + BEACON_PATIENCE_S
    told = False
    while True:
        beacon = read_beacon(paths.beacon)
        if beacon is not None and beacon.state == "open":
            return beacon
        if time.monotonic() >= give_up_at:
            raise WorkerError(
                f"No manager serves the session in {paths.root}: its beacon is "
                f"{'missing' if beacon is None else beacon.state}. Start it with: "
                f"jobflowd start --session-id {paths.root.name}",
                5,
            )
        if not told:
            sys.stderr.write(f"waiting for the manager of {paths.root} ...\n")
            told = True
        time.sleep(BEACON_LOOK_S)


if __name__ == "__main__":
    sys.exit(main())
