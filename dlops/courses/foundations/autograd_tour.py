"""Reverse-mode automatic differentiation in numpy, to be read from the top to the bottom.

A program composes functions whose derivatives are known. For y = f(g(x)) the chain rule gives dy/dx = f'(g(x)) g'(x). With many
inputs and one output it pays to multiply from the left, from the output back to the inputs: then every factor meets a vector,
never a matrix, and all derivatives cost a small multiple of the program itself (Griewank & Walther 2008, section 3.2;
Baydin, Pearlmutter, Radul, Siskind 2018, section 3.2).

Three ideas make it work.

1.  Every result remembers its parents, and for each of them a *pullback*: the function that takes the derivative of the final
    output by this result, of this result's shape, to that by the parent, of the parent's shape.
2.  A sweep over the results, each one before its parents, applies the pullbacks and adds up what meets at a parent.
3.  Pullbacks are written in the same operations as everything else. So a derivative is a program like any other: it can be
    differentiated again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Pullback = Callable[["Value"], "Value"]


class Value:
    """An array of float64 and how it came about.

    parents: pairs (parent, pullback); none for what was not computed: inputs, parameters, constants.
    """

    __array_ufunc__ = None  # array * value is value's to compute

    def __init__(self, array: object, parents: Sequence[tuple[Value, Pullback]] = ()) -> None:
        self.array = np.asarray(array, dtype=np.float64)
        self.parents = tuple(parents)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    # ---- arithmetic. Shapes broadcast as in numpy; the pullback sums over what was repeated.

    def __add__(self, other: object) -> Value:
        other = value(other)
        parents = (self, lambda g: sum_to(g, self.shape)), (other, lambda g: sum_to(g, other.shape))
        return Value(self.array + other.array, parents)

    def __mul__(self, other: object) -> Value:
        other = value(other)  # d(ab) = da b + a db
        parents = (self, lambda g: sum_to(g * other, self.shape)), (other, lambda g: sum_to(g * self, other.shape))
        return Value(self.array * other.array, parents)

    def __pow__(self, exponent: float) -> Value:
        return Value(self.array**exponent, [(self, lambda g: g * exponent * self ** (exponent - 1))])

    def __matmul__(self, other: Value) -> Value:
        """[N, K] @ [K, M]"""
        parents = (self, lambda g: g @ transpose(other)), (other, lambda g: transpose(self) @ g)
        return Value(self.array @ other.array, parents)

    def __neg__(self) -> Value:
        return self * -1.0

    def __sub__(self, other: object) -> Value:
        return self + -value(other)

    def __truediv__(self, other: object) -> Value:
        return self * value(other) ** -1.0

    __radd__, __rmul__ = __add__, __mul__

    def __rsub__(self, other: object) -> Value:
        return value(other) - self

    def __rtruediv__(self, other: object) -> Value:
        return value(other) / self


def value(of: object) -> Value:  # a constant, unless it is a Value already
    return of if isinstance(of, Value) else Value(of)


# ---- shapes. Each undoes another: so each is the pullback of another.
def transpose(x: Value) -> Value:
    return Value(x.array.T, [(x, transpose)])


def reshape(x: Value, shape: tuple[int, ...]) -> Value:
    return Value(x.array.reshape(shape), [(x, lambda g: reshape(g, x.shape))])


def broadcast(x: Value, shape: tuple[int, ...]) -> Value:
    return Value(np.broadcast_to(x.array, shape), [(x, lambda g: sum_to(g, x.shape))])


def sum_to(x: Value, shape: tuple[int, ...]) -> Value:
    """Sums over the dimensions along which an array of `shape` is repeated to become one of x's shape."""
    if x.shape == shape:
        return x
    new = len(x.shape) - len(shape)
    repeated = [new + k for k, n in enumerate(shape) if n == 1 and x.shape[new + k] != 1]
    total = x.array.sum(axis=(*range(new), *repeated), keepdims=True).reshape(shape)
    return Value(total, [(x, lambda g: broadcast(g, x.shape))])


def total(x: Value, axis: int | None = None) -> Value:
    """The sum of all elements [], or along one axis, which stays with size 1."""
    if axis is None:
        return sum_to(x, ())
    return sum_to(x, tuple(1 if k == axis % len(x.shape) else n for k, n in enumerate(x.shape)))


# ---- functions of every element. Where the derivative is known by the result, the pullback uses the result.
def exp(x: Value) -> Value:
    result = Value(np.exp(x.array), [(x, lambda g: g * result)])
    return result


def log(x: Value) -> Value:
    return Value(np.log(x.array), [(x, lambda g: g / x)])


def tanh(x: Value) -> Value:
    result = Value(np.tanh(x.array), [(x, lambda g: g * (1.0 - result * result))])
    return result


def relu(x: Value) -> Value:
    passes = Value(x.array > 0)  # a constant: the derivative of a step is zero wherever there is one
    return x * passes


def sigmoid(x: Value) -> Value:
    return 0.5 * tanh(0.5 * x) + 0.5


# ---- the sweep
def in_order(output: Value) -> list[Value]:
    """All results that `output` depends on, parents first. A stack instead of recursion: a program may be long."""
    order: list[Value] = []
    seen: set[int] = set()
    stack = [(output, False)]
    while stack:
        node, is_left = stack.pop()
        if is_left:
            order.append(node)
        elif id(node) not in seen:
            seen.add(id(node))
            stack.append((node, True))
            stack.extend((parent, False) for parent, _ in node.parents)
    return order


def gradients(output: Value, inputs: Sequence[Value]) -> list[Value]:
    """The derivatives of `output`, a scalar, by each of `inputs`, of their shapes. Values themselves: they have gradients too."""
    if output.shape != ():
        raise ValueError(f"gradients: output must be a scalar: got shape {list(output.shape)}")
    found: dict[int, Value] = {id(output): Value(1.0)}
    for node in reversed(in_order(output)):
        arrived = found.get(id(node))  # complete: all that uses `node` came before it
        if arrived is not None:
            for parent, pullback in node.parents:
                part = pullback(arrived)
                found[id(parent)] = found[id(parent)] + part if id(parent) in found else part
    return [found.get(id(x), Value(np.zeros(x.shape))) for x in inputs]


# ---- what it is for: a multi-layer perceptron and its loss
def perceptron(x: Value, parameters: Sequence[Value], activation: Callable[[Value], Value] = tanh) -> Value:
    """[N, inputs] -> logits [N, classes]. parameters: weight [inputs, outputs] and bias [outputs] of every layer in turn."""
    for k in range(0, len(parameters), 2):
        x = x @ parameters[k] + parameters[k + 1]
        x = activation(x) if k + 2 < len(parameters) else x
    return x


def cross_entropy(logits: Value, labels: np.ndarray) -> Value:
    """Mean over the samples of -log softmax(logits)[label]. labels [N]."""
    shifted = logits - logits.array.max(axis=1, keepdims=True)  # a constant per row changes nothing but avoids overflow
    log_normaliser = log(total(exp(shifted), axis=1))  # [N, 1]
    chosen = np.eye(logits.shape[1])[labels]
    return total((log_normaliser - shifted) * chosen) / len(labels)


def descend(parameters: Sequence[Value], loss: Callable[[], Value], steps: int, lr: float) -> list[float]:
    """Gradient descent with a momentum of 0.9, in place. Returns the loss before every step."""
    velocities, losses = [np.zeros(p.shape) for p in parameters], []
    for _ in range(steps):
        current = loss()
        losses.append(float(current.array))
        for parameter, velocity, gradient in zip(parameters, velocities, gradients(current, parameters)):
            velocity *= 0.9
            velocity -= lr * gradient.array
            parameter.array = parameter.array + velocity
    return losses
