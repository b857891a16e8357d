"""Diffusion sampling: schedulers that drop into diffusers' pipelines, counter-based noise, and the sampling loop.

Every step of every scheduler is one kernel launch (`dlops.functional.diffusion_step`) that never waits for the device.
A timestep on an accelerator is not read: the step counter decides (start elsewhere with `set_begin_index`). A timestep
on the host is checked against the schedule. Beyond diffusers' arguments every `step` takes, by keyword:

    seeds             int64 [N], tensor or list: noise keyed by (seed, row, element) instead of torch's generator; the
                      same for any batch size, device and thread count, and needs no launch of its own
    uncond, guidance  the model's unconditional output and the scale: classifier-free guidance inside the step
    guidance_rescale  0 to 1: Lin et al. 2305.08891, section 3.4
    out               where prev_sample is written; `out=sample` steps in place
    per_sample        read a timestep tensor of one entry as per-sample; one of N > 1 entries always is: every sample
                      steps from its own timestep (not for solver_order > 1)
    row               the schedule's row itself instead of the timestep, int64 [1] or [N]; the counter stays
"""

from dlops.diffusion._noise import torch_randn
from dlops.diffusion._scheduler import Scheduler
from dlops.diffusion._types import SchedulerOutput
from dlops.diffusion.ddim import DDIMScheduler
from dlops.diffusion.ddpm import DDPMScheduler
from dlops.diffusion.dpmsolver_multistep import DPMSolverMultistepScheduler
from dlops.diffusion.euler import EulerDiscreteScheduler
from dlops.diffusion.euler_ancestral import EulerAncestralDiscreteScheduler
from dlops.diffusion.flow_match_euler import FlowMatchEulerDiscreteScheduler
from dlops.diffusion.sample import sample
from dlops.functional import randn

__all__ = [
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverMultistepScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "FlowMatchEulerDiscreteScheduler",
    "Scheduler",
    "SchedulerOutput",
    "randn",
    "sample",
    "torch_randn",
]
