"""The command `jobflowd`: reads flags, words errors, and leaves the work to other modules.

Rules
-----
* The flags of `start` are made from the table in `flags.py`; a flag's text is read by
  `config.py`, so that a wrong value gets the same sentence from a flag, a variable and a file.
* Every error is one sentence on stderr, `jobflowd: error: ...`, with its exit code; a traceback is
  in the log, and here only with --debug. stdout is for answers.
* Heavy modules are imported by the command that needs them.

An output module: it may print. Nothing imports it but the console scripts and `__main__`.
"""

from __future__ import annotations

import inspect
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final, Optional

import typer

from jobflowd import exitcodes
from jobflowd.parsing import completing, examples, parser

if TYPE_CHECKING:
    from jobflowd.config import StartConfig
    from jobflowd.settings import Setting

EXIT_INTERNAL: Final = 1
EXIT_USAGE: Final = 2
EXIT_INTERRUPTED: Final = 130
EXIT_NO_PERMISSION: Final = 77
EXIT_UNAVAILABLE: Final = 69

_METAVAR: Final = {
    "text": "TEXT",
    "choice": "WORD",
    "whole": "N",
    "number": "N",
    "path": "PATH",
    "words": "TEXT",
    "session": "NAME",
    "duration": "TIME",
    "walltime": "TIME",
    "size": "SIZE",
    "args": "JSON",
}

#: Below this, help in columns cuts off the names of flags.
_HEADINGS_COLUMNS: Final = 70
#: The verbs that a detaching parent starts.
_DAEMONS: Final = frozenset(("start", "serve"))

#: A daemon may be done before anybody could be told that it is ready.
_ENDED: Final = {
    0: "nothing was left to do: all tasks have succeeded, and the daemon has ended",
    3: "nothing was left to do: some tasks have failed, and the daemon has ended",
    4: "the daemon was stopped at its start, with work left",
}


def _example(line: str) -> str:
    """As in `_EXAMPLES`: with headings, an empty line ends a line."""
    return f"Examples:\n\n{line}"


_EXAMPLES: Final = """Examples:

jobflowd start --program conv.py --program-args '{"input_dir": "/data"}' --workers 4

jobflowd start --session-id conv --detach      (goes on with what is recorded)

jobflowd start --program conv.py --launcher none      (then: jobflow-worker --session conv)

A TIME is 90, 90s, 5m, 2h or 1h30m; a SIZE is 20GB, 512MiB or 8G. Every flag can also be a
JOBFLOW_... variable or a key in a TOML file; `jobflowd config show` tells what counts."""

app = typer.Typer(
    name="jobflowd",
    help="Run a task program: generate its tasks, keep workers alive, lose nothing.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
config_app = typer.Typer(help="What is configured, and where it comes from.")
app.add_typer(config_app, name="config", no_args_is_help=True)


@app.callback(
    invoke_without_command=True,
    epilog=examples(
        "jobflowd start --program conv.py --workers 4",
        "jobflowd start --session-id conv --detach      goes on with what is recorded",
        "jobflowd config show",
    )
    + f"\n\n\b\n{exitcodes.table('jobflowd')}",
)
def _top(
    version: Annotated[
        bool, typer.Option("--version", help="Versions of this and of what it stands on.")
    ] = False,
) -> None:
    if version:
        print(_versions())
        raise typer.Exit


def _versions() -> str:
    import platform
    import sqlite3

    import zmq

    from jobflow_worker import __version__
    from jobflow_worker.limits import PROTOCOL_MAX, PROTOCOL_MIN

    return (
        f"jobflowd {__version__}  protocol {PROTOCOL_MIN}-{PROTOCOL_MAX}  "
        f"python {platform.python_version()}  zmq {zmq.zmq_version()} (pyzmq {zmq.__version__})  "
        f"sqlite {sqlite3.sqlite_version}  curve {'yes' if zmq.has('curve') else 'no'}"
    )


# --- start ------------------------------------------------------------------------------------


def _option(setting: Setting) -> inspect.Parameter:
    names = [setting.flag]
    kind: Any = Optional[str]  # noqa: UP045 - typer 0.15 reads this spelling on Python 3.10
    if setting.kind == "switch":
        kind = Optional[bool]  # noqa: UP045
    elif setting.kind == "words":
        kind = Optional[list[str]]  # noqa: UP045
    if setting.short:
        names.append(setting.short)
    # Choices and defaults stand in the text: in columns of their own they would squeeze the
    # names of the flags until these are cut off.
    option = typer.Option(
        *names,
        help=_help(setting),
        metavar=_METAVAR.get(setting.kind),
        show_default=False,
        rich_help_panel=setting.panel,
    )
    return inspect.Parameter(
        setting.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[kind, option],
    )


def _help(setting: Setting) -> str:
    text = setting.help
    if setting.choices:
        *others, last = setting.choices
        text = f"{text.rstrip('.')}: {', '.join(others)} or {last}."
    shown = setting.shown
    if shown is None and setting.kind != "switch" and setting.default not in (None, ()):
        plain = isinstance(setting.default, float)
        shown = f"{setting.default:g}" if plain else str(setting.default)
    return f"{text} ({shown})" if shown else text


def _start(**flags: Any) -> int:
    """Start the daemon of a session: begin it, or go on with it."""
    from jobflowd import detach
    from jobflowd.config import load

    config = load(flags)
    if config.detach and not detach.detached():
        if config.insecure_plaintext:
            from jobflowd.guard import PLAINTEXT_WARNING

            print(f"jobflowd: warning: {PLAINTEXT_WARNING}", file=sys.stderr)
        return _start_detached()
    from jobflowd import onscreen

    if onscreen.wanted(config):
        words = sys.argv[1:]
        onscreen.become_wrapper(config, words[1:] if words[:1] == ["start"] else words)
    from jobflowd import daemon

    return int(daemon.run(config))


def _script(**flags: Any) -> int:
    """Print the batch script of a start. What these flags would submit; nothing is started."""
    from jobflowd.config import load
    from jobflowd.scriptcommand import render

    print(render(load(flags)), end="")
    return 0


def _check(**flags: Any) -> int:
    """Check that workers would work. By one small job of a start with these flags."""
    from jobflowd import logs
    from jobflowd.config import load
    from jobflowd.preflight import check

    bad = check(load(flags), lambda line: print(logs.sanitised(line), flush=True))
    print("everything is as it should be" if not bad else f"{bad} to mend", flush=True)
    return EXIT_UNAVAILABLE if bad else 0


#: The verbs whose flags are the table, with what their help ends with.
_STARTS: Final[dict[str, tuple[Callable[..., int], str]]] = {
    "start": (_start, _EXAMPLES),
    "script": (_script, _example("jobflowd script --launcher slurm --program conv.py")),
    "check": (_check, _example("jobflowd check --launcher slurm --program conv.py")),
}
for _name, (_verb, _epilog) in _STARTS.items():
    app.command(_name, epilog=_epilog)(_verb)


def _give_flags(wanted: bool) -> None:
    """Let the table be the signature of these verbs; nobody else pays for ninety flags."""
    options = []
    if wanted:
        from jobflowd.flags import SETTINGS

        options = [_option(setting) for setting in SETTINGS.values()]
    for verb, _ in _STARTS.values():
        # Typer reads both attributes.
        verb.__signature__ = inspect.Signature(options)  # type: ignore[attr-defined]
        verb.__annotations__ = {one.name: one.annotation for one in options}


def command(words: Sequence[str] | None = None) -> Any:
    """The parser for these words; for None, of everything there is."""
    _give_flags(words is None or completing() or not _STARTS.keys().isdisjoint(words))
    group = parser(app, words or ())
    if os.environ.get("NO_COLOR") or shutil.get_terminal_size().columns < _HEADINGS_COLUMNS:
        return group
    for name in _STARTS.keys() & group.commands.keys():
        # Ninety flags are read by their headings, which the plain form does not have.
        group.commands[name].rich_markup_mode = "rich"
    return group


def _start_detached() -> int:
    from jobflowd import detach

    outcome = detach.start_detached(lambda text: print(f"jobflowd: {text}", file=sys.stderr))
    if isinstance(outcome, detach.Ended):
        unknown = f"the daemon ended at its start with exit code {outcome.code}; its log says why"
        words = outcome.text or f"jobflowd: {_ENDED.get(outcome.code, unknown)}"
        print(words, file=sys.stderr)
        return outcome.code
    print(f"session  {outcome.session}  in {outcome.directory}")
    print(f"pid      {outcome.pid}")
    print(f"log      {outcome.log}")
    print(f"next     jobflowctl -s {outcome.session} status    or: watch, scale N, shutdown")
    from jobflowd.logout import logout_warning

    warning = logout_warning()
    if warning:
        print(f"jobflowd: warning: {warning}", file=sys.stderr)
    return 0


# --- serve ------------------------------------------------------------------------------------


@app.command("serve", epilog=examples("jobflowd serve conv", "jobflowd serve conv --detach"))
def _serve(
    session: Annotated[str, typer.Argument(help="Name or directory of a session.")],
    idle: Annotated[
        str, typer.Option("--idle", metavar="TIME", help="Leave after this without a question.")
    ] = "10m",
    detached: Annotated[bool, typer.Option("--detach", help="Go to the background.")] = False,
) -> int:
    """Open an ended session for questions. Nothing runs, until `retry` queues a task again."""
    from jobflowd import detach
    from jobflowd.settings import parse_duration

    try:
        idle_s = parse_duration(idle)
    except ValueError as error:
        raise typer.BadParameter(f"--idle: {error}") from None
    if detached and not detach.detached():
        return _start_detached()
    from jobflowd import serving

    return serving.serve(session, idle_s)


# --- install-unit -----------------------------------------------------------------------------


@app.command(
    "install-unit", epilog=examples("jobflowd install-unit", "jobflowd install-unit --install")
)
def _install_unit(
    system: Annotated[
        bool, typer.Option("--system/--user", help="For the whole machine, or for you.")
    ] = False,
    write: Annotated[
        bool, typer.Option("--install", help="Write it where systemd looks, instead of here.")
    ] = False,
) -> int:
    """Print or install a systemd unit. It runs sessions by name: jobflowd@NAME."""
    from jobflowd import unitcommand

    if not write:
        print(unitcommand.unit_text(system=system, command=unitcommand.this_command()), end="")
        return 0
    try:
        path = unitcommand.install(system=system)
    except OSError as error:
        return _fail(f"{error.filename or 'the unit'}: {error.strerror}", EXIT_NO_PERMISSION)
    print(f"installed {path}; next:")
    for step in unitcommand.next_steps(system=system):
        print(f"  {step}")
    return 0


# --- config -----------------------------------------------------------------------------------


@config_app.command("show", epilog=examples("jobflowd config show --config jobflow.toml"))
def _config_show(
    config: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option("--config", metavar="FILE", help="A TOML file, as for start."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> int:
    """Show each setting, its value, and where the value comes from."""
    import json

    from jobflowd import logs
    from jobflowd.config import load
    from jobflowd.flags import SETTINGS

    loaded = load({"config": config})
    rows = [_row(loaded, setting) for setting in SETTINGS.values()]
    if as_json:
        print(json.dumps({"schema": "jobflow.config/1", "settings": rows}, default=str))
        return 0
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        value = row["shown"] if row["origin"] == "default" and row["shown"] else row["value"]
        text = logs.sanitised(_toml_like(value))
        print(f"{row['name']:<{width}} = {text:<28} {logs.sanitised(row['origin'])}")
    return 0


def _row(config: StartConfig, setting: Setting) -> dict[str, Any]:
    origin = config.origins.get(setting.name, "default")
    if origin == "environment":
        origin = f"environment {setting.variable}"
    return {
        "name": setting.name,
        "value": getattr(config, setting.name),
        "shown": setting.shown,
        "origin": origin,
    }


def _toml_like(value: Any) -> str:
    import json

    if value is None:
        return "none"
    if isinstance(value, tuple):
        return json.dumps(list(value))
    if isinstance(value, Mapping):
        return json.dumps(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return f"{value:g}" if isinstance(value, float) else str(value)


# --- entry points -----------------------------------------------------------------------------


def main() -> int:
    """Console script `jobflowd`; returns the exit code."""
    return _run(sys.argv[1:], "jobflowd", None)


def main_start() -> int:
    """Console script `jobflow-manager`: the same as `jobflowd start`."""
    return _run(sys.argv[1:], "jobflow-manager", "start")


def _run(args: list[str], program: str, verb: str | None) -> int:
    if verb is not None or not _DAEMONS.isdisjoint(args):
        from jobflowd import detach

        detach.adopt_pipe()
    parsed = command(args if verb is None else [verb, *args])
    parsed_verbs = set(parsed.commands)
    if verb is not None:
        parsed = parsed.commands[verb]
    elif not args:
        parsed.main(["--help"], prog_name=program, standalone_mode=False)
        return EXIT_USAGE
    try:
        code = parsed.main(args, prog_name=program, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted", EXIT_INTERRUPTED)
    except Exception as error:
        called = [verb or "", *args]
        meant = next((word for word in called if word in parsed_verbs), "start")
        return _explain(error, meant, debug="--debug" in args)
    return code if isinstance(code, int) else 0


def _explain(error: Exception, verb: str, *, debug: bool) -> int:
    """The sentence and exit code of an error that ended the command."""
    import traceback

    from jobflowd import logs

    code = getattr(error, "exit_code", None)
    if hasattr(error, "format_message"):
        # A usage error of the command line's parser; its own str() may be empty.
        sentence, code = str(error.format_message()), EXIT_USAGE
        sentence = f"{sentence.rstrip('.')}; see jobflowd {verb} --help"
    elif isinstance(code, int):
        sentence = str(error)
    else:
        code = EXIT_INTERNAL
        sentence = f"a bug in jobflowd: {type(error).__name__}: {error}"
        if not debug:
            sentence += "; the log has the details, or --debug shows them here"
    detail = getattr(error, "detail", "")
    logs.get(__name__).exception("start.failed", exit_code=code, detail=detail or None)
    if debug:
        traceback.print_exc()
        if detail:
            print(detail, file=sys.stderr)
    return _fail(sentence, code)


def _fail(sentence: str, code: int) -> int:
    from jobflowd import detach, logs

    line = f"jobflowd: error: {logs.sanitised(' '.join(sentence.split()))}"
    print(line, file=sys.stderr)
    detach.announce_failure(line, code)
    return code
