"""``torch.nn.MultiheadAttention`` on the fused attention: its constructor, parameters, masks and results."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dlops import _backend, functional

#: Inference on the CPU of fewer tokens * embed_dim^2 than this is mostly overhead, and torch's modules have less of it (a
#: whole layer is one call in C++): without masks, such a call goes to torch's own forward.
SMALL = 10_000_000


def is_small(module: nn.Module, x: Tensor) -> bool:
    """Whether a call of an attention or a layer without masks, with input x [..., E], is torch's to run."""
    return (
        not module.training
        and not torch.is_grad_enabled()
        and not _backend.transforming()
        and x.numel() * x.shape[-1] < SMALL
        and x.is_cpu
        and _backend._current == "auto"
        and _backend._recorder is None
        and not torch.compiler.is_compiling()
    )


class MultiheadAttention(nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` (Vaswani et al. 2017, section 3.2.2) without the score matrix in memory.

    Constructor, parameters, initialisation, masks (True: may not be seen) and the ``is_causal`` hint are torch's. Masks stay
    as small as they are: a ``key_padding_mask`` is never expanded to the rows, a 2-D ``attn_mask`` never to batch or heads.
    ``need_weights=True``, nested tensors and tiny inputs in inference run as torch's own module. A query that may see no
    key gets an attention output of 0, thus the bias of ``out_proj``; torch gives NaN there on some of its paths.

    Shape:
        query [N, L, E], key [N, S, kdim], value [N, S, vdim] with batch_first; [L, N, E], [S, N, kdim], [S, N, vdim]
        without; [L, E], [S, kdim], [S, vdim] unbatched. key_padding_mask [N, S] (or [S]), attn_mask [L, S] or
        [N * num_heads, L, S], bool or float. Returns (output like query, weights or None).

    Raises:
        ValueError: an input, key_padding_mask or attn_mask of a number of dimensions or of a width that does not fit.
        RuntimeError: a mask's shape does not fit; is_causal without attn_mask, of which it is a hint.
        TypeError: a mask that is neither bool nor floating point.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        nested = query.is_nested or key.is_nested or value.is_nested
        unmasked = attn_mask is None and key_padding_mask is None and not is_causal
        if need_weights or nested or (query is key and unmasked and is_small(self, query)):
            return super().forward(
                query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
            )
        _check(self, query, key, value, key_padding_mask, attn_mask, is_causal)
        same, batch_first = (query is key, key is value), self.batch_first
        unbatched = query.dim() == 2
        if unbatched:
            query, key, value, batch_first = query[None], key[None], value[None], True
            key_padding_mask = None if key_padding_mask is None else key_padding_mask[None]
        out = _attend(self, query, key, value, key_padding_mask, attn_mask, is_causal, batch_first, *same)
        return out.squeeze(0) if unbatched else out, None


def attend_packed(module: nn.MultiheadAttention, rows: Tensor, cu_seqlens: Tensor, longest: int) -> Tensor:
    """Self-attention within sequences that lie one after the other: rows [total, E] -> [total, E].

    For modules with `_qkv_same_embed_dim` and without bias_k, bias_v and add_zero_attn.
    """
    qkv = F.linear(rows, module.in_proj_weight, module.in_proj_bias).chunk(3, dim=-1)
    q, k, v = (t.unflatten(-1, (module.num_heads, module.head_dim)) for t in qkv)  # [total, H, D]
    out: Any = functional.attention_varlen(q, k, v, cu_seqlens, cu_seqlens, longest, longest)
    return F.linear(out.flatten(1), module.out_proj.weight, module.out_proj.bias)


def _attend(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_padding_mask: Tensor | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    batch_first: bool,
    query_is_key: bool,
    key_is_value: bool,
) -> Tensor:
    """Batched inputs, checked; key_padding_mask [N, S]."""
    q, k, v = _project(module, query, key, value, query_is_key, key_is_value)
    if module.bias_k is not None:  # one more key and value, the same for every sequence: [1, 1, E]
        k, v = (_append(t, bias.to(t.dtype), batch_first) for t, bias in ((k, module.bias_k), (v, module.bias_v)))
    if module.add_zero_attn:
        k, v = (_append(t, t.new_zeros(1, 1, t.shape[-1]), batch_first) for t in (k, v))
    order = (0, 2, 1, 3) if batch_first else (1, 2, 0, 3)
    q, k, v = (t.unflatten(-1, (module.num_heads, module.head_dim)).permute(order) for t in (q, k, v))  # [N, H, L, D]

    extra = k.shape[2] - key.shape[1 if batch_first else 0]  # bias_k and the zero: keys that every row sees
    causal = is_causal and extra == 0
    mask, causal, window = _mask(key_padding_mask, attn_mask, causal, q, extra)
    p = module.dropout if module.training else 0.0
    out: Any
    if window is None:
        out = functional.scaled_dot_product_attention(q, k, v, mask, p, causal)
    else:
        out = functional.scaled_dot_product_attention(q, k, v, mask, p, window=window)
    out = out.permute((0, 2, 1, 3) if batch_first else (2, 0, 1, 3)).flatten(2)  # [N, L, E] or [L, N, E]
    return F.linear(out, module.out_proj.weight, module.out_proj.bias)


def _project(
    module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor, query_is_key: bool, key_is_value: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The input projections, in as few products as the inputs' identity allows; their results are views."""
    e, bias = module.embed_dim, module.in_proj_bias
    if not module._qkv_same_embed_dim:
        weights = (module.q_proj_weight, module.k_proj_weight, module.v_proj_weight)
        biases = (None, None, None) if bias is None else bias.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))
        return q, k, v
    weight = module.in_proj_weight
    if query_is_key and key_is_value:
        q, k, v = F.linear(query, weight, bias).chunk(3, dim=-1)
        return q, k, v
    w_q, w_kv = weight.split((e, 2 * e))
    b_q, b_kv = (None, None) if bias is None else bias.split((e, 2 * e))
    q = F.linear(query, w_q, b_q)
    if key_is_value:
        k, v = F.linear(key, w_kv, b_kv).chunk(2, dim=-1)
        return q, k, v
    (w_k, w_v), (b_k, b_v) = w_kv.chunk(2), (None, None) if b_kv is None else b_kv.chunk(2)
    return q, F.linear(key, w_k, b_k), F.linear(value, w_v, b_v)


def _append(x: Tensor, row: Tensor, batch_first: bool) -> Tensor:
    """One more row [1, 1, E] at the end of every sequence of x."""
    along = 1 if batch_first else 0
    return torch.cat((x, row.expand(*(1 if d == along else n for d, n in enumerate(x.shape[:2])), -1)), dim=along)


def _mask(
    padding: Tensor | None, mask: Tensor | None, causal: bool, q: Tensor, extra: int
) -> tuple[Tensor | None, bool, tuple[None, int] | None]:
    """torch's masks as attn_mask, is_causal and window of the functional: (True: may be seen), broadcast over what they can.

    padding [N, S], mask [L, S] or [N * H, L, S]. Where `mask` is known to be the causal one, it is not read: causality
    goes with padding as a window without limit to the left.
    """
    n, heads = q.shape[:2]
    window = None
    if mask is not None and causal:
        if padding is None:
            return None, True, None
        if q.dtype is not torch.float64:  # its composition would cost more than torch's masked attention
            mask, window = None, (None, 0)
    masks = []
    if mask is not None:
        masks.append(mask.reshape(n, heads, *mask.shape[1:]) if mask.dim() == 3 else mask[None, None])
    if padding is not None:
        masks.append(padding[:, None, None])
    if not masks:
        return None, False, window
    if all(m.dtype is torch.bool for m in masks):
        merged = masks[0] if len(masks) == 1 else masks[0] | masks[1]
        merged = merged.logical_not()
    else:
        added = [torch.zeros_like(m, dtype=q.dtype).masked_fill(m, -torch.inf) if m.dtype is torch.bool else m for m in masks]
        merged = (added[0] if len(added) == 1 else added[0] + added[1]).to(q.dtype)
    if extra:
        merged = F.pad(merged, (0, extra), value=True if merged.dtype is torch.bool else 0.0)
    return merged, False, window


def _check(
    module: nn.MultiheadAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    mask: Tensor | None,
    is_causal: bool,
) -> None:
    dims = query.dim()
    if dims not in (2, 3) or key.dim() != dims or value.dim() != dims:
        raise ValueError(
            "MultiheadAttention: query, key and value must all be 3-D (batched) or 2-D (unbatched): got shapes"
            f" {list(query.shape)}, {list(key.shape)} and {list(value.shape)}"
        )
    for name, x, width in (("query", query, module.embed_dim), ("key", key, module.kdim), ("value", value, module.vdim)):
        if x.shape[-1] != width:
            raise ValueError(f"MultiheadAttention: {name} has shape {list(x.shape)}, expected {width} features")
    if key.shape[:-1] != value.shape[:-1]:
        raise ValueError(f"MultiheadAttention: key {list(key.shape)} and value {list(value.shape)} differ in batch or length")
    if dims == 2:
        n, l, s = 1, query.shape[0], key.shape[0]
    else:
        (n, l), (m, s) = ((x.shape[:2] if module.batch_first else (x.shape[1], x.shape[0])) for x in (query, key))
        if n != m:
            raise ValueError(f"MultiheadAttention: query {list(query.shape)} and key {list(key.shape)} differ in batch")
    for name, given in (("key_padding_mask", padding), ("attn_mask", mask)):
        if given is not None and given.dtype is not torch.bool and not given.is_floating_point():
            raise TypeError(f"MultiheadAttention: {name} must be bool or floating point: got {given.dtype}")
    if padding is not None:
        expected = (s,) if dims == 2 else (n, s)
        if padding.shape != expected:
            raise RuntimeError(f"MultiheadAttention: key_padding_mask has shape {list(padding.shape)}, expected {list(expected)}")
    if mask is not None and mask.shape not in ((l, s), (n * module.num_heads, l, s)):
        raise RuntimeError(
            f"MultiheadAttention: attn_mask has shape {list(mask.shape)}, expected {[l, s]} or {[n * module.num_heads, l, s]}"
        )
    if is_causal and mask is None:
        raise RuntimeError("MultiheadAttention: is_causal is a hint about attn_mask, which is None")
