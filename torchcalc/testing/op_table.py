"""Each op once: how to call it, its reference in plain PyTorch, and samples of its input."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc.ops.linear_act import ACTIVATIONS
from torchcalc.reference import dropout as dropout_reference
from torchcalc.reference import linear_act as linear_act_reference
from torchcalc.reference import optim as optim_reference
from torchcalc.reference import prox as prox_reference

SEED = 2024

# What a row may skip, with a reason. Forward, compile, opcheck and bad input apply to every op.
MODES = ("gradcheck", "gradgradcheck", "forward AD", "vmap", "autocast", "layouts")

_LANE_RANGE = 65536

Call = Callable[..., Tensor]


@dataclass(frozen=True)
class Sample:
    """One input: ``call(*inputs)`` is the op, ``reference(*inputs)`` the same in plain PyTorch."""

    name: str
    inputs: tuple[Tensor, ...]
    call: Call
    reference: Call


Samples = Callable[[torch.device, torch.dtype], Iterator[Sample]]


@dataclass(frozen=True)
class Op:
    """A row of the table.

    ``samples`` are small, with every argument in use; ``shapes`` are odd, prime, empty, width-1 and
    larger than a kernel's block. ``skip`` maps one of ``MODES`` that does not apply to the reason.
    """

    name: str
    samples: Samples
    shapes: Samples
    skip: Mapping[str, str] = field(default_factory=dict)


class _Random:
    """Tensors that are the same on every device and, but for rounding, in every dtype."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.options: dict[str, Any] = {"device": device, "dtype": dtype}
        self.generator = torch.Generator().manual_seed(SEED)

    def __call__(self, *shape: int) -> Tensor:
        x = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        return x.to(**self.options)


def _linear_act(
    name: str,
    activation: str,
    inputs: Mapping[str, Tensor],
    dropout_p: float = 0.0,
) -> Sample:
    names = tuple(inputs)

    def call(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        return functional.linear_act(
            **given,  # type: ignore[arg-type]
            activation=activation,
            dropout_p=dropout_p,
            seed=SEED if dropout_p else None,
        )

    def reference(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        x, residual = given["x"], given.get("residual")
        rows, out_features = x.shape[:-1].numel(), given["weight"].shape[0]
        y = linear_act_reference.linear_act(
            x.reshape(rows, x.shape[-1]),
            given["weight"],
            given.get("bias"),
            activation,
            None if residual is None else residual.reshape(rows, out_features),
            torch.tensor([SEED], device=x.device) if dropout_p else None,
            round(_LANE_RANGE * dropout_p),
        )
        return y.reshape(*x.shape[:-1], out_features)

    return Sample(name, tuple(inputs.values()), call, reference)


def _linear_act_op(activation: str) -> Op:
    def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = _Random(device, dtype)
        inputs = {"x": t(3, 5), "weight": t(7, 5), "bias": t(7), "residual": t(3, 7)}
        some = {k: inputs[k] for k in ("x", "weight", "bias")}
        yield _linear_act("plain", activation, some)
        yield _linear_act("dropout", activation, some, 0.4)
        yield _linear_act("residual", activation, inputs)
        yield _linear_act("residual and dropout", activation, inputs, 0.4)
        yield _linear_act(
            "dropout, no bias", activation, {k: inputs[k] for k in ("x", "weight")}, 0.4
        )

    def shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = _Random(device, dtype)
        for lead, n, k in (
            ((1,), 1, 1),
            ((7,), 1, 3),
            ((5,), 13, 11),
            ((), 17, 3),
            ((2, 3, 1), 8, 4),
            ((0,), 4, 3),
            ((3,), 0, 2),
            ((2,), 3, 0),
            ((3,), 1031, 2),  # longer than a segment, and no multiple of 8
            ((531,), 9, 3),  # higher than a block of the GEMM and than a chunk of rows
            ((130,), 24, 5),
        ):
            inputs = {"x": t(*lead, k), "weight": t(n, k), "bias": t(n)}
            inputs["residual"] = t(*lead, n)
            name = f"{(*lead, k)} to {n}"
            yield _linear_act(name, activation, inputs, 0.3)
            del inputs["residual"]
            yield _linear_act(f"{name}, no residual", activation, inputs, 0.3)

    return Op(f"linear_act[{activation}]", samples, shapes)


def _dropout(name: str, x: Tensor, p: float) -> Sample:
    def reference(x: Tensor) -> Tensor:
        seed = torch.tensor([SEED], device=x.device)
        return dropout_reference.dropout(x, seed, round(_LANE_RANGE * p))

    return Sample(name, (x,), lambda x: functional.dropout(x, p, seed=SEED), reference)


def _dropout_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = _Random(device, dtype)
    for p in (0.1, 0.5, 1.0):
        yield _dropout(f"p={p}", t(3, 7), p)


_SHAPES: tuple[tuple[int, ...], ...] = (
    (),
    (1,),
    (7,),
    (0,),
    (2, 0, 3),
    (8,),
    (3, 1),
    (5, 13, 11),
    (1024,),
    (1025,),
    (40_009,),  # more than one task of a thread
)


def _dropout_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = _Random(device, dtype)
    for shape in _SHAPES:
        yield _dropout(f"{shape}", t(*shape), 0.3)


def _mask(name: str, shape: tuple[int, ...], p: float, device: torch.device) -> Sample:
    def call() -> Tensor:
        return functional.dropout_mask(shape, p, seed=SEED, device=device)

    def reference() -> Tensor:
        seed = torch.tensor([SEED], device=device)
        return dropout_reference.dropout_mask(shape, seed, round(_LANE_RANGE * p))

    return Sample(name, (), call, reference)


def _mask_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for p in (0.0, 0.1, 0.5, 1.0):
        yield _mask(f"p={p}", (3, 7), p, device)


def _mask_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    for shape in _SHAPES:
        yield _mask(f"{shape}", shape, 0.3, device)


def _prox_op(name: str, function: Call, reference: Call, strengths: int) -> Op:
    def sample(label: str, x: Tensor, *lams: Tensor | float) -> Sample:
        # A float strength is no input: it is not differentiable.
        numbers = [lam for lam in lams if not isinstance(lam, Tensor)]
        tensors = tuple(lam for lam in lams if isinstance(lam, Tensor))
        return Sample(
            label,
            (x, *tensors),
            lambda x, *t: function(x, *t, *numbers),
            lambda x, *t: reference(x, *t, *numbers),
        )

    def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = _Random(device, dtype)
        x = t(4, 5)
        yield sample("numbers", x, *(0.3, 0.7)[:strengths])
        yield sample("0-d tensors", x, *(t().abs() for _ in range(strengths)))
        yield sample("broadcast tensors", x, *(t(5).abs() for _ in range(strengths)))
        yield sample("full tensors", x, *(t(4, 5).abs() for _ in range(strengths)))
        if strengths == 2:
            yield sample("tensor and number", x, t(4, 1).abs(), 0.7)

    def shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = _Random(device, dtype)
        for shape in _SHAPES:
            x = t(*shape)
            yield sample(f"{shape}, numbers", x, *(0.3, 0.7)[:strengths])
            yield sample(f"{shape}, tensors", x, *(t(*shape).abs() for _ in range(strengths)))

    return Op(name, samples, shapes)


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
        optim_reference.sgd_step(w, g, buffer, lr=0.1, l1=l1, l2=l2, **rule)
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
        optim_reference.adamw_step(w, g, m, n, step, l1=l1, l2=l2, **fixed, **rule)
        return torch.stack([w, m, n, torch.ones_like(w)])

    return Sample(name, (w, g, m, n), call, reference)


def _sgd_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = _Random(device, dtype)
    w, g, b = t(4, 5), t(4, 5), t(4, 5)
    yield _sgd("plain", w, g, b, 0.0, 0.0)
    yield _sgd("penalty", w, g, b, 3.0, 0.5, weight_decay=0.1, maximize=True)
    yield _sgd("momentum", w, g, b, 3.0, 0.0, momentum=0.9, dampening=0.5)
    yield _sgd("first step", w, g, b, 0.0, 0.5, momentum=0.9, dampening=0.5, first_step=True)
    yield _sgd("nesterov", w, g, b, 3.0, 0.5, momentum=0.9, nesterov=True)


def _adamw_samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = _Random(device, dtype)
    tensors = w, *_ = t(4, 5), t(4, 5), t(4, 5), t(4, 5).abs()
    yield _adamw("plain", *tensors, 0.0, 0.0)
    yield _adamw("adaptive metric", *tensors, 3.0, 0.5)
    yield _adamw("bound", *tensors, 30.0, 0.5, bound=0.01)
    never = torch.zeros_like(w)
    yield _adamw("no gradient yet", w, never, never, never, 0.5, 0.5, bound=0.05)
    yield _adamw("metric of lr", *tensors, 3.0, 0.5, adaptive=False, maximize=True)


def _sgd_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = _Random(device, dtype)
    for s in _SHAPES:
        yield _sgd(f"{s}", t(*s), t(*s), t(*s), 3.0, 0.5, momentum=0.9)


def _adamw_shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = _Random(device, dtype)
    for s in _SHAPES:
        yield _adamw(f"{s}", t(*s), t(*s), t(*s), t(*s).abs(), 3.0, 0.5)


_IN_PLACE = dict.fromkeys(MODES, "a step updates contiguous tensors in place, outside of autograd")

OPS: list[Op] = [
    *(_linear_act_op(activation) for activation in ACTIVATIONS),
    Op("dropout", _dropout_samples, _dropout_shapes),
    Op(
        "dropout_mask",
        _mask_samples,
        _mask_shapes,
        skip=dict.fromkeys(MODES, "the mask is bool and has no tensor input but the seed"),
    ),
    _prox_op("soft_threshold", functional.soft_threshold, prox_reference.soft_threshold, 1),
    _prox_op("prox_l2", functional.prox_l2, lambda x, lam: prox_reference.prox(x, 0.0, lam), 1),
    _prox_op("prox_elastic_net", functional.prox_elastic_net, prox_reference.prox, 2),
    Op("sgd_step", _sgd_samples, _sgd_shapes, skip=_IN_PLACE),
    Op("adamw_step", _adamw_samples, _adamw_shapes, skip=_IN_PLACE),
]
