"""`jobflowd script`: the job script of a start, shown and not submitted.

Rule: leaves no trace. The session is judged as a start would judge it, and nothing is created.
"""

from __future__ import annotations

import os
from pathlib import Path

from jobflowd.batchopening import launch_context
from jobflowd.config import BATCH_LAUNCHERS, EXIT_USAGE, ConfigError, StartConfig
from jobflowd.launchers.systems import SYSTEMS
from jobflowd.sessiondir import foresee

#: Stands for the part of a launch's name that a session gets at its first start.
EXAMPLE_LAUNCH = "jf-000000-1"


def render(config: StartConfig) -> str:
    """The text that the first launch would submit. Raises what a start would."""
    plan = foresee(config)
    if plan.config.launcher not in BATCH_LAUNCHERS:
        raise ConfigError(
            f"--launcher {plan.config.launcher} submits no script; give --launcher slurm, lsf or "
            "sge",
            EXIT_USAGE,
        )
    launcher = SYSTEMS[plan.config.launcher]()
    umask = os.umask(0o077)
    os.umask(umask)
    context = launch_context(
        plan.config,
        launcher,
        EXAMPLE_LAUNCH,
        session=plan.name,
        session_dir=plan.paths.root,
        start_dir=str(plan.old.cwd if plan.old is not None else Path.cwd()),
        umask=umask,
        environ=os.environ,
    )
    problems = launcher.problems(context)
    if problems:
        raise ConfigError(problems[0])
    return launcher.script(context)
