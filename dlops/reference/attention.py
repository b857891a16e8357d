"""Plain PyTorch twins of the attention ops: the specification, differentiable to any order, in float32 or float64.

float16 and bfloat16 inputs are computed in float32 and rounded once, at the end.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from dlops.reference.philox import philox

_WORD = 0xFFFFFFFF


def dropout_mask(
    rng: Tensor, dropout_p: float, batch: int, heads: int, rows: range, keys: int, *, first_batch: int = 0
) -> Tensor:
    """Which attention weights dropout keeps, as bool [batch, heads, rows, keys].

    Key 4g + i of row r of head h of batch entry b is kept where word i of Philox4x32-10 with key `seed` and counter
    (g, r, b * heads + h, offset) is at least dropout_p * 2^32.

    Args:
        rng: int64 [2], the seed and the offset.
        rows: the rows wanted, of range(L).
    """
    seed, offset = rng.to(torch.int64)

    def axis(indices: range, dim: int) -> Tensor:
        shape = [1, 1, 1, 1]
        shape[dim] = len(indices)
        return torch.arange(indices.start, indices.stop, device=rng.device).reshape(shape)

    head = axis(range(first_batch, first_batch + batch), 0) * heads + axis(range(heads), 1)
    groups = axis(range((keys + 3) // 4), 3)
    counter = torch.broadcast_tensors(groups, axis(rows, 2), head & _WORD, (offset & _WORD).reshape(1, 1, 1, 1))
    words = philox(counter, (seed & _WORD, (seed >> 32) & _WORD))
    kept = torch.stack(words, dim=-1).flatten(3)[..., :keys] >= min(int(dropout_p * 2**32), _WORD)
    return kept


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    scale: float,
    mask: Tensor | None = None,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    key_lengths: Tensor | None = None,
    shift: int | Tensor = 0,
    window: tuple[int, int] = (-1, -1),
    softcap: float = 0.0,
    dropout: Tensor | None = None,
    first_row: int = 0,
) -> tuple[Tensor, Tensor]:
    """softmax(scale Q K^T) V (Vaswani et al. 2017, equation 1) and the logarithm of the softmax's denominator.

    In this order: scale; softcap tanh(s / softcap) (Gemma 2: Riviere et al. 2024, section 2); the bias of ALiBi (Press et
    al. 2022, section 3), -slope |i + shift - j|, and the mask; what the window, the lengths or a boolean mask hide is -inf.
    A sink (Xiao et al. 2024; learned: OpenAI 2025, gpt-oss) joins the denominator as one more logit without a value.

    Args:
        query: [B, H, Lq, D]. key: [B, Hk, Lk, D]. value: [B, Hk, Lk, Dv]; H a multiple of Hk.
        mask: bool (True: may be seen) or a float to add, broadcastable to [B, H, Lq, Lk].
        alibi_slopes: [H] or [B, H]. sinks: [H]. key_lengths: [B].
        shift: row i stands at key i + shift; a number, or [B].
        window: row i sees keys i + shift - left to i + shift + right; negative: no limit.
        dropout: what the weights are multiplied with after the softmax, broadcastable to [B, H, Lq, Lk].
        first_row: of the rows of `query` in the whole sequence.

    Returns:
        Output [B, H, Lq, Dv] in the dtype of query; lse [B, H, Lq] float32 (float64 for such a query), without the sink. A
        row that sees no key has output 0 and lse -inf.
    """
    exact = torch.float64 if query.dtype == torch.float64 else torch.float32
    q, k, v = (t.to(exact) for t in (query, key, value))
    if key_lengths is not None:  # what lies past them is not read: 0 * NaN would be NaN
        exists = torch.arange(k.shape[2], device=k.device) < key_lengths.reshape(-1, 1)  # [B, Lk]
        k, v = (torch.where(exists[:, None, :, None], t, 0.0) for t in (k, v))
    group = q.shape[1] // k.shape[1]
    if group > 1:
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    s = scale * (q @ k.transpose(-1, -2))  # [B, H, Lq, Lk]
    if softcap > 0:
        s = softcap * torch.tanh(s / softcap)
    device = q.device
    at = torch.arange(first_row, first_row + q.shape[2], device=device)[:, None]  # [Lq, 1]
    if isinstance(shift, Tensor):
        shift = shift.reshape(-1, 1, 1, 1)
    at = at + shift  # [Lq, 1] or [B, 1, Lq, 1]
    j = torch.arange(k.shape[2], device=device)
    if alibi_slopes is not None:
        slopes = alibi_slopes.to(exact).reshape(-1, q.shape[1], 1, 1)
        s = s - slopes * (at - j).abs()
    if mask is not None and mask.dtype != torch.bool:
        s = s + mask.to(exact)
    seen = torch.ones((), dtype=torch.bool, device=device)
    if mask is not None and mask.dtype == torch.bool:
        seen = mask
    if window[0] >= 0:
        seen = seen & (j >= at - window[0])
    if window[1] >= 0:
        seen = seen & (j <= at + window[1])
    if key_lengths is not None:
        seen = seen & (j < key_lengths.reshape(-1, 1, 1, 1))
    s = s.masked_fill(~seen, -math.inf)

    if k.shape[2] == 0:  # no key to take the maximum of
        return q.new_zeros((*q.shape[:3], v.shape[3])).to(query.dtype), q.new_full(q.shape[:3], -math.inf)
    sink = None if sinks is None else sinks.to(exact).reshape(1, -1, 1, 1)
    top = s.detach().amax(dim=-1, keepdim=True)
    top = torch.where(top == -math.inf, 0.0, top)
    if sink is not None:
        top = torch.maximum(top, sink.detach())
    e = torch.exp(s - top)
    total = e.sum(dim=-1, keepdim=True)
    empty = total == 0
    counted = torch.where(empty, 1.0, total)
    weights = e / (counted if sink is None else counted + torch.exp(sink - top))
    if dropout is not None:
        weights = weights * dropout
    lse = torch.where(empty, -math.inf, top + torch.log(counted)).squeeze(-1)
    return (weights @ v).to(query.dtype), lse


def apply_rotary(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, inverse: bool = False) -> Tensor:
    """Rotary position embedding (Su et al. 2021, section 3.4.2): each pair of elements turned by its angle.

    Args:
        x: [B, H, L, D]. cos, sin: [L, R / 2] or [B, L, R / 2], R <= D; elements past R pass through.
        interleaved: pairs are (2i, 2i + 1), as in the paper; otherwise (i, i + R / 2), as in Llama.
        inverse: turn back.
    """
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    cos, sin = (t.to(exact) if t.dim() == 2 else t.to(exact)[:, None] for t in (cos, sin))  # [(B, 1,) L, R / 2]
    rotary = 2 * cos.shape[-1]
    turned, rest = x[..., :rotary].to(exact), x[..., rotary:]
    if inverse:
        sin = -sin
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, dim=-1)
    a, b = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack((a, b), dim=-1).flatten(-2) if interleaved else torch.cat((a, b), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)


def merge_attention(outs: Tensor, lses: Tensor) -> tuple[Tensor, Tensor]:
    """The attention over all keys from the attention over disjoint parts of them: sum_n exp(lse_n - lse) out_n.

    Args:
        outs: [N, ..., D]. lses: [N, ...].
    """
    exact = torch.float64 if outs.dtype == torch.float64 else torch.float32
    lses = lses.to(exact)
    top = lses.detach().amax(dim=0)
    top = torch.where(top == -math.inf, 0.0, top)
    e = torch.exp(lses - top)
    total = e.sum(dim=0)
    empty = total == 0
    counted = torch.where(empty, 1.0, total)
    lse = torch.where(empty, -math.inf, top + torch.log(counted))
    weights = (e / counted).unsqueeze(-1)
    outs_seen = torch.where(weights == 0, 0.0, outs.to(exact))  # a part that saw nothing may hold anything
    return (weights * outs_seen).sum(dim=0).to(outs.dtype), lse
