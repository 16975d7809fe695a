"""The HTML of a report: one page with everything in it, that opens from disk and asks nobody.

Charts by Chart.js (MIT, `assets/`), whose text is embedded. Rule: data reaches the page as JSON in
an element that is never run, and is shown as text; the little that is written as HTML is escaped.
A content policy in the page forbids every request.
"""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from jobflowctl import reportdata
from jobflowctl.reportdata import Run, Span
from jobflowctl.style import local, part
from jobflowctl.text import count, duration, rate, safe, size

Body = Mapping[str, Any]

_ASSETS: Final = ("chart.umd.min.js", "report.js", "report.css")


def page(status: Body, groups: Sequence[Body], run: Run, made_at: str) -> str:
    """The page. `made_at` is the moment of the status, as the daemon writes times."""
    session = str(status.get("session", ""))
    found = {name: _asset(name) for name in _ASSETS}
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        "script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:\">",
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{_text(session)}: report of a jobflowd run</title>",
        f"<style>{found['report.css']}</style></head><body>",
        *_head(status, run, made_at),
        *_ledger(run),
        *_charts(run),
        *_what_if(run),
        *_failures(groups),
        *_slowest(reportdata.slowest(run)),
        "<footer><p>Slot seconds: one slot of one worker for one second, from its registration to "
        "its end. What runs while this page is made counts as waiting until it has ended. Charts: "
        "Chart.js, MIT licence.</p></footer>",
        f'<script type="application/json" id="data">{_data(run)}</script>',
        f"<script>{found['chart.umd.min.js']}</script>",
        f"<script>{found['report.js']}</script>",
        "</body></html>",
    ]
    return "\n".join(parts) + "\n"


def _asset(name: str) -> str:
    text = (Path(__file__).parent / "assets" / name).read_text(encoding="utf-8")
    # The one sequence that would end the element it is put into.
    return text.replace("</script", "<\\/script").replace("</style", "<\\/style")


def _text(value: object) -> str:
    return html.escape(safe(value))


def _data(run: Run) -> str:
    value = {
        "throughput": reportdata.throughput(run),
        "timeline": reportdata.timeline(run),
        "durations": reportdata.durations(run),
        "ledger": [[word, round(one, 3)] for word, one in reportdata.ledger(run)],
    }
    return json.dumps(_safe(value), separators=(",", ":")).replace("<", "\\u003c")


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return safe(value)
    if isinstance(value, Mapping):
        return {key: _safe(one) for key, one in value.items()}
    return [_safe(one) for one in value] if isinstance(value, list) else value


def _head(status: Body, run: Run, made_at: str) -> list[str]:
    tasks = part(status, "tasks")
    took = run.ended - run.begun
    good = sum(1 for one in run.spans if one.outcome == "succeeded")
    facts = [
        ("tasks", f"{int(tasks.get('total') or 0):,}"),
        ("succeeded", f"{int(tasks.get('succeeded') or 0):,}"),
        ("failed", f"{int(tasks.get('failed') or 0):,}"),
        ("attempts", f"{len(run.spans):,}"),
        ("workers", f"{len(run.lives):,}"),
        ("took", duration(took)),
        ("mean speed", rate(good / took) if took > 0 else "-"),
        *((word, duration(one)) for word, one in reportdata.quantiles(run).items()),
    ]
    return [
        f"<header><h1>{_text(status.get('session', ''))}</h1>",
        f"<p>{_text(status.get('program', ''))} on {_text(status.get('host', ''))}, "
        f"{_text(status.get('state', ''))}, as of {_text(local(made_at))}</p></header>",
        '<section class="facts">',
        *(f"<div><b>{_text(value)}</b><span>{_text(name)}</span></div>" for name, value in facts),
        "</section>",
    ]


def _ledger(run: Run) -> list[str]:
    lines = reportdata.ledger(run)
    total = sum(seconds for _, seconds in lines)
    rows = [
        f"<tr><td>{_text(word)}</td><td>{_text(duration(seconds))}</td>"
        f"<td>{100 * seconds / total if total else 0:.2f} %</td></tr>"
        for word, seconds in lines
    ]
    return [
        "<section><h2>Where the workers' time went</h2>",
        '<div class="chart low"><canvas id="ledger"></canvas></div>',
        "<table><tr><th>slot time</th><th></th><th>share</th></tr>",
        *rows,
        f"<tr class=sum><td>all of it</td><td>{_text(duration(total))}</td><td>100.00 %</td></tr>",
        "</table></section>",
    ]


def _charts(run: Run) -> list[str]:
    shown = min(len(run.lives), reportdata.TIMELINE_MAX)
    height = 90 + 14 * max(4, shown)
    more = f" ({shown} of {len(run.lives):,})" if shown < len(run.lives) else ""
    return [
        "<section><h2>Speed</h2>",
        '<div class="chart"><canvas id="throughput"></canvas></div></section>',
        f"<section><h2>Workers{more}</h2>",
        f'<div class="chart" style="height:{height}px"><canvas id="timeline"></canvas></div>',
        "</section><section><h2>How long attempts took</h2>",
        '<div class="chart"><canvas id="durations"></canvas></div></section>',
    ]


def _what_if(run: Run) -> list[str]:
    found = reportdata.what_if(run)
    if found is None:
        return []
    saved = found.took_s - found.would_take_s
    share = f" ({100 * saved / found.took_s:.0f} %)" if found.took_s > 0 else ""
    limit = ""
    if saved < 0.02 * found.took_s:
        limit = (
            " More workers would not have helped: the longest attempt, "
            f"{duration(found.longest_s)}, or the waiting decides."
        )
    return [
        "<section><h2>What ten more workers would have bought</h2><p>",
        _text(
            f"With {count(found.more_slots, 'slot')} more than the {found.slots:,} of the peak, "
            f"this run of {duration(found.took_s)} would have taken about "
            f"{duration(found.would_take_s)}: {duration(saved)} less{share}.{limit}"
        ),
        "</p><p class=note>The same attempts, given out in the same order; that the file system "
        "and the network would have borne it is assumed.</p></section>",
    ]


def _failures(groups: Sequence[Body]) -> list[str]:
    if not groups:
        return ["<section><h2>Failures</h2><p>No task has failed.</p></section>"]
    rows = [
        f"<tr><td>{int(one.get('count') or 0):,}</td><td>{_text(one.get('signature'))}</td>"
        f"<td>{_text(one.get('example_task_id'))}</td>"
        f"<td>{_text(', '.join(str(host) for host in (one.get('hosts') or [])[:5]))}</td></tr>"
        for one in groups
    ]
    return [
        "<section><h2>Failures by cause</h2>",
        "<table><tr><th>tasks</th><th>what they have in common</th><th>for example</th>"
        "<th>hosts</th></tr>",
        *rows,
        "</table></section>",
    ]


def _slowest(spans: Sequence[Span]) -> list[str]:
    rows = [
        f"<tr><td>{_text(one.task_id)}</td><td>{one.attempt}</td>"
        f"<td>{_text(duration(one.busy_s))}</td><td>{_text(duration(one.cpu_s))}</td>"
        f"<td>{_text(size(one.rss_bytes))}</td><td>{_text(one.outcome)} {_text(one.cause)}</td>"
        f"<td>{_text(one.worker_id)}</td></tr>"
        for one in spans
    ]
    return [
        "<section><h2>The slowest attempts</h2>",
        "<table><tr><th>task</th><th>attempt</th><th>took</th><th>CPU</th><th>memory</th>"
        "<th>outcome</th><th>worker</th></tr>",
        *rows,
        "</table></section>",
    ]
