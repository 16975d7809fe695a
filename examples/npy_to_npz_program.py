r"""Compress every .npy file below a directory into an .npz file.

Program arguments:

    input_dir    where the .npy files are, at any depth
    output_dir   where the .npz files go; the tree below it mirrors the input
    glob         which names to take, "*.npy" if not given

Start it:

    jobflowd start --program examples/npy_to_npz_program.py --workers 4 \
        --program-args '{"input_dir": "/data/in", "output_dir": "/data/out"}'

The array is stored under the name "array": `np.load("x.npz")["array"]`. Two rules make it safe to
stop and to repeat at any moment, and are worth copying: an output gets its name only when it is
complete and on disk, and a task that finds its output complete does nothing.
"""

from __future__ import annotations

import os
import uuid
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from jobflow_worker import ProgressCallback, TaskDefinition, TaskProgram, generate_task_id


class NpyToNpzProgram(TaskProgram):
    """One task for each .npy file."""

    def generate_tasks(self) -> list[TaskDefinition]:
        """List the inputs in sorted order; runs once, when the daemon starts."""
        input_dir = self._directory("input_dir")
        output_dir = self._directory("output_dir")
        if not input_dir.is_dir():
            raise NotADirectoryError(f"input_dir is not a directory: {input_dir}")

        pattern = self.program_args.get("glob", "*.npy")
        tasks: dict[Path, TaskDefinition] = {}
        for source in sorted(path for path in input_dir.rglob(pattern) if path.is_file()):
            relative = source.relative_to(input_dir)
            target = output_dir / relative.with_suffix(".npz")
            if target in tasks:
                raise ValueError(f"two inputs would write {target}: narrow the glob {pattern!r}")
            # The id comes from the name inside the tree: the same file gets the same id at every
            # start, and a tree that was moved keeps its ids.
            task_id = generate_task_id(relative.as_posix())
            spec = {"source": str(source), "target": str(target)}
            tasks[target] = TaskDefinition(task_id=task_id, spec=spec)
        return list(tasks.values())

    def execute_task(self, spec: dict[str, Any], progress_cb: ProgressCallback) -> dict[str, Any]:
        """Convert one file; runs on a worker, perhaps more than once."""
        source, target = Path(spec["source"]), Path(spec["target"])
        # The index of a zip file is its last part, so a file that was cut off is not a zip file.
        if zipfile.is_zipfile(target):
            return {"output": str(target), "skipped": True}

        array = np.load(source)
        progress_cb(0.5, {"step": "compress"})
        write_npz(target, array)
        progress_cb(1.0)
        return {
            "output": str(target),
            "skipped": False,
            "bytes_in": source.stat().st_size,
            "bytes_out": target.stat().st_size,
        }

    def _directory(self, name: str) -> Path:
        value = self.program_args.get(name)
        if not isinstance(value, str) or not value:
            raise ValueError(
                f'the program argument {name} is missing: --program-args \'{{"{name}": "/path"}}\''
            )
        return Path(value).expanduser().absolute()


def write_npz(target: Path, array: np.ndarray[Any, Any]) -> None:
    """Write the array so that `target` is either absent or complete, even after a power cut."""
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same directory, so that the rename is atomic; with a random part, because an earlier
    # attempt of this task may still be writing on a host that lost its network.
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with temporary.open("xb") as file:
            np.savez_compressed(file, array=array)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself is on disk only when the directory is.
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
