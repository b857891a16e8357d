"""A whole replacement for ``torch.nn``: our modules where we have one, torch's for every other name."""

from __future__ import annotations

from typing import Any

import torch.nn as _torch_nn

from dlops.nn.attention import MultiheadAttention
from dlops.nn.cache import KVCache
from dlops.nn.conv import (
    Conv1d,
    Conv2d,
    Conv3d,
    ConvBiasAct,
    ConvTranspose1d,
    ConvTranspose2d,
    ConvTranspose3d,
    LazyConv1d,
    LazyConv2d,
    LazyConv3d,
    LazyConvTranspose1d,
    LazyConvTranspose2d,
    LazyConvTranspose3d,
)
from dlops.nn.linear import LazyLinear, Linear
from dlops.nn.lstm import GRU, LSTM, RNN
from dlops.nn.lstm_cells import GRUCell, LSTMCell, RNNCell
from dlops.nn.norm import GroupNorm, GroupNormSiLU, LayerNorm, RMSNorm
from dlops.nn.positions import ALiBi, LearnedPositions, RotaryPositions, SinusoidalPositions, alibi_slopes
from dlops.nn.transformer import (
    Transformer,
    TransformerDecoder,
    TransformerDecoderLayer,
    TransformerEncoder,
    TransformerEncoderLayer,
)

__all__ = [
    "ALiBi",
    "Conv1d",
    "Conv2d",
    "Conv3d",
    "ConvBiasAct",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "ConvTranspose3d",
    "GRU",
    "GRUCell",
    "GroupNorm",
    "GroupNormSiLU",
    "KVCache",
    "LSTM",
    "LSTMCell",
    "LayerNorm",
    "LazyConv1d",
    "LazyConv2d",
    "LazyConv3d",
    "LazyConvTranspose1d",
    "LazyConvTranspose2d",
    "LazyConvTranspose3d",
    "LazyLinear",
    "LearnedPositions",
    "Linear",
    "MultiheadAttention",
    "RMSNorm",
    "RNN",
    "RNNCell",
    "RotaryPositions",
    "SinusoidalPositions",
    "Transformer",
    "TransformerDecoder",
    "TransformerDecoderLayer",
    "TransformerEncoder",
    "TransformerEncoderLayer",
    "alibi_slopes",
]


def __getattr__(name: str) -> Any:
    try:
        return getattr(_torch_nn, name)
    except AttributeError:
        raise AttributeError(f"module 'dlops.nn' (and torch.nn) has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*__all__, *dir(_torch_nn)})
