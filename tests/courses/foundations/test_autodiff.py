"""A2: the tour's derivatives against torch's and differences; a case for every differentiable function."""

import numpy as np
import pytest
import torch

from dlops import functional
from dlops.courses.foundations import autograd_tour as tour
from dlops.courses.foundations._derivatives import (
    NO_DERIVATIVE,
    Case,
    cases,
    derivatives_hold,
    differentiable,
    flat,
    float32_error,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_every_function_has_a_case() -> None:
    assert set(cases()) == set(differentiable()), "a function of dlops.functional without a case, or the reverse"
    assert set(NO_DERIVATIVE) <= set(functional.__all__)
    for op, case in flat(cases()):  # and the case calls the function it stands for
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(functional, op, lambda *a, **k: pytest.fail("called"))
            with pytest.raises(pytest.fail.Exception, match="called"):
                fresh = next(c for c in cases()[op] if c.what == case.what)
                fresh.run(*case.tensors(generator(), "cpu"))


@pytest.mark.parametrize("op", differentiable())
def test_derivatives(op: str) -> None:
    for case in cases()[op]:
        tensors = case.tensors(generator(), "cpu")
        assert derivatives_hold(case, tensors, fast=True), case.what
        assert max(float32_error(case, tensors, "dlops")) <= 1e-4, case.what


class _Cube(torch.autograd.Function):
    """x^3, its first or second derivative off by a thousandth."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, first: float, second: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.factors = first, second
        return x**3

    @staticmethod
    def backward(ctx, g: torch.Tensor) -> tuple:
        (x,), (first, second) = ctx.saved_tensors, ctx.factors
        return g * _Square.apply(x, second) * 3 * first, None, None


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: torch.Tensor, factor: float) -> torch.Tensor:
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x**2

    @staticmethod
    def backward(ctx, g: torch.Tensor) -> tuple:
        return 2 * g * ctx.saved_tensors[0] * ctx.factor, None


@pytest.mark.parametrize(("first", "second", "holds"), [(1, 1, True), (1.001, 1, False), (1, 1.001, False)])
def test_a_wrong_derivative_is_found(first: float, second: float, holds: bool) -> None:
    case = Case("cube", lambda x: _Cube.apply(x, first, second), [(4,)])
    for fast in (False, True):
        assert derivatives_hold(case, case.tensors(generator(), "cpu"), fast) is holds


# ---- the tour

FUNCTIONS = {
    "add": (lambda t, x, y: x + y, [(3, 4), (4,)]),
    "subtract": (lambda t, x, y: x - y, [(3, 1), (3, 4)]),
    "constants": (lambda t, x: (2.0 - x) * 3.0 + 1.0 / (x * x + 1.0), [(3, 4)]),
    "multiply": (lambda t, x, y: x * y, [(2, 1, 4), (3, 1)]),
    "divide": (lambda t, x, y: x / (y * y + 1.0), [(3, 4), (1, 4)]),
    "power": (lambda t, x: x**3.0, [(5,)]),
    "matmul": (lambda t, x, y: x @ y, [(3, 4), (4, 2)]),
    "exp": (lambda t, x: t.exp(x), [(3,)]),
    "log": (lambda t, x: t.log(x * x + 1.0), [(3,)]),
    "tanh": (lambda t, x: t.tanh(x), [(3,)]),
    "relu": (lambda t, x: t.relu(x), [(9,)]),
    "sigmoid": (lambda t, x: t.sigmoid(x), [(3,)]),
    "used twice": (lambda t, x: x * t.tanh(x) + x, [(3,)]),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_tour_equals_torch(name: str) -> None:
    """Values, gradients and the gradients of the squares of those."""
    function, sizes = FUNCTIONS[name]
    draw = np.random.default_rng(0)
    arrays = [draw.normal(size=size) for size in sizes]
    ours = [tour.Value(array) for array in arrays]
    theirs = [torch.tensor(array, requires_grad=True) for array in arrays]
    y, expected = function(tour, *ours), function(torch, *theirs)
    np.testing.assert_allclose(y.array, expected.detach().numpy(), rtol=1e-13)
    gradients = tour.gradients(tour.total(y * y), ours)
    firsts = torch.autograd.grad(expected.square().sum(), theirs, create_graph=True)
    squares = sum((tour.total(g * g) for g in gradients), tour.Value(0.0))
    seconds = torch.autograd.grad(sum(g.square().sum() for g in firsts), theirs)
    for mine, exact in (*zip(gradients, firsts), *zip(tour.gradients(squares, ours), seconds)):
        np.testing.assert_allclose(mine.array, exact.detach().numpy(), rtol=1e-11, atol=1e-11)


def test_tour_shapes() -> None:
    x = tour.Value(np.arange(6.0).reshape(2, 3))
    assert tour.total(x, axis=1).shape == (2, 1) and tour.total(x, axis=-2).shape == (1, 3)
    assert tour.reshape(x, (3, 2)).shape == tour.transpose(x).shape == (3, 2)
    (g,) = tour.gradients(tour.total(tour.transpose(tour.reshape(x, (3, 2))) * np.arange(6.0).reshape(2, 3)), [x])
    np.testing.assert_array_equal(g.array.reshape(3, 2).T, np.arange(6.0).reshape(2, 3))
    assert isinstance(np.ones(3) * x, tour.Value)


def test_tour_does_work_in_proportion() -> None:
    """A node that is reached on 2^60 paths is visited once; a chain of 5,000 steps needs no recursion."""
    x = tour.Value(1.0)
    y = x
    for _ in range(60):
        y = y * 0.5 + y * 0.5
    assert tour.gradients(y, [x])[0].array == 1.0
    for _ in range(5000):
        y = y + 1.0
    assert tour.gradients(y, [x, tour.Value(0.0)])[1].array == 0.0


def test_tour_perceptron() -> None:
    draw = np.random.default_rng(0)
    x, labels = draw.normal(size=(40, 5)), np.arange(40) % 3
    parameters = [tour.Value(draw.normal(size=size)) for size in ((5, 8), (8,), (8, 3), (3,))]
    expected = torch.nn.functional.cross_entropy(
        torch.tensor(tour.perceptron(tour.Value(x), parameters).array), torch.tensor(labels)
    )
    loss = lambda: tour.cross_entropy(tour.perceptron(tour.Value(x), parameters), labels)  # noqa: E731
    assert abs(float(loss().array) - expected.item()) < 1e-13
    losses = tour.descend(parameters, loss, 100, lr=0.2)
    assert losses[0] == pytest.approx(expected.item()) and losses[-1] < 0.5 * losses[0]
    with pytest.raises(ValueError, match=r"gradients: output must be a scalar: got shape \[40, 3\]"):
        tour.gradients(tour.perceptron(tour.Value(x), parameters), parameters)
