"""Chooses and prepares the Python that the Makefile works with, and checks the compilers: python .ci/env.py

The interpreter that runs this file is the one the user chose. What it becomes is written to build/python, a small
launcher that every make target uses:

* it has all that is needed: itself;
* it has torch >= 2.11 but lacks something: .venv on top of it (its torch is kept), with what is missing;
* it has no torch: .venv with the tested set of .ci/requirements.txt, torch first and alone.

OFFLINE=1 never downloads. Every refusal is one line that says what to do. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from urllib.request import urlopen

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
VENV_PYTHON = VENV / "bin" / "python"
RECORD = VENV / "dlops-env.json"  # marks a .venv as made here, for which interpreter, and what it went without
TORCH_MINIMUM = (2, 11)
GCC_MINIMUM = 11
PYTHON = "{}.{}".format(*sys.version_info)
OFFLINE = bool(os.environ.get("OFFLINE"))  # never download: make do with what the interpreter has
ESSENTIAL = {"cmake", "ninja", "pybind11", "setuptools", "wheel", "numpy", "pytest"}


def stop(message: str) -> None:
    sys.exit(f"dlops: {message}")


def say(message: str) -> None:
    print(f"dlops: {message}", flush=True)


# ---------------------------------------------------------------------------------------------------------- compilers


def output(*command: str) -> str:
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    except OSError:
        return ""
    return done.stdout if done.returncode == 0 else ""


def check_compiler() -> None:
    compiler = os.environ.get("CXX") or "g++"
    words = shlex.split(compiler)
    if not output(*words, "--version"):
        stop(f"no C++ compiler '{compiler}': install g++ >= {GCC_MINIMUM} (apt install g++) or name yours: CXX=...")
    if "__clang__" in output(*words, "-dM", "-E", "-x", "c++", os.devnull):
        return
    version = output(*words, "-dumpversion").strip()
    if not version or int(version.split(".")[0]) < GCC_MINIMUM:
        stop(f"'{compiler}' is version {version}, too old: install g++ >= {GCC_MINIMUM} and name it: make CXX=g++-12")


# -------------------------------------------------------------------------------------------------------- environment


def installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> dict[str, str]:
    """name -> requirement for this Python, in the file's order."""
    chosen = {}
    newer = sys.version_info >= (3, 11)
    for line in (ROOT / ".ci" / "requirements.txt").read_text().splitlines():
        requirement, _, marker = line.partition("#")[0].partition(";")
        if requirement.strip() and (not marker or (">=" in marker) == newer):
            chosen[requirement.partition("==")[0].strip()] = requirement.strip()
    return chosen


def pip(*arguments: str, show: bool = True) -> tuple[bool, str]:
    """Installs into .venv; returns success and, where it was not shown, what pip said."""
    command = [str(VENV_PYTHON), "-m", "pip", "--disable-pip-version-check", "install"]
    if not sys.stdout.isatty():
        command.append("-q")
    to = None if show else subprocess.PIPE
    done = subprocess.run([*command, *arguments], stdout=to, stderr=to and subprocess.STDOUT, text=True, check=False)
    return done.returncode == 0, done.stdout or ""


def make_venv() -> bool:
    if VENV.exists():
        if not RECORD.is_file():
            stop(f"{VENV} was not created by make: use it (make PYTHON=.venv/bin/python) or remove it")
        shutil.rmtree(VENV)
    say(f"creating .venv for Python {sys.version.split()[0]} ({sys.executable})")
    done = subprocess.run([sys.executable, "-m", "venv", str(VENV)], check=False, capture_output=True)
    if done.returncode:
        shutil.rmtree(VENV, ignore_errors=True)
        return False
    RECORD.write_text("{}")
    return True


def cpu_index() -> list[str]:
    """On a machine without an NVIDIA GPU, PyTorch's own index has a torch that is gigabytes smaller."""
    if os.path.exists("/dev/nvidiactl") or shutil.which("nvidia-smi"):
        return []
    index = "https://download.pytorch.org/whl/cpu"
    try:
        urlopen(f"{index}/torch/", timeout=10).close()
    except OSError:
        return []
    return ["--extra-index-url", index]


def install_all(wanted: dict[str, str]) -> None:
    """The whole tested set into a fresh .venv."""
    torch = wanted["torch"]
    if OFFLINE:
        stop(f"{sys.executable} has no torch: use a Python that has torch >= 2.11 (make PYTHON=...)")
    if not make_venv():
        stop("python -m venv failed: install it (apt install python3-venv), or use another Python: make PYTHON=...")
    say(f"installing {torch}, then {len(wanted) - 1} packages (a few minutes)")
    advice = "pip says why above; try again, or use another Python, or one that has torch >= 2.11: make PYTHON=..."
    if not pip(torch, *cpu_index())[0]:
        stop(f"{torch} could not be installed for Python {PYTHON}: {advice}")
    if not pip(torch, *(r for n, r in wanted.items() if n != "torch"))[0]:
        stop(f"the set of .ci/requirements.txt could not be installed for Python {PYTHON}: {advice}")


def install_missing(torch: str, lacking: dict[str, str]) -> list[str]:
    """What is missing into a .venv on top of the chosen interpreter; returns the names that could not be had."""
    if not inside():
        if not make_venv():
            return list(lacking)
        # Not --system-site-packages: below a venv that would skip the chosen interpreter's own packages.
        folders = [path for path in sys.path if path.endswith("-packages")]
        lines = "".join(f"import site; site.addsitedir({folder!r})\n" for folder in folders)
        own = output(str(VENV_PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
        (Path(own) / "dlops-base.pth").write_text(lines)
    constraint = ROOT / "build" / "constraint.txt"
    constraint.write_text(f"torch=={torch}\n")
    options = ["--retries", "1", "--timeout", "10", "-c", str(constraint)]
    say(f"keeping torch {torch}; adding to .venv what is missing: {' '.join(lacking)}")
    done, log = pip(*options, *lacking.values(), show=False)
    if done:
        return []
    if re.search(r"NameResolution|NewConnection|ConnectTimeout|ProxyError|unreachable", log):
        return list(lacking)
    return [name for name, requirement in lacking.items() if not pip(*options, requirement, show=False)[0]]


def inside() -> bool:
    return Path(sys.prefix) == VENV


def prepare() -> tuple[str, list[str]]:
    """The interpreter to use and the names of the packages that it has to go without."""
    wanted = requirements()
    torch = installed("torch")
    lacking = {name: requirement for name, requirement in wanted.items() if not installed(name)}
    if torch:
        if tuple(int(n) for n in re.findall(r"\d+", torch)[:2]) < TORCH_MINIMUM:
            stop(f"torch {torch} of {sys.executable} is too old: upgrade it to >= 2.11, or make PYTHON=...")
        if not lacking:
            return sys.executable, []
    pins = (ROOT / ".ci" / "requirements.txt").read_text()
    key = hashlib.sha256("\n".join([sys.executable, sys.version, str(torch), *lacking, pins]).encode()).hexdigest()
    if RECORD.is_file() and VENV_PYTHON.exists():
        record = json.loads(RECORD.read_text())
        if record.get("key") == key:
            return str(VENV_PYTHON), record["skipped"]
    if torch is None:
        install_all(wanted)
        skipped = []
    else:
        skipped = list(lacking) if OFFLINE else install_missing(torch, lacking)
    # The system's cmake and ninja do where the packages cannot be had.
    skipped = [name for name in skipped if not (name in ("cmake", "ninja") and shutil.which(name))]
    if needed := ", ".join(sorted(ESSENTIAL.intersection(skipped))):
        stop(f"{sys.executable} lacks {needed}, not downloadable here: install it there, or make PYTHON=...")
    if OFFLINE or not RECORD.is_file():
        return sys.executable, skipped
    RECORD.write_text(json.dumps({"key": key, "skipped": skipped}))
    return str(VENV_PYTHON), skipped


def main() -> None:
    (ROOT / "build").mkdir(exist_ok=True)
    check_compiler()
    python, skipped = prepare()
    if skipped:
        say(f"not here, not downloadable; what needs it is skipped: {', '.join(skipped)} (make distclean tries again)")
    folders = dict.fromkeys(str(Path(path).parent) for path in (python, sys.executable))
    launcher = ROOT / "build" / "python"
    text = f'#!/bin/sh\nPATH={shlex.quote(":".join(folders))}:"$PATH" exec {shlex.quote(python)} "$@"\n'
    if not launcher.is_file() or launcher.read_text() != text:
        launcher.write_text(text)
        launcher.chmod(0o755)


if __name__ == "__main__":
    main()
