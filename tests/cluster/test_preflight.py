"""The preflight check on a real SLURM: a good site, and seeded mistakes, each named in one line."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import jobflow_worker
from jobflowd.config import load
from jobflowd.preflight import check

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PROGRAM = """
import os
from jobflow_worker import TaskProgram

if os.environ.get("BROKEN_NODE"):
    import a_library_that_is_not_there

class P(TaskProgram):
    def generate_tasks(self):
        return []

    def execute_task(self, spec, progress_cb):
        return {}
"""

Check = Callable[..., list[str]]


@pytest.fixture
def checked(
    slurm_state: str, outside: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Check]:
    """Runs the check with these flags; the lines it said."""
    monkeypatch.setenv("SLURM_CONF", f"{slurm_state}/slurm.conf")
    monkeypatch.chdir(tmp_path)
    program = tmp_path / "prog.py"
    program.write_text(PROGRAM)
    shared = tmp_path / "shared"
    umask = os.umask(0o022)

    def run(wait_s: float = 30.0, **flags: object) -> list[str]:
        lines: list[str] = []
        given = {"program": str(program), "shared_dir": str(shared), "launcher": "slurm", **flags}
        bad = check(load(given, user_file=tmp_path / "none"), lines.append, wait_s=wait_s)
        assert bad == sum(line.startswith("FAIL") for line in lines)
        assert not list(shared.glob(".jobflow-check-*"))
        return lines

    yield run
    os.umask(umask)


def test_a_good_site(checked: Check) -> None:
    lines = checked()
    assert len(lines) >= 8
    assert all(line.startswith("ok") for line in lines)


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"slurm_partition": "nosuch"}, "Invalid partition name specified"),
        ({"slurm_partition": "closed", "wait_s": 3.0}, "PartitionDown"),
        ({"slurm_arg": ["--array=1-3"]}, "jobflowd sets --array itself"),
        ({"prologue": ["echo no module named cuda; exit 3"]}, "no module named cuda"),
        ({"prologue": ["export BROKEN_NODE=1"]}, "No module named 'a_library_that_is_not_there'"),
        ({"prologue": ["echo '#' >> prog.py"]}, "the program's file has another text"),
        ({"manager_host": "192.0.2.99"}, "the manager is not reached"),
        ({"slurm_time": "1m"}, "give a longer --slurm-time"),
        ({"prologue": ["export TMPDIR=/nonexistent"]}, "temporary files cannot be written"),
        ({"prologue": ["ulimit -n 100"]}, "only 100 open files are allowed"),
        ({"slots": "99"}, "99 slots share"),
        ({"prologue": ["rm -rf gone"], "slurm_mem": "900GB"}, "node configuration"),
    ],
)
def test_a_mistake_is_named_in_one_line(
    checked: Check, flags: dict[str, object], named: str
) -> None:
    bad = [line for line in checked(**flags) if line.startswith("FAIL")]
    assert len(bad) == 1, bad
    assert named in bad[0]
    assert "; " in bad[0]


def test_another_version_on_the_node(checked: Check, tmp_path: Path) -> None:
    home = tmp_path / "other"
    package = home / "jobflow_worker"
    shutil.copytree(Path(jobflow_worker.__file__).parent, package)
    init = package / "__init__.py"
    init.write_text(init.read_text().replace(jobflow_worker.__version__, "9.9.9"))
    bad = [line for line in checked(prologue=[f"export PYTHONPATH={home}"]) if "FAIL" in line]
    assert len(bad) == 1
    assert "jobflowd is 9.9.9 and here" in bad[0]


def test_no_batch_system_here(checked: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "there is no command sbatch on PATH" in checked()[-1]
