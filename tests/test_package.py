"""The package as a user meets it: what it exports, its version, and its metadata where it is installed."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import dlops

ROOT = Path(__file__).resolve().parent.parent
PUBLIC = (
    "accelerate backend clear_cache cpu_isa diffusion empty_cache explain functional kernels models nn reference restore "
    "winograd".split()
)


@pytest.mark.parametrize("name", PUBLIC)
def test_exports(name: str) -> None:
    assert hasattr(dlops, name)


def test_all_names_exist() -> None:
    assert set(PUBLIC) <= set(dlops.__all__)
    for name in dlops.__all__:
        assert hasattr(dlops, name), name


def test_import_loads_no_compiler_and_no_runner() -> None:
    code = "import sys, dlops; print([name for name in sys.modules if name == 'torch._dynamo' or '_simt' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_import_needs_no_optional_package() -> None:
    """Importing dlops loads torch and numpy, and nothing that only the demo, the tests or the benchmarks use."""
    optional = "diffusers hypothesis jinja2 lightning matplotlib networkx pybind11 pytest scipy sklearn tqdm".split()
    code = f"import sys\nfor name in {optional}: sys.modules[name] = None\nimport dlops; print(dlops.__version__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == dlops.__version__


def test_libdlops_knows_no_python() -> None:
    """One libdlops.so serves every Python: it must not need symbols of the interpreter."""
    library = next(Path(dlops.__file__).parent.glob("libdlops.so"))
    assert b"PyObject_" not in library.read_bytes()


def test_one_library_for_cpu_and_cuda_torch() -> None:
    """libdlops.so names no CUDA library as needed, so it loads beside a CPU build of torch."""
    library = (Path(dlops.__file__).parent / "libdlops.so").read_bytes()
    for needed in (b"libtorch_cuda.so", b"libcudart.so", b"libtorch_python.so"):
        assert needed not in library


def test_metadata_of_an_installed_package() -> None:
    try:
        package = metadata.metadata("dlops")
    except metadata.PackageNotFoundError:
        pytest.skip("dlops runs from the source tree; `make wheel-check` looks at the wheel")
    assert package["Version"] == dlops.__version__
    required = [r for r in metadata.requires("dlops") or [] if "extra ==" not in r]
    assert sorted(r.split(">")[0] for r in required) == ["numpy", "torch"]


def test_unknown_attribute_is_a_plain_error() -> None:
    with pytest.raises(AttributeError):
        dlops.no_such_name  # noqa: B018
