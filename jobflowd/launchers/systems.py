"""The batch systems by the word of `--launcher`, and which settings are whose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from jobflowd.launchers.base import Launcher
from jobflowd.launchers.lsf import Lsf
from jobflowd.launchers.sge import Sge
from jobflowd.launchers.slurm import Slurm

#: One line makes a further system known; its settings are in `flags.py`, with its name in front.
SYSTEMS: Final[Mapping[str, Callable[[], Launcher]]] = {"slurm": Slurm, "lsf": Lsf, "sge": Sge}
