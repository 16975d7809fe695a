"""How a session's settings become launches of a batch system.

Opening only: the daemon, `jobflowd script` and the preflight build their launches here, so that
what is shown and checked is what is submitted.
"""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import jobflow_worker
from jobflow_worker import __version__
from jobflow_worker.sessionfiles import SessionPaths
from jobflowd.batchdesk import BatchDesk, restored
from jobflowd.config import ConfigError, StartConfig
from jobflowd.flags import SETTINGS
from jobflowd.launchers.base import LaunchContext, Launcher, warning_before
from jobflowd.launchers.multiprocess import worker_argv
from jobflowd.launchers.systems import SYSTEMS
from jobflowd.sessiondir import Session

EXIT_UNAVAILABLE: Final = 69


def user_name() -> str:
    """The user whose jobs ours are; the number where the host has no name for it."""
    uid = os.geteuid()
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def package_home() -> str:
    """The directory that our packages are imported from."""
    return os.path.dirname(os.path.dirname(os.path.abspath(jobflow_worker.__file__)))


def system_options(config: StartConfig) -> dict[str, str | int | float]:
    """The launcher's typed settings without its name in front; those nobody set are left out."""
    start = f"{config.launcher}_"
    found: dict[str, str | int | float] = {}
    for name in SETTINGS:
        value = getattr(config, name) if name.startswith(start) else None
        if isinstance(value, str | int | float):
            found[name.removeprefix(start)] = value
    return found


def warning_s(config: StartConfig) -> float:
    """How long before its end a launched worker is told to leave; 0 without a batch system."""
    if config.launcher not in SYSTEMS:
        return 0.0
    limit = system_options(config).get("time")
    return float(warning_before(None if limit is None else float(limit)))


def env_scripts(config: StartConfig) -> tuple[str, ...]:
    """What to source first. A default that is not there is nobody's wish."""
    found: list[Path] = [] if config.env_script is None else [config.env_script]
    script = config.lsf_env_script if config.launcher == "lsf" else None
    if script is not None and (not config.is_default("lsf_env_script") or script.is_file()):
        found.append(script)
    return tuple(str(one) for one in found)


def launch_context(
    config: StartConfig,
    launcher: Launcher,
    launch_id: str,
    *,
    session: str,
    session_dir: Path,
    start_dir: str,
    umask: int,
    environ: Mapping[str, str],
) -> LaunchContext:
    """One launch of this session, spelled out for its launcher."""
    paths = SessionPaths(session_dir)
    directory = paths.launch_dir(launch_id)
    return LaunchContext(
        session=session,
        session_dir=str(session_dir),
        launch_id=launch_id,
        worker_argv=tuple(
            worker_argv(
                sys.executable,
                package_home(),
                session_dir=str(session_dir),
                launch_id=launch_id,
                slots=config.slots,
                mode=config.mode,
            )
        ),
        start_dir=start_dir,
        script_path=str(directory / "script"),
        output_path=str(directory / "output"),
        options=system_options(config),
        args=getattr(config, f"{launcher.name}_arg"),
        skip=getattr(config, f"{launcher.name}_skip"),
        exclude_hosts=config.exclude_host,
        env_scripts=env_scripts(config),
        prologue=config.prologue,
        restore=restored(launcher, environ),
        umask=umask,
        version=__version__,
    )


def check_available(launcher: Launcher, context: LaunchContext) -> None:
    """Raises `ConfigError`: 69 if a command of the system is missing, 78 for a bad setting."""
    problems = launcher.problems(context)
    if problems:
        raise ConfigError(problems[0])
    for argv in (launcher.submit_argv(context), launcher.query_argv(""), launcher.cancel_argv(())):
        if shutil.which(argv[0]) is None:
            raise ConfigError(
                f"--launcher {launcher.name}: there is no command {argv[0]} on PATH; load the "
                "site's module for it, or start on a host that has it",
                EXIT_UNAVAILABLE,
            )


def open_batch_desk(session: Session, umask: int, prefix: str) -> BatchDesk:
    """The desk of this session. Raises `ConfigError` if launching cannot work from here."""
    config, launcher = session.config, SYSTEMS[session.config.launcher]()

    def context(launch_id: str) -> LaunchContext:
        return launch_context(
            config,
            launcher,
            launch_id,
            session=session.name,
            session_dir=session.paths.root,
            start_dir=session.record.cwd,
            umask=umask,
            environ=os.environ,
        )

    check_available(launcher, context(f"{prefix}-0"))
    return BatchDesk(
        session.paths.root,
        launcher,
        context,
        user=user_name(),
        prefix=prefix,
        timeout_s=config.launcher_command_timeout,
    )
