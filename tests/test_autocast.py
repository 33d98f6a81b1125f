"""Under torch.autocast a parameter is cast once in a region, as by PyTorch's own layers."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch

from torchcalc import functional as F


@pytest.fixture
def weight(device):
    return torch.randn(4, 4, device=device, requires_grad=True)


def cast_of(weight):
    """The node that casts the weight in the graph of a call."""
    x = torch.ones(2, 4, device=weight.device)
    return F.linear_act(x, weight).grad_fn.next_functions[1][0]


@pytest.mark.parametrize("cache", [True, False])
def test_one_cast_in_a_region(weight, cache, device):
    with torch.autocast(device, torch.bfloat16, cache_enabled=cache):
        first, second = cast_of(weight), cast_of(weight)
        with torch.autocast(device, torch.float16, cache_enabled=cache):
            assert cast_of(weight) is not first
        assert (cast_of(weight) is first) == cache
    assert (first is second) == cache
    with torch.autocast(device, torch.bfloat16):
        assert cast_of(weight) is not first


def test_without_a_cache_nothing_is_watched(weight, device, monkeypatch):
    def watch(*args):
        raise AssertionError("a product to watch the region by")

    monkeypatch.setattr(torch, "mm", watch)
    with torch.autocast(device, torch.bfloat16, cache_enabled=False):
        cast_of(weight)
    with (
        pytest.raises(AssertionError, match="to watch"),
        torch.autocast(device, torch.bfloat16),
    ):
        cast_of(weight)


def in_place(weight):
    with torch.no_grad():
        weight.mul_(2)


def replaced(weight):
    weight.data = 2 * weight.data


@pytest.mark.parametrize("change", [in_place, replaced])
def test_a_weight_that_changes_in_a_region(weight, change, device):
    x = torch.ones(2, 4, device=device)
    with torch.autocast(device, torch.bfloat16):
        before = F.linear_act(x, weight, activation="identity")
        change(weight)
        after = F.linear_act(x, weight, activation="identity")
    assert torch.equal(after, 2 * before)


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_a_cast_without_gradients_serves_no_others(weight, without, device):
    x = torch.ones(2, 4, device=device)
    with torch.autocast(device, torch.bfloat16):
        with without():
            F.linear_act(x, weight)
        F.linear_act(x, weight).sum().backward()
    assert weight.grad.abs().sum() > 0


def test_nothing_outlives_the_region(device):
    weight = torch.randn(4, 4, device=device, requires_grad=True)
    x = torch.ones(2, 4, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        cast = weakref.ref(F.linear_act(x, weight).grad_fn.saved_tensors[1])
        gc.collect()
        assert cast().dtype == torch.bfloat16
    assert cast() is None
    of_weight = weakref.ref(weight)
    del weight
    gc.collect()
    assert of_weight() is None


def test_hooks_and_profiles_see_the_layer_alone(weight, device):
    shapes = []
    x = torch.ones(2, 4, device=device)

    def pack(t):
        shapes.append(list(t.shape))
        return t

    with (
        torch.autocast(device, torch.bfloat16),
        torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t),
    ):
        F.linear_act(x, weight)
    with (
        torch.autocast(device, torch.bfloat16),
        torch.profiler.profile(record_shapes=True) as profile,
    ):
        F.linear_act(x, weight)
    shapes += [shape for event in profile.events() for shape in event.input_shapes]
    assert [4, 4] in shapes
    assert [1, 1] not in shapes


def test_layers_share_casts(device):
    x = torch.ones(2, 4, device=device)
    weight = torch.randn(8, 4, device=device, requires_grad=True)
    back = torch.randn(4, 8, device=device, requires_grad=True)
    with torch.autocast(device, torch.bfloat16):
        y = F.gated_linear(x, weight)
        z = F.mlp(x, weight, None, back, None)
    assert y.grad_fn.next_functions[1][0] is z.grad_fn.next_functions[1][0]
