"""Runs the cases against every baseline and tells the result as a table and as JSON."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from dlops.bench import baselines
from dlops.bench._text import columns
from dlops.bench.cases import Case
from dlops.bench.machine import environment
from dlops.bench.roofs import Roof, roof
from dlops.bench.timing import Result, compare

LAUNCH_BOUND_BYTES = 4 << 20  # below this a GPU finishes before the next launch arrives: calls are timed in a loop


@dataclass(frozen=True)
class Row:
    """One case, measured. Ratios say how many times slower than ours the baseline is: above 1 we win."""

    case: Case
    result: Result
    roof_share: float  # least possible time on this machine / our time
    free: dict[str, float] = field(default_factory=dict)  # "compile", "unthrottled MKL", "zentorch": ratio
    pages_kept: float | None = None  # ratio to stock where neither side pays for page faults

    @property
    def stock(self) -> float:
        return self.result.ratio("stock", "dlops")

    @property
    def best_free(self) -> tuple[str, float]:
        """The strongest baseline that costs a user nothing (stock torch counts too) and the ratio to it."""
        return min({"stock": self.stock, **self.free}.items(), key=lambda item: item[1])

    def as_dict(self) -> dict[str, object]:
        case = self.case
        seconds = self.result.medians["dlops"]
        return {
            "id": case.id,
            "family": case.family,
            "op": case.op,
            "shape": list(case.shape),
            "dtype": str(case.dtype).removeprefix("torch."),
            "baseline": case.baseline,
            "flops": case.flops,
            "bytes": case.bytes,
            "flops_per_s": case.flops / seconds,
            "bytes_per_s": case.bytes / seconds,
            "roof_share": self.roof_share,
            "ratio_stock": self.stock,
            "ratio_best_free": self.best_free[1],
            "best_free": self.best_free[0],
            "ratio_free": self.free,
            "ratio_pages_kept": self.pages_kept,
            **self.result.as_dict(),
        }


def measure(case: Case, device: torch.device, *, seconds: float = 0.4, compile: bool = False) -> Row:
    """Times one case in this process: ours, the stock code, a copy of as many bytes and, if asked, torch.compile.

    The copy writes into memory that is there already, so it is the memory roof at this case's own size: the caches'
    bandwidth for small cases, the main memory's for large ones.
    """
    built = case.build(device)
    half = max(1, int(case.bytes) // 2)
    source = torch.randint(0, 255, (half,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    runs: dict[str, Callable[[], object]] = {
        "dlops": built.dlops,
        "stock": built.stock,
        "copy": lambda: target.copy_(source),
    }
    if compile and built.compilable is not None:
        runs["compile"] = baselines.compiled(built.compilable)
    result = compare(runs, seconds=seconds, device=device, launch_bound=case.bytes < LAUNCH_BOUND_BYTES)
    least = max(result.medians["copy"], roof(device).seconds(case.flops, 0, torch.float32))
    free = {"compile": result.ratio("compile", "dlops")} if "compile" in runs else {}
    return Row(case, result, least / result.medians["dlops"], free)


@dataclass(frozen=True)
class Run:
    """Cases, measured, and what they are measured against."""

    rows: list[Row]
    roof: Roof
    mkl: baselines.MklProbe | None = None  # None: not looked at

    def table(self) -> str:
        """The rows for a terminal, one line each, and how to read them."""
        head = ("op", "shape", "dtype", "time", "x stock", "x stock*", "x best free", "", "% roof")
        lines = [
            (
                row.case.op,
                "x".join(map(str, row.case.shape)),
                str(row.case.dtype).removeprefix("torch."),
                _time(row.result.medians["dlops"]),
                f"{row.stock:.2f}",
                "-" if row.pages_kept is None else f"{row.pages_kept:.2f}",
                f"{row.best_free[1]:.2f}",
                row.best_free[0],
                f"{100 * row.roof_share:.0f}",
            )
            for row in self.rows
        ]
        roof = self.roof
        clocks = ", ".join(sorted({row.result.clock for row in self.rows}))
        peaks = ", ".join(f"{name} {flops / 1e9:.0f} GFLOP/s" for name, flops in roof.flops.items())
        notes = [
            f"{roof.device}, {roof.threads} thread(s), medians by {clocks}.",
            f"Measured roof: {peaks}, copy {roof.copy / 1e9:.1f} GB/s read + written.",
            "x: how many times slower than dlops. stock: torch eager (schedulers: diffusers).",
            "stock*: both with a malloc that keeps its pages.",
            "best free: the fastest of stock, torch.compile (only the cases that were compiled), an unthrottled MKL "
            "and zentorch, as far as they apply here.",
            "% roof: the time of a copy of the same bytes (or of the arithmetic at peak, if longer) over our time.",
        ]
        if self.mkl is not None:
            notes.append(f"MKL: {self.mkl}.")
        return "\n".join([columns([head, *lines]), "", *notes])

    def as_json(self) -> str:
        """Everything measured, with where and on what it was taken."""
        return json.dumps(
            {
                "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                "environment": environment(),
                "roof": asdict(self.roof),
                "mkl": None if self.mkl is None else asdict(self.mkl),
                "rows": [row.as_dict() for row in self.rows],
            },
            indent=1,
        )


def run(
    cases: Iterable[Case],
    *,
    device: torch.device | str = "cpu",
    seconds: float = 0.4,
    compile: str = "some",
    environments: bool = True,
    progress: bool = True,
) -> Run:
    """Measures cases against all baselines.

    Args:
        seconds: per case and process.
        compile: "none", "some" (the cases marked for it) or "all": compiling takes 20 s and more each.
        environments: on the CPU, time the cases again in subprocesses with a malloc that keeps its pages, with zentorch
            where it is installed and with an unthrottled MKL where torch's throttles itself.
        progress: name each case on stderr as it runs, if that is a terminal.

    Raises:
        ValueError: compile is none of the three words.
    """
    if compile not in ("none", "some", "all"):
        raise ValueError(f"run: compile is {compile!r}, expected 'none', 'some' or 'all'")
    where, chosen = torch.device(device), list(cases)
    tell = _tell if progress and sys.stderr.isatty() else _keep_quiet
    tell("the roof")
    measured = roof(where)
    rows = []
    for position, case in enumerate(chosen):
        tell(f"[{position + 1}/{len(chosen)}] {case.id}")
        compiled = compile == "all" or (compile == "some" and case.compile)
        rows.append(measure(case, where, seconds=seconds, compile=compiled))
    mkl = None
    if environments and where.type == "cpu":
        tell("MKL")
        mkl = baselines.mkl_probe()
        rows = _with_environments(rows, seconds / 2, mkl.throttled, tell)
    tell("")
    return Run(rows, measured, mkl)


def _with_environments(rows: list[Row], seconds: float, throttled: bool, tell: Callable[[str], None]) -> list[Row]:
    def again(what: str, **arguments) -> dict[str, dict[str, float]]:
        tell(f"again, {what}")
        ids = [row.case.id for row in rows if row.case.compile or not arguments.get("zentorch")]
        return baselines.in_worker(ids, seconds=seconds, threads=torch.get_num_threads(), **arguments)

    kept = again("malloc keeps its pages", environment=baselines.KEEP_PAGES)
    rows = [replace(row, pages_kept=kept.get(row.case.id, {}).get("stock")) for row in rows]
    free: dict[str, dict[str, dict[str, float]]] = {}
    if throttled:
        with tempfile.TemporaryDirectory() as folder:
            library = baselines.build_unthrottle(Path(folder))
            if library is not None:
                free["unthrottled MKL"] = again("unthrottled MKL", environment={"LD_PRELOAD": str(library)})
    if baselines.zentorch_installed():
        free["zentorch"] = again("zentorch", environment={}, zentorch=True)
    for name, ratios in free.items():
        rows = [
            replace(row, free=row.free | {name: min(ratios[row.case.id].values())}) if row.case.id in ratios else row
            for row in rows
        ]
    return rows


def _tell(what: str) -> None:
    print(f"\r\x1b[K{what}", end="", file=sys.stderr, flush=True)


def _keep_quiet(what: str) -> None:
    pass


def _time(seconds: float) -> str:
    for unit, scale in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= scale:
            return f"{seconds / scale:.2f} {unit}"
    return f"{seconds / 1e-6:.1f} us"
