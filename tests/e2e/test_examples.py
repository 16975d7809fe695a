"""Both example programs on real MRI volumes: by themselves, through the daemon, and as the demo."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

if not os.environ.get("JOBFLOW_REQUIRE_ALL"):
    pytest.importorskip("medvol")
    pytest.importorskip("mlarray")
import nibabel
import numpy as np

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow
needs_daemon = pytest.mark.skipif(
    importlib.util.find_spec("jobflowd.daemon") is None, reason="needs jobflowd.daemon"
)


def load(name: str) -> ModuleType:
    """An example's module, by its file, as `--program` takes it."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


demo_data, verify = load("demo_data"), load("verify_outputs")
npz_module, mla_module = load("npy_to_npz_program"), load("data_storage_to_mla_program")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return demo_data.make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture
def npz_args(inputs: Any, tmp_path: Path) -> dict[str, Any]:
    return {"input_dir": str(inputs.arrays), "output_dir": str(tmp_path / "npz")}


@pytest.fixture
def mla_args(inputs: Any, tmp_path: Path) -> dict[str, Any]:
    return {
        "json_path": str(inputs.json_path),
        "data_storage_base": str(inputs.data_storage),
        "output_dir": str(tmp_path / "mla"),
    }


def npz_program(args: dict[str, Any]) -> Any:
    return npz_module.NpyToNpzProgram(program_args=args)


def mla_program(args: dict[str, Any]) -> Any:
    return mla_module.DataStorageToMlaProgram(program_args=args)


def execute_all(program: Any) -> list[dict[str, Any]]:
    fractions: list[float] = []

    def progress_cb(fraction: float, info: dict[str, Any] | None = None) -> None:
        fractions.append(fraction)

    results = [program.execute_task(task.spec, progress_cb) for task in program.generate_tasks()]
    done = sum(not result["skipped"] for result in results)
    assert fractions == [0.5, 1.0] * done
    json.dumps(results)
    return results


def listing(directory: Path) -> dict[Path, tuple[int, int]]:
    files = [path for path in directory.rglob("*") if path.is_file()]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}


# --- the programs by themselves ---


def test_the_input_is_as_rich_as_promised(inputs: Any) -> None:
    assert inputs.volume_count == 49
    assert inputs.array_count > 300
    dtypes = {np.load(path).dtype.str for path in inputs.arrays.rglob("*.npy")}
    assert dtypes >= {"|u1", "<i2", ">i2", ">f4", "<f8"}


def test_npz_outputs_equal_their_inputs_and_a_second_run_skips(
    inputs: Any, npz_args: dict[str, Any], tmp_path: Path
) -> None:
    first = execute_all(npz_program(npz_args))
    assert [result["skipped"] for result in first] == [False] * inputs.array_count
    assert verify.verify_npz(inputs.arrays, tmp_path / "npz") == []

    before = listing(tmp_path / "npz")
    second = execute_all(npz_program(npz_args))
    assert [result["skipped"] for result in second] == [True] * inputs.array_count
    assert listing(tmp_path / "npz") == before


def test_mla_outputs_equal_their_inputs_and_a_second_run_skips(
    inputs: Any, mla_args: dict[str, Any], tmp_path: Path
) -> None:
    first = execute_all(mla_program(mla_args))
    assert [result["skipped"] for result in first] == [False] * inputs.volume_count
    assert verify.verify_mla(inputs.json_path, inputs.data_storage, tmp_path / "mla") == []

    before = listing(tmp_path / "mla")
    second = execute_all(mla_program(mla_args))
    assert [result["skipped"] for result in second] == [True] * inputs.volume_count
    assert listing(tmp_path / "mla") == before


def test_tasks_are_sorted_and_the_same_each_time(
    npz_args: dict[str, Any], mla_args: dict[str, Any]
) -> None:
    for program in (npz_program(npz_args), mla_program(mla_args)):
        tasks = program.generate_tasks()
        assert tasks == program.generate_tasks()
        assert len({task.task_id for task in tasks}) == len(tasks)
    sources = [Path(task.spec["source"]) for task in npz_program(npz_args).generate_tasks()]
    assert sources == sorted(sources)


def test_npz_glob_chooses_and_finds_at_every_depth(tmp_path: Path) -> None:
    for name in ("a.npy", "deep/er/b.npy", "deep/other.npy", "deep/note.txt"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            np.save(file, np.arange(3))
    args = {"input_dir": str(tmp_path / "in"), "output_dir": str(tmp_path / "out")}
    execute_all(npz_program({**args, "glob": "?.npy"}))
    outputs = tmp_path / "out"
    found = sorted(path.relative_to(outputs).as_posix() for path in listing(outputs))
    assert found == ["a.npz", "deep/er/b.npz"]


def test_npz_that_was_cut_off_is_made_again(npz_args: dict[str, Any], inputs: Any) -> None:
    program = npz_program(npz_args)
    task = program.generate_tasks()[0]
    target = Path(task.spec["target"])
    program.execute_task(task.spec, lambda *_: None)
    target.write_bytes(target.read_bytes()[:-30])
    assert program.execute_task(task.spec, lambda *_: None)["skipped"] is False
    assert list(verify.compare_npz(Path(task.spec["source"]), target)) == []


@pytest.mark.parametrize("make", [npz_program, mla_program])
def test_a_failed_write_leaves_nothing(
    make: Callable[[dict[str, Any]], Any],
    npz_args: dict[str, Any],
    mla_args: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def disk_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    program = make(npz_args | mla_args | {"output_dir": str(tmp_path / "out")})
    task = program.generate_tasks()[0]
    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", disk_full)
        with pytest.raises(OSError, match="No space left"):
            program.execute_task(task.spec, lambda *_: None)
    assert listing(tmp_path / "out") == {}
    assert program.execute_task(task.spec, lambda *_: None)["skipped"] is False


def test_mla_takes_the_first_max_images(inputs: Any, mla_args: dict[str, Any]) -> None:
    everything = mla_program(mla_args).generate_tasks()
    assert mla_program({**mla_args, "max_images": 5}).generate_tasks() == everything[:5]
    assert mla_program({**mla_args, "max_images": 50000}).generate_tasks() == everything
    assert mla_program({**mla_args, "max_images": 0}).generate_tasks() == []
    for wrong in (-1, "5", True, 2.5):
        with pytest.raises(ValueError, match="max_images must be"):
            mla_program({**mla_args, "max_images": wrong}).generate_tasks()


@pytest.mark.parametrize("path", ["../x.nii", "a/../../x.nii", "/etc/passwd", ".", "a/.."])
def test_mla_refuses_paths_outside_the_storage(
    path: str, mla_args: dict[str, Any], tmp_path: Path
) -> None:
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps([{"data_storage_filepath": path}]))
    with pytest.raises(ValueError, match=r"entry 0 .* leaves data_storage_base"):
        mla_program({**mla_args, "json_path": str(listed)}).generate_tasks()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "must hold a JSON list, not dict"),
        ([{"data_storage_filepath": "a.nii"}, {}], "entry 1 .* has no data_storage_filepath"),
        (["a.nii"], "entry 0 .* has no data_storage_filepath"),
        (
            [{"data_storage_filepath": "a.nii"}, {"data_storage_filepath": "a.nii.gz"}],
            "two volumes of the list would write .*a.mla",
        ),
    ],
)
def test_mla_explains_a_wrong_list(
    content: Any, message: str, mla_args: dict[str, Any], tmp_path: Path
) -> None:
    listed = tmp_path / "list.json"
    listed.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        mla_program({**mla_args, "json_path": str(listed)}).generate_tasks()


def test_missing_arguments_and_directories_are_named(
    npz_args: dict[str, Any], mla_args: dict[str, Any]
) -> None:
    for make, args in ((npz_program, npz_args), (mla_program, mla_args)):
        for name in args:
            rest = {key: value for key, value in args.items() if key != name}
            with pytest.raises(ValueError, match=f"the program argument {name} is missing"):
                make(rest).generate_tasks()
    with pytest.raises(NotADirectoryError, match="input_dir is not a directory: /nowhere"):
        npz_program({**npz_args, "input_dir": "/nowhere"}).generate_tasks()
    with pytest.raises(NotADirectoryError, match="data_storage_base is not a directory"):
        mla_program({**mla_args, "data_storage_base": "/nowhere"}).generate_tasks()


def axis_orders() -> list[str]:
    orders = itertools.permutations([("R", "L"), ("A", "P"), ("S", "I")])
    return ["".join(codes) for order in orders for codes in itertools.product(*order)]


@pytest.mark.parametrize("name", ["anatomical.nii", "example4d.nii.gz"])
def test_mla_keeps_every_voxel_in_its_place_for_all_48_axis_orders(
    name: str, tmp_path: Path
) -> None:
    image = nibabel.load(demo_data.source_file(name)).slicer[::5, ::5, ::3]
    for order in axis_orders():
        source, target = tmp_path / f"{order}.nii", tmp_path / f"{order}.mla"
        nibabel.save(demo_data.turned(image, order), source)
        mla_program({}).execute_task(
            {"source": str(source), "target": str(target)}, lambda *_: None
        )
        assert list(verify.compare_mla(source, target)) == [], order


# --- the verification notices what is wrong ---


def test_verification_notices_each_kind_of_damage_to_a_volume(tmp_path: Path) -> None:
    source, target = demo_data.source_file("example4d.nii.gz"), tmp_path / "x.mla"
    volume = mla_module.MedVol(source)

    def damaged(**changes: Any) -> list[str]:
        parts = {name: getattr(volume, name) for name in ("spacing", "origin", "direction")}
        parts |= {"array": volume.array, "world": "RAS+"} | changes
        world = parts.pop("world")
        image = mla_module.MLArray(parts.pop("array"), **parts)
        image.meta.spatial.coord_system = world
        image.save(target)
        return list(verify.compare_mla(source, target))

    one_voxel = volume.array.copy()
    one_voxel[60, 50, 12, 1] += 1
    assert damaged() == []
    assert damaged(array=one_voxel) == ["the values differ from the input"]
    assert damaged(array=np.flip(volume.array, 0)) == ["the values differ from the input"]
    assert "shape and dtype" in damaged(array=volume.array.astype("i4"))[0]
    assert "spacing is" in damaged(spacing=volume.spacing * [1, 1, 1.001, 1])[0]
    # One voxel to the right: the affine that nibabel reads tells it, too.
    shifted = damaged(origin=volume.origin + np.array([2, 0, 0, 0]))
    assert "origin is" in shifted[0]
    assert "2.000" in shifted[1]
    assert "direction is" in damaged(direction=np.eye(4))[0]
    assert damaged(world="LPS+") == ["coordinate system is LPS+, not RAS+"]


def test_verification_notices_each_kind_of_damage_to_an_array(tmp_path: Path) -> None:
    arrays, outputs = tmp_path / "arrays", tmp_path / "npz"
    arrays.mkdir()
    np.save(arrays / "a.npy", np.array([1.0, np.nan]))
    assert verify.verify_npz(arrays, outputs) == [f"{outputs / 'a.npz'}: is missing"]

    execute_all(npz_program({"input_dir": str(arrays), "output_dir": str(outputs)}))
    assert verify.verify_npz(arrays, outputs) == []
    np.savez(outputs / "a.npz", array=np.array([1.0, -np.nan]))
    assert "the values differ" in verify.verify_npz(arrays, outputs)[0]
    np.savez(outputs / "a.npz", other=np.array([1.0]))
    assert "instead of one array" in verify.verify_npz(arrays, outputs)[0]
    (outputs / ".a.npz.1.tmp").touch()
    assert "nothing should have written this" in verify.verify_npz(arrays, outputs)[0]


# --- through the daemon ---


@needs_daemon
@pytest.mark.parametrize("mode", ["zmq", "fs", "auto"])
def test_npz_through_the_daemon_in_every_mode(
    mode: str, inputs: Any, npz_args: dict[str, Any], no_processes_left: None, cli: Any
) -> None:
    program = str(ROOT / "examples" / "npy_to_npz_program.py")
    command = ("start", "--program", program, "--program-args", json.dumps(npz_args))
    command += ("--session-id", "t1", "--workers", "2", "--mode", mode)
    cli.run("jobflowd", *command)
    outputs = Path(npz_args["output_dir"])
    assert verify.verify_npz(inputs.arrays, outputs) == []

    before = listing(outputs)
    again = cli.run("jobflowd", *command)
    assert "already complete" in again.stdout + again.stderr
    assert listing(outputs) == before


@needs_daemon
def test_mla_through_the_daemon(
    inputs: Any, mla_args: dict[str, Any], no_processes_left: None, cli: Any
) -> None:
    program = str(ROOT / "examples" / "data_storage_to_mla_program.py")
    command = ("--program", f"{program}:DataStorageToMlaProgram", "--workers", "2")
    cli.run("jobflowd", "start", *command, "--program-args", json.dumps(mla_args))
    outputs = Path(mla_args["output_dir"])
    assert verify.verify_mla(inputs.json_path, inputs.data_storage, outputs) == []


@needs_daemon
def test_a_volume_that_cannot_be_read_fails_alone(
    inputs: Any, mla_args: dict[str, Any], tmp_path: Path, no_processes_left: None, cli: Any
) -> None:
    listed = json.loads(inputs.json_path.read_text())[:3]
    broken = [*listed, {"data_storage_filepath": "not/there.nii"}]
    (tmp_path / "list.json").write_text(json.dumps(broken))
    args = json.dumps({**mla_args, "json_path": str(tmp_path / "list.json")})
    program = str(ROOT / "examples" / "data_storage_to_mla_program.py")
    cli.run("jobflowd", "start", "-P", program, "-A", args, "--workers", "2", code=3)
    assert len(listing(Path(mla_args["output_dir"]))) == 3


@needs_daemon
def test_the_demo(session_env: dict[str, str], tmp_path: Path, no_processes_left: None) -> None:
    demo = [sys.executable, "-m", "examples.demo", "--directory", str(tmp_path / "demo")]
    for _ in range(2):
        result = subprocess.run(
            demo,
            check=False,
            cwd=ROOT,
            env=session_env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert result.returncode == 0, result.stdout + result.stderr
        assert "All outputs are there and equal to their inputs" in result.stdout
