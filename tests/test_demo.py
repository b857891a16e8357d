"""The pieces of `make demo`, small."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace

import pytest
import torch

from dlops import demo
from dlops.courses.data.digits import Digits, load_digits
from dlops.courses.generative.f6_diffusion import MAIN, PLAN, sketch, teach
from dlops.courses.judge import Judge, Verdict
from dlops.courses.session import Session
from dlops.demo import report
from dlops.models import UNet

for extra in ("sklearn", "matplotlib", "lightning", "jinja2"):
    pytest.importorskip(extra, reason=f"{extra} is not installed: pip install 'dlops[demo]'")

TINY = replace(PLAN, epochs=1, batch=240)  # 6 steps


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    """Networks this small gain nothing from a second thread, and lose much where the cores are busy."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def digits() -> tuple[Digits, Digits]:
    return load_digits()


def test_the_split(digits):
    training, test = digits
    assert len(training) + len(test) == 1797
    for part in digits:
        assert part.images.shape[1:] == (1, 8, 8) and part.images.dtype is torch.float32
        assert part.images.min() == -1 and part.images.max() == 1
        assert torch.equal((part.images * 8).round() / 8, part.images)  # 17 grey levels
        counts = part.labels.bincount(minlength=10) / len(part)
        assert (counts - 0.1).abs().max() < 0.01
    assert torch.equal(load_digits()[1].images, test.images)
    assert not (torch.cdist(test.images.flatten(1), training.images.flatten(1)) == 0).any()


def test_the_judge_tells_copies_and_noise_from_digits(digits):
    training, test = digits
    judge = Judge(training, test)
    assert judge.real.accuracy > 0.97 and judge.real.distance_ratio == 1 and judge.real.passed
    copies = judge(training)
    assert copies.accuracy > 0.99 and copies.distance < 1e-2 and not copies.passed
    noise = judge(Digits(torch.randn(test.images.shape, generator=torch.Generator().manual_seed(0)), test.labels))
    assert noise.distance_ratio > 1.5 and not noise.passed
    wrong = judge(replace(test, labels=(test.labels + 1) % 10))
    assert wrong.accuracy < 0.05 and not wrong.passed


@pytest.mark.parametrize(
    ("accuracy", "ratio", "passed"),
    [(0.97, 1.0, True), (0.969, 1.0, False), (1.0, 0.86, True), (1.0, 0.84, False), (1.0, 1.16, False)],
)
def test_the_goals(accuracy, ratio, passed):
    assert Verdict(accuracy, ratio, ratio).passed is passed


def _train(digits: Digits, seed: int):
    session = Session("F6", seed)
    return session, teach(session, "tiny", MAIN, digits, TINY, channels=8, groups=4)


def test_training_and_drawing_repeat_bit_for_bit(digits):
    sampler = replace(demo.SAMPLERS[2][0], steps=3)  # DDPM: the one that draws noise at every step
    hashes, curves = [], []
    for seed in (0, 0, 1):
        torch.rand(seed + 5)  # the state of the global generator must not matter
        session, fitted = _train(digits[0], seed)
        drawn = sketch(session, fitted.network, MAIN, sampler, 12)
        assert drawn.images.shape == (12, 1, 8, 8) and drawn.images.abs().max() <= 1
        assert drawn.labels.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1]
        curves.append(fitted.losses)
        hashes.append(demo.Drawing(sampler.name, drawn, Verdict(0, 0, 0), 0).sha256)
    assert hashes[0] == hashes[1] != hashes[2]
    assert curves[0] == curves[1] and curves[0][-1] < curves[0][0]


def test_training_leaves_the_global_generator_alone(digits):
    before = torch.get_rng_state()
    _train(digits[0], 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_samplers_start_from_the_same_noise():
    """An untrained network predicts 0, so one step of DDIM and DPM++ scales the same initial noise."""
    network = UNet(channels=8, groups=4).eval()
    first, second = (sketch(Session("F6", 3), network, MAIN, replace(s, steps=1), 20) for s, _ in demo.SAMPLERS[:2])
    # both are 0.0002 * noise at the end of the cosine schedule; scaled up to compare
    scale = [d.images / d.images.abs().max() for d in (first, second)]
    torch.testing.assert_close(*scale, rtol=1e-3, atol=1e-5)


def test_the_same_picture_gives_the_same_file(digits):
    sheets = [report.png(report.contact_sheet([("digits", digits[1])] * 3, lines=1, across=2)) for _ in range(2)]
    assert sheets[0] == sheets[1] and sheets[0].startswith(b"\x89PNG")


def test_quick_run(tmp_path, capsys):
    figure = tmp_path / "figures" / "digits.png"
    assert demo.run(tmp_path / "demo", seed=1, quick=True, figure=figure) == 0
    printed = capsys.readouterr().out
    for path in (tmp_path / "demo" / "samples.png", tmp_path / "demo" / "report.html", figure):
        assert path.stat().st_size > 1000 and str(path) in printed
    html = (tmp_path / "demo" / "report.html").read_text()
    assert "not judged" in html and html.count("data:image/png;base64,") == 2


def test_without_an_extra(tmp_path, capsys, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sklearn" else find_spec(name))
    assert demo.run(tmp_path) == 2
    assert capsys.readouterr().err == "dlops demo: needs scikit-learn: pip install 'dlops[demo]'\n"
    assert not list(tmp_path.iterdir())


def test_without_diffusers(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    assert demo.run(tmp_path, quick=True) == 0
    assert "diffusers, which is not installed" in capsys.readouterr().out
    assert "Not measured" in (tmp_path / "report.html").read_text()
