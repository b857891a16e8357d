"""What a step takes and gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias, TypedDict

import torch

Seeds: TypeAlias = torch.Tensor | Sequence[int] | None


@dataclass(slots=True)
class SchedulerOutput:
    """prev_sample: the next, less noisy sample. pred_original_sample: the denoised sample x0, where it is computed."""

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None

    def to_tuple(self) -> tuple[torch.Tensor, ...]:
        """The fields that are not None."""
        if self.pred_original_sample is None:
            return (self.prev_sample,)
        return (self.prev_sample, self.pred_original_sample)

    def __getitem__(self, key: int | str) -> torch.Tensor:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]


class StepExtras(TypedDict, total=False):
    """What `step` takes beyond diffusers' arguments, by keyword."""

    seeds: Seeds  # int64 [N]: noise keyed by (seed, row, element) instead of torch's generator
    uncond: torch.Tensor | None  # the model's unconditional output, for classifier-free guidance
    guidance: float  # uncond + guidance * (model_output - uncond)
    guidance_rescale: float  # 0 to 1: pull the guided output back to the standard deviation of model_output
    out: torch.Tensor | None  # where prev_sample goes; may be `sample` itself
    per_sample: bool  # read a timestep tensor [1] as per-sample too (a longer one always is)
    row: torch.Tensor | None  # the schedule's row itself, int64 [1] or [N] on the device; the counter stays
