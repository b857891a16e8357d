"""diffusers' blocks with our kernels inside. Imports diffusers: `accelerate` loads this when it meets such a block."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import diffusers
import torch
from diffusers.models import resnet
from torch import nn

from dlops._fused import free_of_hooks, is_plain_group_norm, norm_silu


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
