"""Parameters, gradients and a training loop that the optimizers' tests share."""

from __future__ import annotations

import torch

from torchcalc import optim

STEPS = 100
SHAPES = [(), (1,), (7,), (5, 13), (1, 1031), (0, 3), (300, 150)]
KINDS = ["SGD", "Adam", "AdamW", "Adagrad", "RMSprop", "FTRL"]
# With all the states that there are.
OPTIONS = {
    "SGD": {"lr": 0.05, "momentum": 0.9},
    "Adam": {"lr": 0.05, "amsgrad": True},
    "AdamW": {"lr": 0.05},
    "Adagrad": {"lr": 0.05, "lr_decay": 0.01},
    "RMSprop": {"lr": 0.05, "momentum": 0.5, "centered": True},
    "FTRL": {"lr": 0.05, "l1": 0.05},
}


def build(kind, module=optim, dtype=torch.float64, **options):
    """A parameter and its optimizer, of torchcalc.optim or torch.optim."""
    generator = torch.Generator().manual_seed(1)
    w = torch.nn.Parameter(torch.randn(5, 3, generator=generator, dtype=torch.float64).to(dtype))
    return w, getattr(module, kind)([w], **{**OPTIONS[kind], **options})


def assert_same(one, other):
    """Parameters, states and groups of two pairs, bit for bit."""
    (w, a), (v, b) = one, other
    assert torch.equal(w, v)
    first, second = a.state_dict(), b.state_dict()
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for key, state in first["state"].items():
        assert state.keys() == second["state"][key].keys()
        for name, value in state.items():
            assert torch.equal(value, second["state"][key][name]), name
            assert value.dtype is second["state"][key][name].dtype, name


def make_params(device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    values = [0.1 * torch.randn(s, generator=generator) for s in SHAPES]  # as large as weights are
    return [torch.nn.Parameter(v.to(device, dtype)) for v in values]


def gradients(step, device="cpu", dtype=torch.float32):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(s, generator=generator).to(device, dtype) for s in SHAPES]


def train(optimizer, params, steps, first=0):
    for step in range(first, first + steps):
        for p, g in zip(params, gradients(step, params[0].device, params[0].dtype), strict=True):
            p.grad = g
        optimizer.step()


def assert_params_close(actual, expected, atol=1e-6):
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, atol=atol, rtol=0)
