"""Hand-written CUDA and CPU kernels under drop-in PyTorch modules.

``dlops.nn`` and ``dlops.functional`` mirror ``torch.nn`` and ``torch.nn.functional``; ``dlops.diffusion`` mirrors the
schedulers of diffusers; ``dlops.accelerate(model)`` swaps a model's modules in place. ``dlops.explain(fn, *args)`` says
which kernel would run and why; ``dlops.kernels()`` lists them all. ``dlops.reference`` is the specification: a pure torch
twin of every op. ``dlops.study`` runs the CUDA kernels on the CPU and checks them.
"""

from dlops import diffusion, functional, models, nn, reference, study
from dlops._accelerate import accelerate, restore
from dlops._backend import Plan, backend
from dlops._catalogue import Kernel, kernels
from dlops._explain import explain
from dlops._library import cpu_isa, cpu_isas, empty_cache
from dlops._packed import clear_cache
from dlops._winograd import winograd

__version__ = "0.1.0"

__all__ = [
    "Kernel",
    "Plan",
    "accelerate",
    "backend",
    "clear_cache",
    "cpu_isa",
    "cpu_isas",
    "diffusion",
    "empty_cache",
    "explain",
    "functional",
    "kernels",
    "models",
    "nn",
    "reference",
    "restore",
    "study",
    "winograd",
]
