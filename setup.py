"""Builds dlops: asks torch and pybind11 where they are, runs CMake and Ninja, copies the built libraries.

The build itself is described in CMakeLists.txt and nowhere else. Environment: DLOPS_CUDA=off|on|auto,
DLOPS_CUDA_ARCHITECTURES="75;80;90a", DLOPS_SANITIZE=address,undefined, MAX_JOBS.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_ext import build_ext
from setuptools.extension import Extension

ROOT = Path(__file__).parent.resolve()
MINIMUM_TORCH = (2, 11)


def stop(message: str) -> None:
    raise SystemExit(f"dlops: {message}")


def locate() -> dict[str, str]:
    """CMake's variables for torch, pybind11 and this Python."""
    try:
        import torch
        from torch.utils import cpp_extension
    except ImportError:
        stop(f"no torch in {sys.executable}: install torch >= 2.11 first, then use --no-build-isolation")
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < MINIMUM_TORCH:
        stop(f"torch {torch.__version__} is too old: dlops needs torch >= 2.11 (pip install 'torch>=2.11')")
    try:
        import pybind11
    except ImportError:
        stop("pybind11 is missing: pip install pybind11")
    return {
        "DLOPS_TORCH_INCLUDE": ";".join(cpp_extension.include_paths()),
        "DLOPS_TORCH_LIB": str(Path(torch.__file__).parent / "lib"),
        "DLOPS_PYBIND11": pybind11.get_include(),
        "Python_EXECUTABLE": sys.executable,
    }


def tool(name: str) -> str:
    """A build tool from the environment of this Python, else from PATH."""
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if not found:
        stop(f"{name} is missing: pip install {name}")
    return found


class CMakeBuild(build_ext):
    def run(self) -> None:
        if not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")):
            stop("no C++ compiler found: install g++ >= 11 (for example: apt install g++)")
        variables = locate()
        for name in ("DLOPS_CUDA", "DLOPS_CUDA_ARCHITECTURES", "DLOPS_SANITIZE"):
            if os.environ.get(name):
                variables[name] = os.environ[name]
        flavour = "-asan" if variables.get("DLOPS_SANITIZE") else ""
        build = ROOT / "build" / f"cmake-cp{sys.version_info[0]}{sys.version_info[1]}{flavour}"
        stage = build / "stage"
        settings = [f"-D{key}={value}" for key, value in variables.items()]
        ninja = f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"
        jobs = os.environ.get("MAX_JOBS", str(os.cpu_count() or 2))
        try:
            configure = [tool("cmake"), "-S", ROOT, "-B", build, "-G", "Ninja", ninja, *settings]
            subprocess.run(configure, check=True, stdout=subprocess.DEVNULL)  # what matters goes to stderr
            compiled = len(ninja_log(build))
            subprocess.run([tool("cmake"), "--build", build, "-j", jobs], check=True)
            install = [tool("cmake"), "--install", build, "--prefix", stage]
            subprocess.run(install, check=True, stdout=subprocess.DEVNULL)
        except subprocess.CalledProcessError as error:
            stop(f"the build failed ({error.cmd[0]} exited with {error.returncode}); the first error is above")
        report_slowest(ninja_log(build)[compiled:])
        target = ROOT if self.inplace or self.editable_mode else Path(self.build_lib)
        (target / "dlops").mkdir(parents=True, exist_ok=True)
        for built in (stage / "dlops").iterdir():  # by renaming: a process that has the old file loaded keeps it
            beside = target / "dlops" / f".{built.name}.new"
            shutil.copy2(built, beside)
            beside.replace(target / "dlops" / built.name)

    def get_outputs(self) -> list[str]:
        return []  # the libraries are copied by run(); setuptools has none of its own


def ninja_log(build: Path) -> list[str]:
    """What Ninja has built in this folder, a line each: start and end in ms, the output."""
    log = build / ".ninja_log"
    return log.read_text().splitlines()[1:] if log.exists() else []


def report_slowest(lines: list[str]) -> None:
    """Prints the three slowest translation units."""
    took: dict[str, int] = {}
    for line in lines:
        start, end, _, output, *_ = line.split("\t")
        if output.endswith(".o"):  # "CMakeFiles/norm_avx2.dir/csrc/norm/cpu.cpp.o", or "norm_launch.cu.o"
            unit = re.search(r"(\w+)\.dir/(.*)", output)
            took[f"{unit[2]} ({unit[1]})" if unit else Path(output).name] = int(end) - int(start)
    for output, ms in sorted(took.items(), key=lambda item: -item[1])[:3]:
        print(f"dlops: {ms / 1000:5.1f} s  {output}")


class BinaryDistribution(Distribution):
    def has_ext_modules(self) -> bool:
        return True


setup(
    ext_modules=[Extension("dlops._C", [])],
    cmdclass={"build_ext": CMakeBuild},
    distclass=BinaryDistribution,
)
