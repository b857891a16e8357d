"""Changed copies of the kernels: edits, builds that fail, children that die; and `make proof` from end to end."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
import torch

from dlops.study import planting
from dlops.study._emulate import emulate_in
from dlops.study.planting import Edit

pytest.importorskip("dlops._simt_race", reason="the race build of the simt runner is not built")
REDUCE = "csrc/cuda/reduce.h"


def test_edits():
    edit = Edit(REDUCE, "  __syncthreads();", "", count=2)
    text = (planting.ROOT / REDUCE).read_text()
    assert edit.apply(text).count("__syncthreads") == text.count("__syncthreads") - 2
    assert text.splitlines()[edit.line() - 1].startswith("  __syncthreads();")
    with pytest.raises(ValueError, match=r"csrc/cuda/reduce.h contains '  __syncthreads\(\);' 2 times, expected 1"):
        Edit(REDUCE, "  __syncthreads();", "").apply(text)


def test_only_in_a_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(planting, "ROOT", tmp_path)
    with pytest.raises(RuntimeError, match="works in a checkout, after `make build`"):
        planting.plant("nowhere", [Edit(REDUCE, "  return warp_reduce(a);", "")])


def test_what_cannot_be_built():
    with pytest.raises(ValueError, match="nothing: nothing in _simt_race is compiled from .*csrc/torch/face.h"):
        planting.plant("nothing", [Edit("csrc/torch/face.h", "#pragma once", "")])
    with pytest.raises(RuntimeError, match="(?s)the copy does not build.*nonsense.* was not declared"):
        edit = Edit("csrc/diffusion/launch_reduce.cu", "return cudaErrorInvalidValue;", "return nonsense;")
        planting.plant("broken", [edit])


def test_children():
    assert planting.in_child(lambda: os.getpid(), 10) != os.getpid()
    with pytest.raises(planting.Crashed, match="ZeroDivisionError"):
        planting.in_child(lambda: 1 // 0, 10)
    with pytest.raises(planting.Crashed, match="SIGABRT"):
        planting.in_child(os.abort, 10)
    with pytest.raises(planting.Crashed, match="killed after 0.2 s"):
        planting.in_child(lambda: time.sleep(60), 0.2)


X = torch.randn(10, 8, 12, 10, generator=torch.Generator().manual_seed(0))
UNIT = "csrc/norm/launch_group.cu"


def _emulate(name: str, edit: Edit, **options):
    path = planting.plant(name, [edit], only=[UNIT])

    def work():
        torch.set_num_threads(1)
        return emulate_in(planting.load(path), "group_norm", [X, 1], {}, **options)

    return planting.in_child(work, 60)


def test_trace():
    reduced = "    m = block_reduce(m, scratch);\n"
    edit = Edit("csrc/norm/group.cuh", reduced, reduced + '    SIMT_TRACE("m2", m.m2);\n')
    report = _emulate("trace", edit, trace=(1, (37, 0, 0))).report
    planted = [t for t in report.trace if t.name == "m2"]
    assert report.traced == ((1, 0, 0), (37, 0, 0)) and {t.name for t in report.trace} == {"m2", "mean", "rstd"}
    assert [t.value for t in planted] == pytest.approx([float(X[i].var(correction=0)) * X[i].numel() for i in (1, 9)])
    line = edit.line() + 1
    assert all(t.source.endswith(f"csrc/norm/group.cuh:{line}") for t in planted)
    text = str(report)
    assert "trace of block (1, 0, 0), thread (37, 0, 0):" in text and f"group.cuh:{line}" in text


def test_a_finding_does_not_raise():
    result = _emulate("finding", Edit("csrc/norm/group.cuh", "    __syncthreads();\n", ""))
    (finding,) = result.report.findings
    assert result.outputs is None and str(result.report).endswith(f"FINDING  {finding}")
    assert finding.startswith("group_norm_block<float>: csrc/")
    for part in ("csrc/norm/group.cuh:", "constants", "in block (", "thread ("):
        assert part in finding


def test_proof():
    done = subprocess.run([sys.executable, "-m", "dlops.study.proof"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    (deleted,) = [line for line in lines if line.startswith("  - ")]
    assert "__syncthreads" in deleted
    (at,) = [i for i, line in enumerate(lines) if "row_norm_fused<float>: csrc/cuda/reduce.h:" in line]
    found = " ".join(line.strip() for line in lines[at : at + 4])
    assert "nothing orders the two: a race" in found and "block (0,0,0) thread (" in found
    assert lines.index("  no findings") > at
