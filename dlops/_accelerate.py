"""Swaps whole models over to our modules in place, and back.

A swap sets `module.__class__`: parameters, buffers, names, `state_dict` keys and every reference to the module stay
what they were. Only exact types are swapped; a subclass may have changed what `forward` means. Other kernel families
add themselves with `register`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

RECORD = "_dlops_swapped_from"  # in the instance's __dict__: survives deepcopy and pickle, is no part of state_dict
Reason = str  # why something was left as it is


@dataclass(frozen=True)
class Entry:
    """One module or scheduler that was looked at. `to` is None when it was left as it is, for `reason`."""

    path: str
    of: str
    to: str | None
    reason: Reason = ""


@dataclass
class Report:
    """What `accelerate` or `restore` did. Prints as a table: one line per kind of swap, one per kind of refusal."""

    entries: list[Entry] = field(default_factory=list)

    @property
    def swapped(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.to is not None]

    @property
    def kept(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.to is None]

    def __str__(self) -> str:
        if not self.entries:
            return "nothing to swap"
        groups: dict[tuple[str, str], list[str]] = {}
        for entry in self.entries:
            outcome = f"-> {entry.to}" if entry.to else f"left: {entry.reason}"
            groups.setdefault((entry.of, outcome), []).append(entry.path)
        lines = [(str(len(paths)), of, outcome, _some(paths)) for (of, outcome), paths in groups.items()]
        widths = [max(len(line[k]) for line in lines) for k in range(3)]
        return "\n".join(
            f"{count:>{widths[0]}}  {of:<{widths[1]}}  {outcome:<{widths[2]}}  {paths}"
            for count, of, outcome, paths in lines
        )


@dataclass(frozen=True)
class _Rule:
    source: type | str
    target: type | str
    refuse: Callable[[nn.Module], Reason | None]
    attributes: Callable[[nn.Module], dict[str, Any]]


_rules: dict[str, _Rule] = {}


def register(
    source: type | str,
    target: type | str,
    *,
    refuse: Callable[[nn.Module], Reason | None] = lambda module: None,
    attributes: Callable[[nn.Module], dict[str, Any]] = lambda module: {},
) -> None:
    """Teaches `accelerate` one more swap.

    Args:
        source: the exact type to swap, or its dotted path ("package.module.Class"), so that naming it imports nothing.
        target: a type whose instances have the same attributes as `source`'s, best a subclass; or its dotted path,
            which is imported when the first module is swapped.
        refuse: says why one module must stay as it is, or None.
        attributes: instance attributes that `target` needs on top; `restore` deletes them.
    """
    rule = _Rule(source, target, refuse, attributes)
    _rules[source if isinstance(source, str) else _dotted(source)] = rule


def accelerate(model: Any) -> Report:
    """Swaps what dlops has into `model`, in place.

    Modules of the exact types torch.nn.Conv1d to Conv3d, ConvTranspose1d to ConvTranspose3d, Linear, GroupNorm, LayerNorm,
    RMSNorm, LSTM, GRU, RNN (and their cells), MultiheadAttention, TransformerEncoderLayer and TransformerDecoderLayer (with
    the stacks of these layers) become ours and share their parameters. A GroupNorm followed by a SiLU within a
    torch.nn.Sequential, and those within diffusers' ResnetBlock2D, run as one kernel. A transformers model gets the attention
    implementation "dlops", a diffusers model's attention processors our attention in the place of torch's. A pipeline's
    scheduler is replaced by ours of the same name (before sampling: its position in a schedule is not taken over). Left
    alone, with the reason in the report: subclasses, modules with hooks, parametrizations, a replaced `forward`, float64 or
    quantised parameters. Calling it again changes nothing more.

    Args:
        model: a torch.nn.Module or a diffusers pipeline (anything with a dict `components`).

    Returns:
        Report: what was swapped, what was not and why. `print` it.

    Raises:
        TypeError: model is neither.
    """
    report, seen = Report(), {}
    for path, module in _modules(model, "accelerate"):
        entry = _swap(path, module)
        if entry is not None:
            report.entries.append(entry)
        report.entries.extend(_attentions(path, module, "attach", seen))
    if not isinstance(model, nn.Module):
        report.entries.extend(_swap_schedulers(model))
    return report


def restore(model: Any) -> Report:
    """Undoes `accelerate`: every module gets its class back, a pipeline its scheduler.

    Raises:
        TypeError: model is neither a torch.nn.Module nor a pipeline.
    """
    report, seen = Report(), {}
    for path, module in _modules(model, "restore"):
        report.entries.extend(_attentions(path, module, "detach", seen))
        record = vars(module).pop(RECORD, None)
        if record is None:
            continue
        was = type(module)
        original, added = record
        for name in added:
            vars(module).pop(name, None)
        module.__class__ = original
        report.entries.append(Entry(path, _name(was), _name(original)))
    if not isinstance(model, nn.Module):
        for name, scheduler in _schedulers(model):
            original = vars(scheduler).get(RECORD)
            if original is not None:
                setattr(model, name, original)
                report.entries.append(Entry(name, _name(type(scheduler)), _name(type(original))))
    return report


def _swap(path: str, module: nn.Module) -> Entry | None:
    if RECORD in vars(module):
        return None
    kind = type(module)
    rule = _rules.get(_dotted(kind))
    if rule is None:
        ancestor = next((base for base in kind.__mro__[1:] if _dotted(base) in _rules), None)
        if ancestor is None or _is_ours(kind) or ancestor is nn.Sequential:
            return None
        what = "parametrized" if hasattr(module, "parametrizations") else f"a subclass of {_name(ancestor)}"
        return Entry(path, _name(kind), None, what)
    reason = rule.refuse(module)
    if reason == NOT_CONCERNED:
        return None
    reason = _common_reason(module) or reason
    if reason is not None:
        return Entry(path, _name(kind), None, reason)
    target = _resolve(rule.target)
    added = rule.attributes(module)
    vars(module).update(added)
    vars(module)[RECORD] = (kind, tuple(added))
    module.__class__ = target
    return Entry(path, _name(kind), _name(target))


def _common_reason(module: nn.Module) -> Reason | None:
    """What keeps any module from being swapped, whatever its type."""
    from dlops._fused import free_of_hooks

    if not free_of_hooks(module):
        return "has hooks"
    if "forward" in vars(module):
        return "its forward was replaced"
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dtype is torch.float64:
            return "float64"
        if type(parameter) not in (nn.Parameter, torch.Tensor) or parameter.is_quantized:
            return f"{name} is a {type(parameter).__name__}"
        if not parameter.is_floating_point():
            return f"{name} is {str(parameter.dtype).removeprefix('torch.')}"
    return None


NOT_CONCERNED = ""  # a `refuse` returns it for a module that is no candidate at all: the report does not mention it


def _refuse_sequential(module: Any) -> Reason | None:
    from dlops._fused import free_of_hooks, norm_silu_pairs

    pairs = norm_silu_pairs(module)
    if not pairs:
        return NOT_CONCERNED
    return None if any(free_of_hooks(*pair) for pair in pairs) else "its GroupNorm or SiLU has hooks: not fused"


def _refuse_resnet_block(module: nn.Module) -> Reason | None:
    from dlops._diffusers import refuse

    return refuse(module)


def _attentions(path: str, module: nn.Module, change: str, seen: dict[int, Any]) -> Iterator[Entry]:
    """Attention that is no module: a transformers model's setting, a diffusers module's processor. `change`: "attach" or
    "detach" ours; `seen`: what the packages remember during one walk over a model."""
    packages = {kind.__module__.partition(".")[0] for kind in type(module).__mro__}
    for package in packages.intersection(("diffusers", "transformers")):
        try:
            ours = importlib.import_module(f"dlops._{package}")
        except ImportError as error:
            yield Entry(path, f"attention of {package}", None, f"this {package} is not one that dlops knows: {error}")
            continue
        for within, *rest in getattr(ours, change)(module, seen):
            yield Entry(".".join(name for name in (path.replace("(model)", ""), within) if name) or "(model)", *rest)


def _modules(model: Any, caller: str) -> Iterator[tuple[str, nn.Module]]:
    """Every module once, with its path."""
    if isinstance(model, nn.Module):
        roots = {"": model}
    elif isinstance(getattr(model, "components", None), dict):
        roots = {name: part for name, part in model.components.items() if isinstance(part, nn.Module)}
    else:
        raise TypeError(
            f"{caller}: model is a {type(model).__name__}, expected a torch.nn.Module or a pipeline with `components`"
        )
    seen: set[nn.Module] = set()
    for prefix, root in roots.items():
        for path, module in list(root.named_modules(memo=seen, prefix=prefix)):
            yield path or "(model)", module


def _schedulers(pipeline: Any) -> Iterator[tuple[str, Any]]:
    for name, part in pipeline.components.items():
        if not isinstance(part, nn.Module) and hasattr(part, "set_timesteps") and hasattr(part, "step"):
            yield name, part


def _swap_schedulers(pipeline: Any) -> Iterator[Entry]:
    from dlops import diffusion

    for name, scheduler in list(_schedulers(pipeline)):
        kind = type(scheduler)
        if _is_ours(kind):
            continue
        ours = getattr(diffusion, kind.__name__, None)
        if not kind.__module__.startswith("diffusers.") or ours is None:
            yield Entry(name, _name(kind), None, f"dlops.diffusion has no {kind.__name__}")
            continue
        try:
            replacement = ours.from_config(scheduler)
        except (ValueError, TypeError, NotImplementedError) as error:
            yield Entry(name, _name(kind), None, str(error))
            continue
        vars(replacement)[RECORD] = scheduler
        setattr(pipeline, name, replacement)
        yield Entry(name, _name(kind), _name(ours))


def _resolve(target: type | str) -> type:
    if isinstance(target, type):
        return target
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _dotted(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _name(kind: type) -> str:
    """The name a user would import it by."""
    for package in ("torch.nn", "dlops.nn", "dlops.diffusion", "diffusers"):
        if kind.__module__.startswith(package) and getattr(sys.modules.get(package), kind.__name__, None) is kind:
            return f"{package}.{kind.__name__}"
    return _dotted(kind)


def _is_ours(kind: type) -> bool:
    return kind.__module__.split(".")[0] == "dlops"


def _some(paths: list[str], limit: int = 3) -> str:
    rest = len(paths) - limit
    return ", ".join(paths[:limit]) + (f", ... {rest} more" if rest > 0 else "")


for _kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear):
    register(_kind, f"dlops.nn.{_kind.__name__}")
# MultiheadAttention's own: it uses the weight and never calls the module.
register(nn.modules.linear.NonDynamicallyQuantizableLinear, "", refuse=lambda module: NOT_CONCERNED)
register(nn.GroupNorm, "dlops.nn.GroupNorm")
for _kind in (nn.LSTM, nn.GRU, nn.RNN, nn.LSTMCell, nn.GRUCell, nn.RNNCell):
    register(_kind, f"dlops.nn.{_kind.__name__}")
register(nn.LayerNorm, "dlops.nn.LayerNorm")
register(nn.RMSNorm, "dlops.nn.RMSNorm")
register(nn.MultiheadAttention, "dlops.nn.MultiheadAttention")
register(nn.TransformerEncoderLayer, "dlops.nn.TransformerEncoderLayer")
register(nn.TransformerDecoderLayer, "dlops.nn.TransformerDecoderLayer")
register(nn.TransformerEncoder, "dlops.nn.TransformerEncoder")
register(nn.TransformerDecoder, "dlops.nn.TransformerDecoder")
register(nn.Sequential, "dlops._fused.Sequential", refuse=_refuse_sequential)
register("diffusers.models.resnet.ResnetBlock2D", "dlops._diffusers.ResnetBlock2D", refuse=_refuse_resnet_block)
