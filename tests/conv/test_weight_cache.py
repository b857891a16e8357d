"""Packed weights are kept for as long as the parameter does not change, and never longer."""

from __future__ import annotations

import copy
import gc
import pickle
import threading

import pytest
import torch
import torch.nn.functional as F

import dlops
from dlops import _packed, nn
from dlops.functional import conv2d, conv_transpose2d


@pytest.fixture(autouse=True)
def _empty():
    dlops.clear_cache()
    yield
    dlops.clear_cache()


def kept() -> int:
    """Packed weights in the cache."""
    return sum(len(entry.made) for entry in _packed._entries.values())


X = torch.randn(2, 16, 9, 8, generator=torch.Generator().manual_seed(0))


def conv(**kwargs):
    return nn.Conv2d(16, 24, 3, padding=1, **kwargs)


def check(module, x=X):
    """Twice, so that the second time finds what the first time kept."""
    want = F.conv2d(x, module.weight, module.bias, padding=1)
    for _ in range(2):
        torch.testing.assert_close(module(x), want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_second_call_finds_the_first_ones_weights():
    module = conv()
    check(module)
    count = kept()
    assert count > 0
    check(module)
    assert kept() == count


def by_optimiser(module):
    with torch.enable_grad():
        module(X).square().mean().backward()
    torch.optim.SGD(module.parameters(), 0.5).step()


def by_fused_optimiser(module):
    with torch.enable_grad():
        module(X).square().mean().backward()
    torch.optim.AdamW(module.parameters(), 0.1, fused=True).step()


def by_foreach_optimiser(module):
    with torch.enable_grad():
        module(X).square().mean().backward()
    torch.optim.Adam(module.parameters(), 0.1, foreach=True).step()


def by_load_state_dict(module):
    module.load_state_dict(conv().state_dict())


def by_assignment_of_state(module):
    module.load_state_dict(conv().state_dict(), assign=True)


def by_an_in_place_op(module):
    module.weight.mul_(2)


def by_a_view(module):
    module.weight[3].view(-1)[5:].add_(1)


def by_copy(module):
    module.weight.copy_(torch.randn_like(module.weight))


def by_initialisation(module):
    torch.nn.init.normal_(module.weight)


def by_another_parameter(module):
    module.weight = torch.nn.Parameter(torch.randn_like(module.weight))


def by_moving_the_storage(module):
    module.weight.set_(torch.randn_like(module.weight))


def by_data_assignment(module):
    module.weight.data = torch.randn_like(module.weight)


def by_casting(module):
    """`.to` puts new tensors into `.data`."""
    module.to(torch.bfloat16).to(torch.float32)


def by_vector_to_parameters(module):
    torch.nn.utils.vector_to_parameters(torch.randn(sum(p.numel() for p in module.parameters())), module.parameters())


def by_swapping(module):
    dlops.clear_cache(module)  # which lets go of the weak references that swap_tensors refuses to break
    torch.utils.swap_tensors(module.weight, torch.nn.Parameter(torch.randn_like(module.weight)))


def by_weight_exponential_average(module):
    other = conv()
    torch._foreach_lerp_(list(module.parameters()), list(other.parameters()), 0.5)


CHANGES = [value for name, value in sorted(globals().items()) if name.startswith("by_")]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_is_seen(change):
    torch.manual_seed(0)
    module = conv()
    for _ in range(3):
        with torch.no_grad():
            check(module)
            change(module)
            check(module)


@torch.no_grad()
def test_writes_past_torch_need_clear_cache():
    module, other = conv(), conv()
    check(module)
    check(other)
    before = kept()
    module.weight.numpy()[:] *= 2  # the counter does not move
    assert dlops.clear_cache(module) > 0
    assert kept() == before // 2
    check(module)
    module.weight.data.mul_(2)
    assert dlops.clear_cache() > 0 and kept() == 0
    check(module)
    assert dlops.clear_cache(torch.nn.Linear(2, 2)) == 0


@torch.no_grad()
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_copies_have_weights_of_their_own(duplicate):
    module = conv()
    check(module)
    other = duplicate(module)
    other.weight.mul_(3)
    check(other)
    check(module)
    module.weight.mul_(2)
    check(other)
    check(module)


@torch.no_grad()
def test_nothing_is_kept_alive():
    module = conv()
    check(module)
    assert kept() > 0
    del module
    gc.collect()
    assert kept() == 0


@torch.no_grad()
def test_a_new_tensor_at_an_old_address_is_another():
    """Freed and allocated again, a weight often comes to the same place with the same version, and even the same id."""
    for seed in range(30):
        torch.manual_seed(seed)
        weight = torch.randn(24, 16, 3, 3)
        torch.testing.assert_close(conv2d(X, weight, padding=1), F.conv2d(X, weight, padding=1), rtol=1e-4, atol=1e-4)
        del weight


@torch.no_grad()
def test_one_weight_in_several_convolutions():
    """What is packed depends on more than the weight."""
    weight = torch.randn(16, 16, 3, 3)
    for _ in range(2):
        for kwargs in ({}, {"padding": 1}, {"stride": 2}, {"dilation": 2}, {"padding": 2}):
            for x in (X, X[:, :, :5], X.to(memory_format=torch.channels_last)):
                torch.testing.assert_close(conv2d(x, weight, **kwargs), F.conv2d(x, weight, **kwargs), rtol=1e-4, atol=1e-4)
            y = conv_transpose2d(X, weight, **kwargs)
            torch.testing.assert_close(y, F.conv_transpose2d(X, weight, **kwargs), rtol=1e-4, atol=1e-4)
        for mode in ("off", "f2", "auto"):
            with dlops.winograd(mode):
                y = conv2d(X, weight, padding=1)
            torch.testing.assert_close(y, F.conv2d(X, weight, padding=1), rtol=1e-4, atol=1e-4)
        for variant in ("naive", "direct", "winograd", "winograd_f2"):
            y = conv2d(X, weight, padding=1, variant=variant)
            torch.testing.assert_close(y, F.conv2d(X, weight, padding=1), rtol=1e-4, atol=1e-4)
    grouped = torch.randn(16, 4, 3, 3)
    for x, groups in ((X, 4), (X[:, :4], 1), (X[:, :8], 2)):
        w = grouped[: 16 // 4 * groups] if groups > 1 else grouped
        want = F.conv2d(x, w, groups=groups)
        torch.testing.assert_close(conv2d(x, w, groups=groups), want, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_instruction_sets_do_not_share(device):
    module = conv().to(device.torch_device)
    x = X.to(device.torch_device)
    check(module, x)
    if device.isa:
        for isa in dlops.cpu_isas():
            dlops._C.set_cpu_isa(isa)
            check(module, x)


def test_training_keeps_nothing():
    """While gradients are recorded the next value of a weight is near."""
    module = conv()
    module(X).sum().backward()
    assert kept() == 0
    module.requires_grad_(False)
    check(module)
    assert kept() > 0


def test_inference_tensors_are_packed_per_call():
    """They have no version: a write to one cannot be seen."""
    with torch.inference_mode():
        module = conv()
        check(module)
        assert kept() == 0
        module.weight.mul_(2)
        check(module)
    outside = conv()
    with torch.inference_mode():
        check(outside)
        outside.weight.mul_(2)
        check(outside)


@torch.no_grad()
def test_other_threads_see_the_change():
    module, wrong = conv(), []
    barrier = threading.Barrier(4)

    def work():
        for _ in range(10):
            barrier.wait()
            with torch.no_grad():
                if not torch.allclose(module(X), F.conv2d(X, module.weight, module.bias, padding=1), rtol=1e-4, atol=1e-4):
                    wrong.append(threading.get_ident())
            barrier.wait()

    workers = [threading.Thread(target=work) for _ in range(3)]
    for worker in workers:
        worker.start()
    for _ in range(10):
        with torch.no_grad():
            module.weight.normal_()
        barrier.wait()
        barrier.wait()
    for worker in workers:
        worker.join()
    assert not wrong


def test_threads_that_train_and_forget():
    """Entries come and go while others look them up."""
    errors = []

    def work(seed):
        try:
            for _ in range(30):
                with torch.no_grad():
                    check(conv())
        except Exception as error:
            errors.append(error)

    workers = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not errors


@pytest.mark.parametrize("change", [by_an_in_place_op, by_load_state_dict, by_optimiser, by_another_parameter])
def test_compiled(change):
    module = conv()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for _ in range(3):
        with torch.no_grad():
            want = F.conv2d(X, module.weight, module.bias, padding=1)
            torch.testing.assert_close(compiled(X), want, rtol=1e-4, atol=1e-4)
            change(module)
    y = compiled(X)
    torch.testing.assert_close(y, F.conv2d(X, module.weight, module.bias, padding=1), rtol=1e-4, atol=1e-4)
    y.sum().backward()


@torch.no_grad()
def test_accelerated_and_linear():
    model = torch.nn.Sequential(torch.nn.Conv2d(16, 8, 1), torch.nn.Flatten(2), torch.nn.Linear(72, 33, bias=False))
    dlops.accelerate(model)
    want = model(X)
    for module in (model[0], model[2]):
        module.weight.mul_(2)
        want = want * 2 if module.bias is None else None
        if want is not None:
            torch.testing.assert_close(model(X), want, rtol=1e-4, atol=1e-3)
        want = model(X)
    fused = nn.Linear(72, 33, activation="relu")
    x = torch.randn(5, 72)
    for _ in range(3):
        torch.testing.assert_close(fused(x), F.relu(F.linear(x, fused.weight, fused.bias)), rtol=1e-4, atol=1e-4)
        fused.weight.mul_(-1)


@torch.no_grad()
def test_autocast_weights_follow_the_parameter():
    module = conv()
    for _ in range(3):
        with torch.autocast("cpu", torch.bfloat16):
            y = module(X)
        want = F.conv2d(X.bfloat16(), module.weight.bfloat16(), module.bias.bfloat16(), padding=1)
        torch.testing.assert_close(y, want, rtol=3e-2, atol=6e-2)
        check(module)
        module.weight.mul_(-1.5)


@torch.no_grad()
def test_the_bias_is_not_kept():
    module = conv()
    check(module)
    module.bias.add_(1)
    check(module)


@torch.no_grad()
def test_explain_keeps_nothing():
    """It runs a module on fake tensors; the parameters are real."""
    module = conv()
    assert [plan.uses for plan in dlops.explain(module, X)] == ["dlops"]
    assert kept() == 0
    check(module)
    assert [plan.uses for plan in dlops.explain(module, X)] == ["dlops"]
    check(module)


def test_a_fused_optimiser_between_evaluations():
    """It does not raise the version of what it changes."""
    module = conv()
    optimiser = torch.optim.SGD(module.parameters(), 0.5, fused=True)
    for _ in range(3):
        with torch.no_grad():
            check(module)
        module(X).square().mean().backward()
        optimiser.step()
    with torch.no_grad():
        check(module)
