"""Rows of the optimizers' steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchcalc.reference import optim as reference_op
from torchcalc.testing._rows import MODES, SHAPES, Op, Random, Sample


def _places(w: Tensor, number: int) -> Tensor:
    """Where the states of a parameter are: at the beginning, its count at ``number``."""
    return torch.tensor([0, number, w.dim(), *w.shape])


def _sgd(name: str, w: Tensor, g: Tensor, b: Tensor, l1: float, l2: float, **rule: Any) -> Sample:
    momentum = rule.get("momentum", 0.0)

    def call(w: Tensor, g: Tensor, b: Tensor) -> Tensor:
        w, b = w.clone(), b.clone()
        torch.ops.torchcalc.sgd_step(
            [w],
            [g],
            [b.view(-1)] if momentum else [],
            _places(w, 0),
            0.1,
            momentum,
            rule.get("dampening", 0.0),
            rule.get("weight_decay", 0.0),
            rule.get("nesterov", False),
            rule.get("maximize", False),
            rule.get("first_step", False),
            l1,
            l2,
        )
        return torch.stack([w, b])

    def reference(w: Tensor, g: Tensor, b: Tensor) -> Tensor:
        w, b = w.clone(), b.clone()
        buffer = b if momentum else None
        reference_op.sgd_step(w, g, buffer, lr=0.1, l1=l1, l2=l2, **rule)
        return torch.stack([w, b])

    return Sample(name, (w, g, b), call, reference)


def _adamw(
    name: str, w: Tensor, g: Tensor, m: Tensor, n: Tensor, l1: float, l2: float, **rule: Any
) -> Sample:
    # A large eps: else the update divides two numbers that have few digits left.
    fixed: dict[str, Any] = {
        "lr": 0.1,
        "beta1": 0.9,
        "beta2": 0.99,
        "eps": 0.1,
        "weight_decay": 0.01,
    }

    def call(w: Tensor, g: Tensor, m: Tensor, n: Tensor) -> Tensor:
        w, m, n = w.clone(), m.clone(), n.clone()
        steps = torch.full((2,), 3.0, device=w.device)
        torch.ops.torchcalc.adamw_step(
            [w],
            [g],
            [m.view(-1), n.view(-1), steps],
            _places(w, 1),
            *fixed.values(),
            rule.get("maximize", False),
            l1,
            l2,
            rule.get("adaptive", True),
            rule.get("bound", math.inf),
        )
        return torch.stack([w, m, n, (steps[1] - steps[0]).to(w.dtype).expand(w.shape)])

    def reference(w: Tensor, g: Tensor, m: Tensor, n: Tensor) -> Tensor:
        w, m, n = w.clone(), m.clone(), n.clone()
        step = torch.full((), 3.0)
        reference_op.adamw_step(w, g, m, n, step, l1=l1, l2=l2, **fixed, **rule)
        return torch.stack([w, m, n, torch.ones_like(w)])

    return Sample(name, (w, g, m, n), call, reference)


def _sgd_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    w, g, b = t(4, 5), t(4, 5), t(4, 5)
    yield _sgd("plain", w, g, b, 0.0, 0.0)
    yield _sgd("penalty", w, g, b, 3.0, 0.5, weight_decay=0.1, maximize=True)
    yield _sgd("momentum", w, g, b, 3.0, 0.0, momentum=0.9, dampening=0.5)
    yield _sgd("first step", w, g, b, 0.0, 0.5, momentum=0.9, dampening=0.5, first_step=True)
    yield _sgd("nesterov", w, g, b, 3.0, 0.5, momentum=0.9, nesterov=True)


def _adamw_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    tensors = w, *_ = t(4, 5), t(4, 5), t(4, 5), t(4, 5).abs()
    yield _adamw("plain", *tensors, 0.0, 0.0)
    yield _adamw("adaptive metric", *tensors, 3.0, 0.5)
    yield _adamw("bound", *tensors, 30.0, 0.5, bound=0.01)
    never = torch.zeros_like(w)
    yield _adamw("no gradient yet", w, never, never, never, 0.5, 0.5, bound=0.05)
    yield _adamw("metric of lr", *tensors, 3.0, 0.5, adaptive=False, maximize=True)


def _sgd_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for s in SHAPES:
        yield _sgd(f"{s}", t(*s), t(*s), t(*s), 3.0, 0.5, momentum=0.9)


def _adamw_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for s in SHAPES:
        yield _adamw(f"{s}", t(*s), t(*s), t(*s), t(*s).abs(), 3.0, 0.5)


_IN_PLACE = dict.fromkeys(MODES, "a step updates contiguous tensors in place, outside of autograd")

OPS = [
    Op("sgd_step", _sgd_samples, _sgd_shapes, skip=_IN_PLACE),
    Op("adamw_step", _adamw_samples, _adamw_shapes, skip=_IN_PLACE),
]
