"""Models of the transformers library on our attention. Imports transformers: `accelerate` loads this when it meets one.

The library asks two registries for an implementation's name: `AttentionInterface` for the function that attends, and
`AttentionMaskInterface` for the one that makes its mask (without an entry there, no mask is made at all). This module
registers "dlops" with both. The mask is the boolean one of the library's "sdpa", for models slice and combine masks as
they like; where it is a causal or sliding-window mask, perhaps with padding, it also carries how it was made, so that
attention can leave out what the window hides instead of reading [L, L] zeros.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, prepare_padding_mask, sdpa_mask

from dlops import functional

NAME = "dlops"
FUNCTION = "dlops.functional.scaled_dot_product_attention"
RECORD = "_dlops_attention"  # in the model's __dict__: what the attention was before
MADE_OF = "_dlops_made_of"  # on a mask


@dataclass(frozen=True)
class Previous:
    """The attention implementation that a model had. Unpickling one imports this module, which registers ours."""

    implementation: str


@dataclass(frozen=True)
class MadeOf:
    """What a boolean mask [B, 1, L, L] was made of, as long as it is at `version`."""

    window: tuple[int | None, int]
    padding: Tensor | None  # bool [B, 1, 1, L], True: may be seen
    version: int


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """The library's attention function: query [B, H, Lq, D], key and value [B, Hk, Lk, D] -> [B, Lq, H, Dv], no weights.

    attention_mask: bool (True: may be seen) or float, [B, 1 or H, Lq, Lk]; None: causal where the module is and Lq > 1.
    position_bias: added to the scores. softcap (Gemma 2), s_aux: the sinks [H] of gpt-oss.
    """
    for name in ("indices", "block_indices"):
        if kwargs.get(name) is not None:
            raise ValueError(f"dlops: {type(module).__name__} passes {name} to its attention, which dlops does not know")
    if kwargs.get("cache") is not None:  # continuous batching: the library's own paged cache
        extra = dict(position_bias=position_bias, softcap=softcap, **kwargs)
        extra = {name: given for name, given in extra.items() if given is not None}
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, is_causal, **extra)
    if is_causal is None:
        is_causal = getattr(module, "is_causal", True)
    causal = bool(is_causal and attention_mask is None and query.shape[2] > 1)
    mask, window = attention_mask, None
    if mask is not None and position_bias is None:
        mask, window = _made_of(mask)
    if causal and key.shape[2] > query.shape[2]:  # an empty cache of fixed size: its keys past the queries are hidden
        key, value = key[:, :, : query.shape[2]], value[:, :, : query.shape[2]]
        position_bias = None if position_bias is None else position_bias[..., : query.shape[2]]
    if position_bias is not None:
        mask, window, causal = _biased(position_bias, mask), (None, 0) if causal else None, False
    if query.shape[0] != key.shape[0]:  # learned queries, the same for every sample
        batch = max(query.shape[0], key.shape[0])
        query, key, value = (t.expand(batch, -1, -1, -1) for t in (query, key, value))
    options: dict[str, Any] = {}
    if window is not None:
        options["window"] = window
    if softcap is not None:
        options["softcap"] = softcap
    if s_aux is not None:
        options["sinks"] = s_aux
    out = functional.scaled_dot_product_attention(
        query, key, value, mask, dropout, causal, scaling, query.shape[1] != key.shape[1], **options
    )
    return out.transpose(1, 2).contiguous(), None


def _biased(position_bias: Tensor, mask: Tensor | None) -> Tensor:
    """The library's rule: what a boolean mask hides gets the lowest number, so that a row hidden whole stays finite."""
    if mask is None:
        return position_bias
    if mask.dtype is torch.bool:
        return torch.where(mask, position_bias, torch.finfo(position_bias.dtype).min)
    return position_bias + mask


def mask(*args: Any, **kwargs: Any) -> Tensor | None:
    """The library's mask function: the boolean mask of its "sdpa", with what it was made of."""
    made = sdpa_mask(*args, **kwargs)
    if made is None or args or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return made
    window = _window(kwargs)
    if window is not None:
        padding = prepare_padding_mask(kwargs.get("attention_mask"), kwargs["kv_length"], 0)
        if padding is not None:
            padding = padding[:, None, None, : kwargs["kv_length"]]
        setattr(made, MADE_OF, MadeOf(window, padding, made._version))
    return made


def _window(kwargs: dict[str, Any]) -> tuple[int | None, int] | None:
    """The window of a mask that is known to be causal or sliding plus padding and nothing else, of one whole sequence."""
    if kwargs.get("q_length", -1) != kwargs.get("kv_length") or not kwargs.get("allow_is_causal_skip", True):
        return None  # the library says "no skip" of a mask that it has combined with others
    if any(isinstance(kwargs.get(name, 0), Tensor) or kwargs.get(name, 0) != 0 for name in ("q_offset", "kv_offset")):
        return None
    function, size = kwargs.get("mask_function", causal_mask_function), kwargs.get("local_size")
    if function is causal_mask_function:
        return (None, 0) if size is None else None
    parts = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    if size is None or len(parts) != 1 or not isinstance(parts[0], tuple) or len(parts[0]) != 2:
        return None
    overlay, base = parts[0]
    sliding = getattr(overlay, "__qualname__", "").startswith("sliding_window_overlay.")
    return (size - 1, 0) if sliding and base is causal_mask_function else None


def _made_of(mask: Tensor) -> tuple[Tensor | None, tuple[int | None, int] | None]:
    """The mask, or its padding and its window where those are all there is to it."""
    made_of = getattr(mask, MADE_OF, None)
    if made_of is None or torch.is_inference_mode_enabled() or mask._version != made_of.version:
        return mask, None
    return made_of.padding, made_of.window


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, mask)


def attach(model: nn.Module, seen: dict[int, Any]) -> Iterator[tuple[str, str, str | None, str]]:
    """Sets the attention of one model to ours, without those within it that have a configuration of their own.

    `seen` goes from call to call: what became of each configuration, which a model shares with the model around it.
    Yields at most one (path from the model, what, to, reason).
    """
    if not isinstance(model, PreTrainedModel) or RECORD in vars(model):
        return
    if id(model.config) not in seen:
        was = model.config._attn_implementation
        reason = _reason(model, was)
        seen[id(model.config)] = Previous(was) if reason is None else None
        if reason is None:
            model.config._attn_implementation = {"": NAME}
        yield "", f"the attention of {type(model).__name__}", None if reason else FUNCTION, reason or ""
    if seen[id(model.config)] is not None:
        vars(model)[RECORD] = seen[id(model.config)]


def detach(model: nn.Module, seen: dict[int, Any]) -> Iterator[tuple[str, str, str | None, str]]:
    """Undoes `attach`."""
    record = vars(model).pop(RECORD, None)
    if record is not None and id(model.config) not in seen:
        seen[id(model.config)] = record
        model.config._attn_implementation = {"": record.implementation}
        yield "", f"the attention of {type(model).__name__}", f"transformers' {record.implementation!r}", ""


def _reason(model: PreTrainedModel, was: str | None) -> str | None:
    if was == NAME:
        return "it is dlops already, by the user's choice"
    if was not in ("sdpa", "eager"):
        return f"its attention implementation is {was!r}"
    if not model._can_set_attn_implementation():
        return "it does not go through transformers' AttentionInterface"
    if not (model._supports_sdpa or model._supports_flash_attn):
        return "transformers supports no fused attention for it"
    if model.config.output_attentions:
        return "it returns attention weights (output_attentions)"
    if any(_asks_for_a_name(type(part).__module__) for part in model.modules()):
        return "its code asks for the name of its attention implementation"
    return None


@functools.cache
def _asks_for_a_name(module: str) -> bool:
    """Whether a modelling file decides by the name of the implementation: it would take ours for one it has no code for."""
    if not module.startswith("transformers.models."):
        return False
    source = inspect.getsource(sys.modules[module])
    return re.search(r"""_attn_implementation\s*(==|!=|in\b|not in\b)[^\n]*["']sdpa["']""", source) is not None
