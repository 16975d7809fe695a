"""Where a setting comes from, how its text is read, and which values do not go together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflowd import config as configuration
from jobflowd.config import (
    ConfigError,
    StartConfig,
    check_relations,
    default_config,
    load,
    parse_duration,
    parse_size,
    recordable,
    resolve,
    terms,
    with_recorded,
)
from jobflowd.flags import SETTINGS
from jobflowd.settings import parse_args, parse_walltime


def load_from(
    tmp_path: Path,
    flags: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    **files: str,
) -> StartConfig:
    """Load with the given flags and the texts of the user, site and named files."""
    paths = {name: tmp_path / f"{name}.toml" for name in ("user", "site", "named")}
    for name, text in files.items():
        paths[name].write_text(text)
    given_flags = dict(flags or {})
    if "named" in files:
        given_flags["config"] = str(paths["named"])
    return load(given_flags, env or {}, user_file=paths["user"], site_file=paths["site"])


def test_table_and_dataclass_name_the_same_settings() -> None:
    names = {field.name for field in dataclasses.fields(StartConfig)}
    assert names == {*SETTINGS, "origins"}


def test_every_default_would_be_accepted_if_it_were_given() -> None:
    for setting in SETTINGS.values():
        value = getattr(default_config(), setting.name)
        if value not in (None, ()):
            raw = value if isinstance(value, dict) else str(value)
            assert setting.parse(raw) == value, setting.name


def test_stronger_sources_win(tmp_path: Path) -> None:
    files = {"site": "workers = 1\nslots = 1", "user": "workers = 2"}
    assert load_from(tmp_path, site="workers = 1").workers == 1
    assert load_from(tmp_path, **files).workers == 2
    assert load_from(tmp_path, **files, named="workers = 3").workers == 3
    env = {"JOBFLOW_WORKERS": "4"}
    assert load_from(tmp_path, env=env, **files, named="workers = 3").workers == 4
    found = load_from(tmp_path, {"workers": "5"}, env, **files, named="workers = 3")
    assert found.workers == 5
    assert found.slots == 1
    assert found.origins["workers"] == "flag"
    assert found.origins["slots"] == f"site {tmp_path / 'site.toml'}"


def test_a_file_in_the_current_directory_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("config.toml", "jobflow.toml", ".jobflow.toml"):
        (tmp_path / name).write_text("workers = 77")
    monkeypatch.chdir(tmp_path)
    assert load({}, {"HOME": "/nonexistent"}, site_file=tmp_path / "no").workers == 10


def test_user_file_follows_xdg(tmp_path: Path) -> None:
    file = tmp_path / "jobflow" / "config.toml"
    file.parent.mkdir()
    file.write_text('mode = "fs"')
    env = {"XDG_CONFIG_HOME": str(tmp_path)}
    assert load({}, env, site_file=tmp_path / "no").mode == "fs"
    assert configuration.user_config_file({"HOME": "/home/u"}) == Path(
        "/home/u/.config/jobflow/config.toml"
    )


def test_dashes_and_types_of_toml(tmp_path: Path) -> None:
    text = """
    lease-duration = "2m"
    heartbeat_interval = 20
    task-memory = "1GiB"
    prologue = ["module load cuda", ". ~/x.sh"]
    stay = true
    task_timeout = "none"
    [program-args]
    input_dir = "/data"
    """
    found = load_from(tmp_path, named=text)
    assert found.lease_duration == 120.0
    assert found.heartbeat_interval == 20.0
    assert found.task_memory == 2**30
    assert found.prologue == ("module load cuda", ". ~/x.sh")
    assert found.stay
    assert found.program_args == {"input_dir": "/data"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("worker = 3", "did you mean 'workers'"),
        ("lease_durtion = 3", "did you mean 'lease_duration'"),
        ("zzz = 3", "config show"),
        ("workers = true", "not a whole number"),
        ("workers = 1.5", "not a whole number"),
        ("fresh = true", "acts once"),
        ("workers = ", "not TOML"),
        ("program_args = 1979-05-27", "not an object"),
        ("[program_args]\nx = 1979-05-27", "cannot be written as JSON"),
    ],
)
def test_a_bad_file_is_refused_with_its_name(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_from(tmp_path, named=text)
    assert caught.value.exit_code == 78
    assert says in caught.value.sentence
    assert "named.toml" in caught.value.sentence


def test_a_mistake_in_a_weak_file_shows_although_a_flag_wins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"site\.toml"):
        load_from(tmp_path, {"workers": "3"}, site="workers = 'many'")


def test_missing_named_file_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file") as caught:
        load_from(tmp_path, {"config": str(tmp_path / "nope.toml")})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("name", "raw"),
    [
        ("workers", "-1"),
        ("workers", "many"),
        ("port", "65536"),
        ("slots", "0"),
        ("mode", "carrier-pigeon"),
        ("launcher", "pbs"),
        ("lease_duration", "soon"),
        ("lease_duration", "-5"),
        ("lease_duration", "nan"),
        ("task_memory", "20XB"),
        ("session_id", "../../x"),
        ("session_id", ".hidden"),
        ("session_id", "x" * 41),
        ("session_id", "t1\n"),
        ("program_args", "[1]"),
        ("program_args", "not json"),
        ("program_args", '{"x": NaN}'),
        ("program_args", "[" * 100_000),
        ("program", "  "),
        ("prologue", ["a\x1b[2J"]),
        ("worker_manager_timeout_minutes", "inf"),
    ],
)
def test_a_bad_flag_is_a_usage_error_that_names_it(name: str, raw: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load({name: raw}, {}, user_file=Path("/nonexistent"), site_file=Path("/nonexistent"))
    assert caught.value.exit_code == 2
    assert SETTINGS[name].flag in caught.value.sentence


def test_environment_lists_switches_and_faults(tmp_path: Path) -> None:
    env = {"JOBFLOW_PROLOGUE": "'module load a' b", "JOBFLOW_STAY": "yes", "JOBFLOW_SLOTS": ""}
    found = load_from(tmp_path, env=env)
    assert found.prologue == ("module load a", "b")
    assert found.stay
    assert found.slots == 1
    for bad in ({"JOBFLOW_STAY": "maybe"}, {"JOBFLOW_PROLOGUE": "'open"}):
        with pytest.raises(ConfigError, match=next(iter(bad))):
            load_from(tmp_path, env=bad)
    assert not load_from(tmp_path, env={"JOBFLOW_FRESH": "1"}).fresh


# --- durations and sizes ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90),
        ("90s", 90),
        ("5m", 300),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("1d2h3m4s", 93784),
        ("0.5", 0.5),
        (".5", 0.5),
        ("1.5h", 5400),
        (" 5M ", 300),
        (7, 7),
        (0.25, 0.25),
    ],
)
def test_durations(text: str | float, seconds: float) -> None:
    assert parse_duration(text) == seconds


_part = st.integers(0, 59)


@given(days=st.integers(0, 99), hours=_part, minutes=_part, seconds=_part)
def test_every_composed_duration_is_its_sum(
    days: int, hours: int, minutes: int, seconds: int
) -> None:
    parts = ((days, "d"), (hours, "h"), (minutes, "m"), (seconds, "s"))
    text = "".join(f"{n}{unit}" for n, unit in parts if n) or "0s"
    total = days * 86400 + hours * 3600 + minutes * 60 + seconds
    assert parse_duration(text) == total
    assert parse_duration(str(total)) == total
    clock = f"{days}-{hours:02d}:{minutes:02d}:{seconds:02d}"
    assert parse_walltime(clock) == total


@given(st.text(max_size=12))
def test_any_text_is_a_duration_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size, parse_walltime):
        try:
            value = parse(text)
        except ValueError:
            continue
        assert value >= 0


@pytest.mark.parametrize(
    "text", ["", "s", "5x", "1m1h", "1m1m", "-1", "1e3", "١", "9999999d", True, "∞", "90 s x"]
)
def test_what_is_no_duration(text: Any) -> None:
    with pytest.raises(ValueError, match=r"duration"):
        parse_duration(text)


def test_a_walltime_without_a_unit_is_ambiguous() -> None:
    assert parse_walltime("4h") == 14400
    assert parse_walltime("04:00:00") == 14400
    for text in ("90", "10:30"):
        with pytest.raises(ValueError, match=r"unit|time limit"):
            parse_walltime(text)


@given(
    number=st.integers(0, 999),
    prefix=st.sampled_from(["", "k", "K", "m", "M", "g", "G", "T"]),
    suffix=st.sampled_from(["", "B", "b", "iB", "ib"]),
    blank=st.sampled_from(["", " "]),
)
def test_every_size_form(number: int, prefix: str, suffix: str, blank: str) -> None:
    power = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}[prefix.lower()]
    base = 1000 if suffix.lower() == "b" else 1024
    assert parse_size(f"{number}{blank}{prefix}{suffix}") == number * base**power


def test_sizes_that_people_write() -> None:
    assert parse_size("20GB") == 20 * 10**9
    assert parse_size("20GiB") == 20 * 2**30
    assert parse_size("1.5GB") == 1_500_000_000
    assert parse_size(4096) == 4096
    for bad in ("20XB", "GB", "-1GB", "", "9999999999PB", True):
        with pytest.raises(ValueError, match=r"size|memory"):
            parse_size(bad)


def test_program_args_are_an_object() -> None:
    assert parse_args('{"a": [1, "\\n\\u00e9"]}') == {"a": [1, "\né"]}
    for bad, says in (("null", "null"), ("3", "a number"), ('"x"', "a string"), ("true", "bool")):
        with pytest.raises(ValueError, match=says):
            parse_args(bad)


# --- values that follow from others, and relations --------------------------------------------


def test_a_network_file_system_lengthens_the_terms_of_files() -> None:
    slow = resolve(default_config(mode="fs"), True)
    assert (slow.lease_duration, slow.heartbeat_interval, slow.worker_timeout) == (300, 30, 300)
    auto = resolve(default_config(), True)
    assert (auto.lease_duration, auto.heartbeat_interval) == (60, 10)
    assert terms(auto, "fs", True) == (30, 300)
    assert terms(auto, "zmq", True) == (10, 60)
    given_by_user = default_config(mode="fs", lease_duration=200.0, heartbeat_interval=40.0)
    assert resolve(given_by_user, True).lease_duration == 200


def test_what_follows_from_the_launcher() -> None:
    local = resolve(default_config(), False)
    assert (local.bind_host, local.on_sigterm) == ("127.0.0.1", "shutdown")
    assert resolve(default_config(launcher="none"), False).bind_host == "0.0.0.0"
    batch = resolve(default_config(launcher="slurm"), False)
    assert (batch.bind_host, batch.on_sigterm) == ("0.0.0.0", "detach")
    told = default_config(launcher="slurm", on_sigterm="shutdown", bind_host="10.0.0.1")
    assert resolve(told, False).on_sigterm == "shutdown"
    assert resolve(told, False).bind_host == "10.0.0.1"


def test_defaults_agree_on_every_file_system() -> None:
    for mode in ("auto", "zmq", "fs"):
        for network in (False, True):
            check_relations(resolve(default_config(mode=mode), network), network)


@pytest.mark.parametrize(
    ("values", "network", "fix"),
    [
        ({"lease_duration": 39.9}, False, "--lease-duration 40"),
        ({"heartbeat_interval": 20.0}, False, "--heartbeat-interval 15"),
        ({"worker_timeout": 30.0}, False, "--worker-timeout 60"),
        ({"worker_manager_timeout_minutes": 0.5}, False, "--worker-manager-timeout-minutes 2"),
        ({"mode": "fs", "lease_duration": 120.0}, True, "--lease-duration 300"),
        ({"env_script": Path("/nonexistent.sh")}, False, "--env-script"),
        ({"lsf_env_script": Path("/nonexistent.sh")}, False, "--lsf-env-script"),
    ],
)
def test_a_conflict_is_refused_with_its_fix(
    values: dict[str, Any], network: bool, fix: str
) -> None:
    config = resolve(default_config(**values), network)
    with pytest.raises(ConfigError) as caught:
        check_relations(config, network)
    assert caught.value.exit_code == 78
    assert fix in caught.value.sentence


def test_the_fix_of_a_lease_conflict_works() -> None:
    config = resolve(default_config(lease_duration=40.0, worker_timeout=60.0), False)
    check_relations(config, False)


# --- the record -------------------------------------------------------------------------------


def test_what_was_said_is_recorded_and_said_again(tmp_path: Path) -> None:
    first = load_from(
        tmp_path,
        {
            "program": "x.py",
            "workers": "3",
            "lease_duration": "2m",
            "db_path": str(tmp_path / "a.db"),
            "exclude_host": ["n1"],
            "fresh": True,
            "detach": True,
            "task_timeout": "none",
        },
        {"JOBFLOW_SLOTS": "2"},
        user="port = 5555",
    )
    record = recordable(first)
    assert record == {
        "workers": 3,
        "lease_duration": 120.0,
        "db_path": str(tmp_path / "a.db"),
        "exclude_host": ["n1"],
        "slots": 2,
        "task_timeout": "none",
    }
    again = with_recorded(load_from(tmp_path, {"slots": "5"}, user="workers = 99"), record)
    assert (again.workers, again.slots, again.lease_duration) == (3, 5, 120.0)
    assert again.exclude_host == ("n1",)
    assert again.db_path == tmp_path / "a.db"
    assert recordable(again) == {**record, "slots": 5}


def test_a_time_limit_is_recorded_in_seconds_and_read_again(tmp_path: Path) -> None:
    first = load_from(tmp_path, {"slurm_time": "4h", "lsf_time": "1-12:00:00"})
    record = json.loads(json.dumps(recordable(first)))
    again = with_recorded(default_config(), record)
    assert (again.slurm_time, again.lsf_time) == (first.slurm_time, first.lsf_time)
    assert again.slurm_time == 4 * 3600


def test_a_record_of_another_version_is_taken_with_care() -> None:
    kept = with_recorded(default_config(), {"setting_of_the_future": 1, "fresh": True})
    assert kept == default_config()
    with pytest.raises(ConfigError, match="record"):
        with_recorded(default_config(), {"workers": "lots"})
