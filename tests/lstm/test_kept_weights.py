"""Packed weights are kept for as long as the parameter does not change."""

from __future__ import annotations

import pytest
import torch

import dlops
from dlops import _packed
from tests.lstm.test_lstm_modules import KINDS, close, pair

X = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(0))


def kept() -> int:
    return sum(len(entry.made) for entry in _packed._entries.values())


def output(module):
    """Of a layer or a cell."""
    y = module(X[0] if isinstance(module, torch.nn.RNNCellBase) else X)
    return y[0] if isinstance(y, tuple) else y


def weight(module, part):
    return next(name for name, _ in module.named_parameters() if name.startswith(f"weight_{part}"))


def train(module, **options):
    with torch.enable_grad():
        output(module).square().sum().backward()
    torch.optim.SGD(module.parameters(), 0.5, **options).step()


def by_optimiser(module):
    train(module)


def by_fused_optimiser(module):
    train(module, fused=True)


def by_load_state_dict(module):
    module.load_state_dict({name: t + 0.5 for name, t in module.state_dict().items()})


def by_copy(module):
    parameter = getattr(module, weight(module, "hh"))
    parameter.copy_(torch.randn_like(parameter))


def by_another_parameter(module):
    name = weight(module, "ih")
    setattr(module, name, torch.nn.Parameter(torch.randn_like(getattr(module, name))))


def by_a_slice(module):
    getattr(module, weight(module, "hh"))[3] += 1


@torch.no_grad()
@pytest.mark.parametrize(
    "change", [by_optimiser, by_fused_optimiser, by_load_state_dict, by_copy, by_another_parameter, by_a_slice]
)
@pytest.mark.parametrize("kind", [*KINDS, "LSTMCell", "GRUCell", "RNNCell"])
def test_kept_weights_follow_the_parameter(kind, change):
    dlops.clear_cache()
    theirs, ours = pair(kind, sizes=(16, 72))
    for _ in range(3):
        theirs.load_state_dict(ours.state_dict())
        for _ in range(2):  # the second time finds what the first time kept
            close(output(ours), output(theirs))
        assert kept() > 0
        change(ours)
    dlops.clear_cache()
    assert kept() == 0


@torch.no_grad()
def test_the_bias_is_not_kept():
    theirs, ours = pair("LSTM")
    x = torch.randn(3, 2, 4)
    ours(x)
    for module in (theirs, ours):
        module.bias_ih_l0.add_(1)
    close(ours(x), theirs(x))
