"""What a penalty is."""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
import numbers
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc._check import check_floating, describe
from torchcalc.ops.penalty_prox import Kernel, Strength


@dataclasses.dataclass(frozen=True)
class Penalty(abc.ABC):
    """g(w), with prox(v, step) = argmin_w g(w) + sum (w - v)^2 / (2 step).

    A penalty is a frozen object: ``2 * g`` and ``g + h`` are others. Optimizers take one as
    ``penalty``. A constraint is a penalty that is 0 on a set and infinite elsewhere; its prox is
    the projection on that set, in the metric of the steps.

    Strengths are numbers; for :meth:`prox` they may be tensors, which get gradients. The values of
    tensors are not inspected.
    """

    name: ClassVar[str]  # under which an optimizer stores it
    is_convex: ClassVar[bool] = True
    is_constraint: ClassVar[bool] = False
    is_separable: ClassVar[bool] = False  # a sum over coordinates
    is_differentiable: ClassVar[bool] = True  # the prox is, almost everywhere
    takes_metric: ClassVar[bool] = True  # a step for each coordinate

    def value(self, w: Tensor) -> Tensor:
        """g(w), a scalar; of a constraint 0 where w meets it, up to rounding, else infinite.

        Where w is of a half type it is added up in float32.
        """
        check_floating(type(self).__name__, "w", w)
        return self.g(w if self.is_constraint else wide(w))

    @abc.abstractmethod
    def g(self, w: Tensor) -> Tensor:
        """What ``value`` gives, of tensors in the type that arithmetic is done in."""

    def prox(self, v: Tensor, step: Strength = 1.0) -> Tensor:
        """argmin_w g(w) + sum (w - v)^2 / (2 step): :func:`torchcalc.functional.prox`."""
        return functional.prox(v, self, step)

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        for name in ("conjugate", "dual_norm"):
            if name in vars(cls):
                setattr(cls, name, _checked(vars(cls)[name]))

    @property
    def kernel(self) -> Kernel | None:
        """What computes it; None where that is ``apply``."""
        return None

    def apply(self, v: Tensor, step: Strength) -> Tensor:
        """The prox where there is no kernel, in operations of PyTorch."""
        raise NotImplementedError

    def indexes(self, shape: torch.Size) -> int:
        """Of a penalty by groups: bit d is 1 where dimension d tells the groups.

        Raises:
            ValueError: a tensor of this shape does not fall into groups.
        """
        return 0

    @property
    def layout(self) -> Any:
        """Of what ``indexes`` depends, besides the shape."""
        return None

    @abc.abstractmethod
    def scaled(self, factor: float) -> Penalty:
        """factor times g, factor > 0 and finite."""

    def plus(self, other: Penalty) -> Penalty | None:
        """g + other where that has a closed form that this class knows of."""
        return None

    def arguments(self) -> dict[str, Any]:
        """The constructor's."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def __mul__(self, factor: Any) -> Penalty:
        if not isinstance(factor, numbers.Real) or isinstance(factor, bool):
            return NotImplemented
        if not 0 <= float(factor) < math.inf or (factor == 0 and self.is_constraint):
            bounds = "> 0" if self.is_constraint else ">= 0"
            raise ValueError(
                f"{type(self).__name__}: factor must be {bounds} and finite, got {factor}"
            )
        return self.scaled(float(factor))

    __rmul__ = __mul__

    def __radd__(self, other: Any) -> Penalty:
        return self if type(other) is int and other == 0 else NotImplemented  # sum([g, h])

    def __add__(self, other: Any) -> Penalty:
        if not isinstance(other, Penalty):
            return NotImplemented
        total = self.plus(other)
        if total is None:
            total = other.plus(self)
        if total is None:
            raise TypeError(
                f"no closed form is known for the sum of {type(self).__name__} and "
                f"{type(other).__name__}. Sums exist of L1, L2, ElasticNet, NonNegative, "
                "NonNegativeL1, Box and Huber; of one of L0, LHalf, MCP and SCAD with these but "
                "Huber, and Box only from 0 to infinity; of L1 with GroupL2 and SparseGroupL2; and "
                "of GroupL2, LInf, TV1D or Nuclear with its like"
            )
        return total


def _checked(method: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    """A conjugate or dual norm that refuses what value and prox refuse; of nothing it is 0."""

    @functools.wraps(method)
    def checked(self: Any, u: Tensor) -> Tensor:
        check_floating(type(self).__name__, "u", u)
        return method(self, u) if u.numel() else u.new_zeros(())

    return checked


def strength(op: str, name: str, value: Any, above: float | None = None) -> Strength:
    """A strength of a penalty: a finite number >= 0, or > ``above``; or a floating tensor."""
    if isinstance(value, Tensor):
        if not value.is_floating_point():
            raise TypeError(
                f"{op}: {name} must be a number or a floating tensor, got {value.dtype}"
            )
        return value
    bounds = ">= 0" if above is None else f"> {above:g}"
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be a number {bounds}, got {describe(value)}")
    number = float(value)
    if not (number >= 0 if above is None else number > above):
        raise ValueError(f"{op}: {name} must be {bounds}, got {value}")
    if number == math.inf:  # also where Dynamo traces
        raise ValueError(f"{op}: {name} must be finite, got {value}")
    return number


def set_strengths(penalty: Penalty, **above: float | None) -> None:
    """Checks the named strengths, and stores them as floats."""
    for name, bound in above.items():
        value = strength(type(penalty).__name__, name, getattr(penalty, name), bound)
        object.__setattr__(penalty, name, value)


def as_indicator(holds: Tensor, w: Tensor) -> Tensor:
    """0 where a condition holds, else infinity."""
    return torch.where(holds.all(), 0.0, math.inf).to(w.dtype)


def slack(w: Tensor, scale: Strength, terms: int = 1) -> Strength:
    """What rounding may make of a sum of so many terms, of this size; PyTorch adds up in pairs."""
    coarse = torch.finfo(w.dtype).eps if w.dtype.itemsize < 4 else 0.0
    relative = 16 * torch.finfo(wide(w).dtype).eps * (1 + math.log2(max(terms, 1))) + coarse
    return relative * (scale + 1e-30)


def wide(w: Tensor) -> Tensor:
    """In the type that arithmetic is done in."""
    return w.float() if w.dtype.itemsize < 4 else w
