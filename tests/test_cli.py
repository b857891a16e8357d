"""The command line."""

import json
import sys
import types

import pytest

import dlops
from dlops.bench.baselines import MklProbe
from dlops.cli import doctor, main


def test_no_command_is_an_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main([])
    assert stopped.value.code == 2
    assert "command" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["doctor", "kernels", "explain", "bench", "demo"])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: dlops" in capsys.readouterr().out


def test_kernels_lists_all(capsys):
    assert main(["kernels"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1 + len(dlops.kernels())
    assert lines[0].split()[:3] == ["op", "variant", "device"]


def test_kernels_of_one_family(capsys):
    assert main(["kernels", "--family", "diffusion", "--device", "cpu"]) == 0
    assert "randn" in capsys.readouterr().out
    assert main(["kernels", "--family", "none such"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["group_norm", "--shape", "2x320x64x64", "--activation", "silu"],
        ["group_norm", "--shape", "2x64x128x128", "--channels-last", "--dtype", "bfloat16"],
        ["layer_norm", "--shape", "4096x768"],
        ["rms_norm", "--shape", "4096x768", "--dtype", "float16"],
        ["diffusion_step", "--shape", "1x4x64x64"],
        ["diffusion_step", "--shape", "1x4x64x64", "--seeds"],
        ["add_noise", "--shape", "1x4x64x64"],
        ["randn", "--shape", "16x3x256x256"],
    ],
    ids=lambda arguments: "-".join(arguments[:3:2]),
)
def test_explain(arguments, capsys):
    assert main(["explain", *arguments]) == 0
    (plan,) = capsys.readouterr().out.splitlines()
    assert ": dlops " in plan
    assert "csrc/" in plan


def test_explain_says_why_torch_would_be_used(capsys):
    assert main(["explain", "layer_norm", "--shape", "8x16", "--dtype", "float64"]) == 0
    out = capsys.readouterr().out
    assert ": torch;" in out
    assert "float64" in out


def test_explain_bad_input(capsys):
    assert main(["explain", "group_norm", "--shape", "2x33x8x8"]) == 1
    assert "dlops explain:" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["explain", "group_norm", "--shape", "big"])
    assert "expected sizes joined by x" in capsys.readouterr().err


def test_bench_lists_and_filters(capsys):
    assert main(["bench", "--list", "--family", "norm", "--match", "2x1280x8x8"]) == 0
    names = capsys.readouterr().out.split()
    assert names
    assert all("2x1280x8x8" in name for name in names)
    assert main(["bench", "--match", "none such"]) == 1


def test_bench_writes_what_it_prints(capsys, tmp_path):
    path = tmp_path / "deep" / "bench.json"
    name = "group_norm+silu-2x1280x8x8-float32"
    assert main(["bench", "--match", name, "--seconds", "0.02", "--here-only", "--json", str(path)]) == 0
    assert "2x1280x8x8" in capsys.readouterr().out
    assert [row["id"] for row in json.loads(path.read_text())["rows"]] == [name]


def test_demo_passes_its_options_on(monkeypatch, tmp_path):
    seen = {}
    fake = types.SimpleNamespace(run=lambda **options: seen.update(options) or 3)
    monkeypatch.setitem(sys.modules, "dlops.demo", fake)
    monkeypatch.setattr(dlops, "demo", fake, raising=False)
    assert main(["demo", "--out", str(tmp_path), "--seed", "5", "--quick"]) == 3
    assert seen == {"out": tmp_path, "seed": 5, "quick": True, "figure": None}


def test_doctor(capsys):
    assert main(["doctor", "--quick"]) == 0
    out = capsys.readouterr().out
    for expected in (dlops.__version__, dlops.cpu_isa(), "torch", "confirmed on hardware: none"):
        assert expected in out


def test_doctor_tells_of_a_throttled_mkl(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "mkl_probe", lambda: MklProbe(106e9, 242e9))
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert "THROTTLES ITSELF" in out
    assert "LD_PRELOAD" in out


def test_doctor_finds_an_old_driver(monkeypatch, capsys):
    monkeypatch.setattr(doctor.machine, "driver_version", lambda: "535.0")
    monkeypatch.setattr(doctor.machine, "driver_cuda", lambda: (12, 2))
    monkeypatch.setattr(doctor.torch.version, "cuda", "13.0")
    assert main(["doctor", "--quick"]) == 0
    assert "driver 535.0 is TOO OLD: it runs CUDA 12.2, this torch is built for 13.0" in capsys.readouterr().out
