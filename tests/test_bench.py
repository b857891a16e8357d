"""The benchmark machinery: that it compares what it says. No test asserts a time."""

import importlib.util
import itertools
import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from dlops import bench
from dlops.bench import baselines, curve, machine, timing
from dlops.bench.timing import Result
from dlops.cli import main

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_ratio_is_the_median_of_the_rounds():
    result = Result("wall", 3, {"slow": 1, "fast": 1}, {"slow": [4.0, 9.0, 10.0], "fast": [2.0, 3.0, 1.0]})
    assert result.ratio("slow", "fast") == 3.0  # the quotients are 2, 3, 10
    assert result.medians == {"slow": 9.0, "fast": 2.0}
    assert result.quartiles("fast") == (1.5, 2.5)


def test_compare_runs_every_candidate_equally_often():
    counts = {"a": 0, "b": 0}

    def counting(name):
        def run():
            counts[name] += 1

        return run

    result = bench.compare({name: counting(name) for name in counts}, seconds=0.02)
    assert result.clock == "thread CPU time"
    assert all(len(result.samples[name]) == result.rounds >= 5 for name in counts)
    assert all(counts[name] >= result.rounds * result.calls[name] for name in counts)
    assert all(value > 0 for value in result.medians.values())


def test_compare_says_which_clock():
    torch.set_num_threads(2)
    assert bench.compare({"a": lambda: None}, seconds=0.01).clock == "wall"


def test_compare_leaves_the_process_as_it_was():
    import gc
    import os

    cores = os.sched_getaffinity(0)
    with pytest.raises(ZeroDivisionError):
        bench.compare({"a": lambda: 1 / 0})
    assert gc.isenabled()
    assert os.sched_getaffinity(0) == cores


def test_compare_rejects_nothing():
    with pytest.raises(ValueError, match="compare: candidates is empty"):
        bench.compare({})


def test_cases_have_unique_names_and_work():
    cases = bench.cases()
    names = [case.id for case in cases]
    assert len(set(names)) == len(names)
    assert all(case.flops > 0 and case.bytes > 0 for case in cases if case.family != "models")
    assert any(case.compile for case in cases)


def test_unknown_family():
    families = "attention, conv, diffusion, linear, lstm, models, norm"
    with pytest.raises(ValueError, match=f"family is 'convolution', expected one of {families}"):
        bench.cases("convolution")


@pytest.mark.parametrize("case", bench.cases("norm"), ids=lambda case: case.id)
def test_norm_candidates_compute_the_same(case):
    torch.manual_seed(0)
    built = case.build(CPU)
    ours, stock = built.dlops(), built.stock()
    if isinstance(ours, tuple):  # gradients
        # In bfloat16 only the input's: torch sums a parameter's gradient in bfloat16.
        compared = slice(None) if case.dtype is torch.float32 else slice(1)
        ours, stock = ours[compared], stock[compared]
    torch.testing.assert_close(ours, stock, rtol=2e-2, atol=5e-2)


@pytest.mark.parametrize("case", [c for c in bench.cases("attention") if c.flops < 2e8], ids=lambda case: case.id)
def test_attention_candidates_compute_the_same(case):
    built = case.build(CPU)
    torch.testing.assert_close(built.dlops(), built.stock(), rtol=2e-2, atol=2e-2)


SMALL = [case for family in ("conv", "linear") for case in bench.cases(family) if 0 < case.flops < 2e8]


@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.id)
def test_convolution_candidates_compute_the_same(case):
    built = case.build(CPU)
    ours, stock = built.dlops(), built.stock()
    torch.testing.assert_close(ours, stock, rtol=2e-2, atol=2e-2 * float(stock[0].abs().max()))


RECURRENT = [case for case in bench.cases("lstm") if case.is_for("cpu") and case.flops < 3e8]


@pytest.mark.parametrize("case", RECURRENT, ids=lambda case: case.id)
def test_recurrent_candidates_compute_the_same(case):
    torch.manual_seed(0)
    built = case.build(CPU)
    ours, stock = built.dlops(), built.stock()
    if case.op == "lstm.zoneout.training":  # each draws masks of its own
        assert [t.shape for t in ours] == [t.shape for t in stock]
        return
    largest = max(float(t.abs().max()) for t in (stock if isinstance(stock, tuple) else (stock,)))
    torch.testing.assert_close(ours, stock, rtol=2e-2, atol=2e-2 * largest)


def test_cases_of_one_device_or_size():
    case = bench.cases("norm")[0]
    assert case.is_for("cpu")
    assert case.is_for("cuda:1")
    assert not replace(case, device="cuda").is_for("cpu")
    assert not replace(case, large=True).is_for("cpu")
    assert replace(case, large=True).is_for("cpu", large=True)


@pytest.mark.parametrize("case", [c for c in bench.cases("models") if c.baseline == "torch"], ids=lambda case: case.id)
def test_network_candidates_compute_the_same(case):
    built = case.build(CPU)
    torch.testing.assert_close(built.dlops(), built.stock(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("op", ["ddim", "dpm++2m", "euler", "flow_match"])
def test_scheduler_candidates_compute_the_same(op):
    pytest.importorskip("diffusers", reason="the baseline of the scheduler cases")
    case = next(case for case in bench.cases("diffusion") if case.op == op)
    torch.manual_seed(0)
    built = case.build(CPU)
    for _ in range(45):  # twice through the schedule and on: starting again works
        ours, stock = built.dlops()[0], built.stock()[0]
        torch.testing.assert_close(ours, stock, rtol=1e-4, atol=1e-4)


def test_measure_and_tell(tmp_path):
    case = next(case for case in bench.cases("norm") if case.shape == (2, 1280, 8, 8))
    row = bench.measure(case, CPU, seconds=0.05)
    assert set(row.result.samples) == {"dlops", "stock", "copy"}
    assert row.best_free == ("stock", row.stock)
    run = bench.Run([row], bench.roof(), baselines.MklProbe(reason="an Intel CPU"))
    told = json.loads(run.as_json())
    assert told["environment"]["torch"] == torch.__version__
    assert told["rows"][0]["ratio_stock"] == row.stock
    assert told["rows"][0]["median_s"]["dlops"] == row.result.medians["dlops"]
    text = run.table()
    assert "2x1280x8x8" in text
    assert "Measured roof: float32" in text
    assert "MKL: not measured: an Intel CPU." in text


def test_curve_measures_every_layer_at_every_length(monkeypatch):
    monkeypatch.setattr(timing, "MIN_ROUNDS", 1)
    monkeypatch.setattr(timing.gc, "collect", lambda: 0)  # which takes longer than all the rest
    measured = curve.measure([3, 8], width=16, heads=2, taps=4, batch=2, seconds=0.0)
    assert {(p.layer, p.passes, p.length) for p in measured.points} == set(
        itertools.product(("LSTM", "GRU", "attention", "convolution"), (curve.FORWARD, curve.BOTH), (3, 8))
    )
    assert all(p.dlops > 0 and p.torch > 0 and p.ratio > 0 for p in measured.points)
    assert [p.length for p in measured.line("GRU", curve.BOTH)] == [3, 8]
    told = json.loads(measured.as_json())
    assert told["environment"]["threads"] == told["threads"] == 1
    assert told["points"][0]["dlops"] == measured.points[0].dlops
    assert told["parameters"]["LSTM"] == 8 * 16 * 17
    table = measured.table()
    assert "convolution, 4 taps, causal, 1 k parameters" in table
    assert "width 16, batch 2, float32, cpu, 1 thread, medians by thread CPU time." in table


@pytest.mark.parametrize("lengths", [[], [8, 0]])
def test_curve_rejects_lengths(lengths):
    with pytest.raises(ValueError, match="curve: lengths must be one or more numbers of at least 1"):
        curve.measure(lengths)


def test_curve_sees_no_later_token():
    layers = curve._layers(torch.nn, torch.nn.functional, width=8, heads=2, taps=3)
    for name, layer in layers.items():
        x = torch.randn(1, 8, 8)
        y = layer(x)
        along = 2 if name == "convolution" else 1
        torch.testing.assert_close(layer(x.narrow(along, 0, 5)), y.narrow(along, 0, 5))


def _curve(lengths=(64, 128), **options):
    points = [
        curve.Point(name, passes, length, 1e-6 * length, 2e-6 * length, 2.0)
        for name, passes, length in itertools.product(curve.COLOURS, (curve.FORWARD, curve.BOTH), lengths)
    ]
    return curve.Curve(points, 256, 1, 4, 8, dict.fromkeys(curve.COLOURS, 1000), "wall", "cpu", 2)


def test_curve_is_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    picture = curve.figure(_curve())
    assert [len(panel.lines) for panel in picture.axes] == [8, 8]  # 4 layers, ours and torch's
    for name in ("curve.png", "curve.svg"):
        picture.savefig(tmp_path / name)
        assert (tmp_path / name).stat().st_size > 1000


@pytest.mark.parametrize("drawn", [True, False])
def test_curve_on_the_command_line(drawn, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(curve, "measure", _curve)
    if drawn:
        pytest.importorskip("matplotlib")
    else:
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    told, picture = tmp_path / "deep" / "curve.json", tmp_path / "deeper" / "curve.svg"
    options = ["--curve", "--lengths", "2", "5", "--seconds", "0.001", "--json", str(told), "--figure", str(picture)]
    assert main(["bench", *options]) == 0
    assert {point["length"] for point in json.loads(told.read_text())["points"]} == {2, 5}
    assert picture.exists() == drawn
    assert ("needs matplotlib" in capsys.readouterr().out) != drawn


def test_the_best_free_baseline_is_the_hardest():
    case = bench.cases("norm")[0]
    result = Result("wall", 1, {}, {"dlops": [1.0], "stock": [3.0], "copy": [0.5]})
    row = bench.Row(case, result, 0.5, free={"compile": 1.5, "unthrottled MKL": 2.0})
    assert row.best_free == ("compile", 1.5)
    assert row.stock == 3.0


def test_environment_is_json():
    told = json.loads(json.dumps(bench.environment()))
    assert told["threads"] == 1
    assert {"commit", "isa", "cpu", "gpu", "driver", "cuda_build"} <= set(told)


def test_roof():
    roof = bench.roof()
    assert roof.copy > 0
    assert set(roof.flops) == {"float32", "bfloat16"}
    assert roof.seconds(flops=roof.flops["float32"], bytes_moved=0) == pytest.approx(1.0)
    assert roof.seconds(flops=0, bytes_moved=roof.copy) == pytest.approx(1.0)


def test_unthrottle_library_is_built_and_loads(tmp_path):
    library = baselines.build_unthrottle(tmp_path)
    if library is None:
        pytest.skip("no C compiler")
    code = f"import ctypes; print(ctypes.CDLL({str(library)!r}).mkl_serv_intel_cpu_true())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "1"


def test_worker_times_cases_in_another_environment():
    name = next(case.id for case in bench.cases("norm") if case.shape == (2, 1280, 8, 8))
    ratios = baselines.in_worker([name], environment=baselines.KEEP_PAGES, seconds=0.02, threads=1)
    assert set(ratios) == {name}
    assert ratios[name]["stock"] > 0


def test_a_failing_worker_is_left_out(capsys):
    assert baselines.in_worker([], environment={"PYTHONHOME": "/nowhere"}, seconds=0.02, threads=1) == {}
    assert "left out" in capsys.readouterr().err


def test_no_preload_on_intel(monkeypatch):
    monkeypatch.setattr(baselines, "cpu_vendor", lambda: "GenuineIntel")
    assert baselines.no_preload_reason() is not None
    probe = baselines.mkl_probe.__wrapped__()
    assert probe.reason == baselines.no_preload_reason()
    assert not probe.throttled


def test_throttled_means_clearly_faster_without():
    assert baselines.MklProbe(100e9, 200e9).throttled
    assert not baselines.MklProbe(100e9, 105e9).throttled


def test_commit_of_an_installed_package(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "dlops" / "bench" / "machine.py"))
    assert machine.commit() == "unknown"
