"""Conversions between float32 and the half types, every value; derivatives in every dtype."""

from __future__ import annotations

import pytest
import torch
from conftest import IS_CUDA_HOST
from torch import nn

from torchcalc import functional, optim, prox
from torchcalc.ops.activations import INPUT, NAMES, NOTHING, OUTPUT, resolve
from torchcalc.reference.activations import FROM_OUTPUT, derivative, parameters

HALF_TYPES = [torch.float16, torch.bfloat16]
SATURATING = [nn.ELU(1.7), nn.SELU(), nn.CELU(0.0011), nn.CELU(0.3), nn.Tanh(), nn.Sigmoid()]


def every_value(dtype):
    return torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)


@pytest.mark.parametrize("half", HALF_TYPES, ids=str)
@pytest.mark.parametrize("p", [0.1, 0.3, 0.999])
def test_every_value_scaled_and_rounded(half, p, device):
    """Dropout is load, times float32, store: subnormals, ties, overflow and NaN all come up."""
    x = every_value(half).to(device)
    threshold = round(65536 * p)
    scale = torch.tensor(65536 / (65536 - threshold), device=device)
    for seed in range(4):
        kept = functional.dropout_mask(x.shape, p, seed=seed, device=device)
        expected = torch.where(kept, (x.float() * scale).to(half), torch.zeros_like(x))
        y = functional.dropout(x, p, seed=seed)
        torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
        same_bits = y.view(torch.int16) == expected.view(torch.int16)
        assert (same_bits | y.isnan()).all()  # also the sign of zero


@pytest.mark.parametrize("half", HALF_TYPES, ids=str)
def test_every_value_in_an_optimizer(half, device):
    """Scaled down, and up to where half of the results are ties and the largest overflow."""
    values = every_value(half).to(device)

    def flushed(x):  # a CPU's step takes subnormal numbers of float32 for 0
        is_subnormal = x.abs() < torch.finfo(torch.float32).tiny
        return x.masked_fill(is_subnormal & (device == "cpu" and not IS_CUDA_HOST), 0)

    for grad, factor, penalty in (
        (torch.zeros_like(values), 2 / 3, prox.L2(1.0)),
        (-values, 1.5, None),
    ):
        w = torch.nn.Parameter(values.clone())
        w.grad = grad
        optim.SGD([w], lr=0.5, penalty=penalty).step()
        expected = flushed(flushed(values.float()) * torch.tensor(factor, device=device))
        torch.testing.assert_close(w.detach(), expected.to(half), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("half", HALF_TYPES, ids=str)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    "module",
    [nn.ELU(1.7), nn.SELU(), nn.CELU(0.0011), nn.CELU(0.3), nn.Tanh(), nn.Sigmoid()],
    ids=str,
)
def test_saturated_units_have_no_gradient(module, residual, p, half, device):
    """Not what the limit's rounding makes of it, in the first derivative and the second."""
    x = torch.full((64, 1), -100.0, dtype=half, device=device, requires_grad=True)
    one = torch.ones(1, 1, dtype=half, device=device)
    added = torch.ones_like(x) if residual else None
    y = functional.linear_act(x, one, None, module, dropout_p=p, seed=1, residual=added)
    (first,) = torch.autograd.grad(y.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert first.abs().max() == second.abs().max() == 0


@pytest.mark.parametrize("from_output", [False, True])
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_in_every_dtype(name, order, from_output, dtype, device):
    """The kernels of both orders against the formulas in float64, rounded once."""
    if from_output and name not in FROM_OUTPUT:
        pytest.skip("not told from the output")
    activation = resolve("test", name)
    grad, saved = (torch.randn(37, 21, device=device).to(dtype) for _ in range(2))
    if from_output:
        saved = saved.clamp(-0.9, 0.9)  # an output of most of them
        saved = saved.abs() if name in ("relu", "relu6", "softplus") else saved
    options = *activation[1:], 0, 1, None, OUTPUT if from_output else INPUT, order
    if name == "identity":
        options = *options[:-2], NOTHING, order
    given = None if name == "identity" else saved
    dz = torch.ops.torchcalc.act_grad(grad, given, None, *options)
    told = name, order, *parameters(activation)
    exact = derivative(grad.double(), saved.double(), *told, from_output=from_output)
    eps = torch.finfo(dtype).eps if dtype != torch.float64 else 1e-13
    # quick_gelu is silu of 1.702 z: so much is in its derivatives, and in what rounds them.
    unit = max(eps, 1e-13) * (1.702 if name == "quick_gelu" else 1)
    torch.testing.assert_close(dz.double(), exact, rtol=eps, atol=4 * unit)
