"""How a program is loaded and made; `author.py` is what the program itself sees.

Rules
-----
* Everything here runs code of the user, so it is for processes that may die of it: the generator
  child and the slots' children. What does not is `programref.py`'s, whose names are here, too.
* Every fault of a program is a `ProgramError` with a sentence and an exit code of SPEC.md.
"""

from __future__ import annotations

import os
import sys
from types import ModuleType
from typing import Any, Final

from jobflow_worker.author import (
    CurrentAttempt,
    NonRetryable,
    ProgressCallback,
    TaskDefinition,
    TaskProgram,
    current_attempt,
    generate_task_id,
    set_current_attempt,
)
from jobflow_worker.programref import (
    FAULTY,
    NOT_FOUND,
    ProgramError,
    ProgramRef,
    ask_finders,
    describe,
    program_hash,
    resolve_program,
)

__all__ = [
    "CurrentAttempt",
    "NonRetryable",
    "ProgramError",
    "ProgramRef",
    "ProgressCallback",
    "TaskDefinition",
    "TaskProgram",
    "current_attempt",
    "describe",
    "generate_task_id",
    "load_program",
    "make_program",
    "program_hash",
    "resolve_program",
    "set_current_attempt",
]

#: Frames of ours, cut off the head of a traceback before a user sees it.
_OUR_FRAMES: Final = (
    __name__,
    "importlib",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
)


def load_program(ref: ProgramRef) -> type[TaskProgram]:
    """Import the program and return its class. Runs the user's code.

    Appends `ref.folder` to `sys.path`, so that sibling modules import and never shadow installed
    ones. Raises ProgramError: 66 if it is not there, 65 for everything else.
    """
    import importlib

    if ref.folder not in sys.path:
        sys.path.append(ref.folder)
    importlib.invalidate_caches()
    module = _import_file(ref.path) if ref.kind == "file" else _import_module(ref)
    return _pick_class(module, ref)


def make_program(program: type[TaskProgram], args: dict[str, Any]) -> TaskProgram:
    """The one instance of this process. Raises ProgramError (65) with the traceback."""
    try:
        return program(program_args=args)
    except BaseException as error:
        raise _as_program_error(f"{program.__name__} cannot be made", error) from None


def _as_program_error(what: str, error: BaseException) -> ProgramError:
    """The user's error in one line, and its traceback without our own frames."""
    import traceback

    frame = error.__traceback__
    while frame and frame.tb_frame.f_globals.get("__name__") in _OUR_FRAMES:
        frame = frame.tb_next
    try:
        detail = "".join(traceback.format_exception(type(error), error, frame))
        text = " ".join(str(error).split())
    except BaseException:  # A hostile __str__ must not hide that loading failed.
        detail, text = "", "(its text cannot be shown)"
    return ProgramError(f"{what}: {type(error).__name__}: {text:.500}", FAULTY, detail)


def _import_module(ref: ProgramRef) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(ref.module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if ref.module == missing or ref.module.startswith(missing + "."):
            raise ProgramError(f"There is no module {missing!r} here.", NOT_FOUND) from None
        raise _as_program_error(f"{ref.path} cannot be imported", error) from None
    except BaseException as error:
        raise _as_program_error(f"{ref.path} cannot be imported", error) from None


def _import_file(path: str) -> ModuleType:
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_file_location

    if not os.path.isfile(path):
        raise ProgramError(f"The program file {path} does not exist on this host.", NOT_FOUND)
    name = _module_name(path)
    known = sys.modules.get(name)
    if known is not None and _same_file(getattr(known, "__file__", None), path):
        return known
    spec = spec_from_file_location(name, path, loader=SourceFileLoader(name, path))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    # Before it runs, as an import does: dataclasses and pickle look the module up by its name.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        sys.modules.pop(name, None)
        raise _as_program_error(f"{path} cannot be imported", error) from None
    return module


def _module_name(path: str) -> str:
    """The stem, as siblings and pickle expect; a private name where the stem means another."""
    stem, suffix = os.path.splitext(os.path.basename(path))
    private = "_jobflow_program_" + "".join(c if c.isalnum() else "_" for c in stem)
    if "." in stem or suffix != ".py" or stem == "__main__":
        return private
    if stem in sys.modules:
        ours = _same_file(getattr(sys.modules[stem], "__file__", None), path)
        return stem if ours else private
    spec = ask_finders(stem, None)
    return stem if spec is None or _same_file(spec.origin, path) else private


def _same_file(one: str | None, other: str) -> bool:
    try:
        return one is not None and os.path.samefile(one, other)
    except OSError:
        return False


def _pick_class(module: ModuleType, ref: ProgramRef) -> type[TaskProgram]:
    if ref.class_name:
        found: Any = module
        for part in ref.class_name.split("."):
            found = getattr(found, part, None)
        if found is None:
            raise ProgramError(f"{ref.path} has no {ref.class_name!r}.{_offer(module)}", FAULTY)
    else:
        found = _only_class(module, ref)
    if not (isinstance(found, type) and issubclass(found, TaskProgram)):
        raise ProgramError(
            f"{describe(ref)} is not a TaskProgram: derive it from jobflow_worker.TaskProgram."
            f"{_offer(module)}",
            FAULTY,
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ProgramError(
            f"{ref.path}:{found.__name__} does not define {' and '.join(missing)}.", FAULTY
        )
    return found


def _defined(module: ModuleType) -> list[type[TaskProgram]]:
    """The TaskPrograms written in this very module, each once."""
    classes = (value for value in vars(module).values() if isinstance(value, type))
    ours = (one for one in classes if issubclass(one, TaskProgram))
    return list(dict.fromkeys(one for one in ours if one.__module__ == module.__name__))


def _offer(module: ModuleType) -> str:
    names = [one.__name__ for one in _defined(module)]
    return f" It defines: {', '.join(names)}." if names else ""


def _only_class(module: ModuleType, ref: ProgramRef) -> type[TaskProgram]:
    defined = _defined(module)
    concrete = [one for one in defined if not getattr(one, "__abstractmethods__", ())]
    if len(concrete) == 1:
        return concrete[0]
    if len(defined) == 1:
        return defined[0]
    if not defined:
        raise ProgramError(
            f"{ref.path} defines no TaskProgram; write a class that derives from"
            " jobflow_worker.TaskProgram.",
            FAULTY,
        )
    names = [one.__name__ for one in concrete or defined]
    raise ProgramError(
        f"{ref.path} defines several TaskPrograms: {', '.join(names)}; say which one,"
        f" as in {os.path.basename(ref.path)}:{names[0]}.",
        FAULTY,
    )
