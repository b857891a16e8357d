"""torch.compile without graph breaks for our recurrent layers.

Dynamo breaks its graph at every instance of torch.nn.LSTM, GRU and RNN, because their operators do not compile well, and at
every subclass's too. Its switch, torch._dynamo.config.allow_rnn, is for all of them at once: it is set here while Dynamo looks at
a module of ours, and at no other time, so that torch's modules in the same program compile as they did.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from types import ModuleType
from typing import Any

_BUILDER = "torch._dynamo.variables.builder"
_ours: list[type] = []


def traceable(kind: type) -> type:
    """Class decorator: torch.compile traces instances of `kind`, a subclass of torch.nn.RNNBase."""
    if not _ours:
        if _BUILDER in sys.modules:
            _let_through(sys.modules[_BUILDER])
        else:  # importing it would cost every program a second
            sys.meta_path.insert(0, _AfterImport())
    _ours.append(kind)
    return kind


class _AfterImport(importlib.abc.MetaPathFinder):
    """Calls `_let_through` when Dynamo has been imported."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _BUILDER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            _let_through(module)

        spec.loader.exec_module = exec_module
        return spec


def _let_through(builder: Any) -> None:
    """Does nothing where this torch's Dynamo has no such switch."""
    original = getattr(getattr(builder, "VariableBuilder", None), "wrap_module", None)
    if original is None or not hasattr(getattr(builder, "config", None), "allow_rnn"):
        return

    def wrap_module(self: Any, value: Any) -> Any:
        if isinstance(value, tuple(_ours)):
            with builder.config.patch(allow_rnn=True):
                return original(self, value)
        return original(self, value)

    builder.VariableBuilder.wrap_module = wrap_module
