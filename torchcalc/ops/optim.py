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
from torchcalc.reference.rounding import round_randomly


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
) -> Iterator[tuple[Tensor, Tensor, list[Tensor], int, int]]:
    """Each parameter with its gradient, views of its states, and more (see csrc/ops/optim.h)."""
    torch.ops.torchcalc.optim_check(params, grads, states, counts, places)
    rest = iter(places.tolist())
    flats, numbers = states[: len(states) - counts], states[len(states) - counts :]
    for param, grad in zip(params, grads, strict=True):
        offset, number, position, dims = (next(rest) for _ in range(4))
        shape = [next(rest) for _ in range(dims)]
        indexes = next(rest)
        views = [t.view(-1)[offset : offset + param.numel()].view(shape) for t in flats]
        yield param, grad, views + [t.view(-1)[number] for t in numbers], position, indexes


# Each op with its rule, and how many numbers it keeps of a tensor.
RULES: dict[str, tuple[Any, int]] = {
    "sgd_step": (reference.SGDRule, 0),
    "adam_step": (reference.AdamRule, 1),
    "adagrad_step": (reference.AdagradRule, 1),
    "rmsprop_step": (reference.RMSpropRule, 1),
    "ftrl_step": (reference.FTRLRule, 0),
}


# What tensors on the device may hold, in the order of csrc/ops/optim_args.h.
LIVE = ("grad_scale", "found_inf", "lr", "beta1", "beta2", "lr_before")


def plain_step(
    op: str,
    params: list[Tensor],
    grads: list[Tensor],
    states: list[Tensor],
    places: Tensor,
    *arguments: Any,
) -> None:
    """A step of the reference; tensors of half types get its results rounded once."""
    rule_type, counts = RULES[op]
    # The last one has a default, and may be absent.
    *options, live, fields, seed = arguments if isinstance(arguments[-1], int) else (*arguments, -1)
    now = {LIVE[field]: t.item() for t, field in zip(live, fields, strict=True)}
    scale = now.pop("grad_scale", 1.0)
    if now.pop("found_inf", 0.0):
        return
    length = len(rule_type._fields)
    rule = rule_type(*options[:length])._replace(**now)
    kind, numbers, *metric = options[length:]
    adaptive, prox_clip = metric or (True, math.inf)
    for param, grad, kept, position, indexes in _tensors(params, grads, states, counts, places):
        k = 0.0
        if counts:
            count = kept.pop()
            count += 1
            k = float(count)
        written = [param, *kept]
        wide = [t.float() if t.element_size() < 4 else t for t in (*written, grad)]
        wide[-1] = wide[-1] / scale
        prox = partial(bounded_prox, Kernel(kind, *numbers), indexes)
        reference.step(
            *(rule, k, wide[0], wide[-1], wide[1:-1]),
            prox=prox,
            adaptive=adaptive,
            prox_clip=prox_clip,
        )
        for t, w in zip(written, wide, strict=False):
            if t is param and t is not w and seed >= 0:
                t.copy_(round_randomly(w, t.dtype, seed, position, 1))
            elif t is not w:
                t.copy_(w)


for _name in RULES:
    implement(_name, partial(plain_step, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"torchcalc::{_name}")(lambda *args: None)


@torch.library.register_fake("torchcalc::optim_check")
def _(*args):  # type: ignore[no-untyped-def]
    return None
