"""Derivatives that no kernel has: which backward passes must be made of torch's operations, and how."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from dlops._backend import transforming


def derive(
    compose: Callable[..., Any], inputs: Sequence[Tensor | None], needs: Sequence[bool], grads: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """Gradients by differentiating the composition; differentiable themselves.

    The inputs are aliased first: where one of them was computed from another, the derivative must stop at each."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        aliases = [None if t is None else t.view_as(t) for t in inputs]
        outputs = compose(*aliases)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        wanted = [alias for alias, need in zip(aliases, needs) if need]
        present = [(y, dy) for y, dy in zip(outputs, grads) if dy is not None]
        found = iter(
            torch.autograd.grad(
                [y for y, _ in present],
                wanted,
                [dy for _, dy in present],
                create_graph=again,
                allow_unused=True,
            )
        )
    return [next(found) if need else None for need in needs]


def composes(*grads: Tensor | None) -> bool:
    """In a backward pass: whether its result will be differentiated, or is computed under a transform or for a batch of
    gradients, so that it must be made of torch's ops."""
    if torch.compiler.is_compiling():
        return False
    batched = torch._C._functorch.is_legacy_batchedtensor  # torch.autograd.grad(is_grads_batched=True)
    return torch.is_grad_enabled() or transforming() or any(batched(g) for g in grads if g is not None)
