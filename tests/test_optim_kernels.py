"""Each rule's kernels: every dtype, states of either width, a norm and another penalty."""

from __future__ import annotations

import pytest
import torch

from torchcalc.ops.optim import RULES, plain_step
from torchcalc.prox import L1, NonNegativeL1
from torchcalc.reference import optim as reference
from torchcalc.testing._optim import _places

VARIANTS = {
    "sgd": ("sgd_step", reference.SGDRule(0.1), 0),
    "momentum": ("sgd_step", reference.SGDRule(0.1, 0.9), 1),
    "adam": ("adam_step", reference.AdamRule(0.1, 0.9, 0.99, 0.1), 2),
    "amsgrad": ("adam_step", reference.AdamRule(0.1, 0.9, 0.99, 0.1, amsgrad=True), 3),
    "adagrad": ("adagrad_step", reference.AdagradRule(0.1, eps=0.1), 1),
    "rmsprop": ("rmsprop_step", reference.RMSpropRule(0.1, 0.9, 0.1), 1),
    "rmsprop momentum": ("rmsprop_step", reference.RMSpropRule(0.1, 0.9, 0.1, momentum=0.5), 2),
    "rmsprop centered": ("rmsprop_step", reference.RMSpropRule(0.1, 0.9, 0.1, centered=True), 2),
    "rmsprop both": (
        "rmsprop_step",
        reference.RMSpropRule(0.1, 0.9, 0.1, momentum=0.5, centered=True),
        3,
    ),
    "ftrl": ("ftrl_step", reference.FTRLRule(0.1, 0.1, beta=1.0), 2),
    "ftrl power": ("ftrl_step", reference.FTRLRule(0.1, 0.1, -0.7, 1.0), 2),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("penalty", [L1(0.3), NonNegativeL1(0.3)], ids=str)
@pytest.mark.parametrize("name", list(VARIANTS))
def test_a_step_is_the_references(name, penalty, wide, dtype, device):
    op, rule, count = VARIANTS[name]
    if wide and dtype.itemsize >= 4:
        pytest.skip("states are as wide as they may be")
    torch.manual_seed(0)
    w, g = (torch.randn(37, device=device).to(dtype) for _ in range(2))
    kept = [torch.rand(37, device=device) + 0.5 for _ in range(count)]
    if "centered" in name or "both" in name:
        kept[-1] /= 4  # a mean whose square is less than that of squares
    kept = [t if wide else t.to(dtype) for t in kept]
    metric = (True, 1.25) if op in ("adam_step", "adagrad_step", "rmsprop_step") else ()
    results = []
    for run in (getattr(torch.ops.torchcalc, op), lambda *args: plain_step(op, *args)):
        param, *states = (t.clone() for t in (w, *kept))
        steps = [torch.full((2,), 3.0, device=device)] * RULES[op][1]
        kind, *numbers = penalty.kernel
        places = _places(w, 1, penalty)
        run([param], [g], [*states, *steps], places, *rule, kind, numbers, *metric, [], [])
        results.append([param, *states])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
