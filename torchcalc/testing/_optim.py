"""Rows of the optimizers' steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchcalc.ops.penalty_prox import Kernel, bounded_prox
from torchcalc.prox import L1, L2, ElasticNet, GroupL2, Penalty, TopK
from torchcalc.reference import optim as reference_op
from torchcalc.testing._penalties import GROUPED, PENALTIES
from torchcalc.testing._rows import MODES, SHAPES, Op, Random, Sample


def _places(w: Tensor, number: int, penalty: Penalty) -> Tensor:
    """Where the states of a parameter are: at the beginning, its count at ``number``."""
    return torch.tensor([0, number, w.dim(), *w.shape, penalty.indexes(w.shape)])


NOTHING, NO_KERNEL = ElasticNet(0.0, 0.0), Kernel()


def _sgd(
    name: str, w: Tensor, g: Tensor, b: Tensor, penalty: Penalty = NOTHING, **rule: Any
) -> Sample:
    momentum = rule.get("momentum", 0.0)
    kind, *numbers = penalty.kernel or NO_KERNEL

    def call(w: Tensor, g: Tensor, b: Tensor) -> Tensor:
        w, b = w.clone(), b.clone()
        torch.ops.torchcalc.sgd_step(
            [w],
            [g],
            [b.view(-1)] if momentum else [],
            _places(w, 0, penalty),
            0.1,
            momentum,
            rule.get("dampening", 0.0),
            rule.get("weight_decay", 0.0),
            rule.get("nesterov", False),
            rule.get("maximize", False),
            rule.get("first_step", False),
            kind,
            numbers,
        )
        return torch.stack([w, b])

    def reference(w: Tensor, g: Tensor, b: Tensor) -> Tensor:
        w, b = w.clone(), b.clone()
        buffer = b if momentum else None
        prox = partial(
            bounded_prox, Kernel._make((kind, *numbers)), penalty.indexes(w.shape), math.inf
        )
        reference_op.sgd_step(w, g, buffer, lr=0.1, prox=prox, **rule)
        return torch.stack([w, b])

    return Sample(name, (w, g, b), call, reference)


def _adamw(
    name: str,
    w: Tensor,
    g: Tensor,
    m: Tensor,
    n: Tensor,
    penalty: Penalty = NOTHING,
    bound: float = math.inf,
    **rule: Any,
) -> Sample:
    kind, *numbers = penalty.kernel or NO_KERNEL
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
            _places(w, 1, penalty),
            *fixed.values(),
            rule.get("maximize", False),
            kind,
            numbers,
            rule.get("adaptive", True),
            bound,
        )
        return torch.stack([w, m, n, (steps[1] - steps[0]).to(w.dtype).expand(w.shape)])

    def reference(w: Tensor, g: Tensor, m: Tensor, n: Tensor) -> Tensor:
        w, m, n = w.clone(), m.clone(), n.clone()
        step = torch.full((), 3.0)
        prox = partial(
            bounded_prox, Kernel._make((kind, *numbers)), penalty.indexes(w.shape), bound
        )
        reference_op.adamw_step(w, g, m, n, step, prox=prox, **fixed, **rule)
        return torch.stack([w, m, n, torch.ones_like(w)])

    return Sample(name, (w, g, m, n), call, reference)


def _sgd_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    w, g, b = t(4, 5), t(4, 5), t(4, 5)
    both = ElasticNet(3.0, 0.5)
    yield _sgd("plain", w, g, b)
    yield _sgd("penalty", w, g, b, both, weight_decay=0.1, maximize=True)
    yield _sgd("momentum", w, g, b, L1(3.0), momentum=0.9, dampening=0.5)
    yield _sgd("first step", w, g, b, L2(0.5), momentum=0.9, dampening=0.5, first_step=True)
    yield _sgd("nesterov", w, g, b, both, momentum=0.9, nesterov=True)
    for name, penalty in PENALTIES.items():
        yield _sgd(name, w, g, b, penalty)


def _adamw_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    tensors = w, *_ = t(4, 5), t(4, 5), t(4, 5), t(4, 5).abs()
    both = ElasticNet(3.0, 0.5)
    yield _adamw("plain", *tensors)
    yield _adamw("adaptive metric", *tensors, both)
    yield _adamw("bound", *tensors, ElasticNet(30.0, 0.5), bound=0.01)
    never = torch.zeros_like(w)
    yield _adamw("no gradient yet", w, never, never, never, ElasticNet(0.5, 0.5), bound=0.05)
    yield _adamw("metric of lr", *tensors, both, adaptive=False, maximize=True)
    for name, penalty in PENALTIES.items():
        yield _adamw(name, *tensors, penalty)
        yield _adamw(f"{name}, bound", *tensors, penalty, bound=0.02)


def _sgd_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for s in SHAPES:
        yield _sgd(f"{s}", t(*s), t(*s), t(*s), ElasticNet(3.0, 0.5), momentum=0.9)


def _adamw_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for s in SHAPES:
        tensors = t(*s), t(*s), t(*s), t(*s).abs()
        yield _adamw(f"{s}", *tensors, ElasticNet(3.0, 0.5))
    for s in GROUPED:
        tensors = t(*s), t(*s), t(*s), t(*s).abs()
        yield _adamw(f"{s}, rows", *tensors, GroupL2(5.0), bound=0.1)
        yield _adamw(f"{s}, largest", *tensors, TopK(density=0.3))


_IN_PLACE = dict.fromkeys(MODES, "a step updates contiguous tensors in place, outside of autograd")

OPS = [
    Op("sgd_step", _sgd_samples, _sgd_shapes, skip=_IN_PLACE),
    Op("adamw_step", _adamw_samples, _adamw_shapes, skip=_IN_PLACE),
]
