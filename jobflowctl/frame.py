"""What all verbs share: the app, the common options, and the way from a verb to an exit code.

Everything that a verb needs is imported when it runs, so that `--help` and every verb start fast.
Used by `cli.py` alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from jobflowctl import completing
from jobflowd import exitcodes
from jobflowd.parsing import examples

if TYPE_CHECKING:
    from jobflowctl.client import Client
    from jobflowctl.output import Output
    from jobflowd.api import SessionPlace

app = typer.Typer(
    name="jobflowctl",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass(slots=True)
class Options:
    """What was said before the verb."""

    session: str | None
    colour: str
    quiet: bool
    as_json: bool
    debug: bool


SessionOption = Annotated[
    str | None,
    typer.Option(
        "--session",
        "-s",
        metavar="SESSION",
        help="Name or directory of the session.",
        autocompletion=completing.session_names,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
YesOption = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
NowOption = Annotated[bool, typer.Option("--now", help="Do not wait for running tasks.")]


def _version(wanted: bool) -> None:
    if wanted:
        from jobflow_worker import __version__
        from jobflowctl.output import Output

        Output().line("version", {"version": __version__}, f"jobflowctl {__version__}")
        raise typer.Exit


@app.callback(
    epilog=examples(
        "jobflowctl status                    the only running session of yours",
        "jobflowctl -s t1 tasks --state failed",
        "jobflowctl -s t1 scale 20",
        "jobflowctl -s t1 wait --timeout 2h && echo all good",
    )
    + f"\n\n\b\n{exitcodes.table('jobflowctl')}"
)
def _main(
    ctx: typer.Context,
    session: SessionOption = None,
    colour: Annotated[
        str, typer.Option("--color", metavar="auto|always|never", help="Colours.")
    ] = "auto",
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only ids and states; no remarks.")
    ] = False,
    as_json: JsonOption = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Ask and steer a running jobflowd: one daemon, one session, over its local socket.

    Without -s (or JOBFLOW_SESSION) it is the only live session of yours.
    """
    if colour not in ("auto", "always", "never"):
        raise typer.BadParameter("use auto, always or never", param_hint="--color")
    ctx.obj = Options(session, colour, quiet, as_json, debug)


def run(ctx: typer.Context, as_json: bool, action: Callable[[Output, Options], int]) -> NoReturn:
    """Run a verb; every way out ends in an exit code."""
    from jobflowctl.errors import EXIT_INTERNAL, EXIT_INTERRUPTED, CtlError
    from jobflowctl.output import Output

    options: Options = ctx.obj
    mode = "json" if as_json or options.as_json else "quiet" if options.quiet else "human"
    output = Output(mode, colour=options.colour)
    try:
        code = action(output, options)
    except CtlError as error:
        output.fail(error)
        code = error.exit_code
    except KeyboardInterrupt:
        code = EXIT_INTERRUPTED
    except Exception as error:
        if options.debug or os.environ.get("JOBFLOW_DEBUG"):
            raise
        output.fail(
            CtlError(
                f"Internal error: {type(error).__name__}: {error}",
                "`jobflowctl --debug ...` shows where; please report it.",
            )
        )
        code = EXIT_INTERNAL
    raise typer.Exit(code)


def at_session(
    ctx: typer.Context,
    session: str | None,
    as_json: bool,
    action: Callable[[SessionPlace, Output], int],
) -> NoReturn:
    """Run a verb on one session."""

    def found(output: Output, options: Options) -> int:
        from jobflowctl.client import choose_session

        place = choose_session(session or options.session)
        output.session = place.session
        return action(place, output)

    run(ctx, as_json, found)


def with_client(
    ctx: typer.Context,
    session: str | None,
    as_json: bool,
    action: Callable[[Client, Output], int],
) -> NoReturn:
    """Run a verb that talks to the daemon."""

    def connected(place: SessionPlace, output: Output) -> int:
        from jobflowctl.client import Client

        with Client(place, opens=output.say) as client:
            return action(client, output)

    at_session(ctx, session, as_json, connected)


def duration_of(text: str, option: str) -> float:
    """The seconds of an option's value. Raises `UsageError`."""
    from jobflowctl.errors import UsageError
    from jobflowctl.text import seconds

    try:
        return seconds(text)
    except ValueError:
        raise UsageError(
            f"{option} {text!r} is not a duration.", "Use 90, 90s, 5m or 2h."
        ) from None
