"""The attention ops for autograd and for fake tensors.

The first derivative is a kernel. The second differentiates the specification, one piece of rows at a time, so that memory
stays bounded; a derivative under a torch.func transform differentiates the specification whole.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from dlops._library import ops
from dlops._ops.derivatives import composes, derive
from dlops.reference import attention as reference

PIECE = 1 << 22  # elements of the score matrix in one piece of a second derivative: 16 MB each, about a dozen of them


class Tensors(NamedTuple):
    """What an attention call depends on without a derivative."""

    alibi_slopes: Tensor | None = None  # [H] or [B, H]
    key_lengths: Tensor | None = None  # int32 [B]
    cu_seqlens_q: Tensor | None = None  # int32 [B + 1]
    cu_seqlens_k: Tensor | None = None
    rng: Tensor | None = None  # int64 [2]


class Options(NamedTuple):
    max_q: int
    max_k: int
    scale: float
    window_left: int = -1
    window_right: int = -1
    bottom_right: bool = False
    softcap: float = 0.0
    dropout_p: float = 0.0


def _shared(mask: Tensor | None, sinks: Tensor | None, t: Tensors, o: Options) -> tuple[Any, ...]:
    """The arguments that the forward and the backward op share, in the order of the schema."""
    return (mask, t.alibi_slopes, sinks, t.key_lengths, t.cu_seqlens_q, t.cu_seqlens_k, t.rng, *o)


def forward(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, sinks: Tensor | None, t: Tensors, o: Options, variant: str
) -> tuple[Tensor, Tensor]:
    return ops.attention.default(q, k, v, *_shared(mask, sinks, t, o), variant)


# ---- the specification, whole and in pieces ----


class Piece(NamedTuple):
    """Some rows of one sequence (or of all, where `batch` covers them)."""

    batch: slice  # of the batch; packed: one entry, the sequence's number
    rows: slice  # of the sequence
    q: tuple[slice, ...]  # where the rows are in q, and in all that has its shape
    k: tuple[slice, ...]


def _pieces(q: Tensor, k: Tensor, t: Tensors, size: int) -> Iterator[Piece]:
    """At most about `size` elements of the score matrix each; a single row at least."""
    everything = slice(None)
    if t.cu_seqlens_q is None:
        sequences = [(slice(b, b + 1), everything, everything, q.shape[2], k.shape[2]) for b in range(q.shape[0])]
    else:
        cu_q, cu_k = t.cu_seqlens_q.tolist(), t.cu_seqlens_k.tolist()
        sequences = []
        for b in range(len(cu_q) - 1):
            at_q, at_k = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
            sequences.append((slice(b, b + 1), at_q, at_k, at_q.stop - at_q.start, at_k.stop - at_k.start))
    for batch, at_q, at_k, rows, keys in sequences:
        step = max(1, size // max(1, q.shape[1] * keys))
        for first in range(0, rows, step):
            some = slice(first, min(first + step, rows))
            if t.cu_seqlens_q is None:
                yield Piece(batch, some, (batch, everything, some), (batch,))
            else:
                yield Piece(batch, some, (slice(at_q.start + some.start, at_q.start + some.stop),), (at_k,))


def _padded(x: Tensor) -> Tensor:
    """Packed rows [L, H, D] as [1, H, L, D]."""
    return x.transpose(0, 1)[None] if x.dim() == 3 else x


def compose(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None,
    sinks: Tensor | None,
    t: Tensors,
    o: Options,
    piece: Piece | None = None,
) -> tuple[Tensor, Tensor]:
    """The specification of one piece (its tensors already cut out), or of a whole call that is not packed."""
    packed = q.dim() == 3
    q, k, v = _padded(q), _padded(k), _padded(v)
    batch, rows = (piece.batch, piece.rows) if piece else (slice(0, q.shape[0]), slice(0, q.shape[2]))
    lengths = None if t.key_lengths is None else t.key_lengths[batch]
    shift: int | Tensor = 0
    if o.bottom_right:
        if packed:
            assert t.cu_seqlens_q is not None
            q_len = int(t.cu_seqlens_q[batch.stop] - t.cu_seqlens_q[batch.start])
        else:
            q_len = o.max_q
        shift = (k.shape[2] if lengths is None else lengths) - q_len
    slopes = t.alibi_slopes
    if slopes is not None and slopes.dim() == 2:
        slopes = slopes[batch]
    dropout = None
    if o.dropout_p > 0:
        assert t.rng is not None
        kept = reference.dropout_mask(
            t.rng, o.dropout_p, q.shape[0], q.shape[1], range(rows.start, rows.stop), k.shape[2], first_batch=batch.start
        )
        dropout = kept / (1 - o.dropout_p) if o.dropout_p < 1 else torch.zeros_like(kept, dtype=torch.float32)
    out, lse = reference.attention(
        q, k, v, scale=o.scale, mask=mask, alibi_slopes=slopes, sinks=sinks, key_lengths=lengths, shift=shift,
        window=(o.window_left, o.window_right), softcap=o.softcap, dropout=dropout, first_row=rows.start,
    )  # fmt: skip
    return (out[0].transpose(0, 1), lse[0]) if packed else (out, lse)


def compose_packed(
    q: Tensor, k: Tensor, v: Tensor, sinks: Tensor | None, t: Tensors, o: Options
) -> tuple[Tensor, Tensor]:
    """The specification of a packed call: its sequences one by one."""
    whole = list(_pieces(q, k, t, q.numel() * max(1, k.numel()) + 1))
    parts = [compose(q[p.q], k[p.k], v[p.k], None, sinks, t, o, p) for p in whole]
    if not parts:
        return q.new_zeros((*q.shape[:2], v.shape[2])), q.new_zeros((q.shape[1], q.shape[0]), dtype=torch.float32)
    return torch.cat([out for out, _ in parts]), torch.cat([lse for _, lse in parts], dim=1)


def _cut(values: Sequence[Tensor | None], piece: Piece, packed: bool) -> list[Tensor | None]:
    """dout, dlse, q, k, v, mask and sinks, or what has their shapes, of one piece."""
    dout, dlse, q, k, v, mask, sinks = values
    at = lambda x, where: None if x is None else x[where]  # noqa: E731
    rows = (slice(None), *piece.q) if packed else piece.q  # lse is [H, total] where q is [total, H, D]
    if mask is not None:
        mask = mask[
            slice(None) if mask.shape[0] == 1 else piece.batch, :, slice(None) if mask.shape[2] == 1 else piece.rows
        ]
    return [at(dout, piece.q), at(dlse, rows), at(q, piece.q), at(k, piece.k), at(v, piece.k), mask, sinks]


# ---- autograd ----


class Attention(Function):
    """(out, lse) of dlops::attention."""

    @staticmethod
    def forward(ctx, q, k, v, mask, sinks, alibi_slopes, key_lengths, cu_seqlens_q, cu_seqlens_k, rng, options,
                deterministic, variant):  # fmt: skip
        t, o = Tensors(alibi_slopes, key_lengths, cu_seqlens_q, cu_seqlens_k, rng), Options(*options)
        out, lse = forward(q, k, v, mask, sinks, t, o, variant)
        ctx.save_for_backward(q, k, v, mask, sinks, out, lse, *t)
        ctx.options = o, deterministic, "naive" if variant == "naive" else ""
        ctx.set_materialize_grads(False)
        return out, lse

    @staticmethod
    def backward(ctx, dout, dlse):
        q, k, v, mask, sinks, out, lse, *constants = ctx.saved_tensors
        t, (o, deterministic, variant) = Tensors(*constants), ctx.options
        needs = tuple(ctx.needs_input_grad[:5])
        if dout is None:
            dout = torch.zeros_like(out)
        inputs = (q, k, v, mask, sinks)
        if not composes(dout, dlse):
            grads = _backward(dout, dlse, inputs, out, lse, t, o, needs, deterministic, variant)
        elif torch.is_grad_enabled() and not _transformed(dout, dlse):
            grads = AttentionBackward.apply(dout, dlse, *inputs, out, lse, *t, o, needs, deterministic, variant)
        else:
            grads = derive(lambda *i: compose_any(i, t, o), inputs, needs, [dout, dlse])
        return *grads, None, None, None, None, None, None, None, None


def _transformed(*grads: Tensor | None) -> bool:
    with torch.no_grad():
        return composes(*grads)


def compose_any(inputs: Sequence[Tensor | None], t: Tensors, o: Options) -> tuple[Tensor, Tensor]:
    q, k, v, mask, sinks = inputs
    if q.dim() == 3:
        return compose_packed(q, k, v, sinks, t, o)
    return compose(q, k, v, mask, sinks, t, o)


def _backward(dout, dlse, inputs, out, lse, t, o, needs, deterministic, variant):
    """The five gradients, None where not needed, in the dtypes of the inputs."""
    q, k, v, mask, sinks = inputs
    found = iter(
        ops.attention_backward.default(
            dout.to(q.dtype), dlse, q, k, v, out, lse, *_shared(mask, sinks, t, o), [int(n) for n in needs],
            deterministic, variant,
        )
    )  # fmt: skip
    return [next(found).to(x.dtype) if need else None for need, x in zip(needs, inputs)]


class AttentionBackward(Function):
    """The gradients of attention as a function that can be differentiated again."""

    @staticmethod
    def forward(ctx, dout, dlse, q, k, v, mask, sinks, out, lse, alibi_slopes, key_lengths, cu_seqlens_q, cu_seqlens_k,
                rng, options, needs, deterministic, variant):  # fmt: skip
        t, o = Tensors(alibi_slopes, key_lengths, cu_seqlens_q, cu_seqlens_k, rng), Options(*options)
        ctx.save_for_backward(dout, dlse, q, k, v, mask, sinks, *t)
        ctx.options = o, needs
        ctx.set_materialize_grads(False)
        return tuple(_backward(dout, dlse, (q, k, v, mask, sinks), out, lse, t, o, needs, deterministic, variant))

    @staticmethod
    def backward(ctx, *seconds):
        dout, dlse, *inputs = ctx.saved_tensors[:7]
        t, (o, needs) = Tensors(*ctx.saved_tensors[7:]), ctx.options
        wanted = ctx.needs_input_grad[:7]
        if composes(dout, *seconds):  # a third derivative: the whole graph
            found = _second_whole(dout, dlse, inputs, t, o, needs, seconds, wanted)
        else:
            found = _second_in_pieces(dout, dlse, inputs, t, o, needs, seconds, wanted)
        return *found, *(None,) * 11


def _second(compute, dout, dlse, inputs, needs, seconds, again: bool):
    """Gradients of sum_i <d inputs_i, seconds_i> with respect to (dout, dlse, *inputs), None where there is none."""
    with torch.enable_grad():
        everything = [dout, dlse, *inputs]
        leaves = [None if x is None else x.view_as(x) if again else x.detach() for x in everything]
        for x in leaves:
            if x is not None and x.is_floating_point() and not x.requires_grad:
                x.requires_grad_()
        given, variables = leaves[:2], leaves[2:]
        out, lse = compute(*variables)
        outputs = [(y, g) for y, g in zip((out, lse), given) if g is not None]
        chosen = [x for x, need in zip(variables, needs) if need]
        firsts = torch.autograd.grad(
            [y for y, _ in outputs], chosen, [g.to(y.dtype) for y, g in outputs], create_graph=True, allow_unused=True
        )
        paired = iter(firsts)
        terms = []
        for need, second in zip(needs, seconds):
            first = next(paired) if need else None
            if first is not None and second is not None:
                terms.append((first.to(torch.promote_types(first.dtype, torch.float32)) * second).sum())
        targets = [x for x in leaves if x is not None and x.requires_grad]
        if not terms:
            return [None] * len(leaves)
        found = iter(torch.autograd.grad(sum(terms), targets, create_graph=again, allow_unused=True))
        return [next(found) if x is not None and x.requires_grad else None for x in leaves]


def _second_whole(dout, dlse, inputs, t, o, needs, seconds, wanted):
    found = _second(lambda *i: compose_any(i, t, o), dout, dlse, inputs, needs, seconds, True)
    return [x if want else None for x, want in zip(found, wanted)]


def _second_in_pieces(dout, dlse, inputs, t, o, needs, seconds, wanted):
    q, k, v, mask, sinks = inputs
    packed = q.dim() == 3
    everything = [dout, dlse, q, k, v, mask, sinks]

    def accumulator(x: Tensor) -> Tensor:
        return torch.zeros(x.shape, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)

    totals = [accumulator(x) if want and x is not None else None for x, want in zip(everything, wanted)]
    for piece in _pieces(q, k, t, PIECE):
        parts, some = _cut(everything, piece, packed), _cut([None, None, *seconds], piece, packed)[2:]
        compute = functools.partial(compose, t=t, o=o, piece=piece)
        found = _second(compute, parts[0], parts[1], parts[2:], needs, some, False)
        for total, x in zip(_cut(totals, piece, packed), found):
            if total is not None and x is not None:
                total += x
    return [None if x is None else x.to(like.dtype) for x, like in zip(totals, everything)]


class Rotary(Function):
    """dlops::rotary. The rotation is linear, so every derivative is one more rotation, the other way."""

    @staticmethod
    def forward(ctx, x, cos, sin, interleaved, inverse):
        ctx.save_for_backward(cos, sin)
        ctx.options = interleaved, inverse
        return ops.rotary.default(x, cos, sin, interleaved, inverse)

    @staticmethod
    def backward(ctx, dy):
        cos, sin = ctx.saved_tensors
        interleaved, inverse = ctx.options
        if _transformed(dy):
            dx = reference.apply_rotary(dy, cos, sin, interleaved=interleaved, inverse=not inverse)
        else:
            dx = Rotary.apply(dy, cos, sin, interleaved, not inverse)
        return dx, None, None, None, None


# ---- fake tensors: the shapes, dtypes and layouts that csrc/attention/ops.cpp gives ----


def _heads(like: Tensor, width: Any) -> Tensor:
    """[B, H, L, width] in memory order B, L, H, width; packed [total, H, width]."""
    if like.dim() == 3:
        return like.new_empty((*like.shape[:2], width))
    b, h, rows, _ = like.shape
    return like.new_empty((b, rows, h, width)).transpose(1, 2)


def _gradient(like: Tensor) -> Tensor:
    if torch.ops.aten.is_non_overlapping_and_dense(like) and like.stride(-1) == 1:
        return torch.empty_like(like)
    return _heads(like, like.shape[-1])


@torch.library.register_fake("dlops::attention")
def _(q, k, v, mask, alibi_slopes, sinks, key_lengths, cu_seqlens_q, cu_seqlens_k, rng, max_q, max_k, scale, window_left,
      window_right, bottom_right, softcap, dropout_p, variant):  # fmt: skip
    rows = (q.shape[1], q.shape[0]) if q.dim() == 3 else q.shape[:3]
    return _heads(q, v.shape[-1]), q.new_empty(rows, dtype=torch.float32)


@torch.library.register_fake("dlops::attention_backward")
def _(dout, dlse, q, k, v, out, lse, mask, alibi_slopes, sinks, key_lengths, cu_seqlens_q, cu_seqlens_k, rng, max_q, max_k,
      scale, window_left, window_right, bottom_right, softcap, dropout_p, needs, deterministic, variant):  # fmt: skip
    made = [_gradient(x) for x, need in zip((q, k, v), needs) if need]
    if needs[3]:
        made.append(q.new_empty(mask.shape, dtype=torch.float32))
    if needs[4]:
        made.append(q.new_empty(sinks.shape, dtype=torch.float32))
    return made


@torch.library.register_fake("dlops::rotary")
def _(x, cos, sin, interleaved, inverse):
    unit = x.shape[-1] <= 1 or x.stride(-1) == 1
    if unit and torch.ops.aten.is_non_overlapping_and_dense(x):
        return torch.empty_like(x)
    return torch.empty_like(x, memory_format=torch.contiguous_format)
