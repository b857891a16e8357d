"""Rotary position embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from dlops._backend import Plan, choose, transforming
from dlops._explain import make_plan
from dlops._library import has_cuda_kernels, ops
from dlops._ops.attention import Rotary
from dlops.functional._attention import MAX_HEAD_DIM
from dlops.functional._checks import check_tensors, supported_tensor
from dlops.reference import attention as reference


def apply_rotary(
    query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False
) -> tuple[Tensor, Tensor]:
    """Rotary position embedding (Su et al. 2021, section 3.4.2) of query and key, one pass over each.

    Args:
        query: [B, H, L, D]. key: [B, Hk, L, D].
        cos, sin: [L, R / 2] or [B, L, R / 2] of the angles, float32 or query's dtype; R <= D. Elements past R pass through.
        interleaved: pairs are (2i, 2i + 1), as in the paper; otherwise (i, i + R / 2), as in Llama.

    Returns:
        The turned query and key.

    Raises:
        TypeError: an argument that must be a tensor is none.
        ValueError, RuntimeError: shapes, dtypes or devices that do not fit, named.
    """
    op = "apply_rotary"
    check_tensors(op, ("query", query), ("key", key), ("cos", cos), ("sin", sin))
    for name, t in (("query", query), ("key", key)):
        if t.dim() != 4:
            raise ValueError(f"{op}: {name} must be [batch, heads, length, d]: got shape {list(t.shape)}")
    if cos.shape != sin.shape or cos.dim() not in (2, 3):
        raise ValueError(
            f"{op}: cos and sin must be [length, R/2] or [batch, length, R/2]: got {list(cos.shape)} and {list(sin.shape)}"
        )
    tables = [t if t.dim() == 3 else t[None] for t in (cos, sin)]
    for name, t in (("query", query), ("key", key)):
        batch, rows, half = tables[0].shape
        if rows != t.shape[2] or batch not in (1, t.shape[0]) or 2 * half > t.shape[3]:
            raise ValueError(f"{op}: cos has shape {list(cos.shape)}, which does not fit {name} of shape {list(t.shape)}")
    unsupported = supported_tensor(query, (key, cos, sin), has_cuda_kernels)
    if unsupported is None and (cos.requires_grad or sin.requires_grad):
        unsupported = "the gradient of cos or sin"
    if unsupported is None and 2 * tables[0].shape[2] > MAX_HEAD_DIM:
        unsupported = f"{2 * tables[0].shape[2]} turned elements have no kernel (up to {MAX_HEAD_DIM} have)"
    if unsupported is None and query.dtype != key.dtype:
        unsupported = f"a query of {query.dtype} with a key of {key.dtype}"
    if unsupported is None and transforming():
        unsupported = "inside a torch.func transform or forward-mode AD"

    def plan(use: bool, reason: str) -> Plan:
        n = query.numel() + key.numel()
        return make_plan("rotary", use, reason, device=query.device, flops=3 * n, bytes=2 * n * query.element_size())

    if not choose(op, unsupported, plan):
        tables = [t[0] if t.shape[0] == 1 else t for t in tables]
        turned = [reference.apply_rotary(t, *tables, interleaved=interleaved) for t in (query, key)]
        return turned[0], turned[1]
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return Rotary.apply(query, *tables, interleaved, False), Rotary.apply(key, *tables, interleaved, False)
    return tuple(ops.rotary.default(t, *tables, interleaved, False) for t in (query, key))  # type: ignore[return-value]
