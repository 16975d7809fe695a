"""The commands of the benchmarks that the pages and the modules themselves name can be run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
#: Not those that need a word more, which is written in capitals.
_NAMED = re.compile(r"python (-m bench(?:\.[a-z_]+)?|bench/[a-z_]+\.py)(?![\w.]| [A-Z])")


def named() -> list[str]:
    """Each way to start a benchmark that is written somewhere."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("bench/*.py")]
    return sorted({one for page in pages for one in _NAMED.findall(page.read_text())})


@pytest.mark.parametrize("command", named())
def test_a_command_that_is_named_starts(command: str) -> None:
    words = [sys.executable, *command.split(), "--help"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: ")


def test_pages_and_modules_name_some() -> None:
    assert {"-m bench.compare", "bench/compare.py", "bench/curve.py"} <= set(named())
