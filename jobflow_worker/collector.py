"""The garbage collector in a process that lives long and makes few cycles.

Used by the daemon and the agent. Nearly all that they drop is freed by its reference count; what
the collector finds by walking everything that is alive, again and again, took a fifth of the
daemon's time with a full window of tasks (docs/PERFORMANCE.md).
"""

from __future__ import annotations

import gc

#: Objects made between two young collections (700 by default): a turn makes tens of thousands.
YOUNG = 100_000


def stop() -> None:
    """Not at all until `calm`: imports make thousands of objects and drop next to none of them."""
    gc.disable()


def calm() -> None:
    """Collect rarely, and never again look at what is there now: modules, classes, settings."""
    gc.freeze()
    gc.set_threshold(YOUNG, 20, 50)
    gc.enable()
