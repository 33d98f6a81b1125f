"""More than one kernel call, chunk or block takes; and arrays of which one alone is misaligned."""

from __future__ import annotations

import pytest
import torch

from torchcalc import optim
from torchcalc.ops.activations import BITS, INPUT, resolve

TENSORS = (70, 130)  # a CUDA launch of the optimizers takes 64


@pytest.mark.parametrize("count", TENSORS)
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_more_parameters_than_a_launch_takes(name, count, device):
    options = {"lr": 0.01} | ({"momentum": 0.9} if name == "SGD" else {})
    values = [torch.randn(k % 5 * 3, device=device) for k in range(count)]  # some are empty
    ours, theirs = ([torch.nn.Parameter(v.clone()) for v in values] for _ in range(2))
    optimizer = getattr(optim, name)(ours, **options)
    eager = getattr(torch.optim, name)(theirs, **options)
    for _ in range(3):
        for p, q in zip(ours, theirs, strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step()
        eager.step()
    torch.testing.assert_close(ours, theirs)
    if name == "AdamW":
        assert all(optimizer.state[p]["step"] == 3 for p in ours)


def test_a_bias_gradient_of_many_rows(dtype, device):
    """Of 36 chunks of rows, each summed in op-math type."""
    upstream = torch.randn(4500, 9, device=device, dtype=dtype)
    saved = torch.randn_like(upstream)
    gelu = *by_name("gelu"), 0, 1, None
    dz, dbias = torch.ops.torchcalc.act_bias_grad(upstream, saved, None, *gelu, INPUT)
    z = saved.double().requires_grad_()
    (exact,) = torch.autograd.grad(torch.nn.functional.gelu(z), z, upstream.double())
    tolerance = torch.finfo(dtype).eps
    torch.testing.assert_close(dz.double(), exact, rtol=2 * tolerance, atol=2 * tolerance)
    # The sum is rounded once: 4500 terms, each of which may have an error in float32.
    rounding = max(tolerance, 1e-6 if dtype != torch.float64 else 1e-14)
    scale = exact.sum(0).abs().max().item() + (1 if dtype == torch.float32 else 0) * 100
    torch.testing.assert_close(dbias.double(), exact.sum(0), rtol=0, atol=rounding * scale)


def by_name(name):
    """An activation as ops are told it."""
    return resolve("test", name)[1:]


def shifted(t):
    """The same, an element behind where it could be."""
    memory = torch.empty(t.numel() + 1, dtype=t.dtype, device=t.device)
    return memory[1:].view(t.shape).copy_(t)


def calls(device, dtype):
    """Ops by the arrays they take."""
    ops, seed = torch.ops.torchcalc, torch.tensor([3], device=device)
    x, w, b = (torch.randn(s, device=device, dtype=dtype) for s in ((8, 16), (16, 16), (16,)))
    a, c = torch.randn_like(x), torch.rand_like(x)
    relu, gelu, silu = ((*by_name(name), 9000, 1, None) for name in ("relu", "gelu", "silu"))
    bits = torch.randint(0, 256, (8, 2), device=device, dtype=torch.uint8)
    yield lambda x, w, b, r: ops.linear_act(x, w, b, r, seed, *gelu), [x, w, b, a]
    yield lambda x, w, b, r: ops.linear_act_keep(x, w, b, r, seed, *relu), [x, w, b, a]
    yield lambda g, s: ops.act_grad(g, s, seed, *gelu, INPUT, 2), [x, a]
    yield lambda g, s: ops.act_bias_grad(g, s, seed, *silu, INPUT), [x, a]
    yield lambda g, s: ops.act_grad(g, s, seed, *relu, BITS, 1), [x, bits]
    yield lambda *t: ops.linear_act_grad(*t, seed, *gelu, INPUT, True), [a, x, w, c]
    yield lambda z, r: ops.act(z, r, seed, *gelu), [x, a]
    yield lambda g, w, z: ops.mlp_grad(g, w, z, seed, *gelu[:3], False, *gelu[3:]), [x, w, a]
    yield lambda x, r: ops.dropout(x, r, seed, 9000, 1, None, 1, 1.5, 0.1, 0.2), [x, a]
    yield lambda x, l1, l2: ops.prox(x, l1, l2, 0.0, 0.0), [x, a.abs(), c]
    yield lambda g, x, l1, l2: ops.prox_grad(g, x, l1, l2, 0.0, 0.0), [a, x, a.abs(), c]
    yield (
        lambda *t: ops.prox_grad_grad(*t, 0.0, 0.0),
        [a, c, a + c, c - a, x, a.abs(), c],
    )


@pytest.mark.parametrize("number", range(12))
def test_one_array_that_is_misaligned(number, dtype, device):
    call, arrays = list(calls(device, dtype))[number]
    expected = call(*arrays)
    for k in range(len(arrays)):
        actual = call(*(shifted(t) if i == k else t for i, t in enumerate(arrays)))
        torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("which", ["param", "grad"])
@pytest.mark.parametrize("name", ["SGD", "AdamW"])
def test_a_parameter_or_gradient_that_is_misaligned(name, which, device):
    results = []
    value, grad = torch.randn(64, device=device), torch.randn(64, device=device)
    for move in (torch.clone, shifted):
        p = torch.nn.Parameter(move(value) if which == "param" else value.clone())
        p.grad = move(grad) if which == "grad" else grad.clone()
        getattr(optim, name)([p], lr=0.1).step()
        results.append(p)
    torch.testing.assert_close(*results)
