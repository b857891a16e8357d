"""Calls of every differentiable function of dlops.functional, small enough to compare their derivatives with differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

import dlops
from dlops import functional

NO_DERIVATIVE = {
    "STEP_COLUMNS": "names of columns",
    "randn": "its inputs are seeds",
}
ACTIVATIONS = ("relu", "silu", "gelu", "tanh", "sigmoid")


@dataclass(frozen=True)
class Case:
    """One call: `run` of tensors of these sizes. `trained`: our kernel has a backward pass (else torch's operations train)."""

    what: str
    run: Callable[..., Tensor | tuple[Tensor, ...]]
    sizes: Sequence[tuple[int, ...]]
    trained: bool = True

    def tensors(self, generator: torch.Generator, device: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
        """Normal numbers that float32 and float64 both hold exactly."""
        drawn = (torch.randn(size, generator=generator) for size in self.sizes)
        return [tensor.to(device, dtype).requires_grad_() for tensor in drawn]


def _filter(op: str, activation: str | None = None, residual: bool = False, **options: object) -> Callable[..., Tensor]:
    """A convolution or linear layer of (x, weight, bias) or (x, weight, bias, residual)."""
    function = getattr(functional, op)
    if residual:
        return lambda x, w, b, r: function(x, w, b, **options, activation=activation, residual=r)
    return lambda x, w, b: function(x, w, b, **options, activation=activation)


def _convolution(dims: int) -> list[Case]:
    op, space, kernel = f"conv{dims}d", (5, 4, 3)[:dims], (3, 2, 2)[:dims]
    output = tuple(n - k + 1 for n, k in zip(space, kernel))
    plain = [(1, 2, *space), (2, 2, *kernel), (2,)]
    fused = ACTIVATIONS if dims < 3 else ("silu",)
    return [
        Case("stride, padding", _filter(op, stride=2, padding=1), plain),
        Case("groups, dilation", _filter(op, groups=2, dilation=2, padding=2), [(1, 2, *space), (2, 1, *kernel), (2,)]),
        *(
            Case(f"{mode} padding", _filter(op, padding=1, padding_mode=mode), plain)
            for mode in ("reflect", "circular")
        ),
        *(Case(f"{name}, residual", _filter(op, name, True), [*plain, (1, 2, *output)]) for name in fused),
    ]


def _transposed(dims: int) -> list[Case]:
    op, space, kernel = f"conv_transpose{dims}d", (3, 2, 2)[:dims], (3, 2, 2)[:dims]
    output = tuple(n + k - 1 for n, k in zip(space, kernel))
    plain = [(1, 2, *space), (2, 2, *kernel), (2,)]
    return [
        Case("stride, padding", _filter(op, stride=2, padding=1, output_padding=1), plain),
        Case("groups", _filter(op, groups=2), [(1, 2, *space), (2, 1, *kernel), (2,)]),
        Case("gelu, residual", _filter(op, "gelu", True), [*plain, (1, 2, *output)]),
    ]


def _linear() -> list[Case]:
    plain = [(3, 4), (2, 4), (2,)]
    fused = (Case(f"{name}, residual", _filter("linear", name, True), [*plain, (3, 2)]) for name in ACTIVATIONS)
    return [Case("plain", _filter("linear"), plain), *fused]


def _recurrent(op: str, gates: int) -> list[Case]:
    function = getattr(functional, op)
    hidden, inputs, samples, steps = 2, 2, 2, 3
    layer = [(gates * hidden, inputs), (gates * hidden, hidden), (gates * hidden,), (gates * hidden,)]
    states = 2 if op == "lstm" else 1

    def run(bidirectional: bool, options: dict, x: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        hx = tuple(rest[:states]) if states == 2 else rest[0]
        return function(x, hx, list(rest[states:]), True, 1, 0.0, True, bidirectional, False, **options)

    def case(what: str, directions: int, **options: object) -> Case:
        state = [(directions, samples, hidden)] * states
        return Case(
            what, partial(run, directions == 2, options), [(steps, samples, inputs), *state, *layer * directions]
        )

    lengths = torch.tensor([3, 1])
    return [case("two directions", 2), case("lengths", 1, lengths=lengths)]


def _cell(op: str, gates: int) -> list[Case]:
    function = getattr(functional, op)
    weights = [(gates * 2, 3), (gates * 2, 2), (gates * 2,), (gates * 2,)]
    if op == "lstm_cell":
        return [Case("plain", lambda x, h, c, *w: function(x, (h, c), *w), [(2, 3), (2, 2), (2, 2), *weights])]
    return [Case("plain", function, [(2, 3), (2, 2), *weights])]


def _attention() -> list[Case]:
    attend = functional.scaled_dot_product_attention
    heads = [(1, 2, 3, 2), (1, 1, 4, 2), (1, 1, 4, 2)]  # query, key, value

    def everything(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, sinks: Tensor) -> tuple[Tensor, ...]:
        return attend(q, k, v, bias, sinks=sinks, softcap=2.0, window=(2, 2), enable_gqa=True, return_lse=True)

    return [
        Case("plain", attend, [(1, 2, 3, 2)] * 3),
        Case("causal, shared keys", partial(attend, is_causal=True, enable_gqa=True), heads),
        Case("bias, sinks, softcap, window, lse", everything, [*heads, (1, 2, 3, 4), (2,)]),
    ]


def _decode(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return functional.attention_decode(q, k, v, torch.tensor([3, 4], device=q.device), return_lse=True)


def _varlen(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    starts = [torch.tensor(ends, dtype=torch.int32, device=q.device) for ends in ([0, 2, 5], [0, 3, 5])]
    return functional.attention_varlen(q, k, v, *starts, is_causal=True)


def _rotary(turns: bool) -> Callable[..., tuple[Tensor, ...]]:
    """Of query and key; of the angles' cosines and sines too, which torch's operations differentiate."""
    if turns:
        return functional.apply_rotary
    angles = torch.linspace(0, 1, 6, dtype=torch.float64).reshape(3, 2)

    def run(q: Tensor, k: Tensor) -> tuple[Tensor, ...]:
        return functional.apply_rotary(q, k, angles.cos().to(q), angles.sin().to(q), interleaved=True)

    return run


def _diffusion_step(
    sample: Tensor, output: Tensor, uncond: Tensor, noise: Tensor, first: Tensor, second: Tensor
) -> tuple:
    #                     px   pm   pn clip  a    b    c    h1   h2  h3   d
    table = torch.tensor([[0.9, -0.4, 0, 1e3, 0.5, 0.3, 0.7, 0.2, -0.1, 0, 0.6]], device=sample.device)
    more = dict(uncond=uncond, guidance=1.5, rescale=0.3, history=(first, second), noise=noise)
    return functional.diffusion_step(sample, output, table, 0, **more)


def _add_noise(sample: Tensor, noise: Tensor) -> Tensor:
    return functional.add_noise(sample, noise, torch.tensor([[0.8, 0.6]], device=sample.device), 0)


def _row_norm(op: str, parameters: int) -> list[Case]:
    function = getattr(functional, op)
    more = dict(eps=1e-3)
    return [
        Case("plain", lambda x, *p: function(x, (4,), *p, **more), [(3, 4), *[(4,)] * parameters]),
        Case(
            "residual",
            lambda x, r, *p: function(x, (4,), *p, residual=r, **more),
            [(3, 4), (3, 4), *[(4,)] * parameters],
        ),
    ]


def _group_norm() -> list[Case]:
    def run(x: Tensor, weight: Tensor, bias: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        return functional.group_norm(x, 2, weight, bias, activation="silu", scale=scale, shift=shift)

    plain = Case("plain", lambda x, w, b: functional.group_norm(x, 2, w, b), [(2, 4, 3), (4,), (4,)])
    return [plain, Case("silu, scale, shift", run, [(2, 4, 3), (4,), (4,), (2, 4), (2, 4)])]


def cases() -> dict[str, list[Case]]:
    """Name in dlops.functional -> its calls."""
    noise = (2, 1, 3)
    rotary = [(1, 2, 3, 6), (1, 1, 3, 6)]
    made = {
        "add_noise": [Case("plain", _add_noise, [noise, noise], trained=False)],
        "apply_rotary": [
            Case("query, key", _rotary(False), rotary),
            Case("tables", _rotary(True), [*rotary, (3, 2), (3, 2)], trained=False),
        ],
        "attention_decode": [Case("lse", _decode, [(2, 2, 2, 2), (2, 1, 5, 2), (2, 1, 5, 2)])],
        "attention_varlen": [Case("causal", _varlen, [(5, 2, 2), (5, 1, 2), (5, 1, 2)])],
        "diffusion_step": [Case("all terms", _diffusion_step, [noise] * 6, trained=False)],
        "group_norm": _group_norm(),
        "layer_norm": _row_norm("layer_norm", 2),
        "linear": _linear(),
        "merge_attention": [Case("two parts", functional.merge_attention, [(2, 1, 3, 2), (2, 1, 3)])],
        "rms_norm": _row_norm("rms_norm", 1),
        "scaled_dot_product_attention": _attention(),
    }
    for dims in (1, 2, 3):
        made |= {f"conv{dims}d": _convolution(dims), f"conv_transpose{dims}d": _transposed(dims)}
    for op, gates in (("lstm", 4), ("gru", 3), ("rnn_tanh", 1), ("rnn_relu", 1)):
        made |= {op: _recurrent(op, gates), f"{op}_cell": _cell(f"{op}_cell", gates)}
    return made


def derivatives_hold(case: Case, tensors: Sequence[Tensor], fast: bool) -> bool:
    """First and second derivatives equal differences, in float64. `fast`: along one random direction only."""
    options = dict(atol=1e-6, rtol=1e-4, fast_mode=fast, raise_exception=False)  # torch's own: 1e-5, 1e-3
    try:
        return gradcheck(case.run, tensors, **options) and gradgradcheck(case.run, tensors, **options)
    except (RuntimeError, NotImplementedError):  # there is no derivative
        return False


def derivatives(case: Case, tensors: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Gradients of the sum of the cubes of all outputs, and gradients of the sum of the squares of those."""
    outputs = case.run(*tensors)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    first = torch.autograd.grad(sum(y.pow(3).sum() for y in outputs), tensors, create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), tensors)
    return [g.detach() for g in first], list(second)


def float32_error(case: Case, tensors: Sequence[Tensor], backend: str) -> tuple[float, float]:
    """Of the first and second derivatives in float32: largest difference from those in float64 over the largest of those."""
    narrow = [tensor.detach().float().requires_grad_() for tensor in tensors]
    with dlops.backend(backend if case.trained or backend == "torch" else "auto"):
        found = derivatives(case, narrow)
    with dlops.backend("auto"):  # float64 has no kernels: torch's operations, which all have a second derivative
        exact = derivatives(case, tensors)
    return tuple(
        max((a - b).abs().max() / b.abs().max() for a, b in zip(order, expected)).item()
        for order, expected in zip(found, exact)
    )  # fmt: skip


def differentiable() -> list[str]:
    """Every function of dlops.functional that has a derivative."""
    return [name for name in functional.__all__ if name not in NO_DERIVATIVE]


def flat(made: dict[str, list[Case]]) -> list[tuple[str, Case]]:
    return list(itertools.chain.from_iterable(((op, case) for case in calls) for op, calls in made.items()))
