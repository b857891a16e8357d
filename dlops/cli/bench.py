"""Times our ops side by side with every baseline and prints ratios and shares of the measured roof."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from dlops import bench
from dlops.bench.cases import FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--family", choices=sorted(FAMILIES), help="only this one (default: all)")
    parser.add_argument("--match", default="", metavar="TEXT", help="only cases whose name contains TEXT")
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--threads", type=int, default=1, help="torch threads on the CPU (default: 1)")
    parser.add_argument("--seconds", type=float, default=0.4, help="per case and process (default: 0.4)")
    parser.add_argument(
        "--compile",
        choices=("none", "some", "all"),
        default="some",
        help="which cases torch.compile is timed on too; each takes 20 s and more (default: a few of each family)",
    )
    parser.add_argument(
        "--here-only",
        action="store_true",
        help="skip the baselines that need a process of their own (unthrottled MKL, zentorch, malloc settings)",
    )
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--json", type=Path, default=Path("build/bench/bench.json"), help="where the figures go")


def run(options: argparse.Namespace) -> int:
    chosen = [case for case in bench.cases(options.family) if options.match in case.id]
    if options.list or not chosen:
        print("\n".join(case.id for case in chosen) or f"no case contains {options.match!r}")
        return 0 if chosen else 1
    torch.set_num_threads(options.threads)
    measured = bench.run(
        chosen,
        device=options.device,
        seconds=options.seconds,
        compile=options.compile,
        environments=not options.here_only,
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(measured.as_json())
    print(measured.table())
    print(f"\n{options.json}")
    return 0
