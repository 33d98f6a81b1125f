"""Parameters, gradients and a training loop that the optimizers' tests share."""

from __future__ import annotations

import torch

STEPS = 100
SHAPES = [(), (1,), (7,), (5, 13), (1, 1031), (0, 3), (300, 150)]


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
