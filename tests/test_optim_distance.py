"""Without a penalty an optimizer stays as near to torch's as torch's two implementations are.

Over a thousand steps of noise; the distance between torch's own is 0 where both round alike.
"""

from __future__ import annotations

import pytest
import torch

from torchcalc import optim

STEPS, SIZE = 1000, 64
RATES = {"SGD": 1e-2, "Adam": 1e-3, "AdamW": 1e-3, "Adagrad": 1e-2, "RMSprop": 1e-3}
SETTINGS = {
    "SGD": [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3},
        {"momentum": 0.9, "nesterov": True},
        {"momentum": 0.9, "weight_decay": 0.1, "maximize": True},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
    ],
    "Adam": [
        {},
        {"weight_decay": 0.1},
        {"amsgrad": True},
        {"maximize": True},
        {"amsgrad": True, "weight_decay": 0.1, "maximize": True},
    ],
    "AdamW": [
        {"weight_decay": 0.0},
        {"weight_decay": 0.0, "amsgrad": True, "maximize": True},
        {},
        {"amsgrad": True},
        {"maximize": True},
        {"amsgrad": True, "weight_decay": 0.1, "maximize": True},
    ],
    "Adagrad": [
        {},
        {"weight_decay": 0.1},
        {"lr_decay": 0.01},
        {"maximize": True},
        {"lr_decay": 0.01, "weight_decay": 0.1, "initial_accumulator_value": 0.1},
    ],
    "RMSprop": [
        {},
        {"weight_decay": 0.1},
        {"momentum": 0.9},
        {"centered": True},
        {"maximize": True},
        {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "maximize": True},
    ],
}


def cases():
    for kind, chosen in SETTINGS.items():
        for settings in chosen:
            for precision in (torch.float32, torch.float64):
                yield kind, settings, precision


def run(make, settings, precision):
    generator = torch.Generator().manual_seed(0)
    w = torch.nn.Parameter(torch.randn(SIZE, generator=generator, dtype=torch.float64))
    w.data = w.data.to(precision)
    grads = torch.randn(STEPS, SIZE, generator=generator, dtype=torch.float64).to(precision)
    optimizer = make([w], **settings)
    for grad in grads:
        w.grad = grad
        optimizer.step()
    return w.detach()


@pytest.mark.no_kernels  # thousands of steps, each tested elsewhere
@pytest.mark.parametrize(("kind", "settings", "precision"), list(cases()), ids=str)
def test_distance(kind, settings, precision):
    settings = {"lr": RATES[kind], **settings}
    other = {"foreach": False} if kind == "RMSprop" else {"fused": True}
    theirs = getattr(torch.optim, kind)
    one, two = (
        run(theirs, {**settings, **options}, precision) for options in ({"foreach": True}, other)
    )
    ours = run(getattr(optim, kind), settings, precision)
    # A unit of the parameter's largest weight: one that passes 0 keeps the rounding of what it was.
    unit = torch.finfo(precision).eps * 2 ** one.abs().max().log2().floor()
    between = (one - two).abs().max() / unit
    distance = min((ours - t).abs().max() / unit for t in (one, two))
    assert distance <= 2 * between + 4
