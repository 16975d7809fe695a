"""The session that is attacked: real processes, borrowed from the end-to-end tests.

Not a conftest.py: other tests import from one by that name, and there can be only one.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The session of real processes is the end-to-end tests'; it is not written twice.
sys.path.append(str(Path(__file__).parent.parent / "e2e"))
from e2e_world import World, is_alive, kill

__all__ = ["World", "is_alive", "kill"]
