"""The optimizer steps on devices without kernels, and the op that is a step in compiled graphs.

All mutate their arguments and return nothing.
"""

from __future__ import annotations

import itertools
import math
import weakref
from collections.abc import Iterator
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor

from torchcalc.ops._autograd import implement
from torchcalc.ops.penalty_prox import Kernel, bounded_prox
from torchcalc.reference import optim as reference


class Stepper(Protocol):
    """What ``optimizer_step`` calls."""

    def step_with(self, params: list[Tensor], grads: list[Tensor], which: list[int]) -> None: ...


# A graph names its optimizer by a number, and keeps neither it nor its values.
_steppers: weakref.WeakValueDictionary[int, Stepper] = weakref.WeakValueDictionary()
_numbers = itertools.count()


def register(stepper: Stepper) -> int:
    """The number by which ``optimizer_step`` finds it, as long as it lives."""
    number = next(_numbers)
    _steppers[number] = stepper
    return number


# Besides params it writes states, which no graph reads. A CUDA graph must not capture it: that
# would run every step with the values of one.
torch.library.define(
    "torchcalc::optimizer_step",
    "(Tensor(a!)[] params, Tensor[] grads, int optimizer, int[] which) -> ()",
    tags=(torch.Tag.cudagraph_unsafe,) if hasattr(torch.Tag, "cudagraph_unsafe") else (),
)


def _optimizer_step(
    params: list[Tensor], grads: list[Tensor], optimizer: int, which: list[int]
) -> None:
    _steppers[optimizer].step_with(params, grads, which)


torch.library.impl("torchcalc::optimizer_step", "CompositeExplicitAutograd", _optimizer_step)


@torch.library.register_fake("torchcalc::optimizer_step")
def _(*args):  # type: ignore[no-untyped-def]
    return None


# --- in plain PyTorch, for devices without kernels


def _tensors(
    params: list[Tensor], grads: list[Tensor], states: list[Tensor], counts: int, places: Tensor
) -> Iterator[tuple[Tensor, Tensor, list[Tensor], int]]:
    """Each parameter with its gradient and views of its states (see csrc/ops/optim.h)."""
    torch.ops.torchcalc.optim_check(params, grads, states, counts, places)
    rest = iter(places.tolist())
    flats, numbers = states[: len(states) - counts], states[len(states) - counts :]
    for param, grad in zip(params, grads, strict=True):
        offset, number, dims = next(rest), next(rest), next(rest)
        shape = [next(rest) for _ in range(dims)]
        indexes = next(rest)
        views = [t.view(-1)[offset : offset + param.numel()].view(shape) for t in flats]
        yield param, grad, views + [t.view(-1)[number] for t in numbers], indexes


def _in_op_math(
    step: Any, param: Tensor, grad: Tensor, states: list[Tensor], **options: Any
) -> None:
    """A step of the reference; tensors of half types get its results rounded once."""
    written = [param, *states]
    new_param, new_grad, *new_states = (
        t.float() if t.element_size() < 4 else t for t in (param, grad, *states)
    )
    step(new_param, new_grad, *new_states, **options)
    for t, w in zip(written, (new_param, *new_states), strict=True):
        if t is not w:
            t.copy_(w)


def _sgd_step(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[Tensor],
    places: Tensor,
    *options: Any,
) -> None:
    *rule, kind, numbers = options
    names = "lr", "momentum", "dampening", "weight_decay", "nesterov", "maximize", "first_step"
    named = dict(zip(names, rule, strict=True))
    for param, grad, buffers, indexes in _tensors(params, grads, states, 0, places):
        prox = partial(bounded_prox, Kernel(kind, *numbers), indexes, math.inf)
        _in_op_math(reference.sgd_step, param, grad, buffers, prox=prox, **named)


def _adamw_step(
    params: list[Tensor],
    grads: list[Tensor],
    states: list[Tensor],
    places: Tensor,
    *options: Any,
) -> None:
    *rule, kind, numbers, adaptive, bound = options
    names = "lr", "beta1", "beta2", "eps", "weight_decay", "maximize"
    named = dict(zip(names, rule, strict=True), adaptive=adaptive)
    for param, grad, moments, indexes in _tensors(params, grads, states, 1, places):
        prox = partial(bounded_prox, Kernel(kind, *numbers), indexes, bound)
        _in_op_math(reference.adamw_step, param, grad, moments, prox=prox, **named)


implement("sgd_step", _sgd_step, "CompositeExplicitAutograd")
implement("adamw_step", _adamw_step, "CompositeExplicitAutograd")


# --- shapes


@torch.library.register_fake("torchcalc::sgd_step")
def _(*args):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("torchcalc::adamw_step")
def _(*args):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("torchcalc::optim_check")
def _(*args):  # type: ignore[no-untyped-def]
    return None
