"""Input for the demo, cut from real MRI volumes that the nibabel package ships.

`make_inputs(root)` writes, the same bytes' worth every time:

    root/data_storage/<volume>/<variant>.nii[.gz]   copies, crops, flips and turned axes
    root/id_storage_paths.json                      the list of them, for the .mla program
    root/arrays/<volume>/<variant>/<name>.npy       slices and blocks of them, for the .npz program

Nothing here is of the project's core; the tests and `examples/demo.py` use it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform

#: 3D and 4D; 8, 16 and 32 bit; both byte orders; straight and oblique axes; plain and gzip. The
#: remaining file of nibabel's, row_major.dconn.nii, is a matrix of connections and no volume.
VOLUMES = (
    "anatomical.nii",
    "example4d.nii.gz",
    "example_nifti2.nii.gz",
    "functional.nii",
    "reoriented_anat_moved.nii",
    "resampled_anat_moved.nii",
    "standard.nii.gz",
)


@dataclass(frozen=True, slots=True)
class DemoInputs:
    """Where the input is and how much of it there is."""

    data_storage: Path
    json_path: Path
    arrays: Path
    volume_count: int
    array_count: int


def make_inputs(root: Path) -> DemoInputs:
    """Write the demo's input below `root`, replacing what is there."""
    data_storage, arrays = root / "data_storage", root / "arrays"
    json_path = root / "id_storage_paths.json"
    for directory in (data_storage, arrays):
        shutil.rmtree(directory, ignore_errors=True)

    listed, array_count = [], 0
    for name in VOLUMES:
        folder = name.partition(".")[0]
        for path in write_variants(source_file(name), data_storage / folder):
            listed.append({"data_storage_filepath": path.relative_to(data_storage).as_posix()})
            array_count += write_arrays(path, arrays / folder / path.name.partition(".")[0])
    json_path.write_text(json.dumps(listed, indent=1), encoding="utf-8")
    return DemoInputs(data_storage, json_path, arrays, len(listed), array_count)


def source_file(name: str) -> Path:
    """A volume inside the installed nibabel package."""
    path = Path(nibabel.__file__).parent / "tests" / "data" / name
    if not path.is_file():
        raise FileNotFoundError(
            f"this installation of nibabel ships no {name}; install it again from its wheel"
        )
    return path


def write_variants(source: Path, folder: Path) -> Iterator[Path]:
    """Write the volume itself and six others made of it, each with its own geometry."""
    folder.mkdir(parents=True, exist_ok=True)
    original = folder / ("original" + "".join(source.suffixes))
    shutil.copyfile(source, original)
    yield original

    image: Any = nibabel.load(source)
    half = [slice(0, max(1, length // 2)) for length in image.shape[:3]]
    rest = [slice(length // 2, None) for length in image.shape[:3]]
    variants = {
        "crop_low": image.slicer[tuple(half)],
        "crop_high": image.slicer[tuple(rest)],
        "every_second": image.slicer[::2, ::2],
        "flipped": image.slicer[::-1, :, ::-1],
        "sagittal": turned(image, "PSR"),
        "swapped": turned(image, "ALS"),
    }
    for name, variant in variants.items():
        path = folder / f"{name}.nii.gz"
        nibabel.save(variant, path)
        yield path


def turned(image: Any, axes: str) -> Any:
    """The same volume with its axes in another order, such as "PSR": posterior, superior, right."""
    change = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(axes)))
    return image.as_reoriented(change)


def write_arrays(volume: Path, folder: Path) -> int:
    """Cut slices and blocks out of a volume; the number of files written."""
    image: Any = nibabel.load(volume)
    voxels = np.asanyarray(image.dataobj)
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    for index in np.unique(np.linspace(0, voxels.shape[2] - 1, 6).astype(int)):
        np.save(folder / f"slice_{index:03d}.npy", voxels[:, :, index])
        count += 1
    for number, start in enumerate((0, voxels.shape[0] // 2)):
        np.save(folder / f"block_{number}.npy", voxels[start : start + 16, :16, :16])
        count += 1
    return count
