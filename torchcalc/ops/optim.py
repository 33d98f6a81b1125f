"""Fake kernels of the optimizer steps, and the op that stands for a step in compiled graphs.

All mutate their arguments and return nothing.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Protocol

import torch
from torch import Tensor

from torchcalc.ops import _library as _library  # the ops are there


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


@torch.library.register_fake("torchcalc::sgd_step")
def _(*args):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("torchcalc::adamw_step")
def _(*args):  # type: ignore[no-untyped-def]
    return None


@torch.library.register_fake("torchcalc::optim_check")
def _(*args):  # type: ignore[no-untyped-def]
    return None
