"""Faults at the system calls of a real daemon: a sample of `python -m tests.faults --all`."""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from .injection import count_calls, points, try_point

pytestmark = pytest.mark.slow
#: About a minute; the points are spread over all calls, faults and phases of the run.
SAMPLE = 15


def test_no_system_call_may_fail_badly(require: Callable[[str], None]) -> None:
    """Known failure 3, at its root: killed or failed anywhere, a daemon goes on where it was."""
    require("strace")
    # Unix sockets lie under it, so it is short.
    root = Path(tempfile.mkdtemp(prefix="jf-faults-"))
    counts = count_calls(root)
    assert counts["fdatasync"] > 10, "the run has become too short to say anything"
    chosen = points(counts, 1)
    # Another part of the whole in each run of CI, the same in each run on one commit.
    start = int(os.environ.get("JOBFLOW_FAULT_OFFSET", "0"))
    outcomes = [try_point(root, point) for point in chosen[start : start + SAMPLE]]
    failed = [f"{one.point}: {one.met}\n{one.problems}" for one in outcomes if one.problems]
    assert not failed, "\n".join(failed)
    assert Counter(bool(one.met) for one in outcomes)[True] >= SAMPLE * 2 // 3
    root.rmdir()
