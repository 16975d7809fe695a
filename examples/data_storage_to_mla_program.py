r"""Convert the medical volumes of a data storage into .mla files.

Program arguments:

    json_path          a JSON file: a list of objects, each with "data_storage_filepath", a path
                       below data_storage_base such as "site1/scan7.nii.gz"
    data_storage_base  the directory that those paths are relative to
    output_dir         where the .mla files go; the tree below it mirrors the storage
    max_images         take only the first N entries of the list; all of them if not given

Start it:

    jobflowd start --program examples/data_storage_to_mla_program.py --workers 4 --program-args \
        '{"json_path": "/data/ids.json", "data_storage_base": "/data", "output_dir": "/data/mla"}'

`medvol` reads the volume (NIfTI or NRRD) and turns its axes towards right, anterior, superior;
`mlarray` stores the voxels with spacing, origin and direction. Both are imported at the top on
purpose: where one is missing, the start fails with one clear error, rather than every task later.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from medvol import MedVol
from mlarray import MLArray

from jobflow_worker import ProgressCallback, TaskDefinition, TaskProgram, generate_task_id

#: The labels that mlarray's own converter gives. A fourth axis may be time or anything else, so
#: four axes stay without.
AXIS_LABELS = {2: ["spatial_x", "spatial_y"], 3: ["spatial_x", "spatial_y", "spatial_z"]}


class DataStorageToMlaProgram(TaskProgram):
    """One task for each volume of the list."""

    def generate_tasks(self) -> list[TaskDefinition]:
        """Read the list; its order is the order of the tasks."""
        base = Path(self._text("data_storage_base")).expanduser().absolute()
        output_dir = Path(self._text("output_dir")).expanduser().absolute()
        if not base.is_dir():
            raise NotADirectoryError(f"data_storage_base is not a directory: {base}")

        tasks: dict[Path, TaskDefinition] = {}
        # A path that is listed twice is one task.
        for relative in dict.fromkeys(self._listed_paths()):
            target = output_dir / relative.with_name(stem(relative) + ".mla")
            if target in tasks:
                raise ValueError(f"two volumes of the list would write {target}")
            spec = {"source": str(base / relative), "target": str(target)}
            task_id = generate_task_id(relative.as_posix())
            tasks[target] = TaskDefinition(task_id=task_id, spec=spec)
        return list(tasks.values())

    def execute_task(self, spec: dict[str, Any], progress_cb: ProgressCallback) -> dict[str, Any]:
        """Convert one volume."""
        source, target = Path(spec["source"]), Path(spec["target"])
        # Only complete files get this name, see `write_mla`.
        if target.is_file():
            return {"output": str(target), "skipped": True}

        volume = MedVol(source)
        progress_cb(0.5, {"step": "compress"})
        write_mla(target, volume)
        progress_cb(1.0)
        return {
            "output": str(target),
            "skipped": False,
            "shape": list(volume.array.shape),
            "spacing": volume.spacing.tolist(),
            "dtype": str(volume.array.dtype),
        }

    def _listed_paths(self) -> Iterator[PurePosixPath]:
        json_path = Path(self._text("json_path")).expanduser()
        entries = json.loads(json_path.read_text(encoding="utf-8"))
        if not isinstance(entries, list):
            raise ValueError(f"{json_path} must hold a JSON list, not {type(entries).__name__}")
        for number, entry in enumerate(entries[: self._max_images()]):
            value = entry.get("data_storage_filepath") if isinstance(entry, dict) else None
            if not isinstance(value, str) or not value:
                raise ValueError(f"entry {number} of {json_path} has no data_storage_filepath")
            relative = PurePosixPath(value)
            # The list is data from elsewhere: it must not choose files outside the two trees.
            if relative.is_absolute() or ".." in relative.parts or not relative.name:
                raise ValueError(
                    f"entry {number} of {json_path} leaves data_storage_base: {value!r}; "
                    "give a path relative to it, without '..'"
                )
            yield relative

    def _max_images(self) -> int | None:
        value = self.program_args.get("max_images")
        if value is None or (type(value) is int and value >= 0):
            return value
        raise ValueError(f"max_images must be a number of images, 0 or more, not {value!r}")

    def _text(self, name: str) -> str:
        value = self.program_args.get(name)
        if not isinstance(value, str) or not value:
            raise ValueError(
                f'the program argument {name} is missing: --program-args \'{{"{name}": "/path"}}\''
            )
        return value


def stem(path: PurePosixPath) -> str:
    """The file name without its suffix, where .nii.gz is one suffix."""
    return path.name.removesuffix(".gz").rpartition(".")[0] or path.name


def write_mla(target: Path, volume: MedVol) -> None:
    """Write the volume so that `target` is either absent or complete, even after a power cut."""
    image = MLArray(
        volume.array,
        spacing=volume.spacing,
        origin=volume.origin,
        direction=volume.direction,
        axis_labels=AXIS_LABELS.get(volume.ndims),
    )
    # medvol gives millimetres to the right, to the front and up, in whatever order the axes are.
    # `volume.coordinate_system` tells that order, which is another thing, unless it is None: then
    # the file does not say where the patient is.
    if volume.coordinate_system is not None:
        image.meta.spatial.coord_system = "RAS+"

    target.parent.mkdir(parents=True, exist_ok=True)
    # mlarray insists on its suffix; the dot in front hides the unfinished file from a `*.mla`.
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex}.mla")
    try:
        image.save(temporary)
        sync(temporary)
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
    # The rename itself is on disk only when the directory is.
    sync(target.parent)


def sync(path: Path) -> None:
    """Return when the file or directory is on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
