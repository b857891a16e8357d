"""Times our ops side by side with every baseline and prints ratios and shares of the measured roof."""

from __future__ import annotations

import argparse
import importlib.util
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
    parser.add_argument("--large", action="store_true", help="also the cases that take seconds per call, or are very many")
    parser.add_argument("--list", action="store_true", help="name the cases and stop")
    parser.add_argument("--json", type=Path, help="where the figures go (default: build/bench/bench.json or curve.json)")
    curve = parser.add_argument_group("another picture")
    curve.add_argument(
        "--curve",
        action="store_true",
        help="instead of the cases: time per token against length, of LSTM, GRU, attention and convolution",
    )
    curve.add_argument("--lengths", type=int, nargs="+", metavar="L", help="of the curve (default: 64 128 ... 8192)")
    curve.add_argument("--figure", type=Path, default=Path("build/bench/curve.png"), help="its picture: .png or .svg")


def run(options: argparse.Namespace) -> int:
    if options.curve:
        return _curve(options)
    everything = bench.cases(options.family)
    chosen = [case for case in everything if options.match in case.id and case.is_for(options.device, options.large)]
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
    path = _written(measured.as_json(), options.json or Path("build/bench/bench.json"))
    print(measured.table())
    print(f"\n{path}")
    return 0


def _curve(options: argparse.Namespace) -> int:
    from dlops.bench import curve

    torch.set_num_threads(options.threads)
    lengths = options.lengths or curve.LENGTHS
    measured = curve.measure(lengths, device=options.device, seconds=options.seconds)
    paths = [_written(measured.as_json(), options.json or Path("build/bench/curve.json"))]
    print(measured.table())
    if importlib.util.find_spec("matplotlib") is None:
        print("\nno picture: it needs matplotlib (pip install matplotlib)")
    else:
        options.figure.parent.mkdir(parents=True, exist_ok=True)
        curve.figure(measured).savefig(options.figure)
        paths.append(options.figure)
    print("", *paths, sep="\n")
    return 0


def _written(text: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path
