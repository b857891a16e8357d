"""The conformance cases in the simt runner, beside what a GPU gave: tests/simt/golden, written by `make gpu`."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from dlops.cli import doctor
from dlops.study import _golden

_simt = pytest.importorskip("dlops._simt", reason="the simt runner is not built")

HEADERS = ("ptx.h", "mma.h", "tma.h", "grid_sync.h")
CASES = {case["name"]: case["wrappers"] for case in _simt.conformance()}
ARCHIVES = sorted(_golden.GOLDEN.glob("*.npz"))
NO_GPU = "no GPU has run the conformance program yet: `make gpu`, then python -m dlops.study._golden ARCHIVE"


@pytest.fixture
def options():
    before = _simt.options()
    yield _simt.set_options
    _simt.set_options(**before)


def wrappers():
    """Every function of namespace dlops::ptx."""
    csrc = Path(__file__).resolve().parents[2] / "csrc" / "cuda"
    for header in HEADERS:
        text = (csrc / header).read_text()
        text = text[re.search(r"namespace (dlops::)?ptx \{", text).start() :]
        yield from re.findall(r"^DLOPS_DEVICE [\w*]+ (?:\*)?(\w+)\(", text, re.MULTILINE)


def test_every_wrapper_has_a_case():
    found = set(wrappers())
    assert {"load_once", "ldmatrix_trans", "wgmma", "wgmma_descriptor", "cluster_map", "tma_load", "grid_sync"} <= found
    assert found == {wrapper for covered in CASES.values() for wrapper in covered}


@pytest.mark.parametrize("name", CASES)
def test_case_gives_the_same_bytes_in_every_order(name, options):
    options("plain", 1)
    expected = _simt.run_conformance(name)
    assert len(expected) > 0
    for order, seed in [("reverse", 1), ("random", 1), ("random", 2)]:
        options(order, seed)
        assert _simt.run_conformance(name) == expected, order


@pytest.mark.parametrize("name", CASES)
def test_race_build_has_no_complaint(name):
    race = pytest.importorskip("dlops._simt_race", reason="the race build of the simt runner is not built")
    assert race.run_conformance(name) == _simt.run_conformance(name)


def test_unknown_case():
    with pytest.raises((ValueError, KeyError), match="no such"):
        _simt.run_conformance("no such case")


@pytest.mark.skipif(not ARCHIVES, reason=NO_GPU)
@pytest.mark.parametrize("archive", ARCHIVES, ids=lambda path: path.stem)
def test_runner_agrees_with_the_gpu(archive):
    index, outputs = _golden.load(archive)
    different = [name for name, bytes in outputs.items() if name in CASES and _simt.run_conformance(name) != bytes]
    assert not different, f"{index['gpu']} gave other bytes"


@pytest.mark.skipif(not ARCHIVES, reason=NO_GPU)
def test_confirmed_list_is_that_of_the_archives():
    kept = {index["gpu"]: sorted(outputs) for index, outputs in map(_golden.load, ARCHIVES)}
    assert {row["gpu"]: row["cases"] for row in json.loads(_golden.CONFIRMED.read_text())} == kept


def fake_run(folder, failed=()):
    """What the conformance program would leave on a GPU that agrees with the runner."""
    cases = {}
    for name, covered in CASES.items():
        cases[name] = {"wrappers": covered, "error": "unspecified launch failure" if name in failed else None}
        (folder / f"{name}.bin").write_bytes(b"" if name in failed else _simt.run_conformance(name))
    index = {"gpu": "Some GPU 1", "architecture": 90, "driver": "600.1", "runtime": "13.0", "date": "2030-01-01"}
    (folder / "index.json").write_text(json.dumps(index | {"cases": cases}))


def doctor_says():
    """Its lines about the wrappers, by name; a line without one goes on with the line before."""
    told = {}
    for name, text in doctor._wrappers():
        name = name or list(told)[-1]
        told[name] = f"{told[name]} {text}" if name in told else text
    return told


def test_pack_keep_and_doctor(tmp_path, monkeypatch):
    monkeypatch.setattr(_golden, "GOLDEN", tmp_path / "golden")
    monkeypatch.setattr(_golden, "CONFIRMED", tmp_path / "confirmed.json")
    fake_run(tmp_path, failed=["cluster"])
    archive = _golden.pack(tmp_path, tmp_path)
    assert archive.name == "conformance-some-gpu-1.npz"
    index, outputs = _golden.load(archive)
    assert index["driver"] == "600.1" and set(outputs) == set(CASES) - {"cluster"}
    assert outputs["mma_bf16"] == _simt.run_conformance("mma_bf16")

    _golden.keep([archive])
    confirmed, unconfirmed = _golden.confirmed_wrappers(CASES)
    assert unconfirmed == ["cluster_map", "cluster_rank", "cluster_sync"]
    assert confirmed["wgmma"] == "Some GPU 1, driver 600.1, 2030-01-01"
    told = doctor_says()
    assert told["CUDA wrappers"].startswith(f"{len(confirmed)} confirmed on Some GPU 1")
    assert "wgmma" in told["CUDA wrappers"] and told["unconfirmed"] == "cluster_map, cluster_rank, cluster_sync"


def test_doctor_without_any_archive(tmp_path, monkeypatch):
    monkeypatch.setattr(_golden, "CONFIRMED", tmp_path / "none.json")
    told = doctor_says()
    assert told["CUDA wrappers"] == "confirmed on hardware: none yet"
    assert all(name in told["unconfirmed"] for name in ("wgmma", "load_once", "tma_store_wait_read"))
    assert "speed" in told["not proven"]


def test_bytes_are_not_all_alike():
    """A case whose output were constant would confirm nothing."""
    for name in CASES:
        if name != "setmaxnreg":
            values = np.frombuffer(_simt.run_conformance(name), np.uint16)
            assert len(np.unique(values)) > 3, name
