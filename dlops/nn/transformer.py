"""torch's transformer layers, stacks and model on our attention and norms.

A layer is torch's layer with two differences: attention runs in `dlops.nn.MultiheadAttention`, and the addition of a
sublayer's result and the norm after it are one pass where that pays. Torch's "fast path" for inference, which bypasses the
layer's children, is taken for nested tensors, and for inputs so small that only overhead counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from dlops import _backend
from dlops.functional._attention import autocasts
from dlops.nn.attention import MultiheadAttention, attend_packed, is_small
from dlops.nn.linear import Linear
from dlops.nn.norm import LayerNorm

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _untouched(module: nn.Module) -> bool:
    """Whether calling the module is calling its class's forward, which may then be fused with its neighbours."""
    everywhere = nn.modules.module._global_forward_hooks or nn.modules.module._global_forward_pre_hooks
    return not everywhere and "forward" not in vars(module) and not any(getattr(module, hooks, None) for hooks in _HOOKS)


def _feed_forward(layer: Any, x: Tensor, last: nn.Dropout) -> Tensor:
    """linear2(dropout(activation(linear1(x)))) and the last dropout; ReLU in the place of its input, which nobody else has."""
    hidden, activation = layer.linear1(x), layer.activation
    linear = type(layer.linear1) in (nn.Linear, Linear) and getattr(layer.linear1, "activation", None) is None
    if activation is F.relu and linear and _untouched(layer.linear1):
        hidden = F.relu(hidden, inplace=True)
    else:
        hidden = activation(hidden)
    return last(layer.linear2(layer.dropout(hidden)))


def _add_norm(norm: nn.Module, update: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """(norm(x + update), x + update), in one pass where that is the faster way: not on a CPU, whose caches hold the sum."""
    fuse = x.is_cuda or _backend._current == "dlops"
    if fuse and type(norm) is LayerNorm and x.dtype is update.dtype and _untouched(norm):
        return norm(update, x)
    x = x + update
    return norm(x), x


class TransformerEncoderLayer(nn.TransformerEncoderLayer):
    """``torch.nn.TransformerEncoderLayer``: same constructor, parameters, initialisation, masks and results.

    The encoder layer of Vaswani et al. 2017, section 3.1; norm_first: Xiong et al. 2020, figure 1.

    Shape:
        src [N, L, E] with batch_first, else [L, N, E]; [L, E] unbatched. src_mask [L, L] or [N * nhead, L, L],
        src_key_padding_mask [N, L], bool (True: may not be seen) or float. Output like src.

    Raises:
        ValueError, RuntimeError, TypeError: as :class:`MultiheadAttention`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _adopt(self)

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        unmasked = src_mask is None and src_key_padding_mask is None and not is_causal
        exact = getattr(self.activation, "approximate", "none") == "none"  # torch's fast path knows one GELU only
        if src.is_nested or (unmasked and exact and is_small(self, src)):
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        return self._run(src, lambda x: self._sa_block(x, src_mask, src_key_padding_mask, is_causal))

    def _run(self, x: Tensor, attend: Callable[[Tensor], Tensor]) -> Tensor:
        if self.norm_first:
            y, x = _add_norm(self.norm2, attend(self.norm1(x)), x)
            return x + self._ff_block(y)
        x, _ = _add_norm(self.norm1, attend(x), x)
        x, _ = _add_norm(self.norm2, self._ff_block(x), x)
        return x

    def _ff_block(self, x: Tensor) -> Tensor:
        return _feed_forward(self, x, self.dropout2)


class TransformerDecoderLayer(nn.TransformerDecoderLayer):
    """``torch.nn.TransformerDecoderLayer``: same constructor, parameters, initialisation, masks and results.

    Shape:
        tgt [N, T, E], memory [N, S, E] with batch_first; [T, N, E], [S, N, E] without; [T, E], [S, E] unbatched. tgt_mask
        [T, T], memory_mask [T, S] (or one per sequence and head), tgt_key_padding_mask [N, T], memory_key_padding_mask
        [N, S], bool (True: may not be seen) or float. Output like tgt.

    Raises:
        ValueError, RuntimeError, TypeError: as :class:`MultiheadAttention`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _adopt(self)

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        x = tgt
        of_self = (tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        of_memory = (memory, memory_mask, memory_key_padding_mask, memory_is_causal)
        if self.norm_first:
            y, x = _add_norm(self.norm2, self._sa_block(self.norm1(x), *of_self), x)
            y, x = _add_norm(self.norm3, self._mha_block(y, *of_memory), x)
            return x + self._ff_block(y)
        x, _ = _add_norm(self.norm1, self._sa_block(x, *of_self), x)
        x, _ = _add_norm(self.norm2, self._mha_block(x, *of_memory), x)
        x, _ = _add_norm(self.norm3, self._ff_block(x), x)
        return x

    def _ff_block(self, x: Tensor) -> Tensor:
        return _feed_forward(self, x, self.dropout3)


class TransformerEncoder(nn.TransformerEncoder):
    """``torch.nn.TransformerEncoder``: same constructor, parameters, masks and results.

    Where torch's would go over to nested tensors (inference, ``enable_nested_tensor``, a left-aligned
    src_key_padding_mask and no other mask), ours packs the sequences without their padding, so that no layer computes it;
    outputs at padding are then 0 before the final norm, as torch's are.

    Shape:
        as :class:`TransformerEncoderLayer`.
    """

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        if src.is_nested or not self.layers:
            return super().forward(src, mask, src_key_padding_mask, is_causal)
        x = None
        if src_key_padding_mask is not None and _may_pack(self, src, mask):
            x = _without_padding(self, src, src_key_padding_mask)
        if x is None:
            x = src
            batch_first = getattr(getattr(self.layers[0], "self_attn", None), "batch_first", False)
            causal = _is_causal(mask, is_causal, x, batch_first)
            for layer in self.layers:
                x = layer(x, src_mask=mask, is_causal=causal, src_key_padding_mask=src_key_padding_mask)
        return x if self.norm is None else self.norm(x)


class TransformerDecoder(nn.TransformerDecoder):
    """``torch.nn.TransformerDecoder``: same constructor, parameters, masks and results.

    Shape:
        as :class:`TransformerDecoderLayer`.
    """

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        x = tgt
        batch_first = bool(self.layers) and self.layers[0].self_attn.batch_first
        causal = _is_causal(tgt_mask, tgt_is_causal, x, batch_first)
        for layer in self.layers:
            x = layer(
                x,
                memory,
                tgt_mask=tgt_mask,
                memory_mask=memory_mask,
                tgt_key_padding_mask=tgt_key_padding_mask,
                memory_key_padding_mask=memory_key_padding_mask,
                tgt_is_causal=causal,
                memory_is_causal=memory_is_causal,
            )
        return x if self.norm is None else self.norm(x)


class Transformer(nn.Transformer):
    """``torch.nn.Transformer`` (Vaswani et al. 2017) of our layers: same constructor, parameters, initialisation, masks.

    A custom_encoder or custom_decoder stays what it is.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for part, kind in ((self.encoder, nn.TransformerEncoder), (self.decoder, nn.TransformerDecoder)):
            if type(part) is kind and not _was_given(part, args, kwargs):
                _adopt(part)
                part.__class__ = _OURS[kind]


def _was_given(part: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return any(part is given for given in (*args, *kwargs.values()))


_OURS: dict[type, type] = {
    nn.MultiheadAttention: MultiheadAttention,
    nn.LayerNorm: LayerNorm,
    nn.TransformerEncoderLayer: TransformerEncoderLayer,
    nn.TransformerDecoderLayer: TransformerDecoderLayer,
    nn.TransformerEncoder: TransformerEncoder,
    nn.TransformerDecoder: TransformerDecoder,
}


def _adopt(module: nn.Module) -> None:
    """Turns the children that torch's constructor has just made and initialised into ours."""
    for child in module.modules():
        if child is not module and type(child) in _OURS:
            child.__class__ = _OURS[type(child)]


def _traced() -> bool:
    """Under torch.compile and `dlops.explain` tensors have no values."""
    return torch.compiler.is_compiling() or _backend._recorder is not None


def _is_causal(mask: Tensor | None, hint: bool | None, x: Tensor, batch_first: bool) -> bool:
    """Torch's rule: the hint where there is one; otherwise the mask is looked at, which waits for a GPU. Where there are no
    values to look at, the mask simply is one."""
    if hint is not None:
        return hint
    if mask is None or mask.dim() != 2 or _traced():
        return False
    length = x.shape[0] if x.dim() == 2 else x.shape[1 if batch_first else 0]
    if mask.shape != (length, length):
        return False
    hidden = torch.ones(length, length, dtype=torch.bool, device=mask.device).triu(1)
    if mask.dtype is torch.bool:
        return bool((mask == hidden).all())
    return bool((mask == torch.zeros_like(mask).masked_fill(hidden, -torch.inf)).all())


def _may_pack(encoder: nn.TransformerEncoder, src: Tensor, mask: Tensor | None) -> bool:
    """The conditions under which torch's encoder goes over to nested tensors, and that every layer is known to us."""
    if (
        not getattr(encoder, "use_nested_tensor", False)
        or mask is not None
        or src.dim() != 3
        or not torch.backends.mha.get_fastpath_enabled()
        or _traced()
        or autocasts(src)
        or not all(_packs(layer) for layer in encoder.layers)
    ):
        return False
    return not torch.is_grad_enabled() or not (src.requires_grad or any(p.requires_grad for p in encoder.parameters()))


def _packs(layer: nn.Module) -> bool:
    if type(layer) is not TransformerEncoderLayer or layer.training or not _untouched(layer):
        return False
    attention = layer.self_attn
    return (
        type(attention) is MultiheadAttention
        and _untouched(attention)
        and attention.batch_first
        and attention._qkv_same_embed_dim
        and attention.bias_k is None
        and not attention.add_zero_attn
    )


def _without_padding(encoder: nn.TransformerEncoder, src: Tensor, padding: Tensor) -> Tensor | None:
    """The layers over src [N, L, E] without its padding; None where that is not at the sequences' ends."""
    if padding.shape != src.shape[:2]:
        raise RuntimeError(
            f"TransformerEncoder: src_key_padding_mask has shape {list(padding.shape)}, expected {list(src.shape[:2])}"
        )
    if src.numel() == 0:
        return None
    kept = padding.logical_not()  # [N, L]; a float mask hides where it is not 0, as in torch
    lengths = kept.sum(dim=1, dtype=torch.int32)
    aligned = (kept[:, 1:] <= kept[:, :-1]).all().int()
    longest, shortest, aligned = torch.stack((lengths.max(), lengths.min(), aligned)).tolist()  # one wait for a GPU
    if longest == 0 or (encoder.mask_check and not aligned):
        return None
    if shortest == src.shape[1]:
        for layer in encoder.layers:
            src = layer(src)
        return src
    cu_seqlens = F.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    rows = src[kept]  # [total, E]
    for layer in encoder.layers:
        rows = layer._run(rows, lambda x, attention=layer.self_attn: attend_packed(attention, x, cu_seqlens, longest))
    out = src.new_zeros(src.shape)
    out[kept] = rows
    return out
