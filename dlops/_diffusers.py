"""diffusers' blocks with our kernels inside. Imports diffusers: `accelerate` loads this when it meets such a block."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import diffusers
import torch
from diffusers.models import resnet
from torch import nn

from dlops._fused import free_of_hooks, is_plain_group_norm, norm_silu
from dlops.functional import scaled_dot_product_attention

try:
    from diffusers.models.attention_dispatch import (
        AttentionBackendName,
        _AttentionBackendRegistry,
        dispatch_attention_fn,
    )
except ImportError:  # diffusers before 0.35, whose processors all call torch themselves
    dispatch_attention_fn = None

RECORD = "_dlops_swapped_from"  # in a processor's __dict__: the class it had
ATTENTION = {"scaled_dot_product_attention", "dispatch_attention_fn"}  # by these names a processor calls it


class ResnetBlock2D(resnet.ResnetBlock2D):
    """diffusers' residual block: norm, SiLU, conv, add or scale-and-shift the time embedding, norm, SiLU, conv, add.

    Both norm + SiLU pairs are one kernel each, the second one with the time embedding's scale and shift within it.
    """

    def forward(self, input_tensor: torch.Tensor, temb: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
        unprojected = self.time_emb_proj is None and temb is not None
        if _reason(self) is not None or unprojected or args or kwargs:
            return super().forward(input_tensor, temb, *args, **kwargs)
        residual, hidden = input_tensor, norm_silu(self.norm1, input_tensor)
        resample = self.upsample if self.upsample is not None else self.downsample
        if resample is not None:
            residual, hidden = resample(residual), resample(hidden)
        hidden = self.conv1(hidden)  # [N, C, H, W]

        scale = shift = None
        if self.time_emb_proj is not None:
            embedding = self.time_emb_proj(temb if self.skip_time_act else self.nonlinearity(temb))  # [N, C or 2C]
            if self.time_embedding_norm == "scale_shift":
                scale, shift = embedding.chunk(2, dim=1)
            else:
                hidden = hidden + embedding[:, :, None, None]
        hidden = self.conv2(self.dropout(norm_silu(self.norm2, hidden, scale, shift)))

        if self.conv_shortcut is not None:
            residual = self.conv_shortcut(residual)
        return (residual + hidden) / self.output_scale_factor


def refuse(block: Any) -> str | None:
    """Why this ResnetBlock2D keeps its own forward (its norms are swapped on their own), or None."""
    reason = _reason(block)
    if reason is None and not _agrees():
        reason = f"diffusers {diffusers.__version__} computes this block in a way dlops does not know"
    return reason


def _reason(block: Any) -> str | None:
    if type(block.nonlinearity) is not nn.SiLU:
        return f"its activation is {type(block.nonlinearity).__name__}, expected SiLU"
    if not (is_plain_group_norm(block.norm1) and is_plain_group_norm(block.norm2)):
        return "its norms are not plain GroupNorm"
    if block.time_embedding_norm != "default" and (
        block.time_embedding_norm != "scale_shift" or block.time_emb_proj is None
    ):
        return f"its time_embedding_norm is {block.time_embedding_norm!r}"
    return None if free_of_hooks(block.norm1, block.norm2, block.nonlinearity) else "its norms or activation have hooks"


@lru_cache
def _agrees() -> bool:
    """Whether the installed diffusers still computes what `ResnetBlock2D.forward` above does: tried on tiny blocks."""
    options: tuple[dict[str, Any], ...] = (
        {},
        {"time_embedding_norm": "scale_shift"},
        {"up": True},
        {"down": True, "output_scale_factor": 2.0},
    )
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            for option in options:
                block = resnet.ResnetBlock2D(in_channels=8, out_channels=16, temb_channels=4, groups=2, **option).eval()
                x, embedding = torch.randn(2, 8, 6, 6), torch.randn(2, 4)
                expected = block(x, embedding)
                block.__class__ = ResnetBlock2D
                torch.testing.assert_close(block(x, embedding), expected, rtol=1e-4, atol=1e-4)
    except (AssertionError, AttributeError, TypeError, ValueError, RuntimeError):
        return False
    return True


# ---- attention processors


def attend(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    attention_kwargs: dict[str, Any] | None = None,
    *,
    backend: Any = None,
    parallel_config: Any = None,
) -> torch.Tensor:
    """diffusers' `dispatch_attention_fn`, query [B, L, H, D]: its native backend on our attention, every other as it is."""
    name, _ = _AttentionBackendRegistry.get_active_backend() if backend is None else (AttentionBackendName(backend), None)
    if name is not AttentionBackendName.NATIVE or parallel_config is not None or attention_kwargs:
        return dispatch_attention_fn(
            query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa, attention_kwargs,
            backend=backend, parallel_config=parallel_config,
        )  # fmt: skip
    if attn_mask is not None and attn_mask.shape == (query.shape[0], key.shape[1]):
        attn_mask = attn_mask[:, None, None]  # of the keys
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    out = scaled_dot_product_attention(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
    return out.transpose(1, 2)


def attach(module: nn.Module, seen: dict[int, Any]) -> Iterator[tuple[str, str, str | None, str]]:
    """Lets the attention processor of a module, if it has one, attend with our function.

    A processor keeps its own code, whatever it does around attention (there are dozens, and they change between versions of
    diffusers): it gets a subclass of its class whose `__call__` is the same code with torch's function replaced by ours.
    `seen` goes from call to call: the processors that were refused, which modules may share. Yields at most one (path
    from the module, what, to, reason).
    """
    processor = getattr(module, "processor", None)
    kind = type(processor)
    if not kind.__module__.startswith("diffusers.") or RECORD in vars(processor) or id(processor) in seen:
        return
    reason = None
    if isinstance(processor, nn.Module):
        reason = "it has weights of its own"
    elif not isinstance(kind.__call__, types.FunctionType) or not ATTENTION.intersection(kind.__call__.__code__.co_names):
        reason = "it attends in a way of its own"
    else:
        processor.__class__ = with_our_attention(kind)
        vars(processor)[RECORD] = kind
    seen[id(processor)] = reason
    yield "processor", _name(kind), None if reason else "the same on dlops.functional", reason or ""


def detach(module: nn.Module, seen: dict[int, Any]) -> Iterator[tuple[str, str, str | None, str]]:
    """Undoes `attach`."""
    processor = getattr(module, "processor", None)
    if not isinstance(processor, nn.Module) and RECORD in getattr(processor, "__dict__", {}):
        was = type(processor)
        processor.__class__ = vars(processor).pop(RECORD)
        yield "processor", _name(was), _name(type(processor)), ""


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


@lru_cache(None)
def with_our_attention(kind: type) -> type:
    """The subclass of a processor's class that `attach` gives it."""
    call = kind.__call__
    name = f"{__name__}.{call.__module__}"
    if name not in sys.modules:  # a module, for the compiler looks a function's globals up by their module's name
        functions, twin = types.ModuleType(f"{name}.F"), types.ModuleType(name)
        vars(functions).update(vars(torch.nn.functional), scaled_dot_product_attention=scaled_dot_product_attention)
        vars(twin).update(vars(sys.modules[call.__module__]), __name__=name, F=functions, dispatch_attention_fn=attend)
        sys.modules.update({functions.__name__: functions, name: twin})
    ours = types.FunctionType(call.__code__, vars(sys.modules[name]), call.__name__, call.__defaults__, call.__closure__)
    ours.__kwdefaults__, ours.__annotations__ = call.__kwdefaults__, call.__annotations__
    body = {"__call__": ours, "__reduce__": _reduced, "__module__": __name__, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), body)


def _reduced(processor: Any) -> tuple[Any, ...]:
    return _rebuilt, (vars(processor)[RECORD], vars(processor))


def _rebuilt(kind: type, state: dict[str, Any]) -> Any:
    processor = object.__new__(with_our_attention(kind))
    vars(processor).update(state)
    return processor
