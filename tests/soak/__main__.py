"""`python -m tests.soak --minutes 10 --json`: everything is killed, and nothing may be lost.

A real daemon with 20 workers (half of them its own over zmq, half started by hand over mailboxes)
while managers, agents, children, the generator and the mailbox process are killed and stopped at
random. At the end the tasks' own notes decide. `--manager-every 20` kills the manager only, at
that pace: then no task at all may be executed twice. Exit code 0 if every promise was kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from .run import Plan, Soak


def main() -> int:
    """Returns 0 if nothing was lost, doubled, repeated without cause or left behind."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0, help="how long the chaos lasts")
    parser.add_argument("--workers", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1, help="of the killer")
    parser.add_argument("--manager-every", type=float, help="kill only the manager, every N s")
    parser.add_argument("--json", action="store_true", help="only one JSON object on stdout")
    parser.add_argument("--dir", type=Path, help="where to work; kept (default: a new one)")
    options = parser.parse_args()
    root = options.dir or Path(tempfile.mkdtemp(prefix="jf-soak-"))
    root.mkdir(exist_ok=True, parents=True)
    plan = Plan(options.minutes, options.workers, options.seed, options.manager_every)
    figures = Soak(root, plan).run()
    if options.json:
        print(json.dumps(figures))
    else:
        print("\n".join(f"{key:34} {value}" for key, value in figures.items()))
    good = kept(figures)
    if not good:
        sys.stderr.write(f"a promise was broken; look at {root}\n")
    return 0 if good else 1


def kept(figures: dict[str, Any]) -> bool:
    """Whether these accounts keep every promise."""
    broken = (
        "lost",
        "ended_twice",
        "leaked_processes",
        "executed_again_although_finished",
        "executed_again_although_running",
        "bugs_survived",
    )
    return figures["ended"] and not any(figures[key] for key in broken)


if __name__ == "__main__":
    sys.exit(main())
