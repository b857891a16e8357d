"""Training through PyTorch Lightning, and what a run needs to be repeated and resumed bit for bit."""

from __future__ import annotations

import logging
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as lightning
import torch
from lightning.pytorch.callbacks import Callback, EMAWeightAveraging
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from dlops.courses.plan import Plan

Loss = Callable[..., Tensor]  # (network, *batch) -> scalar
SAVE_SECONDS = 10.0  # between two checkpoints
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)  # else four lines of advice per training


class Batches(Sampler[Tensor]):
    """Indices [batch], every sample once per epoch. The order depends on (seed, epoch) alone, so a resumed run goes on
    with the batches that the interrupted one would have seen."""

    def __init__(self, size: int, batch: int, seed: int) -> None:
        self._size, self._batch, self._seed, self._epoch = size, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:  # Lightning calls it before every epoch
        self._epoch = epoch

    def __iter__(self) -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed((self._seed << 20) + self._epoch)
        yield from torch.randperm(self._size, generator=generator).split(self._batch)

    def __len__(self) -> int:
        return -(-self._size // self._batch)


class Tensors(Dataset):
    """Parallel tensors, read a whole batch at a time."""

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._tensors = tuple(tensors)

    def __getitem__(self, chosen: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor[chosen.to(tensor.device)] for tensor in self._tensors)

    def __len__(self) -> int:
        return len(self._tensors[0])


class Task(lightning.LightningModule):
    """A network and its loss, as Lightning wants them. `losses` has one entry per step."""

    def __init__(self, network: nn.Module, loss: Loss, plan: Plan, steps: int, seed: int, label: str) -> None:
        super().__init__()
        self.network = network
        self.label = label
        self.losses: list[Tensor] = []
        self._loss, self._plan, self._steps, self._seed = loss, plan, steps, seed

    def configure_optimizers(self) -> Any:
        optimizer = self._plan.make_optimizer([p for p in self.network.parameters() if p.requires_grad])
        schedule = self._plan.make_schedule(optimizer, self._steps)
        if schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def on_train_epoch_start(self) -> None:
        """Dropout, noise and augmentation depend on (seed, epoch) alone, so a resumed run draws what it would have drawn."""
        torch.manual_seed((self._seed << 20) + self.current_epoch)

    def training_step(self, batch: Sequence[Tensor], _: int) -> Tensor:
        loss = self._loss(self.network, *batch)
        self.losses.append(loss.detach())
        return loss

    def on_train_epoch_end(self) -> None:
        latest = self.losses[-self.trainer.num_training_batches :]
        mean = torch.stack(latest).mean().item()
        if mean != mean:
            epoch = self.current_epoch + 1
            raise ValueError(f"{self.label}: the loss is NaN after epoch {epoch}: a loss that overflows, or lr too high")
        self.log("loss", mean, prog_bar=True)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        losses = torch.stack(self.losses).cpu() if self.losses else torch.empty(0)
        checkpoint["dlops"] = {"label": self.label, "losses": losses}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.losses = list(checkpoint["dlops"]["losses"].unbind())


class Save(Callback):
    """Writes a checkpoint at the end of an epoch, where the last one is `SAVE_SECONDS` old, and at the end of training."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._last = time.monotonic()

    def on_train_epoch_end(self, trainer: lightning.Trainer, task: lightning.LightningModule) -> None:
        if time.monotonic() - self._last >= SAVE_SECONDS:
            save(trainer, self._path)
            self._last = time.monotonic()


def save(trainer: lightning.Trainer, path: Path) -> None:
    """By renaming, so that an interruption leaves the old checkpoint or the new one, never half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_suffix(".new")
    trainer.save_checkpoint(half)
    half.replace(path)


def checked_label(path: Path, label: str) -> dict[str, Any]:
    """The checkpoint at `path`, if it is one of `label` ("B1 seed 0 torch cpu: lenet").

    Raises:
        ValueError: it is no checkpoint of a recipe, or one of another.
    """
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
        found = checkpoint["dlops"]["label"]
    except (KeyError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path}: not a checkpoint of a course recipe ({type(error).__name__}); remove it") from None
    if found != label:
        raise ValueError(f"{path}: a checkpoint of {found!r}, expected one of {label!r}")
    return checkpoint


def train(
    network: nn.Module, loss: Loss, data: Sequence[Tensor], plan: Plan, *, seed: int, label: str, path: Path | None,
    device: str, progress: bool, quick: bool,
) -> list[float]:  # fmt: skip
    """Trains `network` in place and returns the loss of every step; goes on from the checkpoint at `path` if there is one.

    Raises:
        ValueError: the loss became NaN; the checkpoint is another's.
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    batches = Batches(len(data[0]), plan.batch, seed)
    epochs, limit = (min(plan.epochs, 2), 3) if quick else (plan.epochs, None)
    steps = epochs * min(len(batches), limit or len(batches))
    task = Task(network, loss, plan, steps, seed, label)
    callbacks: list[Callback] = [] if path is None else [Save(path)]
    if plan.average is not None:
        callbacks.append(EMAWeightAveraging(decay=plan.average))
    resume = path if path is not None and path.exists() else None
    if resume:  # Lightning takes the first batches before it tells the sampler which epoch it is
        batches.set_epoch(checked_label(resume, label)["epoch"] + 1)
    random_state = torch.get_rng_state()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on loggers, workers and strategies that a small run has no use for
        trainer = lightning.Trainer(
            accelerator=device if device == "cpu" else "gpu", devices=1, max_epochs=epochs,
            limit_train_batches=limit, callbacks=callbacks, gradient_clip_val=plan.clip, logger=False,
            enable_checkpointing=False, enable_model_summary=False, enable_progress_bar=progress,
        )  # fmt: skip
        # its own generator: a loader draws a number whenever it starts, and would disturb those of the training
        loader = DataLoader(Tensors(data), sampler=batches, batch_size=None, generator=torch.Generator())
        try:
            trainer.fit(task, loader, ckpt_path=resume, weights_only=True)
        except SystemExit:  # Lightning's answer to an interruption
            raise KeyboardInterrupt from None
        finally:
            torch.set_rng_state(random_state)
    if path is not None and not quick:
        save(trainer, path)
    network.eval()
    return torch.stack(task.losses).tolist() if task.losses else []
