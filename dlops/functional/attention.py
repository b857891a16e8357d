"""Fused attention: torch's ``scaled_dot_product_attention`` with what it lacks, packed sequences, decoding, rotary positions.

float32, float16 and bfloat16, accumulated in float32; float64, and whatever else our kernels do not take, runs as torch's
operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dlops import _backend
from dlops._backend import choose
from dlops._ops.attention import Options, Tensors
from dlops.functional._attention import (
    Window,
    as_scale,
    as_window,
    autocast,
    check_options,
    check_shapes,
    differentiates,
    four_dimensions,
    integers,
    is_small,
    lengths_of,
    longest_of,
    plan_of,
    run,
    slower,
    unsupported,
)
from dlops.functional._checks import check_optional, check_tensors
from dlops.reference import attention as reference

_torchs = F.scaled_dot_product_attention


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    window: Window = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    key_lengths: Tensor | None = None,
    return_lse: bool = False,
    deterministic: bool = True,
    variant: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """``torch.nn.functional.scaled_dot_product_attention``: softmax(scale Q K^T + mask) V, without the score matrix in memory.

    Attention: Vaswani et al. 2017, equation 1. One pass with a running maximum: Milakov & Gimelshein 2018; in tiles, with
    recomputation in the backward pass: Dao et al. 2022, algorithms 1 and 4. The order of the options is scale, softcap, ALiBi
    and mask, window. A row that sees no key gives 0 (and LSE -inf), and finite gradients; torch gives NaN.

    Args:
        query: [..., H, Lq, D]. key: [..., Hk, Lk, D]. value: [..., Hk, Lk, Dv]. D and Dv from 1 to 256, any strides.
        attn_mask: bool (True: may be seen) or float to add (query's dtype or float32), broadcastable to [..., H, Lq, Lk]; never
            materialised where it is broadcast. A float mask has a gradient.
        dropout_p: probability that a weight is dropped, in [0, 1]; always applied, as in torch. The mask is a function of a
            seed and an offset drawn from torch's generator: the same on every device.
        is_causal: row i sees the keys up to i + shift; shift is 0, as in torch, or with key_lengths key_lengths[b] - Lq.
        scale: default 1 / sqrt(D).
        enable_gqa: H may be a multiple of Hk; heads share keys and values, which are not repeated in memory.
        window: (left, right): row i sees the keys i + shift - left to i + shift + right; None: no limit on that side. One
            number is both. Sliding windows: Beltagy et al. 2020, section 3.1.
        softcap: positive: scores become softcap tanh(score / softcap) (Riviere et al. 2024, section 2). 0: none.
        alibi_slopes: [H] or [B, H]: adds -slope |i + shift - j| (Press et al. 2022, section 3). Not differentiable.
        sinks: [H]: one more logit per head in the softmax's denominator, without a value (gpt-oss, OpenAI 2025).
        key_lengths: int [B]: how many keys each sequence has; the keys past them are never read. Rows then stand at the end
            of the keys (bottom right).
        return_lse: also return the natural logarithm of the softmax's denominator, without the sink.
        deterministic: False allows a backward pass on CUDA that adds up in no fixed order, and is faster.
        variant: the rung: "naive", "tiled" or "split" on the CPU; "naive", "online", "tiled", "pipelined" or "split" on CUDA.

    Returns:
        Tensor [..., H, Lq, Dv] in query's dtype; with return_lse the pair (output, lse float32 [..., H, Lq]).

    Raises:
        TypeError: an argument that must be a tensor is none.
        ValueError, RuntimeError: shapes, dtypes, devices or values that do not fit, named.
    """
    plain = (
        window is None and softcap == 0.0 and alibi_slopes is None and sinks is None and key_lengths is None
        and not return_lse and variant is None
    )  # fmt: skip
    if plain and attn_mask is None and dropout_p == 0.0 and is_small(query, key, value):
        if scale is None and not enable_gqa:
            return _torchs(query, key, value, None, 0.0, is_causal)
        return _torchs(query, key, value, None, 0.0, is_causal, scale=scale, enable_gqa=enable_gqa)
    options = (window, softcap, alibi_slopes, sinks, key_lengths, return_lse, deterministic, variant)
    return _attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, plain, *options)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, dropout_p: float, is_causal: bool,
    scale: float | None, enable_gqa: bool, plain: bool, window: Window, softcap: float, alibi_slopes: Tensor | None,
    sinks: Tensor | None, key_lengths: Tensor | None, return_lse: bool, deterministic: bool, variant: str | None,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """scaled_dot_product_attention; plain: with none of the options that torch lacks."""
    op = "scaled_dot_product_attention"

    def torchs() -> Tensor:
        return _torchs(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)

    if plain and _backend._current == "torch" and _backend._recorder is None:
        return torchs()
    check_tensors(op, ("query", query), ("key", key), ("value", value))
    check_optional(
        op, ("attn_mask", attn_mask), ("alibi_slopes", alibi_slopes), ("sinks", sinks), ("key_lengths", key_lengths)
    )
    if any(t.is_nested for t in (query, key, value)):
        if not plain:
            raise ValueError(f"{op}: nested tensors have none of dlops's extra options")
        return torchs()
    check_shapes(op, query, key, value, enable_gqa)
    if attn_mask is not None and is_causal:
        raise RuntimeError(f"{op}: attn_mask and is_causal exclude each other, as in torch")
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"{op}: dropout_p must be in [0, 1]: got {dropout_p}")
    query, key, value, attn_mask = autocast(query, key, value, attn_mask)
    q, k, v, mask, lead = four_dimensions(op, query, key, value, attn_mask, enable_gqa)
    if key_lengths is not None:
        key_lengths = lengths_of(op, "key_lengths", key_lengths, q.shape[0])
    left, right = as_window(op, window)
    if is_causal:
        right = 0
    factor = as_scale(q, scale)
    options = Options(q.shape[2], k.shape[2], factor, left, right, key_lengths is not None, softcap, dropout_p)
    tensors = Tensors(alibi_slopes, key_lengths)
    reason = unsupported(q, k, v, mask, sinks, tensors, dropout_p)
    loses = slower(q, k, v, mask, options) if plain else None
    use = choose(op, reason, lambda use, why: plan_of(q, k, v, options, use, why, variant), loses)
    if not use:
        if plain and not (differentiates(q, k, v, mask) and q.is_cpu):  # there torch's has a first derivative alone
            return torchs()
        check_options(op, q, k, sinks, tensors, options)
    out, lse = run(use, q, k, v, mask, sinks, tensors, options, deterministic, variant or "")
    if lead is not None:
        out, lse = out.reshape(*lead, *out.shape[-2:]), lse.reshape(*lead, lse.shape[-1])
    return (out, lse) if return_lse else out


def attention_varlen(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_q: int | None = None,
    max_k: int | None = None,
    *,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    window: Window = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    deterministic: bool = True,
    variant: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention within each of several sequences that lie one after the other, without padding.

    Args:
        query: [total_q, H, D]. key: [total_k, Hk, D]. value: [total_k, Hk, Dv]; H a multiple of Hk.
        cu_seqlens_q, cu_seqlens_k: int [B + 1]: sequence b is rows cu_seqlens[b] to cu_seqlens[b + 1]; from 0, ascending, to
            the total. Values on a GPU are not checked (that would wait for it) but clamped to the tensors.
        max_q, max_k: of the longest sequence; None: read from cu_seqlens, which waits for a GPU.
        is_causal, window, alibi_slopes: rows stand at the end of the keys (bottom right): row i of sequence b at
            i + Lk_b - Lq_b.
        The others: as in :func:`scaled_dot_product_attention`.

    Returns:
        Tensor [total_q, H, Dv]; with return_lse the pair (output, lse float32 [H, total_q]).

    Raises:
        TypeError: an argument that must be a tensor is none.
        ValueError, RuntimeError: shapes, dtypes, devices or values that do not fit, named.
    """
    op = "attention_varlen"
    check_tensors(
        op, ("query", query), ("key", key), ("value", value), ("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)
    )
    check_optional(op, ("alibi_slopes", alibi_slopes), ("sinks", sinks))
    for name, t in (("query", query), ("key", key), ("value", value)):
        if t.dim() != 3:
            raise ValueError(f"{op}: {name} must be [total, heads, d]: got shape {list(t.shape)}")
    if cu_seqlens_q.dim() != 1 or cu_seqlens_q.shape != cu_seqlens_k.shape or cu_seqlens_q.shape[0] < 1:
        raise ValueError(
            f"{op}: cu_seqlens_q and cu_seqlens_k must be [sequences + 1]: got shapes {list(cu_seqlens_q.shape)}"
            f" and {list(cu_seqlens_k.shape)}"
        )
    if not 0.0 <= dropout_p <= 1.0:
        raise ValueError(f"{op}: dropout_p must be in [0, 1]: got {dropout_p}")
    query, key, value, _ = autocast(query, key, value, None)
    cu_q, cu_k = (integers(op, name, t) for name, t in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)))
    longest = [longest_of(cu) if given is None else given for cu, given in ((cu_q, max_q), (cu_k, max_k))]
    left, right = as_window(op, window)
    if is_causal:
        right = 0
    options = Options(longest[0], longest[1], as_scale(query, scale), left, right, True, softcap, dropout_p)
    tensors = Tensors(alibi_slopes, None, cu_q, cu_k)
    reason = unsupported(query, key, value, None, sinks, tensors, dropout_p)
    use = choose(op, reason, lambda use, why: plan_of(query, key, value, options, use, why, variant))
    if not use:
        check_options(op, query, key, sinks, tensors, options)
    out, lse = run(use, query, key, value, None, sinks, tensors, options, deterministic, variant or "")
    return (out, lse) if return_lse else out


def attention_decode(
    query: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    window: Window = None,
    softcap: float = 0.0,
    alibi_slopes: Tensor | None = None,
    sinks: Tensor | None = None,
    return_lse: bool = False,
    variant: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of the last few rows of each sequence over a cache of keys and values, causal among those rows.

    The work is spread over pieces of the keys and merged (Dao et al. 2023, Flash-Decoding); the pieces are counted from the
    first key, so neither the batch nor the capacity of the cache changes a bit of the result.

    Args:
        query: [B, H, Lq, D]; row i of sequence b stands at position lengths[b] - Lq + i.
        k_cache: [B, Hk, capacity, D]. v_cache: [B, Hk, capacity, Dv]; H a multiple of Hk, any strides.
        lengths: int [B]: filled positions, the rows of query among them. What lies past them is never read.
        The others: as in :func:`scaled_dot_product_attention`.

    Returns:
        Tensor [B, H, Lq, Dv]; with return_lse the pair (output, lse float32 [B, H, Lq]).

    Raises:
        TypeError, ValueError, RuntimeError: as :func:`scaled_dot_product_attention`.
    """
    check_tensors("attention_decode", ("lengths", lengths))
    return scaled_dot_product_attention(
        query, k_cache, v_cache, is_causal=True, scale=scale, enable_gqa=True, window=window, softcap=softcap,
        alibi_slopes=alibi_slopes, sinks=sinks, key_lengths=lengths, return_lse=return_lse, variant=variant,
    )  # fmt: skip


def merge_attention(outs: Sequence[Tensor] | Tensor, lses: Sequence[Tensor] | Tensor) -> tuple[Tensor, Tensor]:
    """The attention over all keys from its results over disjoint parts of them, exactly; as context parallelism needs.

    out = sum_n exp(lse_n - lse) out_n with lse = ln sum_n exp(lse_n) (Liu et al. 2023, Ring Attention; Dao et al. 2023).
    The parts must have been computed without sinks. Differentiable.

    Args:
        outs: N tensors [..., D], or one [N, ..., D]. lses: N tensors [...], or one [N, ...].

    Returns:
        (out [..., D], lse float32 [...]).

    Raises:
        ValueError: no parts; outs and lses that do not fit each other.
    """
    parts = [list(x.unbind()) if isinstance(x, Tensor) else list(x) for x in (outs, lses)]
    if not parts[0] or len(parts[0]) != len(parts[1]) or any(a.shape[:-1] != b.shape for a, b in zip(*parts)):
        shapes = " and ".join(str([list(t.shape) for t in x]) for x in parts)
        raise ValueError(f"merge_attention: outs must be [N, ..., D] and lses [N, ...]: got {shapes}")
    if any(t.shape != parts[0][0].shape for t in parts[0]):
        raise ValueError(f"merge_attention: outs must have one shape: got {[list(t.shape) for t in parts[0]]}")
    return reference.merge_attention(torch.stack(parts[0]), torch.stack(parts[1]))
