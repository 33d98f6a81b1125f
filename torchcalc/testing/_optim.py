"""Rows of the optimizers' steps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchcalc.ops.optim import LIVE, RULES
from torchcalc.ops.penalty_prox import Kernel, bounded_prox
from torchcalc.prox import L1, L2, ElasticNet, GroupL2, Penalty, TopK
from torchcalc.reference import optim as reference_op
from torchcalc.testing._penalties import GROUPED, PENALTIES
from torchcalc.testing._rows import MODES, SHAPES, Op, Random, Sample, Samples


def _places(w: Tensor, number: int, penalty: Penalty) -> Tensor:
    """Where the states of a parameter are: at the beginning, its count at ``number``."""
    return torch.tensor([0, number, 5, w.dim(), *w.shape, penalty.indexes(w.shape)])


WIDE = torch.float64  # of numbers in tensors: as exact as those given
NOTHING, NO_KERNEL = ElasticNet(0.0, 0.0), Kernel()


def _step(
    name: str,
    op: str,
    rule: reference_op.Rule,
    tensors: Sequence[Tensor],  # w, g and the states
    penalty: Penalty = NOTHING,
    live: Mapping[str, float] | None = None,  # numbers that tensors hold
    **metric: Any,  # adaptive and prox_clip, of ops that have them
) -> Sample:
    kind, *numbers = penalty.kernel or NO_KERNEL
    live = live or {}
    numbers_now: dict[str, Any] = {name: live[name] for name in live if name in rule._fields}
    now = rule._replace(**numbers_now)
    fields = [LIVE.index(name) for name in live]

    def call(w: Tensor, g: Tensor, *states: Tensor) -> Tensor:
        w, *kept = (t.clone() for t in (w, *states))
        steps = [torch.full((2,), 3.0, device=w.device)] * RULES[op][1]
        getattr(torch.ops.torchcalc, op)(
            [w],
            [g],
            [*(t.view(-1) for t in kept), *steps],
            _places(w, 1, penalty),
            *rule,
            kind,
            numbers,
            *metric.values(),
            [torch.tensor(value, dtype=WIDE, device=w.device) for value in live.values()],
            fields,
        )
        counted = [(t[1] - t[0]).to(w.dtype).expand(w.shape) for t in steps]
        return torch.stack([w, *kept, *counted])

    def reference(w: Tensor, g: Tensor, *states: Tensor) -> Tensor:
        w, *kept = (t.clone() for t in (w, *states))
        prox = partial(bounded_prox, Kernel._make((kind, *numbers)), penalty.indexes(w.shape))
        options = metric or {"adaptive": True}
        skipped = live.get("found_inf", 0.0)
        if not skipped:
            g = g / live.get("grad_scale", 1.0)
            reference_op.step(now, 4.0, w, g, kept, prox=prox, **options)
        counted = torch.full_like(w, 0.0 if skipped else 1.0)
        return torch.stack([w, *kept, *[counted] * RULES[op][1]])

    return Sample(name, tuple(tensors), call, reference)


def _sgd(name: str, tensors: Sequence[Tensor], penalty: Penalty = NOTHING, **rule: Any) -> Sample:
    return _step(name, "sgd_step", reference_op.SGDRule(0.1, **rule), tensors, penalty)


def _adam(
    name: str,
    tensors: Sequence[Tensor],
    penalty: Penalty = NOTHING,
    prox_clip: float = math.inf,
    adaptive: bool = True,
    live: Mapping[str, float] | None = None,
    **rule: Any,
) -> Sample:
    # A large eps: else the update divides two numbers that have few digits left.
    fixed = reference_op.AdamRule(0.1, 0.9, 0.99, 0.1, 0.01, amsgrad=len(tensors) == 5)
    metric = {"adaptive": adaptive, "prox_clip": prox_clip}
    return _step(name, "adam_step", fixed._replace(**rule), tensors, penalty, live, **metric)


def _sgd_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    plain, kept = (t(4, 5), t(4, 5)), (t(4, 5), t(4, 5), t(4, 5))
    both = ElasticNet(3.0, 0.5)
    yield _sgd("plain", plain)
    yield _sgd("penalty", plain, both, weight_decay=0.1, maximize=True)
    yield _sgd("momentum", kept, L1(3.0), momentum=0.9, dampening=0.5)
    yield _sgd("first step", kept, L2(0.5), momentum=0.9, dampening=0.5, first_step=True)
    yield _sgd("nesterov", kept, both, momentum=0.9, nesterov=True)
    for name, penalty in PENALTIES.items():
        yield _sgd(name, kept, penalty, momentum=0.5)


def _adam_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    tensors = t(4, 5), t(4, 5), t(4, 5), t(4, 5).abs()
    largest = *tensors, t(4, 5).abs()
    both = ElasticNet(3.0, 0.5)
    yield _adam("plain", tensors)
    yield _adam("adaptive metric", tensors, both)
    yield _adam("bound", tensors, ElasticNet(30.0, 0.5), prox_clip=0.1)
    never = [torch.zeros_like(t) for t in tensors[1:]]
    yield _adam("no gradient yet", (tensors[0], *never), ElasticNet(0.5, 0.5), prox_clip=0.5)
    yield _adam("metric of lr", tensors, both, adaptive=False, maximize=True)
    yield _adam("coupled", tensors, both, decoupled=False, maximize=True)
    numbers = {"lr": 0.2, "beta1": 0.8, "beta2": 0.95, "grad_scale": 4.0, "found_inf": 0.0}
    yield _adam("numbers in tensors", tensors, both, prox_clip=0.5, live=numbers)
    yield _adam("numbers in tensors, groups", tensors, GroupL2(5.0), prox_clip=0.5, live=numbers)
    yield _adam("lr = 0 in a tensor", tensors, TopK(k=7), live={"lr": 0.0})
    yield _adam("skipped", tensors, both, live={"found_inf": 1.0})
    yield _adam("skipped, groups", tensors, TopK(k=7), live={"found_inf": 1.0})
    yield _adam("amsgrad", largest)
    yield _adam("amsgrad, penalty", largest, both, prox_clip=0.5)
    yield _adam("amsgrad, groups", largest, GroupL2(5.0), prox_clip=0.5)
    yield _adam("amsgrad, coupled", largest, decoupled=False)
    for name, penalty in PENALTIES.items():
        yield _adam(name, tensors, penalty)
        yield _adam(f"{name}, bound", tensors, penalty, prox_clip=0.2)


def _adagrad_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    w, g, n = t(4, 5), t(4, 5), t(4, 5).abs() + 0.5

    def row(name: str, penalty: Penalty = NOTHING, unseen: bool = False, **rule: Any) -> Sample:
        metric = {
            "adaptive": rule.pop("adaptive", True),
            "prox_clip": rule.pop("prox_clip", math.inf),
        }
        of = reference_op.AdagradRule(0.1, eps=0.1)._replace(**rule)
        tensors = (w, torch.zeros_like(g), torch.zeros_like(n)) if unseen else (w, g, n)
        return _step(name, "adagrad_step", of, tensors, penalty, **metric)

    yield row("plain", lr_decay=0.5)
    yield row("penalty", ElasticNet(3.0, 0.5), weight_decay=0.1, maximize=True)
    yield row("bound", ElasticNet(30.0, 0.5), lr_decay=0.5, prox_clip=1.25)
    yield row("metric of lr", L1(3.0), lr_decay=0.5, adaptive=False)
    yield row("groups", GroupL2(5.0), lr_decay=0.5, prox_clip=1.25)
    yield row("columns", GroupL2(5.0, dim=1), lr_decay=0.5, prox_clip=1.25)
    yield row("no gradient yet", L1(0.5), unseen=True, prox_clip=1.25)


def _rmsprop_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    w, g, n, b, mean = t(4, 5), t(4, 5), t(4, 5).abs() + 1.5, t(4, 5), t(4, 5) / 4

    def row(name: str, penalty: Penalty = NOTHING, **rule: Any) -> Sample:
        metric = {
            "adaptive": rule.pop("adaptive", True),
            "prox_clip": rule.pop("prox_clip", math.inf),
        }
        of = reference_op.RMSpropRule(0.1, 0.9, 0.1)._replace(**rule)
        states = (n, *([b] if of.momentum else []), *([mean] if of.centered else []))
        return _step(name, "rmsprop_step", of, (w, g, *states), penalty, **metric)

    yield row("plain")
    yield row("penalty", ElasticNet(3.0, 0.5), weight_decay=0.1, maximize=True)
    yield row("momentum", L1(3.0), momentum=0.5, prox_clip=1.25)
    yield row("centered", L1(3.0), centered=True)
    yield row("both", GroupL2(5.0), momentum=0.5, centered=True, weight_decay=0.1)
    yield row("columns", GroupL2(5.0, dim=1), momentum=0.5, centered=True, prox_clip=1.25)
    yield row("metric of lr", L1(3.0), momentum=0.5, adaptive=False)


def _ftrl_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    tensors = t(4, 5), t(4, 5), t(4, 5), t(4, 5).abs() + 0.5

    def row(name: str, penalty: Penalty = NOTHING, **rule: Any) -> Sample:
        of = reference_op.FTRLRule(0.1, 0.1)._replace(**rule)
        return _step(name, "ftrl_step", of, tensors, penalty)

    yield row("plain")
    yield row("both", ElasticNet(0.5, 0.5), beta=1.0)
    yield row("a power", L1(0.5), lr_power=-0.7, maximize=True)
    yield row("another lr", L1(0.5), beta=1.0, lr_before=0.3)


def _shapes(op: str, rule: reference_op.Rule, states: int, **metric: Any) -> Samples:
    def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        for s in SHAPES:
            tensors = t(*s), t(*s), *(t(*s).abs() for _ in range(states))
            yield _step(f"{s}", op, rule, tensors, ElasticNet(3.0, 0.5), **metric)

    return samples


def _adam_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for s in SHAPES:
        tensors = t(*s), t(*s), t(*s), t(*s).abs()
        yield _adam(f"{s}", tensors, ElasticNet(3.0, 0.5))
    for s in GROUPED:
        tensors = t(*s), t(*s), t(*s), t(*s).abs()
        yield _adam(f"{s}, rows", tensors, GroupL2(5.0), prox_clip=1.0)
        yield _adam(f"{s}, largest", tensors, TopK(density=0.3))


_IN_PLACE = dict.fromkeys(MODES, "a step updates contiguous tensors in place, outside of autograd")

_ADAPTIVE = {"adaptive": True, "prox_clip": 1.25}
_SHAPES = {
    "sgd_step": _shapes("sgd_step", reference_op.SGDRule(0.1, momentum=0.9), 1),
    "adagrad_step": _shapes("adagrad_step", reference_op.AdagradRule(0.1, eps=0.1), 1, **_ADAPTIVE),
    "rmsprop_step": _shapes(
        "rmsprop_step", reference_op.RMSpropRule(0.1, 0.9, 0.1, momentum=0.5), 2, **_ADAPTIVE
    ),
    "ftrl_step": _shapes("ftrl_step", reference_op.FTRLRule(0.1, 0.1, beta=1.0), 2),
}

OPS = [
    Op("sgd_step", _sgd_samples, _SHAPES["sgd_step"], skip=_IN_PLACE),
    Op("adam_step", _adam_samples, _adam_shapes, skip=_IN_PLACE),
    Op("adagrad_step", _adagrad_samples, _SHAPES["adagrad_step"], skip=_IN_PLACE),
    Op("rmsprop_step", _rmsprop_samples, _SHAPES["rmsprop_step"], skip=_IN_PLACE),
    Op("ftrl_step", _ftrl_samples, _SHAPES["ftrl_step"], skip=_IN_PLACE),
]
