"""The one list of benchmark cases: `dlops bench` and the pytest-benchmark files in benchmarks/ both run it."""

from dlops.bench.cases._case import Candidates, Case
from dlops.bench.cases.attention import attention_cases
from dlops.bench.cases.conv import conv_cases
from dlops.bench.cases.diffusion import diffusion_cases
from dlops.bench.cases.linear import linear_cases
from dlops.bench.cases.lstm import lstm_cases
from dlops.bench.cases.models import model_cases
from dlops.bench.cases.norm import norm_cases

FAMILIES = {
    "attention": attention_cases,
    "conv": conv_cases,
    "diffusion": diffusion_cases,
    "linear": linear_cases,
    "lstm": lstm_cases,
    "models": model_cases,
    "norm": norm_cases,
}


def cases(family: str | None = None) -> list[Case]:
    """Cases of one family ("attention", "conv", "diffusion", "linear", "lstm", "models", "norm"), or of all.

    Raises:
        ValueError: unknown family.
    """
    if family is None:
        return [case for make in FAMILIES.values() for case in make()]
    if family not in FAMILIES:
        raise ValueError(f"cases: family is {family!r}, expected one of {', '.join(FAMILIES)}")
    return FAMILIES[family]()


__all__ = ["FAMILIES", "Candidates", "Case", "cases"]
