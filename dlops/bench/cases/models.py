"""Whole models, as they come and after `dlops.accelerate`, with random weights: convolutional networks, in evaluation and in
training; two layers each of models of the transformers and diffusers packages, where these are installed."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import torch

from dlops.bench.cases._case import Candidates, Case
from dlops.bench.cases._networks import NETWORKS, TRAINED

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
    networks = [
        Case("models", name, shape, torch.float32, _build(_network(name)), flops=0, bytes=0, compile=name == "resnet18")
        for name, (_, shape, _) in NETWORKS.items()
    ]
    trained = [
        Case("models", f"{name}.training", NETWORKS[name][1], torch.float32, _build_training(name), flops=0, bytes=0)
        for name in TRAINED
    ]
    others = [
        Case("models", name, shape, torch.float32, _build(make), flops=0, bytes=0, baseline=package)
        for name, (package, make, shape) in MODELS.items()
        if importlib.util.find_spec(package)
    ]
    return [*networks, *trained, *others]


def _network(name: str) -> Callable[[], Made]:
    make, shape, layout = NETWORKS[name]
    return lambda: (make().to(memory_format=layout), {"input": torch.randn(shape).to(memory_format=layout)})


def _pair(make: Callable[[], Made], device: torch.device) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    """The model as it comes, an accelerated copy, and the inputs."""
    import dlops

    torch.manual_seed(0)
    model, inputs = make()
    stock = model.to(device)
    ours = copy.deepcopy(stock)
    dlops.accelerate(ours)
    return stock, ours, {name: value.to(device) for name, value in inputs.items()}


def _build(make: Callable[[], Made]) -> Callable[[torch.device], Candidates]:
    def build(device: torch.device) -> Candidates:
        stock, ours, inputs = _pair(make, device)

        def call(network: Any) -> Callable[[], object]:
            network.eval()

            def run() -> object:
                with torch.no_grad():
                    return network(*inputs.values()) if "input" in inputs else network(**inputs)

            return run

        return Candidates(dlops=call(ours), stock=call(stock), compilable=call(stock) if "input" in inputs else None)

    return build


def _build_training(name: str) -> Callable[[torch.device], Candidates]:
    """Forward, backward and an optimiser's step."""

    def build(device: torch.device) -> Candidates:
        stock, ours, inputs = _pair(_network(name), device)

        def step(network: Any) -> Callable[[], object]:
            optimiser = torch.optim.SGD(network.parameters(), 1e-4)

            def run() -> object:
                optimiser.zero_grad()
                loss = network(inputs["input"]).square().mean()
                loss.backward()
                optimiser.step()
                return loss.detach()

            return run

        return Candidates(dlops=step(ours), stock=step(stock))

    return build
