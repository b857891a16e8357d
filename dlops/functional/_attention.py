"""What the attention functions share: checks, shapes, and whether and how our kernel runs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import is_fake

from dlops import _backend
from dlops._backend import Plan, transforming
from dlops._explain import make_plan
from dlops._library import has_cuda_kernels
from dlops._ops.attention import Attention, Options, Tensors, compose_any, forward
from dlops.functional._checks import supported_tensor

MAX_HEAD_DIM = 256
# On the CPU, below so many multiplications of Q K^T, torch's call is the faster one; measured on Zen 4.
SMALL = {torch.float32: 1 << 19, torch.bfloat16: 1 << 16, torch.float16: 1 << 16}
FEW_ROWS = 8  # kFewRows of csrc/attention/ops.cpp
Window = int | tuple[int | None, int | None] | None


def draw_rng(device: torch.device | str) -> Tensor:
    """Seed and offset of a dropout mask, from torch's generator."""
    return torch.randint(-(2**63), 2**63 - 1, (2,), dtype=torch.int64, device=device)


def run(
    use: bool, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, t: Tensors, o: Options,
    deterministic: bool, variant: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    if o.dropout_p > 0:
        t = t._replace(rng=draw_rng(q.device))
    if not use:
        return compose_any((q, k, v, mask, sinks), t, o)
    differentiable = (q, k, v, mask, sinks)
    if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in differentiable):
        return Attention.apply(*_distinct((*differentiable, *t)), o, deterministic, variant)
    return forward(q, k, v, mask, sinks, t, o, variant)


def _distinct(tensors: Sequence[Tensor | None]) -> list[Tensor | None]:
    """While torch.compile traces, the same tensor twice as two: it refuses duplicates among a Function's inputs."""
    if not torch.compiler.is_compiling():
        return list(tensors)
    found: list[Tensor | None] = []
    for t in tensors:
        found.append(t if t is None or all(t is not other for other in found) else t.view_as(t))
    return found


def check_options(op: str, q: Tensor, k: Tensor, sinks: Tensor | None, t: Tensors, o: Options) -> None:
    """What csrc/attention/arguments.h checks, for calls that do not reach it."""
    heads, batch = q.shape[1], q.shape[0] if t.cu_seqlens_q is None else t.cu_seqlens_q.shape[0] - 1
    if not o.softcap >= 0:
        raise ValueError(f"{op}: softcap must be 0 (none) or positive: got {o.softcap}")
    if sinks is not None and sinks.shape != (heads,):
        raise ValueError(f"{op}: sinks has shape {list(sinks.shape)}, expected [{heads}]")
    slopes = t.alibi_slopes
    if slopes is not None and slopes.shape not in ((heads,), (batch, heads)):
        raise ValueError(f"{op}: alibi_slopes has shape {list(slopes.shape)}, expected [{heads}] or [{batch}, {heads}]")
    known = lambda x: x is not None and x.is_cpu and not is_fake(x) and not transforming()  # noqa: E731
    if known(t.key_lengths) and batch and not 0 <= int(t.key_lengths.min()) <= int(t.key_lengths.max()) <= o.max_k:
        wrong = next(n for n in t.key_lengths.tolist() if not 0 <= n <= o.max_k)
        raise ValueError(f"{op}: key_lengths must be 0 to {o.max_k}: got {wrong}")
    for name, cu, total, longest in (
        ("cu_seqlens_q", t.cu_seqlens_q, q.shape[0], o.max_q),
        ("cu_seqlens_k", t.cu_seqlens_k, k.shape[0], o.max_k),
    ):
        if known(cu):
            starts = cu.tolist()
            steps = [b - a for a, b in zip(starts, starts[1:])]
            if starts[0] != 0 or starts[-1] != total or any(not 0 <= step <= longest for step in steps):
                raise ValueError(
                    f"{op}: {name} must start at 0, ascend by at most {longest} and end at the total length {total}: got {starts}"
                )


def check_shapes(op: str, query: Tensor, key: Tensor, value: Tensor, enable_gqa: bool) -> None:
    for name, t in (("query", query), ("key", key), ("value", value)):
        if t.dim() < 2:
            raise ValueError(f"{op}: {name} must be [..., length, d]: got shape {list(t.shape)}")
        if t.dtype != query.dtype and not autocasts(query):
            raise RuntimeError(f"{op}: {name} must have query's dtype {query.dtype}: got {t.dtype}")
        if t.device != query.device:
            raise RuntimeError(f"{op}: {name} is on {t.device}, expected {query.device}")
    if key.shape[-1] != query.shape[-1]:
        raise ValueError(f"{op}: key has head dimension {key.shape[-1]}, expected that of query, {query.shape[-1]}")
    if value.shape[-2] != key.shape[-2]:
        raise ValueError(f"{op}: value has length {value.shape[-2]}, expected that of key, {key.shape[-2]}")
    if enable_gqa and (query.dim() < 3 or key.dim() < 3 or value.dim() < 3):
        raise ValueError(f"{op}: enable_gqa needs a dimension of heads: got query {list(query.shape)}, key {list(key.shape)}")
    if query.dim() >= 3 and enable_gqa:
        heads, shared = query.shape[-3], key.shape[-3]
        if value.shape[-3] != shared or shared == 0 or heads % shared:
            found = f"{heads}, {shared} and {value.shape[-3]}"
            raise ValueError(f"{op}: query must have a multiple of the heads of key and value: got {found}")


def autocasts(t: Tensor) -> bool:
    kind = t.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def autocast(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """torch's rule: under autocast, attention runs in the lower precision."""
    if not autocasts(query):
        return query, key, value, mask
    dtype = torch.get_autocast_dtype(query.device.type)
    low = lambda t: t.to(dtype) if t.is_floating_point() and t.dtype != torch.float64 else t  # noqa: E731
    return low(query), low(key), low(value), None if mask is None else low(mask)


def four_dimensions(
    op: str, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, enable_gqa: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, tuple[int, ...] | None]:
    """q, k, v as [B, H, L, D], the mask as [B or 1, H or 1, Lq or 1, Lk or 1], and the leading dimensions of the result where
    they are not two."""
    dims = max(query.dim(), key.dim(), value.dim())
    if dims == 4 and query.shape[0] == key.shape[0] == value.shape[0] and key.shape[1] == value.shape[1] == query.shape[1]:
        four = (query, key, value)
        lead = None
    else:
        full = [t[(None,) * (dims - t.dim())] for t in (query, key, value)]
        full = [t[(None,) * max(0, 3 - dims)] for t in full]  # a head at least
        try:
            batch = torch.broadcast_shapes(*(t.shape[:-3] for t in full))
        except RuntimeError:
            raise ValueError(
                f"{op}: the batch dimensions of query {list(query.shape)}, key {list(key.shape)} and value"
                f" {list(value.shape)} do not fit each other"
            ) from None
        shared = max(full[1].shape[-3], full[2].shape[-3])
        heads = full[0].shape[-3] if enable_gqa else max(full[0].shape[-3], shared)
        for name, t in (("query", full[0]), ("key", full[1]), ("value", full[2])):
            if not enable_gqa and t.shape[-3] not in (1, heads):
                have = "query, key and value have " + ", ".join(str(x.shape[-3]) for x in full)
                raise ValueError(f"{op}: {have} heads: {name}'s fit the others only with enable_gqa=True")
        if not enable_gqa and shared != heads and shared != 1:
            raise ValueError(f"{op}: key has {shared} heads, query {heads}")
        flat = [
            t.expand(*batch, h, *t.shape[-2:]).reshape(math.prod(batch), h, *t.shape[-2:])
            for t, h in zip(full, (heads, shared, shared))
        ]
        four = (flat[0], flat[1], flat[2])
        lead = None if dims == 4 else ((*batch, heads) if dims > 2 else ())
    q, k, v = four
    if mask is None:
        return q, k, v, None, lead
    if mask.dtype != torch.bool and mask.dtype not in (q.dtype, torch.float32):
        raise RuntimeError(f"{op}: attn_mask must be bool, float32 or of query's dtype {q.dtype}: got {mask.dtype}")
    if mask.dim() <= 3 or dims <= 4:
        mask = mask[(None,) * (4 - mask.dim())]
    else:
        try:
            mask = mask.expand(*batch, *mask.shape[-3:]).reshape(q.shape[0], *mask.shape[-3:])
        except RuntimeError:
            raise ValueError(
                f"{op}: attn_mask has shape {list(mask.shape)}, which does not broadcast to {list(batch)} and heads"
            ) from None
    wanted = [*q.shape[:3], k.shape[2]]
    if mask.dim() != 4 or any(size not in (1, want) for size, want in zip(mask.shape, wanted)):
        raise ValueError(f"{op}: attn_mask has shape {list(mask.shape)}, which does not broadcast to {wanted}")
    return q, k, v, mask, lead


def as_window(op: str, window: Window) -> tuple[int, int]:
    """(left, right), -1 where there is no limit."""
    if window is None:
        return -1, -1
    sides = tuple(window) if isinstance(window, (tuple, list)) else (window, window)
    whole = all(side is None or (isinstance(side, (int, torch.SymInt)) and not isinstance(side, bool)) for side in sides)
    if len(sides) != 2 or not whole or any(side is not None and side < 0 for side in sides):
        raise ValueError(f"{op}: window must be (left, right), each None or an integer >= 0: got {window!r}")
    left, right = (-1 if side is None else side for side in sides)
    return left, right


def as_scale(query: Tensor, scale: float | None) -> float:
    return 1 / math.sqrt(max(1, query.shape[-1])) if scale is None else float(scale)


def integers(op: str, name: str, t: Tensor) -> Tensor:
    if t.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{op}: {name} must be int32 or int64: got {t.dtype}")
    return t.to(torch.int32)


def lengths_of(op: str, name: str, t: Tensor, batch: int) -> Tensor:
    if t.shape != (batch,):
        raise ValueError(f"{op}: {name} has shape {list(t.shape)}, expected [{batch}]")
    return integers(op, name, t)


def longest_of(cu: Tensor) -> int:
    return int((cu[1:] - cu[:-1]).max()) if cu.shape[0] > 1 else 0


def unsupported(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, t: Tensors, dropout_p: float
) -> str | None:
    """Why our kernel cannot take this call; None if it can."""
    reason = supported_tensor(q, (k, v, mask, sinks, *t), has_cuda_kernels)
    if reason is not None:
        return reason
    for name, width in (("query", q.shape[-1]), ("value", v.shape[-1])):
        if not 1 <= width <= MAX_HEAD_DIM:
            return f"a head dimension of {width} in {name} has no kernel (1 to {MAX_HEAD_DIM} have)"
    if dropout_p == 1.0:
        return "dropout_p = 1 leaves nothing to compute"
    if t.alibi_slopes is not None and t.alibi_slopes.requires_grad:
        return "the gradient of alibi_slopes"
    if transforming():
        return "inside a torch.func transform or forward-mode AD"
    return None


def _work(q: Tensor, k: Tensor) -> int:
    """Multiplications of Q K^T."""
    return q.numel() * k.shape[-2]


def differentiates(*tensors: Tensor | None) -> bool:
    """Whether a derivative of the call may be asked for. torch's fused CPU kernel has a first one in reverse mode only."""
    return (torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)) or transforming()


def _is_small(q: Tensor, k: Tensor, v: Tensor) -> bool:
    return (
        q.is_cpu
        and q.dtype in SMALL
        and not torch.compiler.is_compiling()  # there a call costs less, and sizes may be symbols
        and _work(q, k) < SMALL[q.dtype]
        and not differentiates(q, k, v)
    )


def is_small(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether a plain call is all overhead, so that torch's own function, one step away, is the faster one."""
    return (
        type(q) is Tensor
        and type(k) is Tensor
        and type(v) is Tensor
        and _backend._current == "auto"
        and _backend._recorder is None
        and k.dim() > 1
        and _is_small(q, k, v)
    )


def slower(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, o: Options) -> str | None:
    """Where torch's own kernel is known to be the faster one. Masks are ours at any size: torch gives NaN for a row that
    sees no key, and the size must not decide that."""
    if mask is None and o.dropout_p == 0 and _is_small(q, k, v):
        return f"{_work(q, k):,} multiplications: below {SMALL[q.dtype]:,} the call costs more than torch's"
    return None


def _visible(o: Options, q_len: int, k_len: int) -> int:
    """About how many of the q_len * k_len scores are computed."""
    left = k_len if o.window_left < 0 else min(o.window_left, k_len)
    right = k_len if o.window_right < 0 else min(o.window_right, k_len)
    if o.window_left < 0 and o.window_right < 0:
        return q_len * k_len
    if o.window_left < 0 and o.window_right == 0 and q_len == k_len:
        return q_len * (q_len + 1) // 2
    return min(q_len * k_len, q_len * (left + right + 1))


def _rung(q: Tensor, o: Options) -> str:
    """The rung that a call without `variant` takes, as csrc/attention/ops.cpp decides it."""
    few = q.dim() == 4 and q.shape[2] <= FEW_ROWS
    if few and o.dropout_p == 0:
        return "split"
    if q.is_cpu:
        return "tiled"
    return "online" if q.dtype == torch.float32 else "pipelined"


def plan_of(q: Tensor, k: Tensor, v: Tensor, o: Options, use: bool, reason: str, variant: str | None) -> Plan:
    packed = q.dim() == 3
    heads = q.shape[1]
    sequences = max(1, q.shape[0] // max(1, o.max_q)) if packed else q.shape[0]
    pairs = _visible(o, o.max_q, o.max_k) * heads * sequences
    flops = 2 * pairs * (q.shape[-1] + v.shape[-1])
    traffic = (q.numel() + k.numel() + v.numel() + q.numel() // max(1, q.shape[-1]) * v.shape[-1]) * q.element_size()
    rung = variant or _rung(q, o)
    return make_plan("attention", use, reason, device=q.device, variant=rung, flops=flops, bytes=traffic)
