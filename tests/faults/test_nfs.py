"""fs mode over a real NFS server: manager and workers on two clients, each with its own caches."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .nfs import MANAGER, ROOT, SERVER, WORKERS, Nfs

pytestmark = pytest.mark.slow
N = 300
#: The short test runs everywhere; these wait for a server's and a client's restart.
LONG = pytest.mark.skipif(
    not os.environ.get("JOBFLOW_NFS"), reason="takes five minutes: set JOBFLOW_NFS=1"
)
#: Reports come often, so that the end is noticed soon. The lease stays as long as NFS needs it.
BRISK = ("--heartbeat-interval", "2", "--shutdown-grace-period", "10")


@pytest.fixture
def nfs() -> Iterator[Nfs]:
    """Root only. Its directory is short, since Unix sockets lie under it."""
    if os.geteuid() != 0:
        pytest.skip("guests and their network need root")
    nfs = Nfs(Path(f"/tmp/jfn-{os.getpid()}"))
    try:
        nfs.up()
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired) as error:
        said = (error.stderr or b"").decode(errors="replace")
        if os.environ.get("JOBFLOW_REQUIRE_ALL"):
            pytest.fail(f"nfs-up failed: {said}")
        pytest.skip(f"nfs-up failed: {said}")
    yield nfs
    nfs.down()


def pause(seconds: float) -> None:
    """Let real time pass: here the passing itself is what is tested."""
    signal.sigtimedwait([signal.SIGUSR2], seconds)


def test_two_clients_and_a_cut_network(nfs: Nfs) -> None:
    """Lock, database and mailboxes on NFS: a cut shorter than the lease costs nothing."""
    n = 40
    daemon = nfs.manager(MANAGER, "manager.out", *BRISK, n=n, s=0.2)
    nfs.until(lambda: "started" in nfs.printed(), "the manager")
    worker = nfs.worker(WORKERS, "worker.out", "--slots", "2")
    nfs.until(lambda: nfs.ends() >= 10, "ten tasks")
    nfs.link("cut", WORKERS)
    pause(3)
    nfs.link("heal", WORKERS)
    nfs.until(lambda: nfs.ends() == n, "all tasks")
    assert daemon.wait(60) == 0, nfs.printed()
    assert worker.wait(60) == 0, nfs.printed()
    verdict = nfs.verdict(n)
    assert verdict.problems == [], nfs.printed()
    assert verdict.started_again == {}, nfs.printed()


@LONG
def test_a_cut_network_and_a_restarted_server_cost_nothing(nfs: Nfs) -> None:
    daemon = nfs.manager(MANAGER, "manager.out", n=N, s=0.2)
    nfs.until(lambda: "started" in nfs.printed(), "the manager")
    workers = [nfs.worker(WORKERS, f"worker-{n}.out", "--slots", "2") for n in (1, 2)]
    nfs.until(lambda: nfs.ends() >= 40, "40 tasks")

    nfs.link("cut", WORKERS)
    pause(12)
    nfs.link("heal", WORKERS)
    before = nfs.ends()
    nfs.until(lambda: nfs.ends() >= min(before + 40, 200), "40 more after the cut")

    nfs.power_cut(SERVER)
    pause(3)
    nfs.up()
    nfs.until(lambda: nfs.ends() == N, "all tasks", 180)
    assert daemon.wait(120) == 0, nfs.printed()
    assert [worker.wait(90) for worker in workers] == [0, 0], nfs.printed()
    verdict = nfs.verdict(N)
    assert verdict.problems == [], nfs.printed()
    assert verdict.started_again == {}, nfs.printed()


@LONG
def test_the_other_host_takes_the_session_over(nfs: Nfs) -> None:
    """The manager's host loses power. Its owner record and its locks lie on the server."""
    n = 60
    nfs.manager(MANAGER, "manager.out", n=n, s=0.3)
    nfs.until(lambda: "started" in nfs.printed(), "the manager")
    worker = nfs.worker(WORKERS, "worker.out", "--slots", "2")
    nfs.until(lambda: nfs.ends() >= 10, "ten tasks")
    refused = nfs.manager(WORKERS, "refused.out", "--takeover", n=n, s=0.3)
    assert refused.wait(60) == 75, nfs.printed()
    assert "already run by" in nfs.printed()

    nfs.power_cut(MANAGER)
    nfs.run(WORKERS, "ls", ROOT)
    second: subprocess.Popen[bytes] | None = None

    def taken() -> bool:
        # The server keeps a dead client's locks for its lease of ten seconds.
        nonlocal second
        if second is None or second.poll() is not None:
            second = nfs.manager(WORKERS, "second.out", "--takeover", n=n, s=0.3)
        return "started session" in (nfs.share / "second.out").read_text()

    nfs.until(taken, "the other host to own the session", 120)
    assert second is not None
    assert second.wait(180) == 0, nfs.printed()
    assert worker.wait(60) == 0
    nfs.up()
    verdict = nfs.verdict(n)
    assert verdict.problems == [], nfs.printed()
    assert verdict.started_again == {}, nfs.printed()
