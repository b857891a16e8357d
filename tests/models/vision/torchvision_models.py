"""torchvision's models, to compare ours with; a test that asks for them skips where torchvision is not installed."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import pytest
import torch

# the operators that torchvision's Python files decorate when they are imported: its compiled part declares them
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
_declared: list[torch.library.Library] = []  # a Library withdraws what it declared when it is collected


def torchvision_models() -> ModuleType:
    """The module ``torchvision.models``, also where torchvision's compiled part was built for another torch than this one:
    the classification networks need none of it."""
    reason = "torchvision, which the networks are compared with, is not installed"
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip(reason)
    try:
        return importlib.import_module("torchvision.models")
    except RuntimeError as error:  # operator torchvision::nms does not exist
        if "torchvision::nms" not in str(error) or _declared:
            raise
    _declared.append(torch.library.Library("torchvision", "FRAGMENT"))
    for schema in _SCHEMAS:
        _declared[0].define(schema)
    return importlib.import_module("torchvision.models")
