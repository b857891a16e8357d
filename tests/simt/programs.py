"""Builds and runs the runner's own test programs (tests/simt/*.cpp), and plants bugs in the kernels that they run."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import pytest

from dlops.study import planting

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120


SANITIZED = "libasan" in os.environ.get("LD_PRELOAD", "")  # `make asan`: a build tree of its own


@lru_cache(maxsize=1)
def _built() -> Path:
    """The build tree, with every program in it."""
    tree = planting.build_tree(ROOT, "-asan" if SANITIZED else "")
    planting.ninja(tree, "simt_programs")
    return tree


def build(target: str) -> Path:
    """The executable simt_<program>, or simt_<program>_race, of tests/simt/<program>.cpp."""
    if SANITIZED and target.endswith("_race"):
        pytest.skip("the race build cannot be sanitised: both instrument every access")
    return _built() / target


def run(path: Path, *arguments: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Exit code 0: all is right; 1: a result is wrong; 2: a finding."""
    return subprocess.run(
        [path, *arguments], capture_output=True, text=True, timeout=SECONDS, env={**os.environ, **(env or {})}
    )


def plant(name: str, program: str, old: str, new: str) -> Path:
    """The race build of a program, with `old` replaced by `new` in its kernels, which contain it once."""
    tree, target = planting.build_tree(), f"simt_{program}_race"
    folder = ROOT / "build" / "planted" / f"{program}_{name}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "tests/simt", folder / "tests/simt", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    (folder / "csrc").symlink_to(ROOT / "csrc")
    kernels = f"tests/simt/kernels/{program}.cuh"
    (folder / kernels).write_text(planting.Edit(kernels, old, new).apply((ROOT / kernels).read_text()))

    # The build's own commands for this program, with its source taken from the copy.
    commands = [shlex.split(line.strip()) for line in planting.ninja(tree, "-t", "commands", target).splitlines()]
    source = str(ROOT / f"tests/simt/{program}.cpp")
    compile_ = next(c for c in commands if source in c and "-c" in c)
    made = compile_[compile_.index("-o") + 1]
    link = next(c for c in commands if target in c and made in c and "-c" not in c)
    replaced = {
        source: str(folder / f"tests/simt/{program}.cpp"),
        made: str(folder / "program.o"),
        target: str(folder / target),
    }
    for command in (compile_, link):
        if command is compile_:
            command.append(f"-fmacro-prefix-map={folder}/=")  # messages name tests/simt/kernels/...
        planting.run([replaced.get(word, word) for word in command if word not in (":", "&&")], tree)
    return folder / target
