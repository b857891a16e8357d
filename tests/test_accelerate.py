"""dlops.accelerate and dlops.restore: what is swapped, what is not, and that nothing else changes."""

import copy
import pickle
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import dlops
from dlops._accelerate import _rules, register


def small_model():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.GroupNorm(2, 8),
        nn.SiLU(),
        nn.Conv2d(8, 8, 3),
        nn.GroupNorm(4, 8),
        nn.ReLU(),
        nn.Flatten(2),
        nn.LayerNorm(16),
        nn.RMSNorm(16),
    )


@pytest.fixture
def x():
    return torch.randn(2, 3, 8, 8)


def reasons(report):
    return {entry.path: entry.reason for entry in report.kept}


def test_swaps_in_place_and_back(x):
    model = small_model()
    expected, keys = model(x), list(model.state_dict())
    parameters = list(model.parameters())
    types = [type(module) for module in model.modules()]

    report = dlops.accelerate(model)
    assert [type(model[k]) for k in (0, 1, 3, 4, 7, 8)] == [
        dlops.nn.Conv2d,
        dlops.nn.GroupNorm,
        dlops.nn.Conv2d,
        dlops.nn.GroupNorm,
        dlops.nn.LayerNorm,
        dlops.nn.RMSNorm,
    ]
    assert isinstance(model, nn.Sequential)
    assert list(model.state_dict()) == keys
    assert all(mine is theirs for mine, theirs in zip(model.parameters(), parameters, strict=True))
    assert [entry.path for entry in report.swapped] == ["(model)", "0", "1", "3", "4", "7", "8"]
    assert not report.kept
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)

    undone = dlops.restore(model)
    assert len(undone.swapped) == 7
    assert [type(module) for module in model.modules()] == types
    assert not any("dlops" in name for module in model.modules() for name in vars(module))
    assert torch.equal(model(x), expected)


def test_idempotent(x):
    model = small_model()
    dlops.accelerate(model)
    assert dlops.accelerate(model).entries == []
    dlops.restore(model)
    assert dlops.restore(model).entries == []
    assert len(dlops.accelerate(model).swapped) == 7


def test_a_single_module():
    norm = nn.LayerNorm(8)
    assert [entry.path for entry in dlops.accelerate(norm).swapped] == ["(model)"]
    assert type(norm) is dlops.nn.LayerNorm


def test_our_modules_are_left_in_peace():
    assert dlops.accelerate(nn.Sequential(dlops.nn.LayerNorm(8), dlops.nn.Linear(8, 8), nn.SiLU())).entries == []


def test_a_module_in_two_places_is_swapped_once(x):
    norm = nn.GroupNorm(2, 8)
    model = nn.ModuleDict({"a": norm, "b": norm})
    assert len(dlops.accelerate(model).swapped) == 1
    assert model["a"] is model["b"] is norm


class OwnNorm(nn.LayerNorm):
    def forward(self, input):
        return 2 * super().forward(input)


def quantised_norm():
    norm = nn.LayerNorm(8)
    norm.__class__ = torch.ao.nn.quantized.LayerNorm
    return norm


def hooked_norm():
    norm = nn.LayerNorm(8)
    norm.register_forward_hook(lambda module, args, output: output)
    return norm


def patched_norm():
    norm = nn.LayerNorm(8)
    norm.forward = lambda input: input
    return norm


def parametrized_norm():
    return parametrizations.weight_norm(nn.LayerNorm((4, 8)))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: OwnNorm(8), "a subclass of torch.nn.LayerNorm"),
        (quantised_norm, "a subclass of torch.nn.LayerNorm"),
        (hooked_norm, "has hooks"),
        (patched_norm, "its forward was replaced"),
        (parametrized_norm, "parametrized"),
        (lambda: nn.LayerNorm(8, dtype=torch.float64), "float64"),
    ],
    ids=["subclass", "quantised", "hooks", "patched", "parametrized", "float64"],
)
def test_left_alone_with_a_reason(make, reason):
    model = nn.ModuleList([make()])
    was = type(model[0])
    report = dlops.accelerate(model)
    assert reasons(report) == {"0": reason}
    assert type(model[0]) is was
    assert reason in str(report)


def test_the_report_is_a_table():
    text = str(dlops.accelerate(nn.ModuleList([nn.LayerNorm(8) for _ in range(5)] + [hooked_norm()])))
    assert text.splitlines() == [
        "5  torch.nn.LayerNorm  -> dlops.nn.LayerNorm  0, 1, 2, ... 2 more",
        "1  torch.nn.LayerNorm  left: has hooks        5",
    ]
    assert str(dlops.accelerate(nn.BatchNorm1d(2))) == "nothing to swap"


def test_not_a_model():
    with pytest.raises(TypeError, match="accelerate: model is a int, expected a torch.nn.Module or a pipeline"):
        dlops.accelerate(3)
    with pytest.raises(TypeError, match="restore: model is a list"):
        dlops.restore([])


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_of_an_accelerated_model_restore_too(duplicate, x):
    model = small_model()
    expected = model(x)
    dlops.accelerate(model)
    other = duplicate(model)
    torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)
    assert len(dlops.restore(other).swapped) == 7
    assert type(other[1]) is nn.GroupNorm
    assert type(model[1]) is dlops.nn.GroupNorm


def test_gradients_reach_the_shared_parameters(x):
    model = small_model()
    model(x).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    dlops.accelerate(model)
    model(x).square().sum().backward()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-3, atol=1e-3)


# ---- GroupNorm followed by SiLU in a Sequential


def calls(monkeypatch):
    """Activations that group_norm is called with inside a Sequential."""
    from dlops import _fused

    seen, real = [], _fused.group_norm

    def spy(*args, **kwargs):
        seen.append(kwargs["activation"])
        return real(*args, **kwargs)

    monkeypatch.setattr(_fused, "group_norm", spy)
    return seen


def test_norm_and_silu_run_as_one(monkeypatch, x):
    model = small_model()
    expected = model(x)
    dlops.accelerate(model)
    seen = calls(monkeypatch)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert seen == ["silu"]


def test_children_keep_their_own_meaning(x):
    """A model may index into its Sequential: there the norm is a norm and the SiLU a SiLU."""
    model = small_model()
    hidden = model[0](x)
    normed = model[1](hidden)
    activated = model[:3](x)
    dlops.accelerate(model)
    torch.testing.assert_close(model[1](hidden), normed, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model[:3](x), activated, rtol=1e-5, atol=1e-5)
    assert type(model[2]) is nn.SiLU


def test_one_silu_in_many_places(monkeypatch, x):
    silu = nn.SiLU()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(2, 8), silu, nn.Conv2d(8, 8, 3), silu)
    model.extend([nn.GroupNorm(4, 8), silu])
    expected = model(x)
    dlops.accelerate(model)
    seen = calls(monkeypatch)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    assert seen == ["silu", "silu"]


@pytest.mark.parametrize("which", [1, 2])
def test_hooks_prevent_fusion(which, monkeypatch, x):
    model = small_model()
    outputs = []
    model[which].register_forward_hook(lambda module, args, output: outputs.append(output))
    report = dlops.accelerate(model)
    assert reasons(report)["(model)"] == "its GroupNorm or SiLU has hooks: not fused"
    seen = calls(monkeypatch)
    model(x)
    assert len(outputs) == 1
    assert seen == []


def test_a_hook_added_later_still_fires(monkeypatch, x):
    model = small_model()
    dlops.accelerate(model)
    outputs = []
    handle = model[1].register_forward_hook(lambda module, args, output: outputs.append(output))
    seen = calls(monkeypatch)
    model(x)
    assert len(outputs) == 1
    assert seen == []
    handle.remove()
    model(x)
    assert seen == ["silu"]


class Branching(nn.Sequential):
    def forward(self, input):
        return self[0](input) + self[1](input)


def test_a_sequential_with_its_own_forward_is_not_touched():
    model = Branching(nn.GroupNorm(2, 8), nn.SiLU())
    x = torch.randn(2, 8, 4)
    expected = model(x)
    report = dlops.accelerate(model)
    assert [entry.path for entry in report.entries] == ["0"]
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)


def test_compiles_in_one_graph(x):
    model = small_model().eval()
    expected = model(x)
    dlops.accelerate(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), expected, rtol=1e-5, atol=1e-5)


# ---- other families register their own


class Doubling(nn.Module):
    factor = 2

    def forward(self, input):
        return self.factor * input


class Tripling(Doubling):
    pass


def test_register(monkeypatch):
    monkeypatch.setattr("dlops._accelerate._rules", dict(_rules))
    path = f"{Doubling.__module__}.{Doubling.__qualname__}"
    register(
        path,
        Tripling,
        refuse=lambda module: "it is training" if module.training else None,
        attributes=lambda module: {"factor": 3},
    )
    model = nn.ModuleList([Doubling(), Doubling().eval()])
    report = dlops.accelerate(model)
    assert reasons(report) == {"0": "it is training"}
    assert model[1](torch.ones(())) == 3
    dlops.restore(model)
    assert model[1](torch.ones(())) == 2
    assert "factor" not in vars(model[1])


def test_importing_dlops_imports_no_diffusers():
    code = "import sys, dlops, torch; dlops.accelerate(torch.nn.LayerNorm(4)); print('diffusers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
