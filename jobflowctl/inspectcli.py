"""The command lines of the verbs that look deeper, and of `replay` and `init`.

As in `cli.py`, which adds them to the app: one function per verb; what they do is elsewhere and is
imported when one of them runs.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from jobflowctl import completing
from jobflowctl.frame import JsonOption, SessionOption, run, with_client
from jobflowd.parsing import examples

if TYPE_CHECKING:
    from jobflowctl.client import Client
    from jobflowctl.output import Output


def _failures(
    ctx: typer.Context, session: SessionOption = None, as_json: JsonOption = False
) -> None:
    """Why tasks failed. One line per cause: how many, an example, on which hosts."""
    from jobflowctl import verbs

    with_client(ctx, session, as_json, lambda c, out: verbs.read(c, out, "failures"))


def _explain(
    ctx: typer.Context,
    task_id: Annotated[
        str, typer.Argument(help="The task's id.", autocompletion=completing.task_ids)
    ],
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """The story of a task. What it waits for or who has it, its attempts, what is left."""
    from jobflowctl import verbs

    with_client(
        ctx, session, as_json, lambda c, out: verbs.read(c, out, "explain", {"task_id": task_id})
    )


def _logs(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            help="A task, a worker or a launch; nothing: the daemon.",
            autocompletion=completing.names_of_logs,
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as lines are written.")
    ] = False,
    task: Annotated[bool, typer.Option("--task", help="NAME is a task.")] = False,
    worker: Annotated[bool, typer.Option("--worker", help="NAME is a worker.")] = False,
    launch: Annotated[bool, typer.Option("--launch", help="NAME is a launch.")] = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """The end of a log. Of the daemon, a worker or a launch; or what a task printed."""
    from jobflowctl import errors, inspecting

    kinds = [word for word, on in (("task", task), ("worker", worker), ("launch", launch)) if on]

    def action(client: Client, output: Output) -> int:
        if len(kinds) > 1 or (kinds and name is None):
            raise errors.UsageError("Give one name, and what it is at most once.")
        of = "daemon"
        if name is not None:
            of = kinds[0] if kinds else inspecting.kind_of(client, name)
        return inspecting.logs(client, output, of=of, name=name, follow=follow)

    with_client(ctx, session, as_json, action)


def _results(
    ctx: typer.Context,
    form: Annotated[
        str, typer.Option("--format", metavar="jsonl|csv", help="JSON lines or a table.")
    ] = "jsonl",
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Into this file.")
    ] = None,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """All results, one a line. Large ones are read from their files and checked."""
    from jobflowctl import inspecting

    with_client(
        ctx, session, as_json, lambda c, out: inspecting.results(c, out, form=form, file=file)
    )


def _metrics(
    ctx: typer.Context, session: SessionOption = None, as_json: JsonOption = False
) -> None:
    """Counters and gauges as OpenMetrics text."""
    from jobflowctl import inspecting

    with_client(ctx, session, as_json, inspecting.metrics)


def _backup(
    ctx: typer.Context,
    file: Annotated[Path, typer.Argument(help="A file that does not exist yet.")],
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Copy the database. A consistent copy, made by the daemon while it runs."""
    from jobflowctl import inspecting

    with_client(ctx, session, as_json, lambda c, out: inspecting.backup(c, out, file))


def _replay(
    ctx: typer.Context,
    task_id: Annotated[
        str, typer.Argument(help="The task's id.", autocompletion=completing.task_ids)
    ],
    pdb: Annotated[
        bool, typer.Option("--pdb", help="Open the debugger where the task fails.")
    ] = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Run one task here, in the foreground. Nothing of it is recorded."""
    from jobflowctl import replaying

    with_client(ctx, session, as_json, lambda c, out: replaying.replay(c, out, task_id, pdb=pdb))


def _init(
    ctx: typer.Context,
    program: Annotated[Path, typer.Argument(help="The program file to begin.")] = Path("tasks.py"),
    config: Annotated[
        Path, typer.Option("--config", metavar="FILE", help="The configuration to write.")
    ] = Path("jobflow.toml"),
    as_json: JsonOption = False,
) -> None:
    """Begin a project. A program that runs, and a commented jobflow.toml beside it.

    Every flag of `jobflowd start` may follow and is written into the configuration.
    """
    from jobflowctl import beginning

    flags = list(ctx.args)
    run(ctx, as_json, lambda out, _: beginning.begin(out, program, config, flags))


def _adder(
    name: str, verb: Callable[..., None], *lines: str, extra: bool = False
) -> Callable[[typer.Typer], None]:
    settings = {"allow_extra_args": extra, "ignore_unknown_options": extra}

    def add(app: typer.Typer) -> None:
        app.command(name, epilog=examples(*lines), context_settings=settings)(verb)

    return add


#: Each adds one verb to the app.
VERBS: Final = (
    _adder("failures", _failures, "jobflowctl failures", "jobflowctl failures --json | jq .groups"),
    _adder("explain", _explain, "jobflowctl explain scan-0017"),
    _adder(
        "logs",
        _logs,
        "jobflowctl logs                     the daemon's",
        "jobflowctl logs -f --worker WORKER_ID",
        "jobflowctl logs scan-0017           what that task's attempts printed",
    ),
    _adder(
        "results",
        _results,
        "jobflowctl results > results.jsonl",
        "jobflowctl results --format csv -o results.csv",
    ),
    _adder("metrics", _metrics, "jobflowctl metrics > jobflow.prom"),
    _adder("backup", _backup, "jobflowctl backup before-the-weekend.db"),
    _adder(
        "replay",
        _replay,
        "jobflowctl replay scan-0017",
        "jobflowctl replay scan-0017 --pdb",
    ),
    _adder(
        "init",
        _init,
        "jobflowctl init conv.py",
        "jobflowctl init conv.py --launcher slurm --slurm-partition cpu --slurm-mem 8G",
        extra=True,
    ),
)
