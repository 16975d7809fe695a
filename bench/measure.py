"""The form of every benchmark: the same flags in, one JSON object out.

Rule: a figure never stands alone. Every value of every run is kept, rates are divided by what
`yardstick.py` reached just before and after in the same run, and the machine's load is noted.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.metadata
import json
import os
import platform
import signal
import sqlite3
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgpack
import zmq


@dataclass(frozen=True, slots=True)
class Target:
    """What issue 6 asks for: a bound on the median ratio or on the median value."""

    text: str
    at_least: float | None = None
    at_most: float | None = None
    of_ratio: bool = False

    def met(self, number: float) -> bool:
        """Is this median good enough?"""
        if self.at_least is not None and number < self.at_least:
            return False
        return self.at_most is None or number <= self.at_most


@dataclass(slots=True)
class Result:
    """What one benchmark found. `yardstick` has one value for each of `values`."""

    measure: str
    unit: str
    target: Target | None = None
    values: list[float] = field(default_factory=list)
    yardstick: list[float] = field(default_factory=list)
    yardstick_is: str = ""
    details: dict[str, Any] = field(default_factory=dict)
    #: What a target asks for beside the values; each benchmark judges it itself.
    also_ok: bool = True

    def add(self, value: float, yardstick: float | None = None) -> None:
        """One run."""
        self.values.append(value)
        if yardstick is not None:
            self.yardstick.append(yardstick)
        note = f", {value / yardstick:.2f} x {self.yardstick_is}" if yardstick else ""
        say(f"{self.measure}: {value:,.4g} {self.unit}{note}")

    def ratios(self) -> list[float]:
        """Each value by its own yardstick: on a shared machine only pairs compare."""
        if not self.yardstick:
            return []
        return [one / other for one, other in zip(self.values, self.yardstick, strict=True)]

    def as_json(self) -> dict[str, Any]:
        """The JSON object. `ok` is null where nothing is asked for."""
        ratios = self.ratios()
        ratio = statistics.median(ratios) if ratios else None
        median = statistics.median(self.values)
        ok = None
        if self.target is not None:
            judged = ratio if self.target.of_ratio else median
            ok = judged is not None and self.target.met(judged) and self.also_ok
        return {
            "measure": self.measure,
            "unit": self.unit,
            "values": [round(one, 6) for one in self.values],
            "median": round(median, 6),
            "min": round(min(self.values), 6),
            "max": round(max(self.values), 6),
            "yardstick": {
                "what": self.yardstick_is,
                "values": [round(one, 6) for one in self.yardstick],
            },
            "ratio": None if ratio is None else round(ratio, 4),
            "ratios": [round(one, 4) for one in ratios],
            "target": self.target.text if self.target is not None else None,
            "ok": ok,
            "details": self.details,
            "versions": versions(),
            "machine": machine(),
        }


def arguments(text: str | None, runs: int = 3) -> argparse.ArgumentParser:
    """The flags that every benchmark has; `runs` is its own default."""
    first = (text or "").partition("\n")[0]
    parser = argparse.ArgumentParser(description=first)
    parser.add_argument("--runs", type=int, default=runs, help="values to take")
    parser.add_argument("--quick", action="store_true", help="a smoke test: small, once")
    return parser


def parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; `--quick` means one run."""
    args = parser.parse_args(argv)
    if args.quick:
        args.runs = 1
    keep_bytecode()
    if threading.current_thread() is threading.main_thread():
        # An end by SIGTERM is an exit like others: what was started is ended first.
        signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    return args


def keep_bytecode() -> None:
    """Let what is started from here find compiled modules, as it does where jobflowd is installed.

    With PYTHONDONTWRITEBYTECODE, which images of containers like to set, every process of a
    session would compile the source again: that is 60 ms of each start that no user has.
    """
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", None) and "PYTHONPYCACHEPREFIX" not in os.environ:
        place = tempfile.TemporaryDirectory(prefix="jf-bench-bytecode-")
        os.environ["PYTHONPYCACHEPREFIX"] = place.name
        atexit.register(place.cleanup)


def emit(result: Result) -> int:
    """Print the JSON object; the exit code is 0 even if a target is missed: that is a finding."""
    sys.stdout.write(json.dumps(result.as_json(), indent=1) + "\n")
    return 0


def say(text: str) -> None:
    """Progress, for people, on stderr."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def versions() -> dict[str, str]:
    """Of everything that the figures depend on."""
    return {
        "jobflowd": importlib.metadata.version("jobflowd"),
        "python": platform.python_version(),
        "pyzmq": zmq.__version__,
        "libzmq": zmq.zmq_version(),
        "msgpack": ".".join(str(part) for part in msgpack.version),
        "sqlite": sqlite3.sqlite_version,
    }


def machine() -> dict[str, Any]:
    """What ran it and how busy it was: `load` counts this benchmark, too."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "load": [round(one, 2) for one in os.getloadavg()],
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
    }
