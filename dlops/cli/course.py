"""The course layer: lists, shows and trains the recipes, one for every row of five deep-learning syllabi.

  dlops course list              the rows, their goals, about how long a run takes
  dlops course show B1           what a row is: data, networks, kernels, source, goals, invariants
  dlops course run B1            trains it, prints its scores and invariants, writes its picture
  dlops course all               every row over three seeds, and the report (make courses)
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dlops.courses.recipe import Recipe

OUT = Path("build/courses")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(title="actions", required=True, metavar="action", dest="action")
    actions.add_parser("list", help="the rows, their goals, about how long a run takes")
    show = actions.add_parser("show", help="what a row is")
    show.add_argument("row", help="B1, for example")
    run = actions.add_parser("run", help="train one row")
    run.add_argument("row", help="B1, for example")
    run.add_argument("--seed", type=int, default=0)
    every = actions.add_parser("all", help="every row over several seeds, and the report")
    every.add_argument("--rows", type=lambda text: text.split(","), default=None, help="only these: A1,B3")
    every.add_argument("--seeds", type=int, default=3, help="how many (default 3)")
    every.add_argument("--jobs", type=int, default=None, help="processes of one thread each (default: one per core)")
    every.add_argument("--figures", type=Path, default=None, help="also copy the pictures to this folder")
    for parser in (run, every):
        parser.add_argument("--backend", choices=("dlops", "torch"), default="dlops", help="our layers or plain torch.nn's")
        parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
        parser.add_argument("--out", type=Path, default=OUT, help=f"folder for results, pictures, checkpoints ({OUT})")
        parser.add_argument("--quick", action="store_true", help="a few steps: shows that everything runs")
        parser.add_argument("--fresh", action="store_true", help="forget what an earlier run left")


def run(options: argparse.Namespace) -> int:
    from dlops import courses

    if missing := courses.missing_packages():
        print(f"dlops course: needs {', '.join(missing)}: pip install 'dlops[courses]'", file=sys.stderr)
        return 2
    try:
        return {"list": _list, "show": _show, "run": _run, "all": _all}[options.action](options)
    except ValueError as error:
        print(f"dlops {error}" if str(error).startswith("course") else f"dlops course: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ndlops course: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def _list(options: argparse.Namespace) -> int:
    from dlops import courses
    from dlops.courses.recipe import CHAPTERS

    chapter = ""
    for name in courses.rows():
        recipe = courses.find(name)
        if name[0] != chapter:
            chapter = name[0]
            print(f"\n{chapter}. {CHAPTERS[chapter].replace('_', ' ')}")
        goals = "; ".join(f"{goal.name} {goal.relation} {goal.threshold:g}" for goal in recipe.goals) or "invariants only"
        print(f"  {name:4}{recipe.title:44.44} {recipe.seconds:4d} s  {goals}")
    return 0


def _show(options: argparse.Namespace) -> int:
    from dlops import courses
    from dlops.courses.recipe import SYLLABI

    recipe = courses.find(options.row)
    print(f"{recipe.row}. {recipe.title}\n")
    for name, text in {
        "recipe": _path(type(recipe).__module__),
        "networks": ", ".join(map(_path, recipe.models)),
        "kernels": ", ".join(f"csrc/{kernel}" for kernel in recipe.kernels),
        "source": recipe.source,
        "data": recipe.data,
        "not here": recipe.absent,
        "time": f"about {recipe.seconds} s on one CPU core",
    }.items():
        if text:
            print(f"{name:10}{text}")
    for syllabus in recipe.syllabi:
        print(f"{'syllabus':10}{SYLLABI[syllabus]}")
    for goal in recipe.goals:
        print(f"{'goal':10}{goal.name} {goal.relation} {goal.threshold:g}" + (f" ({goal.what})" if goal.what else ""))
    print(f"\n{(sys.modules[type(recipe).__module__].__doc__ or '').strip()}")
    print(f"\nrun it:   python -m dlops course run {recipe.row}")
    return 0


def _path(module: str) -> str:
    """The file of a module as it stands in the repository."""
    file = importlib.import_module(module).__file__
    folder = module.replace(".", "/")
    return f"{folder}/__init__.py" if str(file).endswith("__init__.py") else f"{folder}.py"


def _run(options: argparse.Namespace) -> int:
    from dlops import courses
    from dlops.courses import results

    recipe: Recipe = courses.find(options.row)
    result = results.run(
        recipe.row, options.seed, options.backend, options.device, options.quick, options.out, sys.stderr.isatty(), options.fresh
    )
    goals = {goal.name: goal for goal in recipe.goals}
    good = result.sound
    for name, value in result.scores.items():
        verdict = ""
        if name in goals:
            goal = goals[name]
            reached = goal.reached([value])
            good &= reached or options.quick
            state = "not judged" if options.quick else "pass" if reached else "FAIL"
            verdict = f"  {goal.relation} {goal.threshold:g}  {state}"
        print(f"{value:12.5g}  {name}{verdict}")
    print("invariants")
    for check in result.checks:
        state = "holds" if check["holds"] else "BROKEN"
        print(f"{check['value']:12.3g}  {check['name']}  {check['relation']} {check['limit']:g}  {state}")
    print(f"{result.seconds:.0f} s; {results.picture_of(options.out, recipe.row, options.backend, options.device, options.seed)}")
    return 0 if good else 1


def _all(options: argparse.Namespace) -> int:
    from dlops.courses import everything

    return everything.run(
        options.rows, options.seeds, options.device, options.backend, options.quick, options.out, options.fresh, options.jobs,
        options.figures,
    )  # fmt: skip
