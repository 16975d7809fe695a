"""PUBLISHED: what every exit code means, said once: the help of each program shows its own rows.

Pure. `docs/codes.md` has the same codes with what to do; a test compares.
"""

from __future__ import annotations

from typing import Final, NamedTuple

_COLUMNS: Final = 78


class ExitCode(NamedTuple):
    """One code: which programs end with it, and what it means there."""

    code: int
    programs: str
    means: str


EXIT_CODES: Final = (
    ExitCode(0, "jobflowd jobflow", "done, every task succeeded"),
    ExitCode(0, "jobflowctl", "answered; of wait: every task succeeded"),
    ExitCode(1, "jobflowd jobflow", "a fault of jobflowd: its log has the details"),
    ExitCode(1, "jobflowctl", "a fault of jobflowd, or what it refused"),
    ExitCode(2, "jobflowd jobflow", "usage: a flag, a value, arguments that are no JSON object"),
    ExitCode(2, "jobflowctl", "usage; a task, worker or launch that is not there"),
    ExitCode(3, "jobflowd jobflow", "all tasks have ended, some failed"),
    ExitCode(3, "jobflowctl", "some tasks failed (wait), or the task did (replay)"),
    ExitCode(4, "jobflowd jobflow", "stopped, or detached, with work left"),
    ExitCode(4, "jobflowctl", "stopped with work left (wait)"),
    ExitCode(5, "jobflowctl", "no session, or no daemon for it here"),
    ExitCode(65, "jobflowd jobflow", "the program cannot be used, or generate_tasks failed"),
    ExitCode(66, "jobflowd jobflow", "the program's file is not there"),
    ExitCode(69, "jobflowd jobflow", "the batch system is not available; something is to mend"),
    ExitCode(69, "jobflowctl", "something is to mend (doctor)"),
    ExitCode(70, "jobflowd jobflow", "a broken invariant: a bug; the turn is saved"),
    ExitCode(74, "jobflowd jobflow", "I/O error of the database"),
    ExitCode(75, "jobflowd jobflow", "another daemon owns the session"),
    ExitCode(77, "jobflowd jobflow jobflowctl", "permissions, keys, ownership"),
    ExitCode(78, "jobflowd jobflow", "configuration, version, or another identity of the session"),
    ExitCode(78, "jobflowctl", "version, or another identity of the session"),
    ExitCode(124, "jobflowctl", "time is up (wait)"),
    ExitCode(130, "jobflowd jobflow", "ended at once, by the second Ctrl-C"),
    ExitCode(130, "jobflowctl", "Ctrl-C"),
    ExitCode(143, "jobflowd jobflow", "ended at once, by the second SIGTERM"),
)


def rows(program: str) -> list[ExitCode]:
    """The codes of one program, in order."""
    return [one for one in EXIT_CODES if program in one.programs.split()]


def table(program: str) -> str:
    """The codes of one program, a line each, for its help."""
    lines = [f"  {one.code:<4} {one.means}" for one in rows(program)]
    assert all(len(line) <= _COLUMNS for line in lines)
    return "\n".join(["Exit codes:", *lines])
