"""Proximal operators; that they are the argmin is in test_properties.py."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from torchcalc import functional, nn, prox


def test_functions_are_the_proxes_of_unit_step(device, dtype):
    x = torch.randn(100, device=device).to(dtype)
    assert torch.equal(functional.soft_threshold(x, 0.5), prox.L1(0.5).prox(x))
    assert torch.equal(functional.prox_l2(x, 0.5), prox.L2(0.5).prox(x))
    assert torch.equal(functional.prox_elastic_net(x, 0.5, 0.2), prox.ElasticNet(0.5, 0.2).prox(x))


def test_soft_threshold_is_softshrink(device, dtype):
    x = torch.randn(1000, device=device).to(dtype)
    actual = functional.soft_threshold(x, 0.25)
    torch.testing.assert_close(actual, torch.nn.functional.softshrink(x, 0.25))
    assert (actual == 0).sum() == (x.abs() <= 0.25).sum() > 0


def test_a_float_strength_keeps_its_precision():
    # As opmath, not rounded to bfloat16 first: 0.1 would become 0.10009765625.
    x = torch.full((8,), 256.0, dtype=torch.bfloat16)
    exact = 256 / (1 + 0.1)
    assert functional.prox_l2(x, 0.1)[0].item() == torch.tensor(exact).bfloat16().item()


def test_values_of_strength_tensors_are_not_inspected():
    x, lam = torch.tensor([1.0, -2.0]), torch.tensor([-0.5, float("nan")])
    y = functional.soft_threshold(x, lam)
    assert y[0] == 1.5
    assert y[1].isnan()


def test_penalty_values_and_moreau():
    w = torch.randn(50, dtype=torch.float64)
    assert prox.L1(2.0).value(w) == pytest.approx(2 * w.abs().sum().item())
    assert prox.L2(2.0).value(w) == pytest.approx(w.square().sum().item())
    assert prox.ElasticNet(1.0, 2.0).value(w) == pytest.approx((w.abs() + w.square()).sum().item())
    # Moreau: v = prox_g(v) + projection of v on the dual ball, for the L1 norm.
    torch.testing.assert_close(w, prox.L1(0.3).prox(w) + w.clamp(-0.3, 0.3))


def test_soft_threshold_module_learns_its_threshold():
    module = nn.SoftThreshold(torch.nn.Parameter(torch.tensor(0.5)))
    x = torch.tensor([2.0, -3.0, 0.1])
    module(x).abs().sum().backward()
    assert module.lam.grad == -2
    assert list(module.state_dict()) == ["lam"]
    assert not list(nn.SoftThreshold(0.5).state_dict())
    assert list(dict(nn.SoftThreshold(torch.tensor(0.5)).named_buffers())) == ["lam"]


@pytest.mark.parametrize(
    "function",
    [
        functional.soft_threshold,
        functional.prox_l2,
        lambda x, lam: functional.prox_elastic_net(x, lam, 2 * lam),
    ],
    ids=["soft_threshold", "prox_l2", "prox_elastic_net"],
)
def test_a_number_that_changes_is_an_input_of_the_compiled_function(function):
    counter = CompileCounter()
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    x = torch.randn(5, requires_grad=True)
    for lam in (0.1, 0.2, 0.35, 0.4, 1.5):
        actual, expected = compiled(x, lam), function(x, lam)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(y.square().sum(), x) for y in (actual, expected))
        )
    assert counter.frame_count == 2  # with the first number, and with any


def test_a_threshold_that_changes_in_a_compiled_module():
    counter = CompileCounter()
    layer = nn.SoftThreshold(0.1)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(5)
    for lam in (0.1, 0.2, 0.35, 0.4, 1.5):
        layer.lam = lam
        torch.testing.assert_close(compiled(x), functional.soft_threshold(x, lam))
    assert counter.frame_count == 2


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_compiled_number_is_as_exact_as_an_eager_one(half):
    x = torch.randn(1000).to(half)
    for function in (functional.soft_threshold, functional.prox_l2):
        compiled = torch.compile(function, backend="eager", fullgraph=True)
        for lam in (0.3, 0.7, 1e5):
            assert torch.equal(compiled(x, lam), function(x, lam))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_learned_float32_strength_of_half_types(half, device):
    x = torch.randn(64, device=device).to(half).requires_grad_()
    lams = [torch.tensor(v, device=device, requires_grad=True) for v in (0.3, 0.7)]
    y = functional.prox_elastic_net(x, *lams)
    assert y.dtype == half
    grads = torch.autograd.grad(y.sum(), [x, *lams])
    assert [g.dtype for g in grads] == [half, torch.float32, torch.float32]
    exact = [t.detach().double().requires_grad_() for t in (x, *lams)]
    expected = torch.autograd.grad(functional.prox_elastic_net(*exact).sum(), exact)
    for g, e in zip(grads, expected, strict=True):
        torch.testing.assert_close(g.double(), e, atol=0.3, rtol=0.02)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_the_prox_has_shrunk_to_zero_gets_no_gradient(bad, dtype, device):
    x = torch.tensor([0.0, 1e-3, -0.4, 0.5], device=device, dtype=dtype, requires_grad=True)
    lam = torch.tensor(0.5, device=device, dtype=dtype, requires_grad=True)
    cotangent = torch.full_like(x, bad)
    y = functional.soft_threshold(x, lam)
    grads = torch.autograd.grad(y, [x, lam], cotangent, create_graph=True)
    assert all((g == 0).all() for g in grads)
    (second,) = torch.autograd.grad(grads[0], x, cotangent, allow_unused=True)
    assert (second == 0).all()
