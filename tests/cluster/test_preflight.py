"""The preflight check on a real SLURM: a good site, and seeded mistakes, each named in one line."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
        ({"slurm_mem": "900GB"}, "node configuration"),
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


# --- what only this host has ----------------------------------------------------------------


def lines_of(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("FAIL")]


@pytest.fixture
def only_here(
    slurm_state: str, cli: Any, outside: None, tmp_path: Path
) -> Callable[..., list[str]]:
    """Runs a command where `local` is a file system of this host alone, as a login node's own disk
    is: in a mount namespace that SLURM's nodes do not share. The lines that name a mistake."""
    (tmp_path / "prog.py").write_text(PROGRAM)
    local = tmp_path / "local"
    local.mkdir()
    cli.env["SLURM_CONF"] = f"{slurm_state}/slurm.conf"

    def run(prepare: str, *argv: str) -> list[str]:
        script = f'mount -t tmpfs none "$0" && chmod 700 "$0" && {prepare} && exec "$@"'
        inside = ("unshare", "--mount", "sh", "-c", script, str(local), *argv)
        done = cli.run("/usr/bin/env", *inside, code=69)
        return lines_of(done.stdout)

    return run


def checking(tmp_path: Path, *flags: str) -> tuple[str, ...]:
    """The arguments of a check in `tmp_path`."""
    program = ("--program", str(tmp_path / "prog.py"), "--launcher", "slurm")
    shared = () if "--shared-dir" in flags else ("--shared-dir", str(tmp_path / "shared"))
    return ("-m", "jobflowd", "check", *program, *shared, *flags)


def test_a_session_directory_that_nodes_do_not_see(
    only_here: Callable[..., list[str]], tmp_path: Path
) -> None:
    place = str(tmp_path / "local" / "jobflow")
    bad = only_here("true", sys.executable, *checking(tmp_path, "--shared-dir", place))
    assert len(bad) == 1, bad
    assert f"nothing of the job is seen in the session's directory {place} (" in bad[0]
    assert "give a --shared-dir that the nodes see" in bad[0]


def test_a_start_directory_that_nodes_do_not_have(
    only_here: Callable[..., list[str]], tmp_path: Path
) -> None:
    bad = only_here('mkdir "$0/start" && cd "$0/start"', sys.executable, *checking(tmp_path))
    assert len(bad) == 1, bad
    assert "the start directory cannot be entered: No such file or directory" in bad[0]
    assert "start in a directory that the nodes see" in bad[0]


def test_an_interpreter_that_nodes_do_not_have(
    only_here: Callable[..., list[str]], tmp_path: Path
) -> None:
    python = str(tmp_path / "local" / "bin" / "python")
    prepare = (
        f'mkdir "$0/bin" && ln -s "$(readlink -f {sys.executable})" "$0/bin/python" && '
        f'cp {sys.prefix}/pyvenv.cfg "$0" && ln -s {sys.prefix}/lib "$0/lib"'
    )
    bad = only_here(prepare, python, *checking(tmp_path))
    assert len(bad) == 1, bad
    assert f"{python}: No such file or directory" in bad[0]
    assert "interpreter" in bad[0]


def test_the_doctor_says_the_same(
    cli: Any, slurm_state: str, outside: None, tmp_path: Path
) -> None:
    """Of a configuration, with what is good as well; and in JSON."""
    cli.env["SLURM_CONF"] = f"{slurm_state}/slurm.conf"
    (tmp_path / "prog.py").write_text(PROGRAM)
    good = f'program = "{tmp_path / "prog.py"}"\nlauncher = "slurm"\n'
    good += f'shared-dir = "{tmp_path / "shared"}"\n'
    config = tmp_path / "jobflow.toml"
    config.write_text(good)
    said = cli.run("jobflowctl", "doctor", "--config", str(config)).stdout
    assert lines_of(said) == []
    assert "everything is as it should be" in said
    config.write_text(good + 'slurm-partition = "nosuch"\n')
    told = cli.run("jobflowctl", "doctor", "--config", str(config), "--json", code=69).stdout
    bad = [one for one in json.loads(told)["findings"] if one.startswith("FAIL")]
    assert len(bad) == 1
    assert "Invalid partition name specified" in bad[0]


def test_no_batch_system_here(checked: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert "there is no command sbatch on PATH" in checked()[-1]
