"""dlops.accelerate on diffusers' blocks and pipelines."""

import copy
import pickle

import pytest
import torch
from torch import nn

import dlops

diffusers = pytest.importorskip("diffusers", reason="its blocks and pipelines are what is accelerated")
from diffusers.models.resnet import ResnetBlock2D  # noqa: E402

from dlops import _diffusers, _fused  # noqa: E402


@pytest.fixture
def fused_calls(monkeypatch):
    seen, real = [], _fused.group_norm

    def spy(*args, **kwargs):
        seen.append(kwargs["scale"] is not None)
        return real(*args, **kwargs)

    monkeypatch.setattr(_fused, "group_norm", spy)
    return seen


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"time_embedding_norm": "scale_shift"},
        {"up": True},
        {"down": True},
        {"skip_time_act": True},
        {"temb_channels": None},
        {"output_scale_factor": 1.5, "dropout": 0.1},
    ],
    ids=str,
)
def test_resnet_block(options, fused_calls):
    torch.manual_seed(0)
    block = ResnetBlock2D(**({"in_channels": 16, "out_channels": 32, "temb_channels": 8, "groups": 4} | options)).eval()
    x, embedding = torch.randn(2, 16, 8, 8), torch.randn(2, 8)
    if "temb_channels" in options:
        embedding = None
    expected = block(x, embedding)
    keys = list(block.state_dict())

    report = dlops.accelerate(block)
    swapped = {"diffusers.models.resnet.ResnetBlock2D", "torch.nn.GroupNorm", "torch.nn.Conv2d"}
    assert {entry.of for entry in report.swapped} - {"torch.nn.Linear"} == swapped
    fused_calls.clear()
    torch.testing.assert_close(block(x, embedding), expected, rtol=1e-4, atol=1e-4)
    assert fused_calls == [False, options.get("time_embedding_norm") == "scale_shift"]
    assert isinstance(block, ResnetBlock2D)
    assert list(block.state_dict()) == keys
    torch.testing.assert_close(pickle.loads(pickle.dumps(block))(x, embedding), expected, rtol=1e-4, atol=1e-4)

    dlops.restore(block)
    assert type(block) is ResnetBlock2D
    assert torch.equal(block(x, embedding), expected)


def test_resnet_block_gradients():
    torch.manual_seed(0)
    block = ResnetBlock2D(in_channels=16, temb_channels=8, groups=4, time_embedding_norm="scale_shift")
    x, embedding = torch.randn(2, 16, 8, 8), torch.randn(2, 8)
    block(x, embedding).square().mean().backward()
    expected = {name: parameter.grad.clone() for name, parameter in block.named_parameters()}
    block.zero_grad()
    dlops.accelerate(block)
    block(x, embedding).square().mean().backward()
    for name, parameter in block.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-3, atol=1e-4, msg=name)


def test_resnet_block_with_another_activation_keeps_its_forward():
    block = ResnetBlock2D(in_channels=16, temb_channels=8, groups=4, non_linearity="gelu")
    report = dlops.accelerate(block)
    assert [entry.reason for entry in report.kept] == ["its activation is GELU, expected SiLU"]
    assert type(block.norm1) is dlops.nn.GroupNorm


def test_resnet_block_whose_activation_changes_later():
    block = ResnetBlock2D(in_channels=16, temb_channels=8, groups=4).eval()
    dlops.accelerate(block)
    block.nonlinearity = nn.Identity()
    x, embedding = torch.randn(2, 16, 8, 8), torch.randn(2, 8)
    ours = block(x, embedding)
    dlops.restore(block)
    torch.testing.assert_close(ours, block(x, embedding), rtol=1e-5, atol=1e-5)


def test_a_diffusers_that_computes_something_else_is_not_fused(monkeypatch):
    _diffusers._agrees.cache_clear()
    real = ResnetBlock2D.forward
    monkeypatch.setattr(ResnetBlock2D, "forward", lambda self, x, temb: 1.5 * real(self, x, temb))
    try:
        report = dlops.accelerate(ResnetBlock2D(in_channels=16, temb_channels=8, groups=4))
        assert "in a way dlops does not know" in report.kept[0].reason
    finally:
        _diffusers._agrees.cache_clear()


def test_trying_the_block_out_leaves_the_random_stream_alone():
    _diffusers._agrees.cache_clear()
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert _diffusers._agrees()
    assert torch.equal(torch.rand(4), expected)


def small_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=16,
        in_channels=3,
        out_channels=3,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=8,
    ).eval()


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_pipeline(name):
    pipeline = getattr(diffusers, f"{name}Pipeline")(small_unet(), getattr(diffusers, f"{name}Scheduler")())
    pipeline.set_progress_bar_config(disable=True)
    original = pipeline.scheduler

    def sample():
        return pipeline(num_inference_steps=4, generator=torch.Generator().manual_seed(1), output_type="np").images

    expected = sample()
    report = dlops.accelerate(pipeline)
    assert type(pipeline.scheduler) is getattr(dlops.diffusion, f"{name}Scheduler")
    assert report.swapped[-1].path == "scheduler"
    assert not report.kept, report
    torch.testing.assert_close(torch.tensor(sample()), torch.tensor(expected), rtol=1e-3, atol=1e-3)
    assert dlops.accelerate(pipeline).entries == []

    dlops.restore(pipeline)
    assert pipeline.scheduler is original
    torch.testing.assert_close(torch.tensor(sample()), torch.tensor(expected), rtol=0, atol=1e-6)


def test_a_scheduler_that_dlops_does_not_have():
    pipeline = diffusers.DDPMPipeline(small_unet(), diffusers.PNDMScheduler())
    report = dlops.accelerate(pipeline)
    assert [entry.reason for entry in report.kept] == ["dlops.diffusion has no PNDMScheduler"]
    assert type(pipeline.scheduler) is diffusers.PNDMScheduler


# ---- attention processors


def small_conditional_unet():
    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=12,
        attention_head_dim=4,
    )


def conditions():
    torch.manual_seed(1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[1, 3:] = False
    given = {"sample": torch.randn(2, 4, 8, 8), "timestep": torch.tensor([3, 7]), "encoder_hidden_states": torch.randn(2, 5, 12)}
    return given, {"encoder_attention_mask": mask}


def attention_plans(model, given):
    return [plan for plan in dlops.explain(lambda **kwargs: model(**kwargs), **given) if plan.op == "attention"]


@pytest.mark.parametrize(("train", "masked"), [(False, False), (True, True)], ids=["eval", "train-masked"])
def test_conditional_unet(train, masked):
    model = small_conditional_unet().train(train)
    given, mask = conditions()
    given |= mask if masked else {}
    processors = dict(model.attn_processors)

    def run():
        model.zero_grad()
        out = model(**given).sample
        out.square().mean().backward()
        return out.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}

    expected, gradients = run()
    report = dlops.accelerate(model)
    swapped = [entry for entry in report.swapped if entry.path.endswith("processor")]
    assert len(swapped) == len(processors) == 8 and not report.kept, report
    assert model.attn_processors == processors  # the same objects
    assert all(isinstance(p, diffusers.models.attention_processor.AttnProcessor2_0) for p in processors.values())
    out, ours = run()
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, gradients[name], rtol=1e-4, atol=1e-4, msg=name)
    assert len(attention_plans(model, given)) == 8
    assert dlops.accelerate(model).entries == []

    dlops.restore(model)
    assert {type(p) for p in processors.values()} == {diffusers.models.attention_processor.AttnProcessor2_0}
    assert not any(vars(p) for p in processors.values())
    assert torch.equal(run()[0], expected)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_processors_are_copied(duplicate):
    model, (given, _) = small_conditional_unet().eval(), conditions()
    expected = model(**given).sample
    dlops.accelerate(model)
    other = duplicate(model)
    torch.testing.assert_close(other(**given).sample, expected, rtol=1e-5, atol=1e-5)
    dlops.restore(other)
    assert torch.equal(other(**given).sample, expected)
    assert len(attention_plans(model, given)) == 8 and attention_plans(other, given) == []


def test_processors_compile():
    model, (given, _) = small_conditional_unet().eval(), conditions()
    dlops.accelerate(model)
    seen = []

    def look(graph, example):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    with torch.no_grad(), dlops.backend("dlops"):
        expected = model(**given).sample
        compiled = torch.compile(model, fullgraph=True, backend=look)
        torch.testing.assert_close(compiled(**given).sample, expected, rtol=1e-5, atol=1e-5)
    assert sum("dlops.attention" in target for target in seen) == 8, seen
    assert not any("scaled_dot_product_attention" in target for target in seen)


def small_flux():
    torch.manual_seed(0)
    model = diffusers.FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=12,
        axes_dims_rope=(2, 2, 4),
    ).eval()
    given = {
        "hidden_states": torch.randn(1, 16, 4),
        "encoder_hidden_states": torch.randn(1, 5, 12),
        "pooled_projections": torch.randn(1, 12),
        "timestep": torch.tensor([0.5]),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(5, 3),
    }
    return model, given


def test_processors_of_the_dispatcher():
    model, given = small_flux()
    expected = model(**given).sample
    dlops.accelerate(model)
    torch.testing.assert_close(model(**given).sample, expected, rtol=1e-5, atol=1e-5)
    assert len(attention_plans(model, given)) == 2
    with diffusers.models.attention_dispatch.attention_backend("_native_math"):  # asked for by name
        torch.testing.assert_close(model(**given).sample, expected, rtol=1e-5, atol=1e-5)
        assert attention_plans(model, given) == []
    dlops.restore(model)
    assert torch.equal(model(**given).sample, expected)


def test_a_mask_of_the_keys():
    q, k = torch.randn(2, 7, 3, 8), torch.randn(2, 5, 3, 8)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    torch.testing.assert_close(
        _diffusers.attend(q, k, k, mask), _diffusers.dispatch_attention_fn(q, k, k, mask), rtol=1e-5, atol=1e-5
    )


def test_another_processor_is_left():
    model = small_conditional_unet()
    model.set_attn_processor(diffusers.models.attention_processor.AttnProcessor())
    report = dlops.accelerate(model)
    assert [entry.reason for entry in report.kept] == ["it attends in a way of its own"]  # one object for all
