"""Run every benchmark, each in a process of its own: results.json, and a Markdown table on stdout.

    python -m bench [--runs N] [--minutes M] [--quick] [--full] [--only PREFIX] [--out FILE]

All of it takes at most 30 minutes, or `--minutes`: when half of that is over, each measure is taken
once, and what has no time left is told as not run. JSON and the table (.md) are written after each
benchmark, so an interruption keeps what was found. One that fails is told and does not end the
rest. Progress goes to stderr. The exit code is 1 if a benchmark failed or was not run, 0 otherwise:
a missed target is a finding, not a failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.measure import keep_bytecode, machine, say, versions

ROOT = Path(__file__).parent.parent
#: Each line is a command: `python -m bench.` and these words. In the order of the issue's table.
SUITE = (
    "yardstick",
    "throughput --mode zmq",
    "throughput --mode fs",
    "throughput --mode plaintext",
    "lengths --kind busy",
    "lengths --kind sleep",
    "latency --mode zmq",
    "latency --mode fs",
    "manager_cpu",
    "generate",
    "memory",
    "restart",
    "connected",
    "mailboxes",
    "idle --mode zmq",
    "idle --mode fs",
    "worker_start",
    "first_output",
    "database",
    "growth --of workers",
    "growth --of size",
    "growth --of commit",
    "curve",
    "slots",
    "stages",
)
#: What takes long or hardly varies decides itself how often it runs.
_OWN_RUNS = ("memory", "connected", "mailboxes", "idle", "worker_start", "first_output", "database")


def run_one(words: str, args: argparse.Namespace, spent: float = 0.0) -> dict[str, Any]:
    """The JSON object of one benchmark, or `{"measure", "failed"}`.

    `spent` is the share of the time that is over.
    """
    if spent >= 1:
        return {"measure": words, "failed": "not run: the time is over"}
    left_s = max(60.0, 60 * args.minutes * (1 - spent))
    module, *rest = words.split()
    command = [sys.executable, "-m", f"bench.{module}", *rest]
    runs = args.runs if spent < 0.5 else 1
    if runs is not None and module not in _OWN_RUNS:
        command += ["--runs", str(runs)]
    if args.quick:
        command.append("--quick")
    if args.full and module == "memory":
        command.append("--full")
    try:
        found: dict[str, Any] = json.loads(_output(command, left_s))
    except (subprocess.SubprocessError, ValueError) as error:
        say(f"FAILED {words}: {error}")
        return {"measure": words, "failed": str(error)}
    return {"command": " ".join(("python -m", *command[2:])), **found}


def _output(command: Sequence[str], within_s: float) -> bytes:
    """What a command prints. It is ended with SIGTERM, so that it can end its daemon."""
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as running:
        try:
            output, _ = running.communicate(timeout=within_s)
        except BaseException:
            running.terminate()
            raise
    if running.returncode:
        raise subprocess.CalledProcessError(running.returncode, command)
    return output


def table(results: Sequence[dict[str, Any]]) -> str:
    """Markdown: one row a measure."""
    rows = [
        "| measure | median (min - max) | unit | ratio to yardstick | target | met |",
        "|---|---|---|---|---|---|",
    ]
    for one in results:
        if "failed" in one:
            late = one["failed"].startswith("not run")
            rows.append(f"| {one['measure']} | {'not run' if late else 'failed'} | | | | |")
            continue
        spread = f"{_short(one['median'])} ({_short(one['min'])} - {_short(one['max'])})"
        ratio = "" if one["ratio"] is None else f"{one['ratio']:.2f}"
        met = {True: "yes", False: "NO", None: ""}[one["ok"]]
        rows.append(
            f"| {one['measure']} | {spread} | {one['unit']} | {ratio} | {one['target'] or ''} "
            f"| {met} |"
        )
    return "\n".join(rows) + "\n"


def _short(number: float) -> str:
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _save(out: Path, results: Sequence[dict[str, Any]], quick: bool) -> None:
    body = {"versions": versions(), "machine": machine(), "quick": quick, "results": results}
    part = out.with_name(f".{out.name}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    with open(descriptor, "w") as file:
        file.write(json.dumps(body, indent=1) + "\n")
    part.rename(out)
    out.with_suffix(".md").write_text(table(results))


def main(argv: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run every benchmark.")
    parser.add_argument("--runs", type=int, default=None, help="values of each measure")
    parser.add_argument("--minutes", type=float, default=30.0, help="for all of it")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small, once")
    parser.add_argument("--full", action="store_true", help="with ten million queued tasks")
    parser.add_argument("--only", default="", help="benchmarks whose line begins with this")
    parser.add_argument("--out", type=Path, default=None, help="default: bench/results.json")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    # A smoke test's figures must not replace real ones.
    name = "quick.json" if args.quick else "results.json"
    out = args.out or Path(__file__).with_name(name)
    keep_bytecode()
    results: list[dict[str, Any]] = []
    started = time.monotonic()
    chosen = [words for words in SUITE if words.startswith(args.only)]
    try:
        for number, words in enumerate(chosen, 1):
            began = time.monotonic()
            say(f"== {number}/{len(chosen)} after {(began - started) / 60:.1f} min: {words}")
            results.append(run_one(words, args, (began - started) / max(60 * args.minutes, 1e-9)))
            results[-1]["took_s"] = round(time.monotonic() - began, 1)
            _save(out, results, args.quick)
    except KeyboardInterrupt:
        say("interrupted: this is what was found before")
        return 130
    finally:
        sys.stdout.write(table(results))
    return 1 if any("failed" in one for one in results) else 0


if __name__ == "__main__":
    sys.exit(main())
