"""A5, A7, A8: the invariants of the recipes, the helper that catches features, the linear probe."""

import pytest
import torch

from dlops import nn
from dlops.courses.features import LinearProbe, features
from dlops.courses.foundations import a5_activations, a7_residual
from dlops.courses.session import Session
from dlops.models.vision import resnet


def test_residual_invariants() -> None:
    torch.manual_seed(0)
    assert a7_residual.identity_gap() == 0
    assert a7_residual.jacobian_gap() <= 1e-12
    assert a7_residual.shortcut_gap() <= 1e-15


def test_residual_invariants_find_a_scaled_shortcut(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(
        resnet.BasicBlock, "shortcut", lambda self, maps: 0.999 * (self.downsample or nn.Identity())(maps)
    )
    assert a7_residual.identity_gap() > 1e-4
    assert a7_residual.jacobian_gap() > 1e-4
    assert a7_residual.shortcut_gap() > 1e-4


def test_activation_invariants(monkeypatch: pytest.MonkeyPatch) -> None:
    assert a5_activations.identity_gap() <= 1e-14
    assert a5_activations.slope_gap() <= 1e-8
    mean, square = a5_activations.moments_after_selu()
    assert abs(mean) <= 1e-7 and abs(square - 1) <= 1e-7
    monkeypatch.setattr(nn.functional, "selu", lambda x: 1.05 * torch.where(x > 0, x, 1.67 * x.expm1()))
    assert abs(a5_activations.moments_after_selu()[1] - 1) > 1e-3


@pytest.mark.parametrize("layer", ["Conv1d", "Linear"])
def test_fused_gap_finds_a_wrong_activation(layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session("A5")
    assert a5_activations.fused_gap(session, layer, "gelu", "dlops")[0] <= 1e-6
    tanh_form = lambda y: torch.nn.functional.gelu(y, approximate="tanh")  # noqa: E731
    monkeypatch.setitem(a5_activations.ACTIVATIONS, "gelu", tanh_form)
    assert a5_activations.fused_gap(session, layer, "gelu", "dlops")[0] > 1e-5


def test_steps_to() -> None:
    assert a5_activations.steps_to([1.0] * 20 + [0.0] * 20, 0.05) == 30
    assert a5_activations.steps_to([1.0] * 20, 0.05) == 20


def test_features() -> None:
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    x = torch.randn(5, 3)
    with features(network, ["1", ""]) as found:
        assert not found
        y = network(x)
    assert found[""] is y and torch.equal(found["1"], network[0](x).relu())
    assert torch.equal(network[2](found["1"]), y)
    with pytest.raises(RuntimeError), features(network, ["1"]):
        raise RuntimeError
    assert not any(module._forward_hooks for module in network.modules())
    with (
        pytest.raises(ValueError, match="features: Sequential has no layer '7', expected one of '0', '1', '2'"),
        features(network, "7"),
    ):
        pass


def test_probe() -> None:
    """Equals scikit-learn's logistic regression; changing units changes nothing."""
    linear_model = pytest.importorskip("sklearn.linear_model")
    torch.manual_seed(0)
    x, labels = torch.randn(60, 8, dtype=torch.float64), torch.arange(60) % 3 + 4
    x[:, 0] += labels
    probe = LinearProbe(x, labels, decay=0.02)
    assert probe.gradient <= 1e-8
    standardised = (x - x.mean(0)) / (x.std(0) + 1e-6)
    expected = linear_model.LogisticRegression(C=1 / (0.02 * len(x)), tol=1e-10, max_iter=10_000).fit(
        standardised, labels
    )
    there = torch.randn(200, 8, dtype=torch.float64) + torch.tensor([5.0] + [0.0] * 7)
    want = torch.from_numpy(expected.predict((there - x.mean(0)) / (x.std(0) + 1e-6)))
    assert torch.equal(probe(there), want)
    assert torch.equal(LinearProbe(3 * x + 1, labels, decay=0.02)(3 * there + 1), want)
    assert probe.accuracy(there, want) == 1
    with pytest.raises(ValueError, match="LinearProbe: got 60 inputs and 59 labels"):
        LinearProbe(x, labels[1:])
    with pytest.raises(ValueError, match=r"at least two classes: got \[4\]"):
        LinearProbe(x[:1], labels[:1])
