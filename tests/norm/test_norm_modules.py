"""dlops.nn's norms beside torch.nn's: whatever one can do with the one, one can do with the other."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from dlops import nn


@pytest.fixture(autouse=True)
def _ours():
    """`auto`, as in a user's model; small inputs too go to our kernels."""
    from dlops.functional import norm

    before = dict(norm.SMALL)
    norm.SMALL.update(dict.fromkeys(before, 0))
    yield
    norm.SMALL.update(before)


MODULES = {
    "GroupNorm": (4, 16),
    "LayerNorm": ((16,),),
    "RMSNorm": ((16,),),
}
KWARGS = [{}, {"eps": 1e-3}, {"dtype": torch.bfloat16}]


def plain(name, *args, **kwargs):
    return getattr(torch.nn, name)(*args, **kwargs)


def input_for(name, dtype=torch.float32):
    return torch.randn((2, 16, 6, 5) if name == "GroupNorm" else (2, 6, 16)).to(dtype)


@pytest.mark.parametrize("kwargs", KWARGS, ids=str)
@pytest.mark.parametrize("name", MODULES)
def test_drops_in(name, kwargs):
    torch.manual_seed(0)
    theirs = plain(name, *MODULES[name], **kwargs)
    torch.manual_seed(0)
    ours = getattr(nn, name)(*MODULES[name], **kwargs)
    assert isinstance(ours, getattr(torch.nn, name)) and repr(ours) == repr(theirs)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(ours.parameters(), theirs.parameters()))
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())
    x = input_for(name, kwargs.get("dtype", torch.float32))
    tolerance = 1e-5 if x.dtype == torch.float32 else 4e-2
    for module in (ours, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert type(module) is type(ours)
        assert torch.allclose(module(x).float(), theirs(x).float(), atol=tolerance)


@pytest.mark.parametrize("name", MODULES)
def test_without_affine(name):
    flag = "affine" if name == "GroupNorm" else "elementwise_affine"
    ours, theirs = (make(*MODULES[name], **{flag: False}) for make in (getattr(nn, name), getattr(torch.nn, name)))
    x = input_for(name)
    assert ours.weight is None and list(ours.parameters()) == [] and torch.allclose(ours(x), theirs(x), atol=1e-5)


def test_layer_norm_without_bias():
    ours = nn.LayerNorm(16, bias=False)
    assert ours.bias is None and list(ours.state_dict()) == ["weight"]
    assert torch.allclose(ours(input_for("LayerNorm")).mean(-1), torch.zeros(2, 6), atol=1e-6)


@pytest.mark.parametrize("name", MODULES)
def test_float64_and_training(name):
    ours, theirs = (make(*MODULES[name]).double() for make in (getattr(nn, name), getattr(torch.nn, name)))
    x = input_for(name, torch.float64)
    for module in (ours, theirs):
        module(x).square().sum().backward()
    assert all(torch.allclose(a.grad, b.grad) for a, b in zip(ours.parameters(), theirs.parameters()))


@pytest.mark.parametrize("name", MODULES)
def test_compiles(name):
    module, x = getattr(nn, name)(*MODULES[name]), input_for(name)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(x), module(x))


@pytest.mark.parametrize("name", ["LayerNorm", "RMSNorm"])
def test_residual(name):
    module, x = getattr(nn, name)(16), input_for(name)
    y, total = module(x, 2 * x)
    assert torch.equal(total, x + 2 * x) and torch.allclose(y, getattr(torch.nn, name)(16)(3 * x), atol=1e-5)


def test_group_norm_extras():
    x, scale, shift = input_for("GroupNorm"), torch.randn(2, 16), torch.randn(2, 16)
    fused = nn.GroupNorm(4, 16, activation="silu")
    assert "activation='silu'" in repr(fused) and "activation" not in repr(nn.GroupNorm(4, 16))
    y = torch.nn.GroupNorm(4, 16)(x) * (1 + scale[..., None, None]) + shift[..., None, None]
    expected = torch.nn.functional.silu(y)
    assert torch.allclose(fused(x, scale, shift), expected, atol=1e-5)
    assert torch.allclose(fused(x, scale=scale[..., None, None], shift=shift[..., None, None]), expected, atol=1e-5)
    assert torch.equal(nn.GroupNormSiLU(4, 16)(x), fused(x)) and isinstance(nn.GroupNormSiLU(4, 16), torch.nn.GroupNorm)


def test_bad_arguments():
    with pytest.raises(ValueError, match="activation must be None or \"silu\": got 'gelu'"):
        nn.GroupNorm(4, 16, activation="gelu")
    with pytest.raises(ValueError, match="divisible"):
        nn.GroupNorm(3, 16)
