"""Failed tasks by what their errors have in common. Pure.

Used where the daemon does not group them itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

_VARYING: Final = re.compile(r"'[^']*'|\"[^\"]*\"|(?:[\w.~-]*/)+[\w.~-]*|0x[0-9a-fA-F]+|\d+")
_SIGNATURE_MAX: Final = 200


def group_failures(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Groups in the form of the verb `failures`, the largest first."""
    groups: dict[str, dict[str, Any]] = {}
    for row in rows:
        words = str(row.get("error") or "no error text").split("\n", 1)[0]
        signature = _VARYING.sub("*", words)[:_SIGNATURE_MAX]
        group = groups.setdefault(
            signature,
            {"signature": signature, "count": 0, "example_task_id": row.get("task_id")},
        )
        group["count"] += 1
        group["last_at"] = row.get("finished_at")
    found = sorted(groups.values(), key=lambda one: -int(one["count"]))
    return [{"group": number, **one} for number, one in enumerate(found, 1)]
