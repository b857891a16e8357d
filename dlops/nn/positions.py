"""What tells attention where a row stands: sinusoidal, learned and rotary positions, and ALiBi's distance penalty."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from dlops import _backend, functional


def alibi_slopes(heads: int, *, device: Any = None) -> Tensor:
    """The slopes of ALiBi (Press et al. 2022, section 3): how fast each head's scores fall with distance.

    A geometric sequence that starts at 2^(-8/n) and has that ratio, for n heads, a power of two. For other numbers of
    heads, as in the authors' code: the slopes of the power of two below, then every other one of those of the power above.

    Args:
        heads: a positive number.

    Returns:
        float32 [heads], for ``scaled_dot_product_attention(..., alibi_slopes=)``.

    Raises:
        ValueError: heads is not positive.
    """
    if heads < 1:
        raise ValueError(f"alibi_slopes: heads must be positive: got {heads}")

    def geometric(n: int) -> list[float]:
        return [2.0 ** (-8.0 * (i + 1) / n) for i in range(n)]

    below = 1 << (heads.bit_length() - 1)
    slopes = geometric(below) + geometric(2 * below)[0::2][: heads - below]
    return torch.tensor(slopes, dtype=torch.float32, device=device)


class ALiBi(nn.Module):
    """Attention with linear biases (Press et al. 2022, section 3): score_ij gets -slope |i + shift - j|, instead of positions.

    Args:
        heads: attention heads.

    Shape:
        as :func:`dlops.functional.scaled_dot_product_attention`, whose other arguments `forward` takes as well.

    Raises:
        ValueError: heads is not positive.
    """

    slopes: Tensor

    def __init__(self, heads: int, device: Any = None) -> None:
        super().__init__()
        self.heads = heads
        self.register_buffer("slopes", alibi_slopes(heads, device=device), persistent=False)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Any:
        return functional.scaled_dot_product_attention(query, key, value, alibi_slopes=self.slopes, **options)

    def bias(self, query_length: int, key_length: int, shift: int = 0) -> Tensor:
        """The same as a tensor to add: float32 [heads, query_length, key_length]; row i stands at key i + shift."""
        rows = torch.arange(shift, shift + query_length, device=self.slopes.device)
        keys = torch.arange(key_length, device=self.slopes.device)
        return -self.slopes[:, None, None].float() * (rows[:, None] - keys).abs()

    def extra_repr(self) -> str:
        return f"heads={self.heads}"


def _positions(caller: str, x: Tensor, offset: int | Tensor, positions: Tensor | None) -> Tensor | slice:
    """Where the rows of x [B, ..., L, d] stand: a slice, where all sequences agree on it and it is known here; else [L] or
    [B, L]."""
    length, device = x.shape[-2], x.device
    for name, given, common in (("offset", offset, 0), ("positions", positions, 1)):  # dims without one for the sequences
        if not isinstance(given, Tensor) or given.dim() != common + 1 or given.is_floating_point():
            continue
        if x.dim() < 3 or given.shape[0] != x.shape[0]:
            raise ValueError(f"{caller}: {name} has shape {list(given.shape)}, which does not fit an input of {list(x.shape)}")
    if positions is not None:
        if not isinstance(offset, int) or offset != 0:
            raise ValueError(f"{caller}: offset and positions exclude each other")
        if positions.dim() not in (1, 2) or positions.shape[-1] != length or positions.is_floating_point():
            raise ValueError(
                f"{caller}: positions must be integers [{length}] or [B, {length}]: got {positions.dtype} {list(positions.shape)}"
            )
        return positions
    if isinstance(offset, Tensor):
        if offset.dim() > 1 or offset.is_floating_point():
            raise ValueError(f"{caller}: offset must be an integer, or integers [B]: got {offset.dtype} {list(offset.shape)}")
        return offset[..., None] + torch.arange(length, device=device)
    if offset < 0:
        raise ValueError(f"{caller}: offset must not be negative: got {offset}")
    return slice(offset, offset + length)


class _Table(nn.Module):
    """Sines and cosines of position times frequency for positions below `length`: float32 whatever the module is cast to,
    not part of state_dict, longer when a longer sequence comes."""

    sin: Tensor
    cos: Tensor

    def __init__(self, dim: int, base: float, scaling: float, length: int, device: Any) -> None:
        super().__init__()
        if dim < 2 or dim % 2:
            raise ValueError(f"{type(self).__name__}: dim must be even and positive: got {dim}")
        if base <= 0 or scaling <= 0 or length < 1:
            raise ValueError(
                f"{type(self).__name__}: base, scaling and max_length must be positive: got {base}, {scaling} and {length}"
            )
        self.dim, self.base, self.scaling = dim, base, scaling
        for name in ("sin", "cos"):
            self.register_buffer(name, torch.empty(length, dim // 2, device=device), persistent=False)
        self._fill(length)

    def _angles(self, positions: Tensor) -> Tensor:
        """[...] -> float64 [..., dim / 2]: position / scaling * base^(-2i / dim)."""
        exponents = torch.arange(0, self.dim, 2, dtype=torch.float64, device=positions.device) / self.dim
        return (positions.double() / self.scaling)[..., None] * torch.exp(-math.log(self.base) * exponents)

    def _fill(self, length: int) -> None:
        with torch.inference_mode(False):  # a table made in inference mode could not be used in training
            angles = self._angles(torch.arange(length, device=self.sin.device))
            self.sin, self.cos = angles.sin().float(), angles.cos().float()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        super()._apply(fn, recurse)
        self._fill(self.sin.shape[0])
        return self

    def _look_up(self, where: Tensor | slice) -> tuple[Tensor, Tensor]:
        """(sin, cos): float32 [L, dim / 2] or [B, L, dim / 2]."""
        if isinstance(where, Tensor):  # reading their maximum would wait for a GPU, so computed
            angles = self._angles(where)
            return angles.sin().float(), angles.cos().float()
        if where.stop > self.sin.shape[0]:
            if torch.compiler.is_compiling() or _backend._recorder is not None:  # a table made here would not be a real one
                return self._look_up(torch.arange(where.start, where.stop, device=self.sin.device))
            self._fill(max(where.stop, 2 * self.sin.shape[0]))
        return self.sin[where], self.cos[where]

    def extra_repr(self) -> str:
        return f"dim={self.dim}, base={self.base}" + (f", scaling={self.scaling}" if self.scaling != 1.0 else "")


class SinusoidalPositions(_Table):
    """Adds sin(t w_i) and cos(t w_i) to features 2i and 2i + 1 at position t, w_i = base^(-2i / dim): Vaswani et al. 2017,
    section 3.5.

    Args:
        dim: features, even.
        max_length: positions that are tabulated at once; longer sequences extend the table.
        base: 10000 in the paper.

    Shape:
        x [..., L, dim] -> the same. offset: position of the first row, an int, or integers [B] for x [B, L, dim] (the
        lengths of a KVCache before the new rows); or positions: integers [L] or [B, L].

    Raises:
        ValueError: dim odd or not positive, base or max_length not positive; shapes or offsets that do not fit.
    """

    def __init__(self, dim: int, max_length: int = 1024, base: float = 10000.0, device: Any = None) -> None:
        super().__init__(dim, base, 1.0, max_length, device)

    def forward(self, x: Tensor, offset: int | Tensor = 0, positions: Tensor | None = None) -> Tensor:
        _features("SinusoidalPositions", x, self.dim)
        sin, cos = self._look_up(_positions("SinusoidalPositions", x, offset, positions))
        return x + torch.stack((sin, cos), dim=-1).flatten(-2).to(x.dtype)


class LearnedPositions(nn.Module):
    """Adds a learned vector for each position (Gehring et al. 2017, section 3.1; Devlin et al. 2019; GPT-2).

    Args:
        max_length: positions that exist.
        dim: features.

    Attributes:
        weight: [max_length, dim], initialised from N(0, 0.02^2) as in BERT and GPT-2.

    Shape:
        as :class:`SinusoidalPositions`.

    Raises:
        ValueError: sizes not positive; shapes that do not fit; a sequence that ends past max_length.
        IndexError: an entry of `positions` past max_length.
    """

    def __init__(self, max_length: int, dim: int, device: Any = None, dtype: Any = None) -> None:
        super().__init__()
        if max_length < 1 or dim < 1:
            raise ValueError(f"LearnedPositions: max_length and dim must be positive: got {max_length} and {dim}")
        self.weight = nn.Parameter(torch.empty(max_length, dim, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, x: Tensor, offset: int | Tensor = 0, positions: Tensor | None = None) -> Tensor:
        _features("LearnedPositions", x, self.weight.shape[1])
        where = _positions("LearnedPositions", x, offset, positions)
        if isinstance(where, Tensor):
            return x + nn.functional.embedding(where, self.weight)
        if where.stop > self.weight.shape[0]:
            raise ValueError(f"LearnedPositions: position {where.stop - 1} does not exist: max_length is {self.weight.shape[0]}")
        return x + self.weight[where]

    def extra_repr(self) -> str:
        return "max_length={}, dim={}".format(*self.weight.shape)


class RotaryPositions(_Table):
    """Turns the pairs of features of queries and keys by angles in proportion to the position: Su et al. 2021, section 3.4.2.

    Args:
        dim: features that are turned, the first `dim` of each head; even.
        max_length: positions that are tabulated at once; longer sequences extend the table.
        base: 10000 in the paper; "theta" of Llama.
        scaling: positions are divided by it: linear position interpolation (Chen et al. 2023, section 2.3).
        interleaved: pairs are (2i, 2i + 1), as in the paper; otherwise (i, i + dim / 2), as in Llama.

    Shape:
        query [B, H, L, D], key [B, Hk, L, D] -> the same, turned. offset, positions: as :class:`SinusoidalPositions`.

    Raises:
        ValueError: dim odd or not positive, base, scaling or max_length not positive; shapes or offsets that do not fit.
    """

    def __init__(
        self,
        dim: int,
        max_length: int = 2048,
        base: float = 10000.0,
        *,
        scaling: float = 1.0,
        interleaved: bool = False,
        device: Any = None,
    ) -> None:
        super().__init__(dim, base, scaling, max_length, device)
        self.interleaved = interleaved

    def forward(
        self, query: Tensor, key: Tensor, offset: int | Tensor = 0, positions: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        if query.dim() != 4 or key.dim() != 4:
            raise ValueError(
                f"RotaryPositions: query and key must be [B, H, L, D]: got {list(query.shape)} and {list(key.shape)}"
            )
        sin, cos = self._look_up(_positions("RotaryPositions", query, offset, positions))
        return functional.apply_rotary(query, key, cos, sin, interleaved=self.interleaved)

    def extra_repr(self) -> str:
        return super().extra_repr() + (", interleaved=True" if self.interleaved else "")


def _features(caller: str, x: Tensor, dim: int) -> None:
    if x.dim() < 2 or x.shape[-1] != dim:
        raise ValueError(f"{caller}: x must be [..., L, {dim}]: got shape {list(x.shape)}")
