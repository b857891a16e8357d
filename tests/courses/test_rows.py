"""Every row of the courses: what it says of itself, a quick run, a training step beside stock torch."""

from __future__ import annotations

import math

import pytest
import torch

from dlops import courses
from dlops.courses import pictures, results
from dlops.courses.recipe import CHAPTERS, SYLLABI
from dlops.courses.session import Session
from dlops.courses.steps import compare_steps

if courses.missing_packages():
    pytest.skip(f"needs {', '.join(courses.missing_packages())}: pip install 'dlops[courses]'", allow_module_level=True)


@pytest.fixture(autouse=True)
def _one_thread(_threads):
    torch.set_num_threads(1)



@pytest.mark.parametrize("row", courses.rows())
def test_every_row_runs_and_its_invariants_hold(row):
    """A few steps of training: the goals are not judged, the invariants are."""
    recipe = courses.find(row)
    outcome = recipe.run(Session(row, seed=3, quick=True))
    assert {check.name: check.value for check in outcome.checks if not check.holds} == {}
    assert {goal.name for goal in recipe.goals} <= outcome.scores.keys()
    assert all(math.isfinite(value) for value in outcome.scores.values())
    assert pictures.png(outcome.draw()).startswith(b"\x89PNG")


@pytest.mark.parametrize("row", courses.rows())
def test_every_row_says_what_it_is(row):
    recipe = courses.find(row)
    assert recipe.row == row and row[0] in CHAPTERS and set(recipe.syllabi) <= SYLLABI.keys() and recipe.syllabi
    assert recipe.title and recipe.title_es and recipe.source and recipe.data
    assert type(recipe).__module__.split(".")[2] == CHAPTERS[row[0]]
    assert results.fingerprint(recipe)  # every network that it names can be imported


@pytest.mark.parametrize("row", [row for row in courses.rows() if row != "A10"])
def test_a_training_step_is_that_of_stock_torch(row):
    """The first losses agree; later ones drift apart, as those of any two orders of summation do."""
    times = compare_steps(courses.find(row), steps=1)
    if times is None:
        pytest.skip("trains nothing")
    assert times.first < 1e-4 and times.ratio > 0
