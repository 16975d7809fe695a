"""What the scripts of all batch systems have in common, and how their options are checked.

Rule: pure text. Everything that reaches a shell is quoted by `shlex.quote`, except prologue lines,
which are shell by their nature. Control characters are refused: no directive line and no status
line survives a newline.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable
from typing import Final

from jobflowd.launchers.base import END_VARIABLE, LaunchContext
from jobflowd.launchers.multiprocess import LAUNCH_VARIABLE, SESSION_VARIABLE

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
#: One line of a site's message that a person should see.
_LINE_CHARS_MAX: Final = 300


def control_problems(ctx: LaunchContext) -> list[str]:
    """A sentence for each text with a control character."""
    texts: list[tuple[str, str]] = [
        ("the session's name", ctx.session),
        ("the session's directory", ctx.session_dir),
        ("the start directory", ctx.start_dir),
        ("the script's path", ctx.script_path),
        ("the output's path", ctx.output_path),
        *(("an argument of the worker", one) for one in ctx.worker_argv),
        *((f"option {name}", str(value)) for name, value in ctx.options.items()),
        *(("an extra argument", one) for one in ctx.args),
        *(("an excluded host", one) for one in ctx.exclude_hosts),
        *(("an environment script", one) for one in ctx.env_scripts),
        *(("a prologue line", one) for one in ctx.prologue),
    ]
    return [
        f"{what} has a control character in {text!r:.120}; remove it"
        for what, text in texts
        if _CONTROL.search(text)
    ]


def owned_problems(
    args: Iterable[str], owned: dict[str, str], short: dict[str, str], flag: str
) -> list[str]:
    """A sentence for each extra argument that is no option, or that jobflowd sets itself.

    `owned` maps long names to reasons, `short` letters to long names. Long options may be
    abbreviated on a command line, so a beginning of an owned name is refused as well.
    """
    found = []
    for arg in args:
        word = arg.split("=", 1)[0].split()[0] if arg.strip() else ""
        if not re.fullmatch(r"-[A-Za-z].*|--[A-Za-z].*", word):
            found.append(
                f"{flag} {arg!r:.80}: it must begin with a dash; give name and value as one, for "
                f"instance {flag}=--reservation=tuesday"
            )
            continue
        if word.startswith("--"):
            name = word[2:]
            names = [
                one for one in owned if one == name or (len(name) > 2 and one.startswith(name))
            ]
        else:
            names = [short[word[1]]] if word[1] in short else []
        if names:
            found.append(f"{flag} {arg!r:.80}: jobflowd sets {word} itself, {owned[names[0]]}")
    return found


def skip_problems(skip: Iterable[str], needed: Iterable[str], flag: str) -> list[str]:
    """A sentence for each directive to be left out that nothing works without."""
    return [
        f"{flag} {name}: jobs could not be found again without it"
        for name in needed
        if name in skip
    ]


def body(ctx: LaunchContext, time_limit_s: float | None) -> str:
    """The shell part of a script: from the user's environment to the worker.

    The worker replaces the shell, so that the batch system's signals reach it.
    """
    text: list[str] = []
    if time_limit_s is not None:
        # Before anything that may take long: the limit counts from the job's start.
        text.append(f"export {END_VARIABLE}=$(( $(date +%s) + {int(time_limit_s)} ))")
    text.append(f"umask {ctx.umask:04o}")
    for name, value in sorted(ctx.restore.items()):
        text.append(f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}")
    text += [f". {shlex.quote(path)}" for path in ctx.env_scripts]
    text += ctx.prologue
    text.append(f"export {LAUNCH_VARIABLE}={shlex.quote(ctx.launch_id)}")
    text.append(f"export {SESSION_VARIABLE}={shlex.quote(ctx.session_dir)}")
    text.append("exec " + " ".join(shlex.quote(word) for word in ctx.worker_argv))
    return "\n".join(text) + "\n"


def heading(ctx: LaunchContext) -> str:
    """The comment that says where a script comes from."""
    return f"# Written by jobflowd {ctx.version}: session {ctx.session}, launch {ctx.launch_id}."


def clock(seconds: float) -> str:
    """D-HH:MM:SS, rounded up to whole seconds."""
    whole = -int(-seconds // 1)
    days, rest = divmod(whole, 86400)
    return f"{days}-{rest // 3600:02}:{rest // 60 % 60:02}:{rest % 60:02}"


def mebibytes(size: str | int | float) -> int:
    """Whole MiB, rounded up."""
    return -(-int(size) // 2**20)


def one_line(*texts: str) -> str:
    """What a command said, for people: lines joined, without control characters, not too long."""
    lines = [line.strip() for text in texts for line in text.splitlines() if line.strip()]
    said = _CONTROL.sub(" ", "; ".join(lines))
    return said if len(said) <= _LINE_CHARS_MAX else said[: _LINE_CHARS_MAX - 3] + "..."


def no_answer(rc: int | None, what: str, out: str, err: str) -> str:
    """Why a command brought nothing: a sentence's part in the system's own words."""
    said = one_line(err) or one_line(out)
    if rc is None:
        return f"{what} did not answer in time" + (f": {said}" if said else "")
    if rc < 0:
        return f"{what} was killed by signal {-rc}" + (f": {said}" if said else "")
    return said or f"{what} ended with status {rc} and said nothing"
