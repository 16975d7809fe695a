"""Who is who among the processes of a running session, by their command lines and parents."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from tests.faults.bench import processes_marked


def parent_of(pid: int) -> int:
    """The parent's pid, 0 if the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    return int(stat.rpartition(")")[2].split()[1])


def cast(mark: str) -> dict[str, list[int]]:
    """Pids by role: manager, generator, mailboxes, agent, child, other."""
    found: dict[str, list[int]] = defaultdict(list)
    running = processes_marked(mark)
    agents = {pid for pid, command in running.items() if "jobflow_worker.cli" in command} | {
        pid for pid, command in running.items() if "jobflow-worker" in command
    }
    agents = {pid for pid in agents if parent_of(pid) not in agents}
    for pid, command in running.items():
        if pid in agents:
            role = "agent"
        elif parent_of(pid) in agents:
            role = "child"
        elif "jobflowd.generatechild" in command:
            role = "generator"
        elif "jobflowd.mailchild" in command:
            role = "mailboxes"
        elif "/jobflowd start" in command:
            role = "manager"
        else:
            role = "other"
        found[role].append(pid)
    return found
