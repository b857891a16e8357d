"""One run of one recipe: its seed, its device, its backend, the folder where its checkpoints lie."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import dlops
from dlops.bench.stock import stock
from dlops.courses.plan import Plan

BACKENDS = ("dlops", "torch")


@dataclass(frozen=True)
class Fitted:
    """A trained network, in eval mode, and the loss of every step."""

    network: nn.Module
    losses: list[float]


class Session:
    """What `Recipe.run` draws on.

    Args:
        row: of the recipe, "B1".
        seed: two sessions of the same row, seed, device and number of threads give the same numbers.
        device: "cpu" or "cuda".
        backend: "dlops", or "torch": the same networks made of plain torch.nn modules.
        quick: a few steps of training on little data, to see that everything runs: nothing reaches its goal.
        folder: where checkpoints are kept and resumed from; None: nowhere.
        progress: show Lightning's progress bars.

    Raises:
        ValueError: an unknown backend or device, a negative seed, a cuda device that is not there.
    """

    def __init__(
        self, row: str, seed: int = 0, device: str = "cpu", backend: str = "dlops", quick: bool = False,
        folder: Path | None = None, progress: bool = False,
    ) -> None:  # fmt: skip
        if backend not in BACKENDS:
            raise ValueError(f"course: backend must be one of {', '.join(BACKENDS)}: got {backend!r}")
        if device not in ("cpu", "cuda"):
            raise ValueError(f"course: device must be 'cpu' or 'cuda': got {device!r}")
        if device == "cuda" and not torch.cuda.is_available():
            raise ValueError("course: device is 'cuda', but torch sees no GPU here")
        if not 0 <= seed < 2**31:
            raise ValueError(f"course: seed must be from 0 to 2**31 - 1: got {seed}")
        self.row, self.seed, self.device, self.backend, self.quick = row, seed, device, backend, quick
        self._folder, self._progress = folder, progress

    def seed_for(self, name: str) -> int:
        """A seed for one purpose; names keep the purposes apart."""
        return zlib.crc32(f"{self.seed}/{name}".encode())

    def generator(self, name: str) -> torch.Generator:
        """A CPU generator for one purpose."""
        return torch.Generator().manual_seed(self.seed_for(name))

    @contextmanager
    def kernels(self) -> Iterator[None]:
        """The functions of dlops run ours where it is the faster one, or torch's, as the backend says."""
        with dlops.backend("auto" if self.backend == "dlops" else "torch"):
            yield

    def build(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A network on the session's device. The same name gives the same initial weights, whatever the backend."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_for(name))
            network = make()
        if self.backend == "torch":
            network = stock(network)
        return network.to(self.device)

    def to_device(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.to(self.device) for tensor in tensors)

    def fit(self, name: str, network: nn.Module, loss: Callable[..., Tensor], data: Sequence[Tensor], plan: Plan) -> Fitted:
        """Trains `network` in place.

        Args:
            name: of this training within the recipe; also of its checkpoint.
            loss: called as ``loss(network, *batch)``, returns a scalar. What it draws from torch's global generator
                (noise, augmentation) repeats with the seed.
            data: tensors with one sample per row, [N, ...]. Moved to the session's device.
            plan: batch size, learning rate, schedule, epochs.

        Raises:
            ValueError: NaN or infinity in the data, tensors of different lengths, a checkpoint of another recipe.
        """
        from dlops.courses.training import train  # Lightning takes seconds to import

        check_data(f"{self.row} {name}", data)
        path = None if self._folder is None else self._folder / f"{name}.ckpt"
        label = f"{self.row} seed {self.seed} {self.backend} {self.device}: {name}"
        network.train()
        with self.kernels():
            losses = train(
                network, loss, self.to_device(*data), plan, seed=self.seed_for(name), label=label, path=path,
                device=self.device, progress=self._progress, quick=self.quick,
            )  # fmt: skip
        return Fitted(network.to(self.device), losses)


def check_data(what: str, data: Sequence[Tensor]) -> None:
    """Raises ValueError where `data` cannot be trained on."""
    if not data or len(data[0]) == 0:
        raise ValueError(f"{what}: data is empty")
    for k, tensor in enumerate(data):
        if len(tensor) != len(data[0]):
            raise ValueError(f"{what}: data[{k}] has {len(tensor)} samples, data[0] has {len(data[0])}")
        if tensor.is_floating_point() and not tensor.isfinite().all():
            row = int((~tensor.isfinite()).reshape(len(tensor), -1).any(1).nonzero()[0])
            raise ValueError(f"{what}: data[{k}] has NaN or infinity, first in sample {row}")
