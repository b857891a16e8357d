"""Benchmarks: measured roofs, side-by-side timing, and every baseline a user could have for free.

Example::

    from dlops import bench
    result = bench.compare({"torch": lambda: F.silu(x), "mine": lambda: my_silu(x)})
    print(result.ratio("torch", "mine"), result.medians, result.clock)
    print(bench.roof())                                        # fp32 and bf16 peak, copy bandwidth
    print(bench.run(bench.cases("norm")).table())              # against every baseline
"""

from dlops.bench.baselines import MklProbe, mkl_probe
from dlops.bench.cases import Candidates, Case, cases
from dlops.bench.machine import environment
from dlops.bench.roofs import Roof, roof
from dlops.bench.runner import Row, Run, measure, run
from dlops.bench.timing import Result, compare

__all__ = [
    "Candidates",
    "Case",
    "MklProbe",
    "Result",
    "Roof",
    "Row",
    "Run",
    "cases",
    "compare",
    "environment",
    "measure",
    "mkl_probe",
    "roof",
    "run",
]
