"""The same network without dlops: what a user would have written with torch.nn, for comparisons."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import dlops.nn

ACTIVATIONS = {
    None: lambda y: y, "none": lambda y: y, "relu": F.relu, "silu": F.silu, "gelu": F.gelu, "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}  # fmt: skip


class _Finished:
    """The plain layer, then what ours does in the same kernel: the residual, the activation."""

    def forward(self, input: Tensor, *arguments: object, residual: Tensor | None = None) -> Tensor:
        if arguments and "Transpose" not in type(self).__name__:  # its second argument is the size of the output
            residual, *arguments = arguments
        y = super().forward(input, *arguments)
        if residual is not None:
            y = y + residual
        return ACTIVATIONS[self.activation](y)


class _GroupNorm(nn.GroupNorm):
    def forward(self, input: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        y = super().forward(input)
        broadcast = (..., *[None] * (input.dim() - 2))
        if scale is not None:
            y = y * (1 + scale[broadcast])
        if shift is not None:
            y = y + shift[broadcast]
        return ACTIVATIONS[self.activation](y)


class _Summed:
    def forward(self, input: Tensor, residual: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        if residual is None:
            return super().forward(input)
        return super().forward(input + residual), input + residual


_FINISHED = ("Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d", "Linear")
_PLAIN: dict[type, type] = {
    getattr(dlops.nn, name): type(f"Plain{name}", (_Finished, getattr(nn, name)), {}) for name in _FINISHED
}
_PLAIN[dlops.nn.ConvBiasAct] = _PLAIN[dlops.nn.Conv2d]
_PLAIN[dlops.nn.GroupNorm] = _PLAIN[dlops.nn.GroupNormSiLU] = _GroupNorm
for _name in ("LayerNorm", "RMSNorm"):
    _PLAIN[getattr(dlops.nn, _name)] = type(f"Plain{_name}", (_Summed, getattr(nn, _name)), {})
_SAME = """MultiheadAttention Transformer TransformerEncoder TransformerDecoder TransformerEncoderLayer TransformerDecoderLayer
    LSTM GRU RNN LSTMCell GRUCell RNNCell"""
for _name in _SAME.split():
    _PLAIN[getattr(dlops.nn, _name)] = getattr(nn, _name)


def stock(model: nn.Module) -> nn.Module:
    """A copy of `model` whose dlops layers are torch.nn's, with the same parameters, and what ours fuse done by plain calls.

    Raises:
        TypeError: a dlops layer that torch has no counterpart of.
    """
    model = copy.deepcopy(model)
    for path, module in model.named_modules():
        if type(module) in _PLAIN:
            module.__class__ = _PLAIN[type(module)]
        elif type(module).__module__.startswith("dlops.nn"):
            raise TypeError(f"stock: {path or 'the model'} is a {type(module).__name__}, which torch.nn does not have")
    return model
