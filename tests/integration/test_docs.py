"""The documentation: made from the code where it can be, complete, and without dead links."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobflow_worker.messages import FAILURE_CAUSES, RETURN_CAUSES

ROOT = Path(__file__).parent.parent.parent
DOCS = ROOT / "docs"


def test_the_reference_is_what_the_code_says() -> None:
    spec = importlib.util.spec_from_file_location("reference", DOCS / "make_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told = "run: python docs/make_reference.py"
    assert (DOCS / "reference.md").read_text() == module.text(), told


def test_every_cause_and_code_is_explained() -> None:
    text = (DOCS / "codes.md").read_text()
    for cause in (*FAILURE_CAUSES, *RETURN_CAUSES):
        assert f"| `{cause}` |" in text
    for code in (0, 1, 2, 3, 4, 5, 65, 66, 69, 70, 74, 75, 77, 78, 124, 130):
        assert f"| {code} |" in text or f"| {code}, " in text


def test_every_page_is_in_the_site() -> None:
    config = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in DOCS.glob("*.md") if page.name not in config] == []


@pytest.mark.slow
def test_the_site_builds_without_a_warning(require: Callable[[str], None], tmp_path: Path) -> None:
    require("mkdocs")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = list((tmp_path / "site").rglob("*.html"))
    assert len(pages) > 8
    for page in pages:
        assert 'src="http' not in page.read_text()
