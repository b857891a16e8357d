"""The command line: `python -m dlops` or the `dlops` script."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from dlops.cli import bench, course, demo, doctor, explain, kernels

COMMANDS = (doctor, kernels, explain, bench, demo, course)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="dlops", description="Deep-learning kernels for PyTorch, CUDA and CPU.")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    for command in COMMANDS:
        summary = (command.__doc__ or "").strip().splitlines()[0]
        name = command.__name__.rpartition(".")[2]
        subparser = commands.add_parser(
            name, help=summary, description=command.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        command.add_arguments(subparser)
        subparser.set_defaults(command=command)
    options = parser.parse_args(arguments)
    try:
        return options.command.run(options)
    except BrokenPipeError:  # `dlops kernels | head`
        return 0
