"""The page about SLURM, command by command as it is written there, on a real SLURM.

Only what a reader would change is changed: where the input and the shared directory are, and `...`
by the flags of the page's first command.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cluster_world import HERE, bring_up, free_ports, script

pytestmark = [pytest.mark.slurm, pytest.mark.slow]

PAGE = HERE.parents[1] / "docs" / "slurm.md"
INPUTS = 12
PROGRAM = """\
import time
from pathlib import Path
from jobflow_worker import TaskDefinition, TaskProgram


class Convert(TaskProgram):
    def generate_tasks(self):
        for path in sorted(Path(self.program_args["input_dir"]).glob("*.raw")):
            yield TaskDefinition(path.stem, {"path": str(path)})

    def execute_task(self, spec, progress_cb):
        while not Path(spec["path"]).with_name("gate").exists():
            time.sleep(0.1)
        return {"bytes": len(Path(spec["path"]).read_bytes())}
"""


@pytest.fixture
def slurm() -> Iterator[dict[str, str]]:
    """One node that is large enough for the page."""
    state = f"/tmp/jfp-{os.getpid()}"
    bring_up("slurm-up", state, "-n", "1", "-c", "16", "-m", "64000", "-p", str(free_ports(3)))
    yield {"SLURM_CONF": f"{state}/slurm.conf"}
    script("slurm-down", "-r", state)


def commands() -> list[str]:
    """The commands of the page, in order, lines that go on joined."""
    blocks = re.findall(r"(?:^    .*\n)+", PAGE.read_text(), re.MULTILINE)
    text = "".join(blocks).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


class Reader:
    """Somebody who types what the page says."""

    def __init__(self, place: Path, env: dict[str, str]) -> None:
        self.place = place
        self._env = env
        self._flags = ""

    def types(self, command: str, code: int = 0) -> str:
        """Run one command in a shell; its stdout."""
        if " ..." in command:
            command = command.replace(" ...", self._flags)
        for here, there in (("/data/in", "in"), ("/shared/$USER/jobflow", "shared")):
            command = command.replace(here, shlex.quote(str(self.place / there)))
        done = subprocess.run(
            ["sh", "-c", command],
            cwd=self.place,
            env=self._env,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def has_flags_of(self, start: str) -> None:
        """What `...` stands for: the flags after the program, that are not of `start` alone."""
        flags = start.partition("--program convert.py")[2]
        self._flags = flags.replace(" --detach", "").replace(" --launcher slurm", "")

    def until(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + 60
        while not condition():
            assert time.monotonic() < deadline, f"waited in vain for {what}"
            time.sleep(0.3)


def test_every_command_of_the_page(
    slurm: dict[str, str], session_env: dict[str, str], tmp_path: Path
) -> None:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    reader = Reader(tmp_path, {**session_env, **slurm, "PATH": path})
    (tmp_path / "convert.py").write_text(PROGRAM)
    (tmp_path / "in").mkdir()
    for number in range(INPUTS):
        (tmp_path / "in" / f"{number}.raw").write_text("x")
    start, show, check, *asking, job = commands()
    reader.has_flags_of(start)
    assert "#SBATCH --mem=8192M" in reader.types(show)
    assert "everything is as it should be" in reader.types(check)
    try:
        assert "session  convert" in reader.types(f"{start} --slurm-arg='--nice=10'")
        reader.until(lambda: " running" in reader.types("jobflowctl tasks"), "a task that runs")
        assert [one.split()[1] for one in asking] == ["status", "launches", "doctor"]
        for command in asking:
            said = reader.types(command)
        assert "everything is as it should be" in said
        assert "FAIL" not in said
        assert set(reader.types("squeue -h -o %y").split()) == {"10"}
        (tmp_path / "in" / "gate").touch()
        reader.types("jobflowctl -s convert wait --timeout 60s")
        ended = tmp_path / "shared" / "convert" / "ended.json"
        reader.until(ended.exists, "the end")

        (tmp_path / "in" / "more.raw").write_text("x")
        assert "Submitted batch job" in reader.types(job)
        more = f'"succeeded": {INPUTS + 1}'
        reader.until(lambda: ended.exists() and more in ended.read_text(), "the run in a job")
        reader.until(lambda: not reader.types("squeue -h").split(), "an empty queue")
        (number,) = re.findall(r"slurm-(\d+)\.out", " ".join(os.listdir(tmp_path)))
        assert "ExitCode=0:0" in reader.types(f"scontrol show job {number}")
    finally:
        reader.types("jobflowctl shutdown --now --yes --wait || true")
