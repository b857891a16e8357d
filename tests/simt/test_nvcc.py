"""The runner's test kernels are CUDA: nvcc compiles the same files for sm_80 and sm_90a, without spills or serialised wgmma."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NVCC = shutil.which("nvcc")


@pytest.mark.planted
@pytest.mark.skipif(NVCC is None, reason="nvcc is not on PATH")
def test_kernels_compile(tmp_path):
    headers = sorted((ROOT / "tests/simt/kernels").glob("*.cuh"))
    instances = "int f(flash::Params p) { return flash::launch<64>(p, 1) + flash::launch<128>(p, 1); }\n"
    source = tmp_path / "kernels.cu"
    source.write_text("".join(f'#include "{header}"\n' for header in headers) + instances)
    architectures = [flag for a in ("80", "90a") for flag in ("-gencode", f"arch=compute_{a},code=sm_{a}")]
    done = subprocess.run(
        [NVCC, "-std=c++20", "-O3", "--expt-relaxed-constexpr", *architectures, "-Xptxas", "-v,--warn-on-spills"]
        + ["-c", str(source), "-o", str(tmp_path / "kernels.o")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    spec = importlib.util.spec_from_file_location("kernel_resources", ROOT / "csrc/cuda/kernel_resources.py")
    resources = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(resources)
    rows, complaints = resources.parse(done.stderr)
    assert not complaints and len(rows) >= 2 * len(headers), complaints
