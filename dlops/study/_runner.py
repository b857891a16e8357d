"""The two modules of the simt runner, and the switch that sends this thread's CPU tensors to one of them."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Iterator
from types import ModuleType

from dlops._library import _C

ORDERS = ("plain", "reverse", "random")

_installed = threading.local()


def module(race: bool = False) -> ModuleType:
    """``dlops._simt``, or with ``race`` ``dlops._simt_race``, which also checks every access to memory.

    Raises:
        ImportError: it is not built.
    """
    name = "_simt_race" if race else "_simt"
    try:
        return importlib.import_module(f"dlops.{name}")
    except ImportError as error:
        raise ImportError(
            f"dlops: the simt runner cannot be loaded ({error}): build it with `make build` in a checkout, or install "
            "again with `pip install --no-build-isolation .`",
            name=f"dlops.{name}",
        ) from error


def check_order(order: str | None) -> None:
    if order is not None and order not in ORDERS:
        raise ValueError(f"order must be one of {', '.join(ORDERS)}: got {order!r}")


@contextlib.contextmanager
def installed(
    runner: ModuleType, order: str | None = None, seed: int | None = None, threads: int | None = None
) -> Iterator[ModuleType]:
    """Inside, CPU tensors of this thread go to `runner`, a module like those of :func:`module`."""
    before = runner.options()
    wanted = {"order": order, "seed": seed, "threads": threads}
    outer = getattr(_installed, "tables", None)
    tables = runner.tables()
    runner.set_options(**{**before, **{key: value for key, value in wanted.items() if value is not None}})
    _C.emulate(tables)
    _installed.tables = tables
    try:
        yield runner
    finally:
        _C.emulate(outer)
        _installed.tables = outer
        runner.set_options(**before)


@contextlib.contextmanager
def emulation(
    *, order: str | None = None, seed: int | None = None, race: bool = False, threads: int | None = None
) -> Iterator[None]:
    """Inside, every dlops op that this thread calls on CPU tensors runs its CUDA kernels in the simt runner.

    Ops that would go to torch still do: ``dlops.backend("dlops")`` forces ours. A finding (a race, a deadlock, a bad
    address) is raised as a RuntimeError that names kernel, file, line, block and thread.

    Args:
        order: how the runner picks the next thread: "plain" (first come, first served), "reverse" (one warp runs far ahead) or
            "random". None: what ``DLOPS_SIMT_ORDER`` says, else "plain".
        seed: of the random order. None: ``DLOPS_SIMT_SEED``, else 1.
        race: check every access to memory as well; 1.5 to 6 times slower.
        threads: OS threads over which blocks are spread; 0 is one per processor.

    Raises:
        ImportError: the runner is not built. ValueError: an unknown order.
    """
    check_order(order)
    with installed(module(race), order, seed, threads):
        yield
