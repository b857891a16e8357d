"""Hochreiter & Schmidhuber 1997, section 5.4: an LSTM learns to add two numbers that lie up to a hundred steps back."""

from __future__ import annotations

import pytest
import torch

from dlops import nn

LENGTH, BATCH, SOLVED = 100, 64, 0.04


def batch(size: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """x [T, B, 2]: numbers of [0, 1] and marks on two of them, one in either half; y [B]: the mean of the marked ones."""
    numbers = torch.rand(LENGTH, size, generator=generator)
    half = LENGTH // 2
    first = torch.randint(half, (size,), generator=generator)
    second = half + torch.randint(LENGTH - half, (size,), generator=generator)
    marks, samples = torch.zeros(LENGTH, size), torch.arange(size)
    marks[first, samples] = marks[second, samples] = 1
    return torch.stack([numbers, marks], dim=-1), (numbers * marks).sum(0) / 2


def solved(lstm, head, generator) -> float:
    with torch.no_grad():
        x, y = batch(1000, generator)
        return float(((head(lstm(x)[1][0][-1])[:, 0] - y).abs() < SOLVED).float().mean())


@pytest.mark.full
def test_adding_problem():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    lstm, head = nn.LSTM(2, 64, init="chrono", T_max=LENGTH), torch.nn.Linear(64, 1)
    parameters = [*lstm.parameters(), *head.parameters()]
    optimiser = torch.optim.Adam(parameters, 1e-2)
    for iteration in range(1, 1501):
        x, y = batch(BATCH, generator)
        loss = (head(lstm(x)[1][0][-1])[:, 0] - y).square().mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        if iteration % 100 == 0 and solved(lstm, head, generator) >= 0.99:
            return
    assert solved(lstm, head, generator) >= 0.99
