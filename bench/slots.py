"""Cost of a no-op attempt in one slot: agent's and child's CPU, and wall time.

Run: python bench/slots.py [ATTEMPTS [AHEAD]]
"""

from __future__ import annotations

import os
import resource
import select
import sys
import tempfile
import time
from pathlib import Path

from jobflow_worker.codec import encode_body
from jobflow_worker.messages import Assignment
from jobflow_worker.program import resolve_program
from jobflow_worker.slotevents import Settled, SlotReady
from jobflow_worker.slots import ChildSetup, Slot

_PROGRAM = """
from jobflow_worker import TaskProgram

class Noop(TaskProgram):
    def generate_tasks(self):
        return []

    def execute_task(self, spec, progress_cb):
        return {}
"""


def _child_cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    attempts = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    ahead = int(sys.argv[2]) if len(sys.argv) > 2 else 64
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        (here / "noop.py").write_text(_PROGRAM)
        ref = resolve_program("noop.py", here)
        slot = Slot(0, ChildSetup(ref, {}, here, here, here, "bench-0000000000000000"))
        slot.start()
        spec = encode_body({"number": 1})
        todo = [Assignment(f"task-{n}", 1, spec, None, None) for n in range(attempts)]
        poller = select.poll()
        poller.register(slot.fileno(), select.POLLIN)
        done = fed = 0
        started = cpu = child_cpu = 0.0
        while done < attempts:
            poller.poll(1000)
            for event in slot.drain():
                if isinstance(event, SlotReady):
                    started = time.perf_counter()
                    cpu = _agent_cpu_s()
                    child_cpu = _child_cpu_s(slot.pid or 0)
                elif isinstance(event, Settled):
                    done += 1
            if started and fed - done <= ahead // 2:
                batch = todo[fed : fed + ahead - (fed - done)]
                slot.feed(batch)
                fed += len(batch)
        wall = time.perf_counter() - started
        agent = (_agent_cpu_s() - cpu) / attempts * 1e6
        child = (_child_cpu_s(slot.pid or 0) - child_cpu) / attempts * 1e6
        slot.close(1.0)
    print(
        f"{attempts} no-op attempts, {ahead} ahead: {attempts / wall:.0f}/s;"
        f" agent {agent:.1f} us, child {child:.1f} us, wall {wall / attempts * 1e6:.1f} us each"
    )


def _agent_cpu_s() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
