"""The whole path on real data, as `make demo` runs it.

    python -m examples.demo [--directory demo] [--workers 4]

It makes the input (volumes that nibabel ships, and arrays cut from them), removes the outputs of an
earlier demo, runs both example programs by the commands that a user types, compares every output
with its input, and starts both sessions again to show that finished work is not redone. Exit code 0
means that all of this was so. This module talks to the terminal.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from examples.demo_data import DemoInputs, make_inputs
from examples.verify_outputs import verify_mla, verify_npz

EXAMPLES = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class Run:
    """One of the two sessions of the demo."""

    session: str
    program: str
    args: dict[str, str]
    output_dir: Path
    #: How many outputs there must be, and what they are made of.
    count: int
    inputs: str
    #: Compares every output with its input; a sentence for each difference.
    verify: Callable[[], list[str]]


def main() -> int:
    """Run the demo; 0 when every output is right."""
    parser = argparse.ArgumentParser(description="Run both example programs on real data.")
    parser.add_argument("--directory", type=Path, default=Path("demo"))
    parser.add_argument("--workers", type=int, default=4)
    options = parser.parse_args()
    root: Path = options.directory.absolute()
    # Two checkouts may each have a demo: its sessions' names stay in its own directory.
    os.environ["JOBFLOW_STATE_DIR"] = str(root / "state")

    say(f"Making the input in {show(root)}")
    root.mkdir(parents=True, exist_ok=True)
    inputs = make_inputs(root)
    print(f"{inputs.volume_count} MRI volumes and {inputs.array_count} arrays cut from them")

    runs = planned_runs(root, inputs)
    seconds = {}
    for run in runs:
        shutil.rmtree(run.output_dir, ignore_errors=True)
        say(f"{run.count} {run.inputs} to {show(run.output_dir)}")
        # --fresh: a demo begins anew each time. Without it, the start would find the work done.
        started_at = time.monotonic()
        code = start(run, root, options.workers, "--fresh")
        seconds[run.session] = time.monotonic() - started_at
        if code != 0:
            print(f"\njobflowd start ended with exit code {code}; the demo stops here.")
            return 1

    say("Comparing every output with its input")
    problems = []
    for run in runs:
        differences = run.verify()
        print(f"{run.session}: {run.count} compared, {len(differences)} differ")
        problems += differences

    say("Starting both again: what is finished is not done again")
    for run in runs:
        before = state_of(run.output_dir)
        code = start(run, root, options.workers)
        if code != 0:
            problems.append(f"{run.session}: the second start ended with exit code {code}")
        if state_of(run.output_dir) != before:
            problems.append(f"{run.session}: the second start wrote outputs again")

    report(runs, seconds, root, problems)
    return 1 if problems else 0


def planned_runs(root: Path, inputs: DemoInputs) -> tuple[Run, Run]:
    """The two sessions, with everything that is needed to run and to check them."""
    npz, mla = root / "npz", root / "mla"
    return (
        Run(
            session="demo-npz",
            program="npy_to_npz_program.py",
            args={"input_dir": str(inputs.arrays), "output_dir": str(npz), "glob": "*.npy"},
            output_dir=npz,
            count=inputs.array_count,
            inputs="arrays",
            verify=lambda: verify_npz(inputs.arrays, npz),
        ),
        Run(
            session="demo-mla",
            program="data_storage_to_mla_program.py",
            args={
                "json_path": str(inputs.json_path),
                "data_storage_base": str(inputs.data_storage),
                "output_dir": str(mla),
            },
            output_dir=mla,
            count=inputs.volume_count,
            inputs="volumes",
            verify=lambda: verify_mla(inputs.json_path, inputs.data_storage, mla),
        ),
    )


def start(run: Run, root: Path, workers: int, *flags: str) -> int:
    """Run `jobflowd start` in this terminal until its session has ended; its exit code."""
    command = [
        *(str(Path(sys.executable).parent / "jobflowd"), "start"),
        *("--program", str(EXAMPLES / run.program)),
        *("--program-args", json.dumps(run.args)),
        *("--session-id", run.session),
        *("--shared-dir", str(root / "sessions")),
        *("--workers", str(workers)),
        *flags,
    ]
    print("$", shlex.join(["jobflowd", *command[1:]]), flush=True)
    process = subprocess.Popen(command)
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # The terminal sent Ctrl-C to the daemon as well, which ends the run gracefully; the
            # demo's part is to wait for that.
            continue


def state_of(directory: Path) -> dict[Path, tuple[int, int]]:
    """What changes when any output is written again."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


def report(
    runs: tuple[Run, Run], seconds: dict[str, float], root: Path, problems: list[str]
) -> None:
    """The last thing on the screen: what is there now, and what to type next."""
    say("Summary")
    for run in runs:
        files = [path for path in run.output_dir.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files) / 1e6
        print(
            f"{run.count:5} {run.inputs:8} {len(files):5} outputs {size:6.1f} MB "
            f"{seconds[run.session]:6.1f} s   {show(run.output_dir)}"
        )
    if problems:
        print(f"\n{len(problems)} problems:")
        print("\n".join(f"  {problem}" for problem in problems[:20]))
        return
    print("\nAll outputs are there and equal to their inputs. Next:")
    print(f"  less {show(root / 'sessions' / 'demo-npz' / 'manager.db.log')}")
    print("  less examples/npy_to_npz_program.py        the program, to copy from")
    print("  less README.md                             your own data")


def say(headline: str) -> None:
    """A headline between the steps."""
    print(f"\n== {headline}", flush=True)


def show(path: Path) -> str:
    """The path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


if __name__ == "__main__":
    raise SystemExit(main())
