"""Open every output of the demo again and compare it with its input.

    python -m examples.verify_outputs demo

What "equal" means here:

    .npz   the same shape, dtype with byte order, and bytes
    .mla   the same dtype with byte order; exactly the spacing, origin and direction that medvol
           reads from the input; and, by what nibabel alone reads from it: every voxel's bytes at
           the place in the body where the input has them, to within PLACE_TOLERANCE_MM

Each function returns sentences, one for each difference; an empty list is the good result.
mlarray keeps what it knows about a volume as a pickle inside the .mla file: open only files that
you or people you trust have written.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import nibabel
import numpy as np
from medvol import MedVol
from mlarray import MLArray

#: medvol rounds what lies within 1e-6 of a shorter number (2.199999 mm becomes 2.2 mm). Over the
#: 128 voxels of the widest volume here, that moves a voxel by up to 0.00015 mm.
PLACE_TOLERANCE_MM = 0.0005


def verify_npz(input_dir: Path, output_dir: Path) -> list[str]:
    """Compare every .npy file below `input_dir` with its .npz file below `output_dir`."""
    pairs = {
        output_dir / source.relative_to(input_dir).with_suffix(".npz"): source
        for source in input_dir.rglob("*.npy")
    }
    problems = stray_files(output_dir, set(pairs))
    for target, source in sorted(pairs.items()):
        problems += [f"{target}: {text}" for text in compare_npz(source, target)]
    return problems


def verify_mla(json_path: Path, data_storage: Path, output_dir: Path) -> list[str]:
    """Compare every listed volume with its .mla file below `output_dir`."""
    listed = [
        PurePosixPath(entry["data_storage_filepath"])
        for entry in json.loads(json_path.read_text(encoding="utf-8"))
    ]
    pairs = {
        output_dir / path.parent / (path.name.partition(".nii")[0] + ".mla"): data_storage / path
        for path in listed
    }
    problems = stray_files(output_dir, set(pairs))
    for target, source in sorted(pairs.items()):
        problems += [f"{target}: {text}" for text in compare_mla(source, target)]
    return problems


def stray_files(output_dir: Path, expected: set[Path]) -> list[str]:
    """Files that should not be there, such as temporary ones that were left behind."""
    found = {path for path in output_dir.rglob("*") if path.is_file()}
    return [f"{path}: nothing should have written this" for path in sorted(found - expected)]


def compare_npz(source: Path, target: Path) -> Iterator[str]:
    """The differences between an array and its compressed copy."""
    if not target.is_file():
        yield "is missing"
        return
    with np.load(target) as archive:
        if archive.files != ["array"]:
            yield f"holds {archive.files} instead of one array"
            return
        yield from compare_arrays(np.load(source), archive["array"])


def compare_mla(source: Path, target: Path) -> Iterator[str]:
    """The differences between a volume and its .mla file."""
    if not target.is_file():
        yield "is missing"
        return
    image, volume = MLArray(target), MedVol(source)
    for name in ("spacing", "origin", "direction"):
        written, read = getattr(image, name), getattr(volume, name).tolist()
        if written != read:
            yield f"{name} is {written}, the input has {read}"
    if image.meta.spatial.coord_system != "RAS+":
        yield f"coordinate system is {image.meta.spatial.coord_system}, not RAS+"
    yield from compare_places(nibabel.load(source), image.to_numpy(), np.asarray(image.affine))


def compare_places(
    reference: Any, voxels: np.ndarray[Any, Any], affine: np.ndarray[Any, Any]
) -> Iterator[str]:
    """Differences in what stands where in the body, whatever the order of the axes in the file.

    `affine` leads from indices to millimetres, for each axis of `voxels`, time included.
    """
    # Time stands between the spatial axes and the origin.
    spatial = np.vstack([affine[:3, [0, 1, 2, -1]], [0, 0, 0, 1]])
    # From an index in the output to the index of the same place in the input: an exchange of axes
    # and flips, nothing else. A flipped axis of the input counts from its end.
    turn = np.round(np.linalg.solve(reference.affine, spatial))[:3, :3]
    if not np.array_equal(turn @ turn.T, np.eye(3)):
        yield f"the axes do not run along those of the input: {affine.tolist()}"
        return
    to_input = np.eye(4)
    to_input[:3, :3] = turn
    to_input[:3, 3] = (turn.sum(axis=1) < 0) * (np.asarray(reference.shape[:3]) - 1)

    corners = np.array(list(itertools.product(*((0, size - 1) for size in voxels.shape[:3]), [1])))
    moved = np.abs((spatial - reference.affine @ to_input) @ corners.T).max()
    if moved > PLACE_TOLERANCE_MM:
        yield f"voxels are up to {moved:.6f} mm away from their place"

    axes = [int(axis) for axis in np.abs(turn).argmax(axis=0)]
    expected = np.asanyarray(reference.dataobj).transpose(*axes, *range(3, reference.ndim))
    flipped = tuple(axis for axis in range(3) if turn[axes[axis], axis] < 0)
    yield from compare_arrays(np.flip(expected, flipped), voxels)

    if voxels.ndim == 4 and affine[3, 3] != float(reference.header.get_zooms()[3]):
        yield f"the fourth axis has steps of {affine[3, 3]}"


def compare_arrays(expected: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> Iterator[str]:
    """Differences in shape, dtype or any bit: one NaN equals another only if its bits do."""
    if (expected.shape, expected.dtype) != (found.shape, found.dtype):
        yield (
            f"shape and dtype are {found.shape} {found.dtype.str}, "
            f"the input has {expected.shape} {expected.dtype.str}"
        )
    elif expected.tobytes() != found.tobytes():
        yield "the values differ from the input"


def main() -> int:
    """Verify the outputs below the directory given on the command line."""
    if len(sys.argv) != 2:
        print("usage: python -m examples.verify_outputs DEMO_DIRECTORY", file=sys.stderr)
        return 2
    root = Path(sys.argv[1])
    problems = verify_npz(root / "arrays", root / "npz")
    problems += verify_mla(root / "id_storage_paths.json", root / "data_storage", root / "mla")
    for problem in problems:
        print(problem)
    print("differences:", len(problems))
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
