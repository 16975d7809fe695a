"""What `jobflowctl init` writes: a configuration in which every setting is explained, and a
program that runs as it is.

Pure text, made from the table of settings, so that it cannot tell of a flag that there is not.
Published through `api.py`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from jobflowd.flags import SETTINGS
from jobflowd.settings import Setting

#: What people look for first; it stands at the top, the rest follows by panel.
_FIRST: Final = ("program", "program_args", "launcher", "workers")
#: What is about one terminal or one day, and not about a run.
_LEFT_OUT: Final = ("config", "detach", "dashboard", "dashboard_refresh", "dashboard_log_lines")

PROGRAM: Final = '''"""Counts the lines of files. Change what a task is, and what to do with one."""

from pathlib import Path

from jobflow_worker import TaskDefinition, TaskProgram


class Lines(TaskProgram):
    def generate_tasks(self):
        folder = Path(self.program_args.get("input_dir", "."))
        for path in sorted(folder.rglob(self.program_args.get("glob", "*.py"))):
            # The id must be the same at every start, so that finished work is not done again.
            yield TaskDefinition(str(path.relative_to(folder)), {"path": str(path.resolve())})

    def execute_task(self, spec, progress_cb):
        text = Path(spec["path"]).read_text(errors="replace")
        progress_cb(0.5)
        return {"path": spec["path"], "lines": text.count("\\n")}
'''


class BadFlag(ValueError):
    """A flag that `jobflowd start` does not know, or a value that it would not take."""


def parse_flags(words: Sequence[str]) -> dict[str, Any]:
    """Settings by name from words like `--slurm-mem 8G`. Raises `BadFlag` with a sentence."""
    flags = {one.flag: one for one in SETTINGS.values()}
    flags |= {one.short: one for one in SETTINGS.values() if one.short}
    found: dict[str, Any] = {}
    rest = list(words)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        setting = flags.get(name)
        if setting is None:
            raise BadFlag(f"There is no flag {name} of `jobflowd start`.")
        if setting.flag_only or setting.name in _LEFT_OUT:
            raise BadFlag(f"{name} is for one start and does not belong into a file.")
        if setting.kind == "switch":
            found[setting.name] = True
            continue
        if not equals:
            if not rest:
                raise BadFlag(f"{name} needs a value.")
            value = rest.pop(0)
        _check(setting, name, value)
        if setting.kind == "words":
            found[setting.name] = [*found.get(setting.name, []), value]
        else:
            found[setting.name] = _plain(setting, value)
    return found


def _check(setting: Setting, name: str, value: str) -> None:
    try:
        setting.parse(value)
    except ValueError as error:
        raise BadFlag(f"{name}: {error}.") from None


def _plain(setting: Setting, value: str) -> Any:
    """What stands in the file: numbers and tables as such, the rest as it was typed."""
    return setting.parse(value) if setting.kind in ("whole", "number", "args") else value


def configuration(values: dict[str, Any]) -> str:
    """The text of jobflow.toml: what was given as lines that count, the rest as comments."""
    lines = [
        "# What `jobflowd start --config jobflow.toml` runs. Flags win over this file.",
        "# Lines that begin with # show the defaults; `jobflowd config show` tells what counts.",
        "# A time is 90, 90s, 5m, 2h or 1h30m; a size is 20GB, 512MiB or 8G.",
        "",
    ]
    shown = [SETTINGS[name] for name in _FIRST]
    lines += [line for one in shown for line in _entry(one, values)]
    panel = ""
    for setting in SETTINGS.values():
        if setting.name in _FIRST or setting.flag_only or setting.name in _LEFT_OUT:
            continue
        if setting.panel != panel:
            panel = setting.panel
            lines += ["", f"# --- {panel} ---"]
        lines += _entry(setting, values)
    return "\n".join(lines) + "\n"


def _entry(setting: Setting, values: dict[str, Any]) -> list[str]:
    text = setting.help
    if setting.choices:
        text = f"{text.rstrip('.')}: {', '.join(setting.choices)}."
    if setting.name in values:
        return [f"# {text}", f"{setting.name} = {_toml(values[setting.name])}"]
    default = setting.default
    if isinstance(default, Path):
        default = str(default)
    if default in (None, (), {}) or setting.shown:
        about = f"default: {setting.shown}" if setting.shown else "default: none"
        return [f"# {text}", f"# {setting.name} =        ({about})"]
    return [f"# {text}", f"# {setting.name} = {_toml(default)}"]


def _toml(value: Any) -> str:
    """A value in TOML; JSON's texts, numbers and lists are TOML's too."""
    if isinstance(value, dict):
        pairs = ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(_toml(one) for one in value)}]"
    if value is None:
        return '"none"'
    # DEL is the one control character that JSON leaves and TOML forbids.
    return json.dumps(value).replace("\x7f", "\\u007f")
