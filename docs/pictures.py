"""Makes the picture of the README from a real run: `python docs/pictures.py`.

Starts a daemon with local workers in a directory of its own, looks at it with the full-screen view
until there is something to see, and writes what is on the screen as docs/images/dashboard.svg.
Prints the status of that moment, for the README too.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jobflowctl.client import choose_session
from jobflowctl.watch.app import Dashboard
from jobflowctl.watch.source import LiveSource

HERE = Path(__file__).resolve().parent
SIZE = (104, 30)
#: Scans that convert in some seconds; a few are broken, one is slow.
PROGRAM = """
import random
import time

from jobflow_worker import NonRetryable, TaskDefinition, TaskProgram


class Convert(TaskProgram):
    def generate_tasks(self):
        return [TaskDefinition(f"scan-{n:04}", {"n": n}) for n in range(400)]

    def execute_task(self, spec, progress_cb):
        n = spec["n"]
        if n % 16 == 5:
            raise NonRetryable(f"scan {n} has no header")
        if n % 40 == 12:
            raise ValueError(f"cannot read '/data/scans/scan-{n:04}.nii': truncated")
        seconds = random.Random(n).uniform(0.8, 3.0)
        for step in range(10):
            time.sleep(seconds / 10)
            progress_cb((step + 1) / 10)
        return {"voxels": n * 1000}
"""


def main() -> None:
    """Run, look, write."""
    with tempfile.TemporaryDirectory(prefix="jf-picture-") as folder:
        program = Path(folder, "convert.py")
        program.write_text(PROGRAM)
        os.environ["JOBFLOW_STATE_DIR"] = str(Path(folder, "state"))
        os.environ["XDG_RUNTIME_DIR"] = folder
        start = ["--program", str(program), "--workers", "8", "--heartbeat-interval", "1s"]
        jobflowd = [sys.executable, "-m", "jobflowd", "start", *start, "--detach"]
        subprocess.run(jobflowd, check=True, cwd=folder)
        try:
            svg = asyncio.run(look())
            status = [sys.executable, "-m", "jobflowctl", "status"]
            subprocess.run(status, check=True, cwd=folder)
        finally:
            stop = ["-m", "jobflowctl", "-s", "convert", "shutdown", "--now", "--yes", "--wait"]
            subprocess.run([sys.executable, *stop], check=True, cwd=folder)
    (HERE / "images").mkdir(exist_ok=True)
    (HERE / "images" / "dashboard.svg").write_text(svg)


async def look() -> str:
    """The picture, once a third of the work is done."""
    app = Dashboard(LiveSource(choose_session("convert")), interval_s=0.5)
    async with app.run_test(size=SIZE) as pilot:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline:
            tasks = app.model.body.get("tasks") or {}
            if int(tasks.get("succeeded") or 0) >= 130 and app.model.groups:
                break
            await pilot.pause(0.2)
        svg = app.export_screenshot(title="jobflowctl watch")
    # Without fonts from elsewhere: a page must not ask other sites for them.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")


if __name__ == "__main__":
    main()
