"""Says which kernel a call would run and why, without running it.

example: dlops explain group_norm --shape 2x320x64x64 --dtype bfloat16 --activation silu
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch

DTYPES = ("float32", "float16", "bfloat16", "float64")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("op", choices=sorted(CALLS))
    parser.add_argument("--shape", type=_shape, required=True, metavar="2x320x64x64")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--channels-last", action="store_true", help="layout of a four-dimensional input")
    parser.add_argument("--groups", type=int, default=32, help="group_norm: number of groups (default: 32)")
    parser.add_argument("--activation", choices=("silu",), help="group_norm: fused activation")
    parser.add_argument("--seeds", action="store_true", help="diffusion_step, add_noise: noise by per-sample seeds")
    parser.add_argument("--variant", help="rung of the ladder (default: the fastest)")


def run(options: argparse.Namespace) -> int:
    import dlops

    try:
        plans = dlops.explain(lambda: CALLS[options.op](options))
    except (ValueError, TypeError, RuntimeError) as error:
        print(f"dlops explain: {error}")
        return 1
    for plan in plans:
        print(plan)
    return 0


def _shape(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.lower().split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"shape is {text!r}, expected sizes joined by x, as 2x320x64x64") from None


def _tensor(options: argparse.Namespace, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    made = torch.empty(shape or options.shape, dtype=getattr(torch, options.dtype), device=options.device)
    return made.to(memory_format=torch.channels_last) if options.channels_last and shape is None else made


def _norm(options: argparse.Namespace, size: int, with_bias: bool = True) -> dict[str, Any]:
    names = ("weight", "bias") if with_bias else ("weight",)
    return {"variant": options.variant} | {name: _tensor(options, (size,)) for name in names}


def _group_norm(options: argparse.Namespace) -> object:
    from dlops.functional import group_norm

    arguments = _norm(options, options.shape[1])
    return group_norm(_tensor(options), options.groups, activation=options.activation, **arguments)


def _layer_norm(options: argparse.Namespace) -> object:
    from dlops.functional import layer_norm

    return layer_norm(_tensor(options), options.shape[-1:], **_norm(options, options.shape[-1]))


def _rms_norm(options: argparse.Namespace) -> object:
    from dlops.functional import rms_norm

    return rms_norm(_tensor(options), options.shape[-1:], **_norm(options, options.shape[-1], with_bias=False))


def _seeds(options: argparse.Namespace) -> torch.Tensor:
    return torch.arange(options.shape[0], device=options.device)


def _diffusion_step(options: argparse.Namespace) -> object:
    from dlops.functional import diffusion_step

    table = torch.ones(1, 11, device=options.device)
    seeds = _seeds(options) if options.seeds else None
    return diffusion_step(_tensor(options), _tensor(options), table, 0, seeds=seeds, variant=options.variant)


def _add_noise(options: argparse.Namespace) -> object:
    from dlops.functional import add_noise

    table = torch.ones(1, 2, device=options.device)
    noise, seeds = (None, _seeds(options)) if options.seeds else (_tensor(options), None)
    return add_noise(_tensor(options), noise, table, 0, seeds=seeds)


def _randn(options: argparse.Namespace) -> object:
    from dlops.functional import randn

    dtype = getattr(torch, options.dtype)
    return randn(options.shape, seeds=_seeds(options), dtype=dtype, device=options.device)


CALLS: dict[str, Callable[[argparse.Namespace], object]] = {
    "group_norm": _group_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "diffusion_step": _diffusion_step,
    "add_noise": _add_noise,
    "randn": _randn,
}
