"""Containers that `accelerate` puts in the place of torch's where neighbours run as one kernel.

The children stay what and where they are: a model that indexes, slices or iterates over the container sees its
GroupNorm and its SiLU, whose separate results it may want. Only the container's own `forward` fuses them, and it looks
at every call, so hooks that are added later (feature extraction, profiling) still fire.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn

from dlops.functional import group_norm
from dlops.nn import GroupNorm

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Sequential(nn.Sequential):
    """torch.nn.Sequential in which a GroupNorm followed by a SiLU is one call."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        done = None  # the SiLU that ran with the norm before it
        for module, following in itertools.zip_longest(self, itertools.islice(self, 1, None)):
            if module is done:
                done = None
            elif is_norm_silu(module, following) and free_of_hooks(module, following):
                input, done = norm_silu(module, input), following
            else:
                input = module(input)
        return input


def norm_silu(
    norm: Any, input: torch.Tensor, scale: torch.Tensor | None = None, shift: torch.Tensor | None = None
) -> torch.Tensor:
    """silu(norm(input) * (1 + scale) + shift), scale and shift [N, C] or None."""
    return group_norm(
        input, norm.num_groups, norm.weight, norm.bias, norm.eps, activation="silu", scale=scale, shift=shift
    )


def is_norm_silu(first: nn.Module, second: nn.Module | None) -> bool:
    return is_plain_group_norm(first) and type(second) is nn.SiLU


def is_plain_group_norm(module: nn.Module | None) -> bool:
    """Whether this is exactly torch's GroupNorm or ours, without an activation of its own."""
    return type(module) in (nn.GroupNorm, GroupNorm) and getattr(module, "activation", None) is None


def norm_silu_pairs(container: nn.Sequential) -> list[tuple[nn.Module, nn.Module]]:
    """Neighbours among the children that could run as one kernel."""
    modules = list(container)  # children() would name a module that occurs twice only once
    return [(first, second) for first, second in zip(modules, modules[1:]) if is_norm_silu(first, second)]


def free_of_hooks(*modules: nn.Module) -> bool:
    return not any(getattr(module, hooks, None) for module in modules for hooks in HOOKS)
