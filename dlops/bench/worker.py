"""Times cases in a process of its own, started with another environment (see baselines.py).

Reads a JSON list of case ids on stdin, writes {id: {candidate: ratio to dlops}} as the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import sys

import torch

from dlops.bench.baselines import compiled
from dlops.bench.cases import cases
from dlops.bench.timing import compare


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, required=True, help="per case")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--zentorch", action="store_true", help="time the stock code under AMD's zentorch")
    options = parser.parse_args()
    wanted = set(json.load(sys.stdin))
    torch.set_num_threads(options.threads)
    if options.zentorch:
        import zentorch  # noqa: F401  (registers its operators and its compile backend)
    ratios = {}
    for case in cases():
        if case.id not in wanted:
            continue
        built = case.build(torch.device("cpu"))
        runs = {"dlops": built.dlops, "stock": built.stock}
        if options.zentorch and built.compilable is not None:
            runs["compiled"] = compiled(built.compilable, backend="zentorch")
        result = compare(runs, seconds=options.seconds)
        ratios[case.id] = {name: result.ratio(name, "dlops") for name in runs if name != "dlops"}
    print(json.dumps(ratios))


if __name__ == "__main__":
    main()
