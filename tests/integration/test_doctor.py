"""`jobflowctl doctor --config`: the program is tried here before anything is started."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

PROGRAM = """\
from jobflow_worker import TaskDefinition, TaskProgram

class One(TaskProgram):
    def generate_tasks(self):
        yield TaskDefinition("first", {"folder": self.program_args["folder"]})

    def execute_task(self, spec, progress_cb):
        return {}
"""


@pytest.fixture
def project(cli: Any) -> Path:
    (cli.cwd / "one.py").write_text(PROGRAM)
    config: Path = cli.cwd / "jobflow.toml"
    config.write_text('program = "one.py"\nprogram_args = {"folder" = "in"}\n')
    return config


def test_a_project_that_works(cli: Any, project: Path) -> None:
    found = cli.run("jobflowctl", "doctor", "--config", str(project)).stdout
    assert "one.py can be loaded" in found
    assert "names a first task, 'first'" in found
    assert found.endswith("everything is as it should be\n")
    body = json.loads(cli.run("jobflowctl", "doctor", "--json", "--config", str(project)).stdout)
    assert (body["schema"], body["exit_code"]) == ("jobflow.doctor/1", 0)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("import TaskDefinition", "import nothing, TaskDefinition", "ImportError"),
        ('["folder"]', '["missing"]', "generate_tasks() raised KeyError"),
        ('yield TaskDefinition("first"', 'yield from [] and ("first"', "names no task"),
    ],
)
def test_a_program_that_does_not(cli: Any, project: Path, old: str, new: str, words: str) -> None:
    (cli.cwd / "one.py").write_text(PROGRAM.replace(old, new))
    found = cli.run("jobflowctl", "doctor", "--config", str(project), code=69).stdout
    assert "FAIL" in found
    assert words in found
    assert found.endswith("1 to mend\n")


def test_a_configuration_that_does_not_hold(cli: Any, project: Path) -> None:
    project.write_text('programm = "one.py"\n')
    found = cli.run("jobflowctl", "doctor", "--config", str(project), code=78)
    assert "programm" in found.stderr
    assert "Traceback" not in found.stderr
    project.write_text("")
    found = cli.run("jobflowctl", "doctor", "--config", str(project), code=69)
    assert "no program is named" in found.stdout


def test_a_session_of_this_machine(cli: Any, project: Path) -> None:
    cli.run("jobflowd", "start", "--config", str(project), "--session-id", "one")
    found = cli.run("jobflowctl", "-s", "one", "doctor").stdout
    assert "names a first task, 'first'" in found
    (cli.cwd / "one.py").write_text(PROGRAM.replace('["folder"]', '["missing"]'))
    found = cli.run("jobflowctl", "-s", "one", "doctor", code=69).stdout
    assert "generate_tasks() raised KeyError" in found
