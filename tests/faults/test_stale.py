"""fs mode where each side sees the directory through caches of its own that go stale.

A quick model of NFS: one directory mounted twice through FUSE, names and attributes believed for
three seconds. The real thing is test_nfs.py.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .bench import BIN, Bench

pytestmark = pytest.mark.slow
CLUSTER = Path(__file__).parent.parent / "cluster"
N = 60


@pytest.fixture
def mounts(bench: Bench) -> Iterator[tuple[Path, Path]]:
    """Two views of one directory. Root only."""
    if os.geteuid() != 0 or not Path("/dev/fuse").exists():
        pytest.skip("mounting through FUSE needs root and /dev/fuse")
    state = Path(f"/tmp/jfs-{os.getpid()}")
    up = [str(CLUSTER / "stale-up"), "-t", "3", str(state)]
    done = subprocess.run(up, capture_output=True, text=True, timeout=200, check=False)
    if done.returncode != 0:
        if os.environ.get("JOBFLOW_REQUIRE_ALL"):
            pytest.fail(f"stale-up failed: {done.stderr}")
        pytest.skip(f"stale-up failed: {done.stderr}")
    yield state / "m1", state / "m2"
    bench.clear(1.0)
    subprocess.run([str(CLUSTER / "stale-down"), "-r", str(state)], check=True, timeout=60)


def test_stale_names_and_contents_cost_time_and_nothing_else(
    bench: Bench, mounts: tuple[Path, Path]
) -> None:
    ours, theirs = (mount / "jf" for mount in mounts)
    bench.place = ours
    flags = ("--shared-dir", str(ours), "--launcher", "none")
    # Not the quick terms: on a network file system a lease has to outlast its caches.
    terms = ("--heartbeat-interval", "30", "--lease-duration", "300")
    daemon = bench.start(*flags, *terms, mode="fs", n=N, s=0.1)
    bench.until(bench.serving, "the daemon to serve")
    directory = theirs / bench.name
    argv = (str(BIN / "jobflow-worker"), "--session", str(directory), "--mode", "fs")
    workers = [bench.spawn(*argv, "--slots", "2") for _ in range(2)]
    assert bench.ended(daemon, 120) == 0, bench.daemon_log()
    assert [worker.wait(60) for worker in workers] == [0, 0]
    verdict = bench.verdict(N)
    assert verdict.problems == []
    assert verdict.started_again == {}
