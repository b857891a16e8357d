"""Weights as a kernel wants them (transformed, packed), kept for as long as the parameter they were made of does not change.

Only for `nn.Parameter`: any other weight was computed, and may lie in a buffer that something else is written to. An entry
belongs to a parameter by weak reference and holds for its storage, address, layout and version counter, which every write that
torch knows of raises; fused optimisers, which do not raise it, are seen by a hook after their step. Other writes are not seen:
`clear_cache` is for them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import Optimizer, register_optimizer_step_post_hook


@dataclass
class _Entry:
    owner: weakref.ref[Tensor]
    storage: StorageWeakRef  # an address would not do: another storage may come to lie there
    state: tuple[Any, ...]  # version, address, shape, strides
    made: dict[Hashable, Tensor] = field(default_factory=dict)

    def holds_for(self, owner: Tensor) -> bool:
        if self.owner() is not owner or self.state != _state(owner) or self.storage.expired():
            return False
        return self.storage.cdata == owner.untyped_storage()._cdata


def _state(owner: Tensor) -> tuple[Any, ...]:
    return owner._version, owner.data_ptr(), owner.shape, owner.stride()


_entries: dict[int, _Entry] = {}  # by id of the owner, which its weak reference keeps from being mistaken for another
_hooked = False


def kept(owner: Tensor, key: Hashable, make: Callable[[], Tensor]) -> Tensor | None:
    """What `make` returns, from an earlier call if `owner` is as it was then.

    None where nothing can be kept: the caller's kernel packs for itself. That is so for tensors that are no parameters; for
    inference tensors, which have no version; for shared memory, which other processes write; while torch traces or explains;
    and while gradients are recorded for `owner`, whose next value is near.
    """
    if type(owner) is not nn.Parameter or owner.is_inference() or (owner.requires_grad and torch.is_grad_enabled()):
        return None
    if owner.untyped_storage().is_shared() or _fake_mode() is not None:
        return None
    entry = _entries.get(id(owner))
    if entry is None or not entry.holds_for(owner):
        _watch_optimisers()
        entry = _Entry(weakref.ref(owner, _forget(id(owner))), StorageWeakRef(owner.untyped_storage()), _state(owner))
        _entries[id(owner)] = entry
    packed = entry.made.get(key)
    if packed is None:
        packed = entry.made[key] = make()
    return packed


def _fake_mode() -> object:
    return torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)


def _forget(identity: int) -> Callable[[object], None]:
    def forget(reference: object) -> None:
        entry = _entries.get(identity)
        if entry is not None and entry.owner is reference:
            del _entries[identity]

    return forget


def _watch_optimisers() -> None:
    global _hooked
    if not _hooked:
        _hooked = True
        register_optimizer_step_post_hook(_after_step)


def _after_step(optimiser: Optimizer, *_: Any) -> None:
    for group in optimiser.param_groups:
        for parameter in group["params"]:
            _entries.pop(id(parameter), None)


def clear_cache(module: nn.Module | None = None) -> int:
    """Drops packed weights: those of `module`'s parameters, or all. Returns the number of bytes.

    Needed after a write that raises no version counter: through ``parameter.data``, a numpy view, a view of the same storage made
    by ``vector_to_parameters``, a foreign library, a sharded trainer that refills storages; and before
    ``torch.utils.swap_tensors``, which wants no weak references. Optimisers, ``load_state_dict``, ``copy_`` and such are seen.
    """
    if module is None:
        dropped = list(_entries.values())
        _entries.clear()
    else:
        found = (_entries.pop(id(parameter), None) for parameter in module.parameters())
        dropped = [entry for entry in found if entry is not None]
    return sum(packed.nbytes for entry in dropped for packed in entry.made.values())
