"""Naming, finding and loading a program; what its author sees."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import jobflow_worker
from jobflow_worker import TaskDefinition, TaskProgram, current_attempt, generate_task_id
from jobflow_worker.program import (
    CurrentAttempt,
    ProgramError,
    ProgramRef,
    describe,
    load_program,
    make_program,
    program_hash,
    resolve_program,
    set_current_attempt,
)

PROGRAM = """
    from jobflow_worker import TaskProgram

    class {name}(TaskProgram):
        def generate_tasks(self):
            return []

        def execute_task(self, spec, progress_cb):
            return {{"seen": spec}}
"""


@pytest.fixture(autouse=True)
def clean_imports() -> Iterator[None]:
    """Each test imports afresh, and leaves the interpreter as it was."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if not name.startswith("jobflow_worker"):
            del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def fault(reference: str, cwd: Path) -> ProgramError:
    with pytest.raises(ProgramError) as caught:
        load_program(resolve_program(reference, cwd))
    assert "\n" not in caught.value.sentence
    return caught.value


# --- the author's API ---------------------------------------------------------------------------


def test_the_published_names() -> None:
    assert set(jobflow_worker.__all__) == {
        "NonRetryable",
        "ProgressCallback",
        "TaskDefinition",
        "TaskProgram",
        "__version__",
        "current_attempt",
        "generate_task_id",
    }


def test_importing_the_package_is_light() -> None:
    code = (
        "import sys, jobflow_worker;"
        "print([m for m in ('zmq', 'psutil', 'msgpack', 'asyncio', 'multiprocessing',"
        " 'subprocess', 'ssl', 'sqlite3') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_a_program_keeps_its_args_and_has_a_name() -> None:
    class Mine(TaskProgram):
        def generate_tasks(self) -> list[TaskDefinition]:
            return []

        def execute_task(self, spec: object, progress_cb: object) -> dict[str, object]:
            return {}

    assert Mine(program_args={"a": 1}).program_args == {"a": 1}
    assert Mine().program_args == {}
    assert Mine.name() == "Mine"


def test_defaults_of_a_definition() -> None:
    one = TaskDefinition("a", {"x": 1})
    assert (one.max_retries, one.priority, one.timeout_s) == (2, 0, None)
    assert (one.time_request_s, one.memory_limit_bytes) == (None, None)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"task_id": ""}, ValueError),
        ({"task_id": "x" * 256}, ValueError),
        ({"task_id": "a\nb"}, ValueError),
        ({"task_id": "a\udc80"}, ValueError),
        ({"task_id": 7}, TypeError),
        ({"spec": [1]}, TypeError),
        ({"max_retries": -1}, ValueError),
        ({"max_retries": 1.5}, TypeError),
        ({"max_retries": True}, TypeError),
        ({"priority": "high"}, TypeError),
        ({"timeout_s": 0}, ValueError),
        ({"timeout_s": float("nan")}, ValueError),
        ({"timeout_s": "5"}, TypeError),
        ({"time_request_s": -1}, ValueError),
        ({"memory_limit_bytes": 0}, ValueError),
    ],
)
def test_a_definition_refuses_what_cannot_be_meant(
    change: dict[str, object], error: type[Exception]
) -> None:
    values: dict[str, object] = {"task_id": "a", "spec": {}, **change}
    with pytest.raises(error, match=next(iter(change))):
        TaskDefinition(**values)  # type: ignore[arg-type]


class Whole:
    """A whole number that is no int, as numpy has them."""

    def __index__(self) -> int:
        return 3


def test_a_definition_takes_other_kinds_of_whole_numbers() -> None:
    one = TaskDefinition("a", {}, max_retries=Whole(), timeout_s=5)  # type: ignore[arg-type]
    assert (type(one.max_retries), one.max_retries) == (int, 3)
    assert (type(one.timeout_s), one.timeout_s) == (float, 5.0)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(json_values)
def test_task_ids_are_short_and_stable(value: object) -> None:
    one = generate_task_id(value)
    assert one == generate_task_id(json.loads(json.dumps(value)))
    assert len(one) == 16
    assert set(one) <= set("0123456789abcdef")


def test_task_ids_do_not_change_between_versions() -> None:
    assert generate_task_id("case_001.npy") == "1d227a9f7c8e02c8"
    assert generate_task_id({"b": 2, "a": 1}) == generate_task_id({"a": 1, "b": 2})
    assert generate_task_id(Path("a")) == generate_task_id("a")
    assert generate_task_id("1") != generate_task_id(1)
    with pytest.raises(TypeError):
        generate_task_id(object())


def test_there_is_no_attempt_outside_of_a_task(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="execute_task"):
        current_attempt()
    made: list[Path] = []

    def make() -> Path:
        made.append(tmp_path)
        return tmp_path

    set_current_attempt(CurrentAttempt("t", 2, "w-0", make, lambda: None))
    try:
        one = current_attempt()
        assert (one.task_id, one.attempt, one.worker_id) == ("t", 2, "w-0")
        assert one.seconds_left is None
        assert not one.scratch_made
        assert one.scratch == one.scratch == tmp_path
        assert made == [tmp_path]
    finally:
        set_current_attempt(None)


# --- three ways to name a program ---------------------------------------------------------------


def test_a_file_with_one_class(tmp_path: Path) -> None:
    write(tmp_path / "prog.py", PROGRAM.format(name="One"))
    ref = resolve_program("prog.py", tmp_path)
    path = str(tmp_path / "prog.py")
    assert ref == ProgramRef("file", path, "", "", str(tmp_path), str(tmp_path))
    assert describe(ref) == path
    assert load_program(ref).name() == "One"


def test_a_file_and_a_class(tmp_path: Path) -> None:
    write(tmp_path / "sub/prog.py", PROGRAM.format(name="One") + PROGRAM.format(name="Two"))
    ref = resolve_program("sub/prog.py:Two", tmp_path)
    assert (ref.folder, ref.cwd) == (str(tmp_path / "sub"), str(tmp_path))
    assert describe(ref) == f"{tmp_path}/sub/prog.py:Two"
    assert load_program(ref).name() == "Two"
    assert resolve_program(f"{tmp_path}/sub/prog.py:Two", Path("/")).path == ref.path


def test_a_module_and_a_class(tmp_path: Path) -> None:
    write(tmp_path / "jf_pkg/__init__.py", "ran = True\n")
    write(tmp_path / "jf_pkg/mod.py", PROGRAM.format(name="Deep"))
    ref = resolve_program("jf_pkg.mod:Deep", tmp_path)
    assert ref.kind == "module"
    assert ref.path == str(tmp_path / "jf_pkg/mod.py")
    assert ref.folder == ref.cwd == str(tmp_path)
    assert "jf_pkg" not in sys.modules, "finding a program runs nothing of it"
    assert load_program(ref).name() == "Deep"
    assert sys.path[-1] == str(tmp_path)


def test_a_package_itself_and_a_namespace_package(tmp_path: Path) -> None:
    write(tmp_path / "jf_pack/__init__.py", PROGRAM.format(name="Top"))
    write(tmp_path / "jf_space/mod.py", PROGRAM.format(name="Inside"))
    assert load_program(resolve_program("jf_pack:Top", tmp_path)).name() == "Top"
    assert load_program(resolve_program("jf_space.mod:Inside", tmp_path)).name() == "Inside"
    assert fault("jf_space:Inside", tmp_path).exit_code == 66


@pytest.mark.parametrize(
    "name", ["my prog.py", "prøgram ünï.py", "1-2.3.py", "a:b.py", "with'quote\".py", "json.py"]
)
def test_odd_file_names(tmp_path: Path, name: str) -> None:
    write(tmp_path / "odd folder" / name, PROGRAM.format(name="Odd"))
    assert load_program(resolve_program(f"odd folder/{name}:Odd", tmp_path)).name() == "Odd"
    assert load_program(resolve_program(f"odd folder/{name}", tmp_path)).name() == "Odd"


def test_a_file_is_found_by_name_without_a_suffix(tmp_path: Path) -> None:
    write(tmp_path / "tool", PROGRAM.format(name="Tool"))
    assert load_program(resolve_program("tool:Tool", tmp_path)).name() == "Tool"


# --- what loading does --------------------------------------------------------------------------


def test_siblings_import_and_share_the_module(tmp_path: Path) -> None:
    write(tmp_path / "jf_sibling.py", "VALUE = 7\n\ndef owner():\n    import jf_main\n"
          "    return jf_main.Mine\n")  # fmt: skip
    write(
        tmp_path / "jf_main.py",
        "import jf_sibling\n" + textwrap.dedent(PROGRAM.format(name="Mine")),
    )
    program = load_program(resolve_program("jf_main.py", tmp_path))
    assert program.__module__ == "jf_main"
    assert sys.modules["jf_sibling"].owner() is program
    assert load_program(resolve_program("jf_main.py:Mine", tmp_path)) is program


def test_a_program_named_like_an_installed_module_shadows_nothing(tmp_path: Path) -> None:
    for name in ("msgpack.py", "colorsys.py"):
        write(tmp_path / name, PROGRAM.format(name="Clash"))
        program = load_program(resolve_program(name, tmp_path))
        assert program.__module__ == f"_jobflow_program_{name[:-3]}"
    import colorsys

    import msgpack

    assert hasattr(msgpack, "packb")
    assert hasattr(colorsys, "rgb_to_hsv")


def test_imported_and_abstract_classes_do_not_count(tmp_path: Path) -> None:
    write(tmp_path / "jf_base.py", PROGRAM.format(name="Base"))
    write(
        tmp_path / "jf_use.py",
        """
        from jf_base import Base
        from jobflow_worker import TaskProgram

        class Half(TaskProgram):
            def generate_tasks(self):
                return []

        class Whole(Half):
            def execute_task(self, spec, progress_cb):
                return None

        Alias = Whole
        """,
    )
    assert load_program(resolve_program("jf_use.py", tmp_path)).name() == "Whole"


def test_dataclasses_and_pickle_work_in_a_program(tmp_path: Path) -> None:
    import pickle

    text = "from dataclasses import dataclass\n@dataclass\nclass Item:\n    x: int\n"
    write(tmp_path / "jf_pick.py", text + textwrap.dedent(PROGRAM.format(name="P")))
    load_program(resolve_program("jf_pick.py", tmp_path))
    item = sys.modules["jf_pick"].Item(3)
    assert pickle.loads(pickle.dumps(item)) == item  # noqa: S301


def test_a_program_of_the_original_system(tmp_path: Path) -> None:
    write(
        tmp_path / "jf_original.py",
        """
        from __future__ import annotations
        from pathlib import Path
        from jobflow_worker import ProgressCallback, TaskDefinition, TaskProgram, generate_task_id

        class Convert(TaskProgram):
            def __init__(self, *, program_args: dict | None = None) -> None:
                super().__init__(program_args=program_args)
                self.root = Path(self.program_args["input_dir"])

            def generate_tasks(self):
                for i in range(2):
                    spec = {"path": str(self.root / f"{i}.npy")}
                    yield TaskDefinition(
                        task_id=generate_task_id(spec["path"]), spec=spec, max_retries=1
                    )

            def execute_task(self, spec: dict, progress_cb: ProgressCallback) -> dict:
                progress_cb(0.5, {"stage": "half"})
                return {"out": spec["path"] + ".npz"}
        """,
    )
    program = make_program(
        load_program(resolve_program("jf_original.py", tmp_path)), {"input_dir": "/in"}
    )
    tasks = list(program.generate_tasks())
    assert [one.spec["path"] for one in tasks] == ["/in/0.npy", "/in/1.npy"]
    told: list[object] = []
    result = program.execute_task(tasks[0].spec, lambda *said: told.append(said))
    assert result == {"out": "/in/0.npy.npz"}
    assert told == [(0.5, {"stage": "half"})]


# --- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "reference",
    ["none.py", "none.py:A", "/no/where.py", "jf_nowhere.mod:A", "sys:A", "", "  ", "a b:C", ":A",
     "sub/", "x\0.py"],
)  # fmt: skip
def test_what_is_not_there_is_66(tmp_path: Path, reference: str) -> None:
    (tmp_path / "sub").mkdir()
    assert fault(reference, tmp_path).exit_code == 66


def test_several_classes_are_named(tmp_path: Path) -> None:
    write(tmp_path / "two.py", PROGRAM.format(name="One") + PROGRAM.format(name="Two"))
    error = fault("two.py", tmp_path)
    assert error.exit_code == 65
    assert "One, Two" in error.sentence
    assert "two.py:One" in error.sentence


@pytest.mark.parametrize(
    ("text", "reference", "words"),
    [
        ("x = 1\n", "jf_e.py", "defines no TaskProgram"),
        ("class A: pass\n", "jf_e.py:A", "is not a TaskProgram"),
        ("A = 3\n", "jf_e.py:A", "is not a TaskProgram"),
        (PROGRAM.format(name="Real"), "jf_e.py:Reel", "It defines: Real"),
        ("def f(:\n", "jf_e.py", "SyntaxError"),
        ("import jf_not_installed\n", "jf_e.py", "jf_not_installed"),
        ("raise ValueError('bad\\nthing')\n", "jf_e.py", "ValueError: bad thing"),
        ("import sys; sys.exit(3)\n", "jf_e.py", "SystemExit: 3"),
        (
            "from jobflow_worker import TaskProgram\nclass A(TaskProgram): pass\n",
            "jf_e.py",
            "does not define execute_task and generate_tasks",
        ),
    ],
)
def test_a_faulty_program_is_65(tmp_path: Path, text: str, reference: str, words: str) -> None:
    write(tmp_path / "jf_e.py", text)
    error = fault(reference, tmp_path)
    assert error.exit_code == 65
    assert words in error.sentence
    assert str(error) == error.sentence


def test_the_traceback_of_a_faulty_program_starts_in_it(tmp_path: Path) -> None:
    write(tmp_path / "jf_deep.py", "def inner():\n    return 1 / 0\n\ninner()\n")
    detail = fault("jf_deep.py", tmp_path).detail
    assert "ZeroDivisionError" in detail
    assert "in inner" in detail
    assert "importlib" not in detail
    assert "program.py" not in detail


def test_a_module_whose_own_import_fails_is_65(tmp_path: Path) -> None:
    write(tmp_path / "jf_m.py", "import jf_missing_dependency\n")
    assert fault("jf_m:A", tmp_path).exit_code == 65


def test_a_module_that_vanished_is_66(tmp_path: Path) -> None:
    path = write(tmp_path / "jf_gone.py", PROGRAM.format(name="A"))
    for reference in ("jf_gone:A", "jf_gone.py:A"):
        path.touch()
        ref = resolve_program(reference, tmp_path)
        path.unlink()
        with pytest.raises(ProgramError) as caught:
            load_program(ref)
        assert caught.value.exit_code == 66
        with pytest.raises(ProgramError) as caught:
            program_hash(ref)
        assert caught.value.exit_code == 66


def test_a_constructor_that_fails(tmp_path: Path) -> None:
    write(
        tmp_path / "jf_init.py",
        PROGRAM.format(name="A") + "\n        def __init__(self, *, program_args=None):\n"
        "            raise KeyError(program_args['need'])\n",
    )
    program = load_program(resolve_program("jf_init.py", tmp_path))
    with pytest.raises(ProgramError, match="A cannot be made: KeyError") as caught:
        make_program(program, {})
    assert caught.value.exit_code == 65
    assert "jf_init.py" in caught.value.detail


# --- identity -----------------------------------------------------------------------------------


def test_the_hash_is_of_the_text(tmp_path: Path) -> None:
    path = write(tmp_path / "prog.py", PROGRAM.format(name="A"))
    ref = resolve_program("prog.py", tmp_path)
    first = program_hash(ref)
    assert len(first) == 64
    assert program_hash(resolve_program("prog:A", tmp_path)) == first
    path.write_text(path.read_text() + "#\n")
    assert program_hash(ref) != first


def test_a_reference_survives_json(tmp_path: Path) -> None:
    write(tmp_path / "prog.py", PROGRAM.format(name="A"))
    ref = resolve_program("prog.py:A", tmp_path)
    assert ProgramRef.from_json(json.loads(json.dumps(ref.to_json()))) == ref


@pytest.mark.parametrize("change", [{"kind": "url"}, {"path": "rel.py"}, {"cwd": None}])
def test_a_broken_reference_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    good = ProgramRef("file", "/a.py", "", "", "/", "/").to_json()
    with pytest.raises(ValueError, match="program reference"):
        ProgramRef.from_json({**good, **change})
    with pytest.raises(ValueError, match="program reference"):
        ProgramRef.from_json(None)
