"""The tasks of `compare.py`, for everything that runs Python functions.

Rule: imports only what costs nothing. HyperQueue starts a Python for each task, which imports this
module by its name, and what is heavy here would be held against it. The functions do what
`programs/noop.py` and `programs/sleeper.py` do.
"""

from __future__ import annotations

import os
import time

BUSY_S = 0.001


def no_op(spec: dict[str, int]) -> dict[str, int]:
    """Nothing."""
    return {}


def busy(spec: dict[str, int]) -> dict[str, int]:
    """1 ms of CPU, by this process's own CPU clock."""
    until = time.process_time() + BUSY_S
    while time.process_time() < until:
        pass
    return {}


def who(spec: dict[str, int]) -> int:
    """The process that runs this; long enough that one worker cannot take all."""
    time.sleep(0.05)
    return os.getpid()
