"""The specification: a pure torch twin of every op, in any dtype up to float64. Short and readable, not fast.

The twins are the oracle of the tests and the path for what the kernels do not take (float64, gradients of gradients).
"""

from dlops.reference import attention, conv, diffusion, lstm, norm, philox

__all__ = ["attention", "conv", "diffusion", "lstm", "norm", "philox"]
