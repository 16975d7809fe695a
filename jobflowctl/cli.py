"""The command line of jobflowctl: one function per verb, which names its options and calls it.

`-s` and `--json` are understood before and after the verb. What verbs do is in `verbs.py`, which
is imported when a verb runs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobflowctl import completing, inspectcli
from jobflowctl.frame import (
    JsonOption,
    NowOption,
    Options,
    SessionOption,
    YesOption,
    app,
    at_session,
    duration_of,
    run,
    with_client,
)
from jobflowd.parsing import examples, parser

if TYPE_CHECKING:
    from jobflowctl.client import Client
    from jobflowctl.output import Output
    from jobflowd.api import SessionPlace


# --- checking ---------------------------------------------------------------------------------


@app.command(epilog=examples("jobflowctl doctor --config jobflow.toml", "jobflowctl -s t1 doctor"))
def doctor(
    ctx: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option("--config", metavar="FILE", help="Of a start with this file; no session."),
    ] = None,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check, before or during a run, that its workers can work. On a cluster by one small job."""
    from jobflowctl import doctor as room

    if config is not None:
        run(ctx, as_json, lambda out, _: room.of_configuration(config, out))
    at_session(ctx, session, as_json, room.of_session)


# --- reading ----------------------------------------------------------------------------------


@app.command(epilog=examples("jobflowctl status", "jobflowctl -s t1 status --json | jq .tasks"))
def status(ctx: typer.Context, session: SessionOption = None, as_json: JsonOption = False) -> None:
    """The whole run on one screen. State, counts, workers, speed, warnings, what to do next."""
    from jobflowctl import verbs

    with_client(ctx, session, as_json, lambda c, out: verbs.read(c, out, "status"))


@app.command(
    epilog=examples(
        "jobflowctl tasks --state failed",
        "jobflowctl tasks --match 'scan-00*' --all",
        "jobflowctl -q tasks --state failed --all | xargs jobflowctl retry",
    )
)
def tasks(
    ctx: typer.Context,
    state: Annotated[
        str | None,
        typer.Option(
            help="queued, assigned, running, succeeded, failed, canceled or held.",
            metavar="STATE",
            autocompletion=completing.task_states,
        ),
    ] = None,
    match: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only ids that match, as in a shell.")
    ] = None,
    after: Annotated[
        str | None, typer.Option(metavar="MARK", help="Go on after this `next`.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Rows of the page.")] = 50,
    everything: Annotated[bool, typer.Option("--all", help="Every page.")] = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """List tasks."""
    from jobflowctl import verbs

    def action(client: Client, output: Output) -> int:
        return verbs.tasks(
            client,
            output,
            state=state,
            match=match,
            after=after,
            limit=limit,
            everything=everything,
        )

    with_client(ctx, session, as_json, action)


@app.command(epilog=examples("jobflowctl task scan-0017", "jobflowctl task scan-0017 --json"))
def task(
    ctx: typer.Context,
    task_id: Annotated[
        str, typer.Argument(help="The task's id.", autocompletion=completing.task_ids)
    ],
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Everything about one task. Spec, result, every attempt with its cause and output."""
    from jobflowctl import verbs

    with_client(
        ctx, session, as_json, lambda c, out: verbs.read(c, out, "task", {"task_id": task_id})
    )


@app.command(epilog=examples("jobflowctl workers", "jobflowctl workers --json"))
def workers(ctx: typer.Context, session: SessionOption = None, as_json: JsonOption = False) -> None:
    """The connected workers and what they run."""
    from jobflowctl import verbs

    with_client(ctx, session, as_json, lambda c, out: verbs.rows(c, out, "workers"))


@app.command(epilog=examples("jobflowctl launches", "jobflowctl launches --json"))
def launches(
    ctx: typer.Context, session: SessionOption = None, as_json: JsonOption = False
) -> None:
    """What was submitted to bring workers. With batch job ids and reasons."""
    from jobflowctl import verbs

    with_client(ctx, session, as_json, lambda c, out: verbs.rows(c, out, "launches"))


@app.command(
    epilog=examples("jobflowctl events -n 20", "jobflowctl events --task scan-0017 --follow")
)
def events(
    ctx: typer.Context,
    last: Annotated[int, typer.Option("--last", "-n", min=1, help="So many, the newest.")] = 50,
    task_id: Annotated[
        str | None, typer.Option("--task", metavar="TASK_ID", help="Of one task only.")
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as things happen, one a line.")
    ] = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """The history of the run, newest last."""
    from jobflowctl import verbs

    with_client(
        ctx,
        session,
        as_json,
        lambda c, out: verbs.events(c, out, task_id=task_id, last=last, follow=follow),
    )


@app.command(epilog=examples("jobflowctl snapshot > now.json"))
def snapshot(
    ctx: typer.Context, session: SessionOption = None, as_json: JsonOption = False
) -> None:
    """Status, workers, launches at one moment. The same object as the telemetry file."""
    from jobflowctl import verbs

    with_client(ctx, session, as_json, lambda c, out: verbs.read(c, out, "snapshot"))


@app.command(epilog=examples("jobflowctl report", "jobflowctl -s t1 report --output t1.html"))
def report(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")
    ] = None,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """One HTML page about the run. Where time went, what failed, what more workers would bring."""
    import time

    from jobflowctl import report as reporting

    with_client(
        ctx, session, as_json, lambda c, out: reporting.report(c, out, file, wall=time.time())
    )


@app.command(
    epilog=examples(
        "jobflowctl watch",
        "jobflowctl watch --once --json",
        "jobflowctl watch --telemetry-file /data/runs/t1/dashboard_snapshot.json",
    )
)
def watch(
    ctx: typer.Context,
    interval: Annotated[str, typer.Option(metavar="TIME", help="Between two lines.")] = "2s",
    once: Annotated[bool, typer.Option("--once", help="One line, then leave.")] = False,
    telemetry_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Read this file; no daemon is asked.")
    ] = None,
    stale_timeout: Annotated[
        str, typer.Option(metavar="TIME", help="A file is called stale after this.")
    ] = "10s",
    plain: Annotated[
        bool, typer.Option("--plain", help="Lines, also where a full screen is possible.")
    ] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="Without the keys that change something.")
    ] = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Look at the run as it goes. Full screen at a terminal, else a line per interval."""
    from jobflowctl import watch as watching

    def file(output: Output, _: Options) -> int:
        assert telemetry_file is not None
        return watching.follow_file(
            telemetry_file,
            output,
            interval_s=duration_of(interval, "--interval"),
            stale_s=duration_of(stale_timeout, "--stale-timeout"),
            once=once,
            plain=plain,
        )

    def live(place: SessionPlace, output: Output) -> int:
        interval_s = duration_of(interval, "--interval")
        return watching.follow_session(
            place, output, interval_s=interval_s, once=once, plain=plain, read_only=read_only
        )

    if telemetry_file is not None:
        run(ctx, as_json, file)
    at_session(ctx, session, as_json, live)


@app.command(
    epilog=examples("jobflowctl -s t1 wait", "jobflowctl -s t1 wait --timeout 30m || echo look")
)
def wait(
    ctx: typer.Context,
    timeout: Annotated[
        str | None, typer.Option(metavar="TIME", help="Give up after this, with code 124.")
    ] = None,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Return when the run has ended. 0 all succeeded, 3 some failed, 4 stopped with work left."""
    from jobflowctl import verbs

    def action(place: SessionPlace, output: Output) -> int:
        timeout_s = None if timeout is None else duration_of(timeout, "--timeout")
        return verbs.wait(place, output, timeout_s=timeout_s)

    at_session(ctx, session, as_json, action)


@app.command(epilog=examples("jobflowctl sessions", "jobflowctl sessions --prune"))
def sessions(
    ctx: typer.Context,
    prune: Annotated[
        bool,
        typer.Option("--prune", help="Forget those that are gone, or ended 30 days ago."),
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Your sessions. Which live, where, and how the others ended."""
    import time

    from jobflowctl import verbs

    run(ctx, as_json, lambda out, _: verbs.sessions(out, prune=prune, wall=time.time()))


# --- changing ---------------------------------------------------------------------------------


@app.command(epilog=examples("jobflowctl scale 20", "jobflowctl scale 2 --now"))
def scale(
    ctx: typer.Context,
    workers: Annotated[int, typer.Argument(min=0, max=100_000, help="How many workers.")],
    now: NowOption = False,
    yes: YesOption = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Set the wanted number of workers."""
    from jobflowctl import verbs

    with_client(
        ctx, session, as_json, lambda c, out: verbs.scale(c, out, workers, now=now, yes=yes)
    )


@app.command(epilog=examples("jobflowctl shutdown", "jobflowctl -s t1 shutdown --yes --wait"))
def shutdown(
    ctx: typer.Context,
    now: NowOption = False,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it has ended.")] = False,
    yes: YesOption = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """End the run. Workers finish their tasks within the grace period; unfinished work remains."""
    from jobflowctl import verbs

    with_client(
        ctx, session, as_json, lambda c, out: verbs.shutdown(c, out, now=now, wait=wait, yes=yes)
    )


@app.command(epilog=examples("jobflowctl pause"))
def pause(
    ctx: typer.Context,
    yes: YesOption = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand out no new tasks; running ones go on."""
    from jobflowctl import verbs

    with_client(ctx, session, as_json, lambda c, out: verbs.change(c, out, "pause", {}))


@app.command(epilog=examples("jobflowctl resume"))
def resume(
    ctx: typer.Context,
    yes: YesOption = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand out tasks again."""
    from jobflowctl import verbs

    with_client(ctx, session, as_json, lambda c, out: verbs.change(c, out, "resume", {}))


@app.command(epilog=examples("jobflowctl drain node17-3f9a2c0d11e84b77"))
def drain(
    ctx: typer.Context,
    worker: Annotated[
        str,
        typer.Argument(
            help="The worker's id, from `jobflowctl workers`.",
            autocompletion=completing.worker_ids,
        ),
    ],
    yes: YesOption = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let one worker finish what it runs and leave."""
    from jobflowctl import verbs

    with_client(
        ctx, session, as_json, lambda c, out: verbs.change(c, out, "drain", {"worker": worker})
    )


@app.command(epilog=examples("jobflowctl cancel scan-0017 scan-0018", "jobflowctl cancel --all"))
def cancel(
    ctx: typer.Context,
    task_ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of tasks.", autocompletion=completing.task_ids),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every task that has no outcome yet.")
    ] = False,
    yes: YesOption = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Cancel tasks; running ones are stopped."""
    from jobflowctl import verbs

    def action(client: Client, output: Output) -> int:
        return verbs.cancel(client, output, task_ids or [], everything=everything, yes=yes)

    with_client(ctx, session, as_json, action)


@app.command(
    epilog=examples(
        "jobflowctl retry --group 2        a group of `jobflowctl failures`",
        "jobflowctl retry --failed",
        "jobflowctl retry scan-0017 scan-0018",
    )
)
def retry(
    ctx: typer.Context,
    task_ids: Annotated[
        list[str] | None,
        typer.Argument(help="Ids of tasks.", autocompletion=completing.task_ids),
    ] = None,
    group: Annotated[
        int | None, typer.Option("--group", metavar="N", help="A group of `failures`.", min=0)
    ] = None,
    failed: Annotated[bool, typer.Option("--failed", help="Every failed task.")] = False,
    yes: YesOption = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Queue tasks again. Failed or canceled ones, with fresh budgets."""
    from jobflowctl import verbs

    def action(client: Client, output: Output) -> int:
        return verbs.retry(client, output, task_ids or [], failed=failed, group=group)

    with_client(ctx, session, as_json, action)


@app.command(epilog=examples("jobflowctl release launcher", "jobflowctl release WORKER_ID"))
def release(
    ctx: typer.Context,
    what: Annotated[str, typer.Argument(help="A quarantined worker's id, or `launcher`.")],
    yes: YesOption = False,
    session: SessionOption = None,
    as_json: JsonOption = False,
) -> None:
    """Lift a quarantine or a pause. Of a worker, or of the launcher."""
    from jobflowctl import verbs

    with_client(
        ctx, session, as_json, lambda c, out: verbs.change(c, out, "release", {"what": what})
    )


for _verb in inspectcli.VERBS:
    _verb(app)


def main() -> None:
    """Console script `jobflowctl`."""
    command = parser(app, sys.argv[1:])
    # With what the user typed, not with `__main__.py`, in usage lines.
    command(prog_name="jobflowctl")
    sys.exit(0)
