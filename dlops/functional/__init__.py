"""Functions with the signatures of ``torch.nn.functional``; what torch lacks comes as keyword-only arguments.

``variant=`` picks a rung of a kernel's ladder everywhere; the default is the fastest.
"""

from dlops.functional.diffusion import STEP_COLUMNS, add_noise, diffusion_step, randn
from dlops.functional.norm import group_norm, layer_norm, rms_norm

__all__ = ["STEP_COLUMNS", "add_noise", "diffusion_step", "group_norm", "layer_norm", "randn", "rms_norm"]
