"""The configuration of a start: which of several sources wins, and whether the values agree.

Rule: flags > JOBFLOW_* environment > `--config FILE` > the session's record (when a start names no
program) > the user's file > the site's file > defaults. Never a file of the current directory.
Every refusal is a `ConfigError` whose sentence says what to type instead. Used by `cli.py`,
`sessiondir.py` and `daemon.py`; the defaults are rows of `flags.py`.
"""

from __future__ import annotations

import difflib
import importlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NamedTuple

from jobflowd.flags import SETTINGS
from jobflowd.settings import Setting, parse_duration, parse_size

__all__ = [
    "ConfigError",
    "StartConfig",
    "Terms",
    "check_relations",
    "default_config",
    "load",
    "parse_duration",
    "parse_size",
    "recordable",
    "resolve",
    "terms",
    "with_recorded",
]

#: The standard library has it since Python 3.11; before that it is a package of the same API.
_TOML: Final = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")

EXIT_USAGE: Final = 2
EXIT_PERMISSION: Final = 77
EXIT_CONFIG: Final = 78

#: A configuration file is a page of text; a larger one is a wrong path.
CONFIG_BYTES_MAX: Final = 1024 * 1024
SITE_FILE: Final = Path("/etc/jobflow/config.toml")

#: Where a value came from, strongest first; `default` is never stored.
FLAG, ENVIRONMENT, CONFIG, SESSION, USER, SITE = (
    "flag",
    "environment",
    "config",
    "session",
    "user",
    "site",
)
_EXPLICIT: Final = (FLAG, ENVIRONMENT, CONFIG)

#: A lost report, a late one and a busy moment must not cost a worker its tasks.
HEARTBEATS_PER_LEASE: Final = 4
#: Attributes of a network file system may be cached for a minute; three of those must fit.
NETWORK_FS_LEASE_S_MIN: Final = 180.0
NETWORK_FS_LEASE_S: Final = 300.0
NETWORK_FS_HEARTBEAT_S: Final = 30.0

BATCH_LAUNCHERS: Final = ("slurm", "lsf", "sge")

#: What a start by name must not repeat: who the session is, and what was meant for one terminal.
_NOT_RECORDED: Final = frozenset(
    (
        "program",
        "program_args",
        "session_id",
        "shared_dir",
        "detach",
        "dashboard",
        # To go without encryption is a decision of each start, never a habit.
        "insecure_plaintext",
    )
)


class ConfigError(Exception):
    """A start that cannot be: `sentence` says what, why and what to do.

    `exit_code` is 2 for a bad flag, 77 for an unreadable file, 78 for a file or a conflict.
    """

    def __init__(self, sentence: str, exit_code: int = EXIT_CONFIG) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code


@dataclass(frozen=True, slots=True, kw_only=True)
class StartConfig:
    """Every setting of `jobflowd start`. Durations are seconds, sizes bytes, paths absolute.

    Values that follow from others (`lease_duration`, `heartbeat_interval`, `worker_timeout`,
    `bind_host`, `on_sigterm`) are final after `resolve`. `origins` names where a value came from;
    a setting that is not in it has its default.
    """

    program: str | None
    program_args: dict[str, Any]
    session_id: str | None
    shared_dir: Path | None
    db_path: Path | None
    config: Path | None
    launcher: str
    workers: int
    slots: int
    worker_idle_timeout: float | None
    max_inflight_per_worker: int | None
    worker_manager_timeout_minutes: float
    exclude_host: tuple[str, ...]
    env_script: Path | None
    prologue: tuple[str, ...]
    no_canary: bool
    mode: str
    bind_host: str
    port: int
    manager_host: str | None
    insecure_plaintext: bool
    lease_duration: float
    heartbeat_interval: float
    worker_timeout: float
    launch_stale_timeout: float
    launch_poll_interval: float
    launcher_command_timeout: float
    shutdown_grace_period: float
    task_timeout: float | None
    task_memory: int | None
    max_losses: int
    max_deliveries: int
    retry_backoff: float
    on_spec_change: str
    recovery: str
    detach: bool
    stay: bool
    fresh: bool
    takeover: bool
    accept_rollback: bool
    on_sigterm: str
    dashboard: str
    dashboard_refresh: float
    dashboard_log_lines: int
    telemetry_mode: str
    telemetry_file: Path | None
    telemetry_queue_size: int
    telemetry_refresh: float
    metrics_file: Path | None
    log_level: str
    log_format: str
    debug: bool
    slurm_partition: str | None
    slurm_account: str | None
    slurm_qos: str | None
    slurm_time: float | None
    slurm_cpus: int | None
    slurm_mem: int | None
    slurm_gres: str | None
    slurm_constraint: str | None
    slurm_arg: tuple[str, ...]
    slurm_skip: tuple[str, ...]
    lsf_queue: str
    lsf_nproc: int
    lsf_mem: int
    lsf_env_script: Path | None
    lsf_time: float | None
    lsf_arg: tuple[str, ...]
    lsf_skip: tuple[str, ...]
    sge_queue: str | None
    sge_pe: str | None
    sge_time: float | None
    sge_mem: int | None
    sge_arg: tuple[str, ...]
    sge_skip: tuple[str, ...]
    origins: Mapping[str, str] = field(default_factory=dict, compare=False)

    def is_default(self, name: str) -> bool:
        """Whether nobody said anything about this setting."""
        return name not in self.origins


class Terms(NamedTuple):
    """What a worker of one transport is told: both in seconds."""

    heartbeat_s: float
    lease_s: float


class _Found(NamedTuple):
    """One value as a source gave it: `origin` for the record, `label` for a sentence."""

    name: str
    raw: Any
    origin: str
    label: str
    exit_code: int


def load(
    flags: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    *,
    user_file: Path | None = None,
    site_file: Path = SITE_FILE,
) -> StartConfig:
    """The configuration from all sources; `flags` holds raw texts of the flags that were given.

    Raises `ConfigError`.
    """
    environ = os.environ if environ is None else environ
    given = list(_from_flags(flags))
    layers = [given, list(_from_environment(environ))]
    named = next((one for one in given if one.name == "config"), None)
    if named is not None:
        layers.append(list(_from_named_file(_parse(named))))
    user = user_config_file(environ) if user_file is None else user_file
    for path, origin in ((user, USER), (site_file, SITE)):
        if path is not None:
            layers.append(list(_from_file(path, origin)))
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    # Every source is parsed whole, weak ones too: a mistake in a file shows at once and not on
    # the day its value first counts.
    for found in (one for layer in reversed(layers) for one in reversed(layer)):
        values[found.name] = _parse(found)
        origins[found.name] = found.origin
    return _build(values, origins)


def default_config(**values: Any) -> StartConfig:
    """A configuration of defaults and these parsed values, which count as given by flags."""
    return _build(values, dict.fromkeys(values, FLAG))


def _build(values: Mapping[str, Any], origins: Mapping[str, str]) -> StartConfig:
    full = {name: _default(setting) for name, setting in SETTINGS.items()}
    full.update(values)
    return StartConfig(**full, origins=dict(origins))


def _default(setting: Setting) -> Any:
    if isinstance(setting.default, Path):
        return Path(os.path.expanduser(setting.default))
    return dict(setting.default) if isinstance(setting.default, dict) else setting.default


def _parse(found: _Found) -> Any:
    try:
        return SETTINGS[found.name].parse(found.raw)
    except ValueError as error:
        raise ConfigError(f"{found.label}: {error}", found.exit_code) from None


# --- the sources -----------------------------------------------------------------------------


def _from_flags(flags: Mapping[str, Any]) -> Iterator[_Found]:
    for name, raw in flags.items():
        if raw is not None and raw != [] and raw != ():
            yield _Found(name, raw, FLAG, SETTINGS[name].flag, EXIT_USAGE)


def _from_environment(environ: Mapping[str, str]) -> Iterator[_Found]:
    for name, setting in SETTINGS.items():
        text = environ.get(setting.variable, "")
        if not text.strip() or setting.flag_only:
            continue
        raw: Any = text
        if setting.kind == "words":
            try:
                raw = shlex.split(text)
            except ValueError as error:
                raise ConfigError(f"{setting.variable}: {error}; check its quotes") from None
        yield _Found(name, raw, ENVIRONMENT, setting.variable, EXIT_CONFIG)


def user_config_file(environ: Mapping[str, str]) -> Path | None:
    """The user's file, or None where there is no home directory."""
    base = environ.get("XDG_CONFIG_HOME") or ""
    if os.path.isabs(base):
        return Path(base) / "jobflow" / "config.toml"
    home = environ.get("HOME") or os.path.expanduser("~")
    return Path(home) / ".config" / "jobflow" / "config.toml" if os.path.isabs(home) else None


def _from_named_file(path: Path) -> Iterator[_Found]:
    if not path.exists():
        raise ConfigError(f"--config: there is no file {path}; check the path", EXIT_USAGE)
    return _from_file(path, CONFIG)


def _from_file(path: Path, origin: str) -> Iterator[_Found]:
    for key, raw in _read_toml(path).items():
        name = key.replace("-", "_")
        setting = SETTINGS.get(name)
        if setting is None:
            raise ConfigError(f"{path}: there is no setting {key!r}{_suggestion(name)}")
        if setting.flag_only:
            raise ConfigError(
                f"{path}: {key} acts once and cannot stand in a file, where every restart would "
                f"repeat it; remove the line and give {setting.flag} when you mean it"
            )
        yield _Found(name, raw, f"{origin} {path}", f"{key} in {path}", EXIT_CONFIG)


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name, SETTINGS, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; `jobflowd config show` lists them all"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(CONFIG_BYTES_MAX + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; make it a file that you can read, or "
            "remove it",
            EXIT_PERMISSION,
        ) from None
    if len(data) > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path}: is larger than 1 MiB, so it is not a configuration file")
    try:
        return dict(_TOML.loads(data.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not TOML: {error}") from None


# --- the session's record --------------------------------------------------------------------


def recordable(config: StartConfig) -> dict[str, Any]:
    """What a later start by name repeats: the settings somebody gave for this run, as JSON."""
    record: dict[str, Any] = {}
    for name, setting in SETTINGS.items():
        kind = config.origins.get(name, "").partition(" ")[0]
        if kind not in (*_EXPLICIT, SESSION) or name in _NOT_RECORDED or setting.flag_only:
            continue
        value = getattr(config, name)
        if isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = list(value)
        # None was said with the word "none", and must be said again.
        record[name] = "none" if value is None else value
    return record


def with_recorded(config: StartConfig, recorded: Mapping[str, Any]) -> StartConfig:
    """The configuration with the record of an earlier start below what was said now.

    A setting that this version does not know any more is left out. Raises `ConfigError`.
    """
    values: dict[str, Any] = {}
    for name, raw in recorded.items():
        if name not in SETTINGS or SETTINGS[name].flag_only:
            continue
        if config.origins.get(name, "").partition(" ")[0] not in _EXPLICIT:
            label = f"{name} in the session's record"
            if SETTINGS[name].kind == "walltime" and isinstance(raw, int | float):
                # People must name the unit; the record has seconds.
                raw = f"{raw:g}s"
            values[name] = _parse(_Found(name, raw, SESSION, label, EXIT_CONFIG))
    origins = {**config.origins, **dict.fromkeys(values, SESSION)}
    return replace(config, **values, origins=origins)


# --- values that follow from others ----------------------------------------------------------


def resolve(config: StartConfig, network_fs: bool) -> StartConfig:
    """The final values. `network_fs`: the session directory is on a network file system."""
    final: dict[str, Any] = {}
    if config.mode == "fs":
        final.update(
            zip(
                ("heartbeat_interval", "lease_duration"),
                terms(config, "fs", network_fs),
                strict=True,
            )
        )
    if config.is_default("worker_timeout"):
        final["worker_timeout"] = final.get("lease_duration", config.lease_duration)
    if config.is_default("on_sigterm"):
        batch = config.launcher in BATCH_LAUNCHERS
        final["on_sigterm"] = "detach" if batch else "shutdown"
    if config.is_default("bind_host"):
        final["bind_host"] = "127.0.0.1" if config.launcher == "multiprocess" else "0.0.0.0"
    return replace(config, **final)


def terms(config: StartConfig, transport: str, network_fs: bool) -> Terms:
    """Heartbeat and lease for workers of this transport (`zmq` or `fs`).

    In `--mode auto` a daemon serves both, and a network file system is slow for one of them.
    """
    heartbeat, lease = config.heartbeat_interval, config.lease_duration
    if transport == "fs" and network_fs:
        if config.is_default("heartbeat_interval"):
            heartbeat = NETWORK_FS_HEARTBEAT_S
        if config.is_default("lease_duration"):
            lease = max(NETWORK_FS_LEASE_S, HEARTBEATS_PER_LEASE * heartbeat)
    return Terms(heartbeat, lease)


def check_relations(config: StartConfig, network_fs: bool) -> None:
    """Refuse values that are right one by one and wrong together; `config` is resolved.

    Raises `ConfigError` (78) with the fix.
    """
    lease, heartbeat = config.lease_duration, config.heartbeat_interval
    if lease < HEARTBEATS_PER_LEASE * heartbeat:
        raise ConfigError(
            f"a lease of {lease:g}s is shorter than {HEARTBEATS_PER_LEASE} heartbeats of "
            f"{heartbeat:g}s, so that one late report would cost a worker its tasks; give "
            f"--lease-duration {HEARTBEATS_PER_LEASE * heartbeat:g} or "
            f"--heartbeat-interval {lease / HEARTBEATS_PER_LEASE:g}"
        )
    if network_fs and config.mode == "fs" and lease < NETWORK_FS_LEASE_S_MIN:
        raise ConfigError(
            f"a lease of {lease:g}s is too short by files on a network file system, which may show "
            f"a change a minute late; give --lease-duration {NETWORK_FS_LEASE_S:g}"
        )
    if config.worker_timeout < lease:
        raise ConfigError(
            f"--worker-timeout {config.worker_timeout:g} is shorter than the lease of {lease:g}s, "
            "so that a worker would count as gone while its tasks are still its own; give "
            f"--worker-timeout {lease:g} or leave it away"
        )
    if config.worker_manager_timeout_minutes * 60 < lease:
        raise ConfigError(
            f"--worker-manager-timeout-minutes {config.worker_manager_timeout_minutes:g} is less "
            f"than the lease of {lease:g}s, so that workers would leave before their manager "
            f"misses them; give --worker-manager-timeout-minutes {lease / 60 + 1:.0f}"
        )
    _check_scripts(config)


def _check_scripts(config: StartConfig) -> None:
    for name in ("env_script", "lsf_env_script"):
        script: Path | None = getattr(config, name)
        if script is not None and not config.is_default(name) and not script.is_file():
            flag = SETTINGS[name].flag
            raise ConfigError(f"{flag}: there is no file {script}; check the path or leave it away")
