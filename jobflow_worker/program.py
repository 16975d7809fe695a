"""How a program is named, found, loaded and made; `author.py` is what the program itself sees.

Rules
-----
* `resolve_program` runs no code of the user; it is for the daemon. `load_program` and
  `make_program` do, so they are for processes that may die of it: the generator child and the
  slots' children.
* Every fault of a program is a `ProgramError` with a sentence and an exit code of SPEC.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
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
from jobflow_worker.record import Record, as_dict

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

_NOT_FOUND: Final = 66
_FAULTY: Final = 65
#: Frames of ours, cut off the head of a traceback before a user sees it.
_OUR_FRAMES: Final = (
    __name__,
    "importlib",
    "importlib._bootstrap",
    "importlib._bootstrap_external",
)


class ProgramError(Exception):
    """A program that cannot be used. `sentence` is for people, `detail` a traceback or ""."""

    def __init__(self, sentence: str, exit_code: int, detail: str = "") -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.exit_code = exit_code
        self.detail = detail


class ProgramRef(Record):
    """Where a program is, found once by the daemon and used by every process after it.

    `kind` is "file" or "module"; `path` the absolute file; `module` the dotted name or "";
    `class_name` may be "" for the only one in the file; `folder` is appended last to `sys.path`;
    `cwd` is the directory in which the start was typed.
    """

    kind: str
    path: str
    module: str
    class_name: str
    folder: str
    cwd: str

    def to_json(self) -> dict[str, str]:
        """A plain dict for JSON files."""
        return as_dict(self)

    @classmethod
    def from_json(cls, value: Any) -> ProgramRef:
        """The inverse of `to_json`; raises ValueError for anything else."""
        names = cls.__match_args__
        if not isinstance(value, Mapping) or any(type(value.get(n)) is not str for n in names):
            raise ValueError(f"a program reference needs the texts {', '.join(names)}")
        if value["kind"] not in ("file", "module") or not os.path.isabs(value["path"]):
            raise ValueError("a program reference needs a kind and an absolute path")
        return cls(**{name: value[name] for name in names})


def describe(ref: ProgramRef) -> str:
    """As shown to people: `path:Class`, or the path while the class is not known."""
    return f"{ref.path}:{ref.class_name}" if ref.class_name else ref.path


def program_hash(ref: ProgramRef) -> str:
    """sha256 of the program's text, as hex. Raises ProgramError if it cannot be read."""
    import hashlib

    try:
        return hashlib.sha256(Path(ref.path).read_bytes()).hexdigest()
    except OSError as error:
        raise ProgramError(
            f"The program file {ref.path} cannot be read: {error.strerror}.", _NOT_FOUND
        ) from None


def resolve_program(reference: str, cwd: Path) -> ProgramRef:
    """Find the program that a user named, without running it.

    `reference` is `pkg.mod:Class`, `file.py:Class`, or `file.py`; relative paths start at `cwd`.
    Raises ProgramError, with exit code 66 if there is no such file or module.
    """
    start = os.path.abspath(cwd)
    place, colon, name = reference.rpartition(":")
    has_class = bool(colon and place) and all(part.isidentifier() for part in name.split("."))
    if has_class and not os.path.isfile(os.path.join(start, reference)):
        class_name = name
    else:
        place, class_name = reference, ""
    if not place.strip() or "\0" in place:
        raise ProgramError(
            "The program has no name; write file.py:Class or package.module:Class.", _NOT_FOUND
        )
    path = os.path.abspath(os.path.join(start, os.path.expanduser(place)))
    looks_like_file = place.endswith(".py") or os.sep in place or os.path.isfile(path)
    if looks_like_file:
        return _resolve_file(path, class_name, start)
    return _resolve_module(place, class_name, start)


def _resolve_file(path: str, class_name: str, start: str) -> ProgramRef:
    if not os.path.isfile(path):
        what = "is a directory" if os.path.isdir(path) else "does not exist"
        raise ProgramError(
            f"The program file {path} {what}; name a Python file, as in file.py:Class"
            " (relative paths start where the command was typed).",
            _NOT_FOUND,
        )
    return ProgramRef("file", path, "", class_name, os.path.dirname(path), start)


def _resolve_module(module: str, class_name: str, start: str) -> ProgramRef:
    if not all(part.isidentifier() for part in module.split(".")):
        raise ProgramError(
            f"There is no program file {os.path.join(start, module)}, and {module!r} is not a"
            " module name; write file.py:Class or package.module:Class.",
            _NOT_FOUND,
        )
    origin = _find_module(module, start)
    if origin is None or not os.path.isfile(origin):
        raise ProgramError(
            f"There is no module {module!r} with a file of its own, neither installed for"
            f" {sys.executable} nor in {start}.",
            _NOT_FOUND,
        )
    return ProgramRef("module", os.path.abspath(origin), module, class_name, start, start)


def _find_module(module: str, last: str) -> str | None:
    """The file of a module, found part by part, because `find_spec` would import its parents."""
    from importlib import invalidate_caches
    from importlib.machinery import PathFinder

    invalidate_caches()  # A file may have been written since this directory was last read.
    places: Iterable[str] | None = None
    origin: str | None = None
    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        name = ".".join(parts[:count])
        spec = _ask_finders(name, places)
        if spec is None and count == 1:
            spec = PathFinder.find_spec(name, [last])
        if spec is None:
            return None
        origin = spec.origin if spec.has_location else None
        places = spec.submodule_search_locations
        if places is None and count < len(parts):
            return None
    return origin


def _ask_finders(name: str, places: Iterable[str] | None) -> Any:
    """What an import would find, editable installs included; '' is never looked at."""
    from importlib.machinery import PathFinder

    path = [one for one in sys.path if one] if places is None else list(places)
    for finder in sys.meta_path:
        if finder is PathFinder:
            spec = PathFinder.find_spec(name, path)
        elif hasattr(finder, "find_spec"):
            spec = finder.find_spec(name, None if places is None else path)
        else:
            continue
        if spec is not None:
            return spec
    return None


# --- loading a program ------------------------------------------------------------------------


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
    return ProgramError(f"{what}: {type(error).__name__}: {text:.500}", _FAULTY, detail)


def _import_module(ref: ProgramRef) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(ref.module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if ref.module == missing or ref.module.startswith(missing + "."):
            raise ProgramError(f"There is no module {missing!r} here.", _NOT_FOUND) from None
        raise _as_program_error(f"{ref.path} cannot be imported", error) from None
    except BaseException as error:
        raise _as_program_error(f"{ref.path} cannot be imported", error) from None


def _import_file(path: str) -> ModuleType:
    from importlib.machinery import SourceFileLoader
    from importlib.util import module_from_spec, spec_from_file_location

    if not os.path.isfile(path):
        raise ProgramError(f"The program file {path} does not exist on this host.", _NOT_FOUND)
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
    spec = _ask_finders(stem, None)
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
            raise ProgramError(f"{ref.path} has no {ref.class_name!r}.{_offer(module)}", _FAULTY)
    else:
        found = _only_class(module, ref)
    if not (isinstance(found, type) and issubclass(found, TaskProgram)):
        raise ProgramError(
            f"{describe(ref)} is not a TaskProgram: derive it from jobflow_worker.TaskProgram."
            f"{_offer(module)}",
            _FAULTY,
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise ProgramError(
            f"{ref.path}:{found.__name__} does not define {' and '.join(missing)}.", _FAULTY
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
            _FAULTY,
        )
    names = [one.__name__ for one in concrete or defined]
    raise ProgramError(
        f"{ref.path} defines several TaskPrograms: {', '.join(names)}; say which one,"
        f" as in {os.path.basename(ref.path)}:{names[0]}.",
        _FAULTY,
    )
