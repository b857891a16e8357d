"""Kernels with a bug planted in them: a changed copy of ``csrc/``, compiled for the simt runner, in a module of its own.

For checkouts that were built (``make build``). Of the runner's module only the files that contain the change are compiled
again, by the build's own commands; the other objects are shared, so a bug costs seconds::

    edit = Edit("csrc/cuda/reduce.h", "  __syncthreads();  // the last use of scratch is over\\n", "")
    path = plant("reuse", [edit])
    in_child(lambda: check_with(load(path)), timeout=60)
"""

from __future__ import annotations

import faulthandler
import json
import os
import pickle
import select
import shlex
import shutil
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Edit:
    """One change of one file: ``old``, which the file must contain exactly ``count`` times, becomes ``new``."""

    file: str  # from the root of the checkout: "csrc/cuda/reduce.h"
    old: str
    new: str
    count: int = 1

    def apply(self, text: str) -> str:
        found = text.count(self.old)
        if found != self.count:
            raise ValueError(f"{self.file} contains {self.old!r} {found} times, expected {self.count}")
        return text.replace(self.old, self.new)

    def line(self) -> int:
        """Where it is in the file as it stands, from 1."""
        text = (ROOT / self.file).read_text()
        self.apply(text)
        return text[: text.index(self.old) + len(self.old) - len(self.old.lstrip())].count("\n") + 1


class Crashed(RuntimeError):
    """The child process died, or had to be killed."""


def build_tree(root: Path | None = None, flavour: str = "") -> Path:
    """The build folder of this Python in a checkout."""
    root = root or ROOT
    tree = root / "build" / f"cmake-cp{sys.version_info.major}{sys.version_info.minor}{flavour}"
    if not (root / "csrc").is_dir() or not (tree / "compile_commands.json").is_file():
        raise RuntimeError(
            "dlops.study.planting compiles changed copies of the kernels: it works in a checkout, after `make build`; "
            f"there is no {tree}"
        )
    return tree


@lru_cache
def _database(tree: Path, changed: float) -> dict[str, dict[str, str]]:
    """compile_commands.json by object, as the build names it. `changed`: when the tree was configured."""
    rows = json.loads((tree / "compile_commands.json").read_text())
    return {os.path.relpath(tree / row["output"], tree): row for row in rows}


def ninja(tree: Path, *arguments: str) -> str:
    """What the build tool that configured the tree says."""
    cache = (tree / "CMakeCache.txt").read_text()
    ninja = next(line.partition("=")[2] for line in cache.splitlines() if line.startswith("CMAKE_MAKE_PROGRAM:"))
    return subprocess.run([ninja, "-C", str(tree), *arguments], check=True, capture_output=True, text=True).stdout


@lru_cache
def _link_command(tree: Path, target: str, changed: float) -> tuple[str, ...]:
    module = f" -o {target}{EXTENSION_SUFFIXES[0]} "
    parts = [part.strip() for line in ninja(tree, "-t", "commands", target).splitlines() for part in line.split(" && ")]
    return tuple(shlex.split(next(part for part in parts if module in part)))


def _dependents(tree: Path, files: set[Path]) -> set[str]:
    """The objects, as the build names them, that were compiled from any of these files."""
    found: set[str] = set()
    current = ""
    for line in ninja(tree, "-t", "deps").splitlines():
        if line and not line.startswith(" "):
            current = line.partition(": #deps")[0]
        elif line.strip() and (tree / line.strip()).resolve() in files:
            found.add(current)
    return found


def _compile(entry: dict[str, str], copy: Path, out: Path, flags: Sequence[str]) -> list[str]:
    """The build's command for one object, for the same file in the copy. Messages still name csrc/..."""
    source = Path(entry["file"])
    command = shlex.split(entry["command"])
    kept, skip = [], False
    for word in command:
        if skip or word in ("-o", "-MF", "-MT", "-MQ"):
            skip = not skip
        elif word != "-MD":
            kept.append(str(copy / source.relative_to(ROOT)) if word == str(source) else word)
    return [*kept, *flags, f"-ffile-prefix-map={copy}/=", "-o", str(out)]


def run(command: Sequence[str], cwd: Path | str) -> None:
    """Runs one command of the build; RuntimeError with all it said where it fails."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            f"the copy does not build (is `make build` up to date?):\n{done.stdout}{done.stderr}\n{shlex.join(command)}"
        )


def plant(
    name: str,
    edits: Iterable[Edit],
    *,
    beside: Iterable[Edit] = (),
    race: bool = True,
    only: Sequence[str] = (),
    flags: Sequence[str] = ("-O1",),
) -> Path:
    """Builds the runner's module with these edits; returns its file, for :func:`load`.

    Args:
        name: of the folder under ``build/planted`` that it is built in.
        edits: the changes.
        beside: further changes, which by themselves have no file compiled again.
        race: of the race build.
        only: compile these files again ("csrc/norm/launch_group.cu"); empty: all that contain a change.
        flags: added to the build's own.

    Raises:
        ValueError: an edit whose text is not there as often as it says.
        RuntimeError: not in a checkout that was built, or the copy does not compile (the message has the compiler's).
    """
    tree = build_tree()
    target = "_simt_race" if race else "_simt"
    configured = (tree / "build.ninja").stat().st_mtime
    link = _link_command(tree, target, configured)
    folder = ROOT / "build" / "planted" / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "csrc", folder / "csrc")
    edits = list(edits)
    changed = {(ROOT / edit.file).resolve() for edit in edits}
    for edit in [*edits, *beside]:
        path = folder / edit.file
        path.write_text(edit.apply(path.read_text()))

    entries = _database(tree, configured)
    if only:
        objects = [word for word in link if word in entries and str(Path(entries[word]["file"]).relative_to(ROOT)) in only]
    else:
        dependents = _dependents(tree, changed)
        objects = [word for word in link if word in entries and word in dependents]
    if not objects:
        raise ValueError(f"{name}: nothing in {target} is compiled from {', '.join(sorted(map(str, changed)))}")
    planted = []
    for i, o in enumerate(objects):
        out = folder / f"{i}.o"
        run(_compile(entries[o], folder, out, flags), entries[o]["directory"])
        planted.append(str(out))

    # The changed objects come first: of an inline function that several objects have, the linker takes the first.
    module = folder / (target + EXTENSION_SUFFIXES[0])
    words = iter(link)
    command: list[str] = []
    for word in words:
        if word == "-o":
            next(words)
            command += ["-o", str(module), *planted]
        elif word not in objects:
            command.append(word)
    run(command, tree)
    return module


def load(path: Path) -> ModuleType:
    """The module in a file, apart from every other of its name: call it in a process that is yours to lose."""
    name = path.name.partition(".")[0]
    loader = ExtensionFileLoader(name, str(path))
    spec = spec_from_file_location(name, path, loader=loader)
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


def in_child(call: Callable[[], Any], timeout: float) -> Any:
    """What ``call()`` returns, which must pickle, in a forked child: it may crash or hang.

    Raises:
        Crashed: the child died, raised, or took more than `timeout` seconds.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        faulthandler.disable()  # a crash is an answer
        os.close(read)
        try:
            answer = (True, call())
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(write, "wb") as pipe:
            pipe.write(pickle.dumps(answer))
        os._exit(0)
    os.close(write)
    data = _read_all(read, timeout)
    if data is None:
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if data is None:
        raise Crashed(f"killed after {timeout:g} s")
    if status or not data:
        raise Crashed(f"exit status {status}" if status >= 0 else f"signal {signal.Signals(-status).name}")
    good, answer = pickle.loads(data)
    if not good:
        raise Crashed(answer)
    return answer


def _read_all(descriptor: int, timeout: float) -> bytes | None:
    """Until the other end closes; None: not in time."""
    end = time.monotonic() + timeout
    data = b""
    with os.fdopen(descriptor, "rb", buffering=0) as pipe:
        while select.select([pipe], [], [], max(0.0, end - time.monotonic()))[0]:
            more = pipe.read(1 << 16)
            if not more:
                return data
            data += more
    return None
