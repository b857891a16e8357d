"""The courses: a recipe for every architecture and technique that five syllabi name, trained on real data to a stated number.

A recipe (`recipe.py`) is data, model, loss, optimiser, metric, threshold and source. ``python -m dlops course list`` names
them, ``course run B1`` trains one through PyTorch Lightning, ``make courses`` runs all and writes a report. The networks are
in `dlops.models`, the recipes in a folder per chapter here, a file per row. README.md is the index from the syllabi.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from functools import cache

from dlops.courses.recipe import CHAPTERS, Recipe

__all__ = ["find", "missing_packages", "rows"]

#: module -> package of the extra [courses]
NEEDED = {module: module for module in ("lightning", "matplotlib", "networkx", "jinja2")} | {"sklearn": "scikit-learn"}


def missing_packages() -> list[str]:
    """Packages that the courses need and that are not installed."""
    return [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]


@cache
def _modules() -> dict[str, str]:
    """Row -> module: every file named like ``b1_lenet.py`` in a chapter's folder."""
    found = {}
    for folder in CHAPTERS.values():
        package = f"{__name__}.{folder}"
        if importlib.util.find_spec(package) is None:
            continue
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            row = module.name.partition("_")[0].upper()
            if row[:1] in CHAPTERS and row[1:].isdigit():
                found[row] = f"{package}.{module.name}"
    return dict(sorted(found.items(), key=lambda item: (item[0][0], int(item[0][1:]))))


def rows() -> list[str]:
    """The rows that have a recipe, in the order of the chapters."""
    return list(_modules())


def find(row: str) -> Recipe:
    """The recipe of a row.

    Raises:
        ValueError: there is none.
    """
    name = _modules().get(row.upper())
    if name is None:
        raise ValueError(f"course: no row {row!r}, expected one of {', '.join(rows())}")
    module = importlib.import_module(name)
    kinds = [k for k in vars(module).values() if isinstance(k, type) and issubclass(k, Recipe) and k.__module__ == name]
    recipes = [kind for kind in kinds if "row" in vars(kind)]
    if len(recipes) != 1 or recipes[0].row != row.upper():
        raise RuntimeError(f"{name}: expected one Recipe whose row is {row.upper()!r}: got {[kind.row for kind in recipes]}")
    return recipes[0]()
