"""``dlops.study.emulate``: one op call with its CUDA kernels in the simt runner."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from dlops import functional
from dlops._backend import backend
from dlops.study import _runner
from dlops.study._report import Index, Report, make_launches, make_trace

#: The functional op behind a catalogue op of another name.
_FUNCTIONAL = {
    "row_norm": "layer_norm",
    "diffusion_reduce": "diffusion_step",
    "conv": "conv2d",
    "recurrence": "lstm",
    "gates": "lstm_cell",
}

#: The op whose gradient a catalogue op computes, where its name does not end in "_backward".
_GRADIENT_OF = {"conv_data": "conv", "conv_weight": "conv"}


@dataclass(frozen=True)
class Emulation:
    """What an emulated call returned (None where there is a finding), its gradients, and the runner's report."""

    outputs: Any
    report: Report
    grads: tuple[Tensor, ...] | None = None


def emulate(
    name: str,
    *args: Any,
    order: str | None = None,
    seed: int | None = None,
    race: bool = True,
    trace: tuple[int | Sequence[int], int | Sequence[int]] | None = None,
    grad: Tensor | Sequence[Tensor] | None = None,
    **kwargs: Any,
) -> Emulation:
    """Runs an op on CPU tensors with its CUDA kernels, which need no GPU here, and says what they did.

    A finding does not raise: a race, a deadlock, an access outside of memory, a divergent barrier ends the call,
    ``outputs`` is None and ``report.findings`` has the message, which names kernel, file, line, block and thread.

    Args:
        name: an op of :mod:`dlops.functional` ("group_norm", "diffusion_step", ...), or a CUDA kernel's function
            ("group_norm_naive"): then its op, with its variant. The kernels of "row_norm" run as layer_norm; name "rms_norm"
            for the other.
        *args, **kwargs: the op's own arguments, CPU tensors.
        order: "plain", "reverse" or "random": how the runner picks the thread that goes on. None: ``DLOPS_SIMT_ORDER``, else
            "plain".
        seed: of the random order. None: ``DLOPS_SIMT_SEED``, else 1.
        race: take the race build, which checks every access to memory and counts its traffic; 1.5 to 6 times slower.
        trace: (block, thread), each an int or (x, y, z): record what this thread gives to ``SIMT_TRACE(name, value)``.
        grad: gradient of the output, or one for each output: the backward kernels run too, for the tensors that require
            grad. The name of a backward kernel needs it.

    Returns:
        Emulation: ``outputs``, as the op returns them; ``report``; with ``grad``, ``grads``: one for each tensor that requires
        grad, in the order of the arguments.

    Raises:
        ImportError: the runner is not built.
        TypeError, ValueError, RuntimeError: an unknown name (the message lists those that exist), a tensor that is not on the
            CPU, bad options, a kernel that these arguments do not launch; and what the op itself raises.

    Example::

        result = dlops.study.emulate("group_norm", torch.randn(1, 8, 16, 16), 2, trace=(0, 5))
        print(result.report)
    """
    return emulate_in(_runner.module(race), name, args, kwargs, order=order, seed=seed, race=race, trace=trace, grad=grad)


def emulate_in(
    module: ModuleType,
    name: str,
    args: Sequence[Any],
    kwargs: dict[str, Any],
    *,
    order: str | None = None,
    seed: int | None = None,
    race: bool = True,
    trace: tuple[int | Sequence[int], int | Sequence[int]] | None = None,
    grad: Tensor | Sequence[Tensor] | None = None,
) -> Emulation:
    """:func:`emulate` in a runner of one's own: a module of :func:`dlops.study.planting.load`, say."""
    _runner.check_order(order)
    traced = None if trace is None else _traced(trace)
    kwargs = dict(kwargs)
    fn, kernel = _resolve(module, name, kwargs, grad is not None)
    inputs = [leaf for leaf in tree_leaves((args, kwargs, grad)) if isinstance(leaf, Tensor)]
    for place in [t.device for t in inputs] + [torch.device(kwargs.get("device") or "cpu")]:
        if place.type != "cpu":
            raise ValueError(f"emulate: every tensor must be on the CPU: got one on {place}")

    outputs, grads = None, None
    findings: tuple[str, ...] = ()
    with backend("dlops"), _runner.installed(module, order, seed):
        how = module.options()
        module.begin(traced)
        try:
            outputs = fn(*args, **kwargs)
            if grad is not None:
                grads = _differentiate(outputs, tree_leaves((args, kwargs)), grad)
        except RuntimeError as error:
            outputs = grads = None
            findings = (_finding(module, error),)
        finally:
            recorded = module.end()
    launches = make_launches(recorded["launches"])
    ran = list(dict.fromkeys(_function(launch.kernel) for launch in launches))
    if kernel is not None and not findings and kernel not in ran:
        launched = ", ".join(ran) or "nothing"
        raise ValueError(f"emulate: {kernel} did not run: with these arguments {fn.__name__} launches {launched}")
    report = Report(fn.__name__, how["order"], how["seed"], race, launches, findings, traced, make_trace(recorded["trace"]))
    return Emulation(outputs, report, grads)


def _function(kernel: str) -> str:
    """"step_fused<float, 7, true>" -> "step_fused"."""
    return kernel.split("<")[0]


def _resolve(
    module: ModuleType, name: str, kwargs: dict[str, Any], has_grad: bool
) -> tuple[Callable[..., Any], str | None]:
    """The functional op, and the kernel that must run if one was named. Adds the kernel's variant to kwargs."""
    ops = {key: fn for key in functional.__all__ if inspect.isfunction(fn := getattr(functional, key))}
    if name in ops:
        return ops[name], None
    kernels = {row["name"]: row for row in module.kernels()}  # the runner's own list: it does not depend on nvcc
    if name not in kernels:
        raise ValueError(
            f"emulate: unknown op or kernel {name!r}: there are the ops {', '.join(sorted(ops))} "
            f"and the kernels {', '.join(sorted(set(kernels) - set(ops)))}"
        )
    of = kernels[name]["op"]
    op = _GRADIENT_OF.get(of, of.removesuffix("_backward"))
    if op != of and not has_grad:
        raise ValueError(f"emulate: {name} is a backward kernel: give grad=, and tensors that require grad")
    fn = ops[_FUNCTIONAL.get(op, op)]
    if "variant" in inspect.signature(fn).parameters:
        variant = kernels[name]["variant"]
        if kwargs.setdefault("variant", variant) != variant:
            raise ValueError(f"emulate: {name} is variant {variant!r}: got variant={kwargs['variant']!r}")
    return fn, name


def _traced(trace: Any) -> tuple[Index, Index]:
    def index(value: Any) -> Index:
        found = (value, 0, 0) if isinstance(value, int) else tuple(value) if isinstance(value, Sequence) else ()
        if len(found) != 3 or not all(isinstance(i, int) and i >= 0 for i in found):
            raise ValueError(f"emulate: trace must be (block, thread), each an int or (x, y, z): got {trace!r}")
        return found

    if not isinstance(trace, Sequence) or len(trace) != 2:
        raise ValueError(f"emulate: trace must be (block, thread), each an int or (x, y, z): got {trace!r}")
    return index(trace[0]), index(trace[1])


def _differentiate(outputs: Any, leaves: Sequence[Any], grad: Tensor | Sequence[Tensor]) -> tuple[Tensor, ...]:
    wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if not wanted:
        raise ValueError("emulate: grad= is given, but no tensor requires grad")
    outputs = [y for y in tree_leaves(outputs) if isinstance(y, Tensor)]
    return torch.autograd.grad(outputs, wanted, [grad] if isinstance(grad, Tensor) else list(grad))


def _finding(module: ModuleType, error: RuntimeError) -> str:
    """The runner's message, which begins with a kernel's name; any other error goes on."""
    text = str(error)
    name = re.match(r"(\w+)(<.*?>)?: ", text)
    kernels = {row["name"] for row in module.kernels()}
    if name is None or name[1] not in kernels or "hands such a call to torch" in text:
        raise error
    return text
