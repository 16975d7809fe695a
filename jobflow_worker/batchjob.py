"""What the batch job around a worker says of itself: its id, and when it will be ended.

Rule: environment variables only. A worker asks no batch system: a thousand of them would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

#: What tells a job's id, in the order to believe. JOB_ID is Grid Engine's if its root is set.
_SLURM_ID: Final = "SLURM_JOB_ID"
_LSF_ID: Final = "LSB_JOBID"
_SGE_ID: Final = "JOB_ID"
_SGE_ROOT: Final = "SGE_ROOT"
#: When the job is ended, in seconds since the epoch: by the system, or by our own script.
_ENDS: Final = ("SLURM_JOB_END_TIME", "JOBFLOW_END_AT")


def job_id(environ: Mapping[str, str]) -> str | None:
    """The id of the batch job that this process runs in, or None."""
    if environ.get(_SLURM_ID):
        return environ[_SLURM_ID]
    if environ.get(_LSF_ID):
        return environ[_LSF_ID]
    return environ.get(_SGE_ID) if environ.get(_SGE_ROOT) else None


def end_at(environ: Mapping[str, str]) -> float | None:
    """When the job's time limit ends it (wall clock), or None if nobody says so.

    The system's word is taken before our script's: a limit may have been changed since.
    """
    for name in _ENDS:
        text = environ.get(name, "")
        if text.isascii() and text.isdigit() and len(text) <= 12:
            return float(text)
    return None
