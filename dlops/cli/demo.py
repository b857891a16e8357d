"""Trains a small U-Net on handwritten digits and draws new ones with our samplers."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, default=Path("build/demo"), help="folder for the pictures and the report")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="a few training steps: shows that everything runs")
    parser.add_argument("--figure", type=Path, default=None, help="also write the picture of samples here")


def run(options: argparse.Namespace) -> int:
    from dlops import demo

    return demo.run(out=options.out, seed=options.seed, quick=options.quick, figure=options.figure)
