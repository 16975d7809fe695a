"""How a program is named and found; `program.py` loads it.

Rules
-----
* Nothing here runs code of the user: it is for the daemon and the agent, which may not die of it.
* Every fault of a program is a `ProgramError` with a sentence and an exit code of SPEC.md.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from jobflow_worker.record import Record, as_dict

#: Exit codes of SPEC.md.
NOT_FOUND: Final = 66
FAULTY: Final = 65


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
            f"The program file {ref.path} cannot be read: {error.strerror}.", NOT_FOUND
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
            "The program has no name; write file.py:Class or package.module:Class.", NOT_FOUND
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
            NOT_FOUND,
        )
    return ProgramRef("file", path, "", class_name, os.path.dirname(path), start)


def _resolve_module(module: str, class_name: str, start: str) -> ProgramRef:
    if not all(part.isidentifier() for part in module.split(".")):
        raise ProgramError(
            f"There is no program file {os.path.join(start, module)}, and {module!r} is not a"
            " module name; write file.py:Class or package.module:Class.",
            NOT_FOUND,
        )
    origin = _find_module(module, start)
    if origin is None or not os.path.isfile(origin):
        raise ProgramError(
            f"There is no module {module!r} with a file of its own, neither installed for"
            f" {sys.executable} nor in {start}.",
            NOT_FOUND,
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
        spec = ask_finders(name, places)
        if spec is None and count == 1:
            spec = PathFinder.find_spec(name, [last])
        if spec is None:
            return None
        origin = spec.origin if spec.has_location else None
        places = spec.submodule_search_locations
        if places is None and count < len(parts):
            return None
    return origin


def ask_finders(name: str, places: Iterable[str] | None) -> Any:
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
