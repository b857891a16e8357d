"""The CUDA kernels on the CPU: run one in the simt runner and see what it costs, what its threads held, what is wrong.

Example::

    from dlops import study
    result = study.emulate("group_norm", torch.randn(1, 8, 16, 16), 2, trace=(0, 5))
    print(result.report)         # per launch: grid, barriers, bank conflicts, sectors; then findings and the trace
    result.outputs               # what the kernels computed

Nothing here is loaded before it is used; :mod:`dlops.study.planting` builds changed copies of the kernels.
"""

from dlops.study._emulate import Emulation, emulate
from dlops.study._report import Launch, Report, Traced
from dlops.study._runner import emulation

__all__ = ["Emulation", "Launch", "Report", "Traced", "emulate", "emulation"]
