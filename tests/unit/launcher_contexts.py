"""A launch to write scripts for, shared by the tests of the batch systems."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from jobflowd.launchers.base import LaunchContext

ODD = '/data/it\'s 100% "mine" #1 $HOME `x` ☃'


def context(**changes: Any) -> LaunchContext:
    base = LaunchContext(
        session="t1",
        session_dir="/data/t1",
        launch_id="jf-abc-1",
        worker_argv=("/opt/py thon/bin/python", "-c", "print('x')", "--session", "/data/t1"),
        start_dir="/home/u",
        script_path="/data/t1/launches/jf-abc-1/script",
        output_path="/data/t1/launches/jf-abc-1/output",
        version="0.1.0",
    )
    return replace(base, **changes)
