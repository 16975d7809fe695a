"""The one table of `jobflowd start`: each setting's name, kind, bounds, default and help text.

Rule: a flag, its JOBFLOW_* variable, its key in a config file and its default are the same row
here; nothing else in the project repeats a default. Used by `config.py` (values) and `cli.py`
(flags). Pure text and numbers: no file is read here.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

#: Longest duration that means anything; larger numbers are typing errors or overflow a clock.
DURATION_S_MAX: Final = 3650 * 86400.0
SIZE_BYTES_MAX: Final = 2**60

_UNIT_S: Final = {"d": 86400.0, "h": 3600.0, "m": 60.0, "s": 1.0}
_DURATION: Final = re.compile(
    r"(?:(?P<d>\d+(?:\.\d+)?)d)?(?:(?P<h>\d+(?:\.\d+)?)h)?"
    r"(?:(?P<m>\d+(?:\.\d+)?)m)?(?:(?P<s>\d+(?:\.\d+)?)s)?",
    re.ASCII,
)
_PLAIN: Final = re.compile(r"\d+(?:\.\d+)?|\.\d+", re.ASCII)
_CLOCK: Final = re.compile(r"(?:(\d{1,4})-)?(\d{1,4}):([0-5]?\d):([0-5]?\d)", re.ASCII)
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgtp]?)(ib|b)?", re.ASCII | re.IGNORECASE)
_POWER: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}

#: A session's name is a directory name, a pointer's name and part of batch job names.
SESSION_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,39}", re.ASCII)


def parse_duration(text: str | float) -> float:
    """Seconds from `90`, `90s`, `5m`, `2h`, `1d`, `1h30m` or a number.

    Raises `ValueError` with the reason, worded to follow "NAME: ".
    """
    if isinstance(text, bool):
        raise ValueError("true or false is not a duration; give for instance 90s or 5m")
    if isinstance(text, int | float):
        seconds = float(text)
    else:
        word = text.strip().lower()
        match = _DURATION.fullmatch(word) if word else None
        if _PLAIN.fullmatch(word):
            seconds = float(word)
        elif match:
            seconds = sum(_UNIT_S[unit] * float(n) for unit, n in match.groupdict().items() if n)
        else:
            raise ValueError(f"{text!r} is not a duration; give for instance 90, 90s, 5m, 1h30m")
    if not (math.isfinite(seconds) and 0 <= seconds <= DURATION_S_MAX):
        raise ValueError(f"{text!r} is not a duration from 0 to ten years")
    return seconds


def parse_walltime(text: str | float) -> float:
    """Seconds from a duration with a unit (`4h`) or the batch systems' `[D-]H:MM:SS`.

    A bare number and `A:B` are refused: SLURM, LSF and we read them differently.
    Raises `ValueError`.
    """
    word = str(text).strip()
    clock = _CLOCK.fullmatch(word)
    if clock:
        days, hours, minutes, seconds = (int(part or 0) for part in clock.groups())
        return days * 86400.0 + hours * 3600.0 + minutes * 60.0 + seconds
    if _PLAIN.fullmatch(word):
        raise ValueError(f"{word} has no unit; say {word}m for minutes or {word}h for hours")
    try:
        return parse_duration(word)
    except ValueError:
        raise ValueError(f"{text!r} is not a time limit; give for instance 4h or 1-12:00:00") from (
            None
        )


def parse_size(text: str | float) -> int:
    """Bytes from `20GB` (10^9), `20GiB` or `20G` (2^30, as SLURM reads it), or a number of bytes.

    Raises `ValueError` with the reason.
    """
    if isinstance(text, bool):
        raise ValueError("true or false is not a size; give for instance 20GB or 512MiB")
    match = _SIZE.fullmatch(str(text).strip())
    if match is None:
        raise ValueError(f"{text!r} is not a size; give for instance 20GB, 512MiB or bytes")
    number, prefix, suffix = match.groups()
    decimal = (suffix or "").lower() == "b"
    size = float(number) * (1000 if decimal else 1024) ** _POWER[prefix.lower()]
    if not size <= SIZE_BYTES_MAX:
        raise ValueError(f"{text!r} is more memory than any machine has")
    return int(size)


def parse_args(text: Any) -> dict[str, Any]:
    """The program's arguments: a JSON object, as text or already as a table of a config file.

    Raises `ValueError` with the reason.
    """
    value = text
    if isinstance(text, str):
        try:
            value = json.loads(text, parse_constant=_no_constant)
        except RecursionError:
            raise ValueError("is nested too deeply to be read") from None
        except json.JSONDecodeError as error:
            raise ValueError(
                f"is not JSON: {error.msg} at character {error.pos + 1}; "
                """give an object like '{"input_dir": "/data"}'"""
            ) from None
    if not isinstance(value, dict):
        raise ValueError(
            f"is JSON, but {_json_word(value)} and not an object; "
            """give an object like '{"input_dir": "/data"}'"""
        )
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"cannot be written as JSON: {error}") from None
    return value


def _no_constant(word: str) -> Any:
    raise ValueError(f"is not JSON: {word} is not a number that JSON knows")


def _json_word(value: Any) -> str:
    if value is None:
        return "null"
    for kind, word in ((bool, "a boolean"), (str, "a string"), (list, "a list")):
        if isinstance(value, kind):
            return word
    return "a number"


class Setting(NamedTuple):
    """One row: what a setting is called, how its value is read, and what it is if nobody says.

    `shown` describes a default that depends on other things. `optional`: the word `none` unsets
    it. `flag_only`: acts once, so a config file or variable must not repeat it at every restart.
    """

    name: str
    kind: str
    default: Any
    help: str
    panel: str
    short: str | None = None
    shown: str | None = None
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = math.inf
    optional: bool = False
    flag_only: bool = False

    @property
    def flag(self) -> str:
        """`lease_duration` is `--lease-duration`."""
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        """`lease_duration` is `JOBFLOW_LEASE_DURATION`."""
        return "JOBFLOW_" + self.name.upper()

    def parse(self, raw: Any) -> Any:
        """The value that `raw` (text, or what a TOML file holds) stands for.

        Raises `ValueError` with a reason that follows "NAME: ".
        """
        if self.optional and isinstance(raw, str) and raw.strip().lower() == "none":
            return None
        return _PARSERS[self.kind](self, raw)


def _text(setting: Setting, raw: Any) -> str:
    if not isinstance(raw, str) or not raw.strip():
        raise ValueError("is empty; leave it away to get the default")
    if any(ord(char) < 32 or ord(char) == 127 for char in raw):
        raise ValueError(f"{raw!r} contains a control character, which is never needed here")
    return raw


def _choice(setting: Setting, raw: Any) -> str:
    word = str(raw).strip()
    for choice in setting.choices:
        if word.lower() == choice.lower():
            return choice
    raise ValueError(f"{word!r} is not one of {', '.join(setting.choices)}")


def _whole(setting: Setting, raw: Any) -> int:
    word = str(raw).strip()
    if isinstance(raw, bool) or not re.fullmatch(r"[+-]?\d{1,18}", word, re.ASCII):
        raise ValueError(f"{raw!r} is not a whole number")
    return int(_bounded(setting, int(word)))


def _number(setting: Setting, raw: Any) -> float:
    try:
        value = math.nan if isinstance(raw, bool) else float(raw)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{raw!r} is not a number")
    return float(_bounded(setting, value))


def _bounded(setting: Setting, value: float) -> float:
    if value < setting.low:
        raise ValueError(f"{value:g} is less than {setting.low:g}, the smallest allowed")
    if value > setting.high:
        raise ValueError(f"{value:g} is more than {setting.high:g}, the largest allowed")
    return value


def _switch(setting: Setting, raw: Any) -> bool:
    word = str(raw).strip().lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError(f"{raw!r} is not yes or no")


def _path(setting: Setting, raw: Any) -> Path:
    text = _text(setting, raw)
    # Only normalised, not resolved: whether links are allowed is judged where the path is used.
    return Path(os.path.abspath(os.path.expanduser(text)))


def _words(setting: Setting, raw: Any) -> tuple[str, ...]:
    items = raw if isinstance(raw, list | tuple) else [raw]
    return tuple(_text(setting, item) for item in items)


def _session_id(setting: Setting, raw: Any) -> str:
    if not isinstance(raw, str) or not SESSION_ID.fullmatch(raw):
        raise ValueError(
            f"{raw!r} is not a session name; use 1 to 40 letters, digits, dots, dashes or "
            "underscores, beginning with a letter or digit"
        )
    return raw


def _duration(setting: Setting, raw: Any) -> float:
    return float(_bounded(setting, parse_duration(raw)))


_PARSERS: Final[dict[str, Callable[[Setting, Any], Any]]] = {
    "text": _text,
    "choice": _choice,
    "whole": _whole,
    "number": _number,
    "switch": _switch,
    "path": _path,
    "words": _words,
    "session": _session_id,
    "duration": _duration,
    "walltime": lambda setting, raw: parse_walltime(raw),
    "size": lambda setting, raw: parse_size(raw),
    "args": lambda setting, raw: parse_args(raw),
}
