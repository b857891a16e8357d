"""Whole models with random weights, in evaluation and in training: every architecture of dlops.models beside the same layers
of torch.nn; and models as they come beside the same after `dlops.accelerate`: ConvNeXt, a DCGAN, two layers each of models of
the transformers and diffusers packages, where these are installed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from dlops.bench.cases._case import Candidates, Case
from dlops.bench.cases._networks import OURS, PLAIN, Network
from dlops.bench.stock import stock

Made = tuple[torch.nn.Module, dict[str, torch.Tensor]]


def _tokens(batch: int, length: int) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.randint(0, 1000, (batch, length))}


def _gpt2() -> Made:
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(vocab_size=1000, n_layer=2)), _tokens(1, 1024)


def _bert() -> Made:
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig(vocab_size=1000, num_hidden_layers=2)), _tokens(2, 512)


def _llama() -> Made:
    from transformers import LlamaConfig, LlamaModel

    config = LlamaConfig(
        vocab_size=1000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=2, num_attention_heads=16,
        num_key_value_heads=4,
    )  # fmt: skip
    return LlamaModel(config), _tokens(1, 2048)


def _vit() -> Made:
    from transformers import ViTConfig, ViTModel

    return ViTModel(ViTConfig(num_hidden_layers=2)), {"pixel_values": torch.randn(4, 3, 224, 224)}


def _unet() -> Made:
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=32, block_out_channels=(128, 256), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), layers_per_block=1, cross_attention_dim=256, attention_head_dim=8,
    )  # fmt: skip
    inputs = {"sample": torch.randn(2, 4, 32, 32), "encoder_hidden_states": torch.randn(2, 77, 256)}
    return model, inputs | {"timestep": torch.tensor([10, 500])}


MODELS = {
    "gpt2": ("transformers", _gpt2, (1, 1024)),
    "bert": ("transformers", _bert, (2, 512)),
    "llama": ("transformers", _llama, (1, 2048)),
    "vit": ("transformers", _vit, (4, 197)),
    "unet": ("diffusers", _unet, (2, 4, 32, 32)),
}


def model_cases() -> list[Case]:
    measured = [(name, network, table is OURS) for table in (OURS, PLAIN) for name, network in table.items()]
    networks = [
        Case("models", name, network.shape, torch.float32, _build_network(network, is_ours), flops=0, bytes=0,
             compile=name == "resnet18")
        for name, network, is_ours in measured
    ]  # fmt: skip
    trained = [
        Case("models", f"{name}.training", network.shape, torch.float32, _build_training(network, is_ours), flops=0, bytes=0)
        for name, network, is_ours in measured
        if network.trained
    ]
    others = [
        Case("models", name, shape, torch.float32, _build(make), flops=0, bytes=0, baseline=package)
        for name, (package, make, shape) in MODELS.items()
        if importlib.util.find_spec(package)
    ]
    return [*networks, *trained, *others]


def _pair(network: Network, is_ours: bool, device: torch.device) -> tuple[torch.nn.Module, torch.nn.Module, Tensor]:
    """(ours, stock, input): the network of dlops layers and of torch's, or as it comes and accelerated."""
    import dlops

    torch.manual_seed(0)
    model = network.make().to(device, memory_format=network.layout)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and not parameter.any():  # a layer that starts silent would hide what comes before it
                parameter.normal_(std=0.02)
    input = torch.randn(network.shape).to(device, memory_format=network.layout)
    if is_ours:
        return model, stock(model), input
    ours = copy.deepcopy(model)
    dlops.accelerate(ours)
    return ours, model, input


def _runner(run: Callable[[], object], backend: str) -> Callable[[], object]:
    """`run` with the functions of dlops that a network calls by itself (attention) on that backend too."""
    import dlops

    def inside() -> object:
        with dlops.backend(backend):
            return run()

    return inside


def _build_network(network: Network, is_ours: bool) -> Callable[[torch.device], Candidates]:
    def build(device: torch.device) -> Candidates:
        ours, plain, input = _pair(network, is_ours, device)

        def call(model: torch.nn.Module) -> Callable[[], object]:
            model.eval()

            def run() -> object:
                with torch.no_grad():
                    return network.call(model, input)

            return run

        return Candidates(dlops=_runner(call(ours), "auto"), stock=_runner(call(plain), "torch"), compilable=call(plain))

    return build


def _build_training(network: Network, is_ours: bool) -> Callable[[torch.device], Candidates]:
    """Forward, backward and an optimiser's step; the loss is the mean square of what comes out."""

    def build(device: torch.device) -> Candidates:
        ours, plain, input = _pair(network, is_ours, device)

        def step(model: torch.nn.Module) -> Callable[[], object]:
            optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1e-4)

            def run() -> object:
                optimiser.zero_grad()
                output = network.call(model, input)
                outputs = output if isinstance(output, tuple) else (output,)
                loss = sum(each.square().mean() for each in outputs if each.requires_grad)
                loss.backward()
                optimiser.step()
                return loss.detach()

            return run

        return Candidates(dlops=_runner(step(ours), "auto"), stock=_runner(step(plain), "torch"))

    return build


def _build(make: Callable[[], Made]) -> Callable[[torch.device], Candidates]:
    """As it comes, and accelerated."""

    def build(device: torch.device) -> Candidates:
        import dlops

        torch.manual_seed(0)
        model, inputs = make()
        plain = model.to(device)
        ours = copy.deepcopy(plain)
        dlops.accelerate(ours)
        inputs = {name: value.to(device) for name, value in inputs.items()}

        def call(network: Any) -> Callable[[], object]:
            network.eval()

            def run() -> object:
                with torch.no_grad():
                    return network(**inputs)

            return run

        return Candidates(dlops=call(ours), stock=call(plain))

    return build
