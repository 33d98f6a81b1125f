"""Convex penalties that are sums over coordinates."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from torchcalc._check import describe
from torchcalc.ops import penalty_prox as ops
from torchcalc.ops.penalty_prox import Kernel, Strength
from torchcalc.prox._base import Penalty, as_indicator, set_strengths, slack


class Separable(Penalty):
    """A penalty that is a sum over coordinates; these have sums with each other."""

    is_separable = True

    @property
    def kernel(self) -> Kernel:
        raise NotImplementedError

    def plus(self, other: Penalty) -> Penalty | None:
        from torchcalc.prox.sums import sum_of  # made of the classes here

        return sum_of(self, other) if isinstance(other, Separable) else None


@dataclass(frozen=True)
class L1(Separable):
    """g(w) = lam ||w||_1; prox(v, s) = S(v, s lam) = sign(v) max(|v| - s lam, 0).

    Exactly 0 where |v| <= s lam.

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 6.5.2.
    """

    lam: Strength
    name: ClassVar[str] = "l1"

    def __post_init__(self) -> None:
        set_strengths(self, lam=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(l1=self.lam)

    def g(self, w: Tensor) -> Tensor:
        return (self.lam * w.abs()).sum()

    def conjugate(self, u: Tensor) -> Tensor:
        """0 where max |u| <= lam, else infinity."""
        return as_indicator(u.abs() <= self.lam + slack(u, self.lam), u)

    def dual_norm(self, u: Tensor) -> Tensor:
        """max |u|."""
        return u.abs().max()

    def scaled(self, factor: float) -> L1:
        return L1(factor * self.lam)


@dataclass(frozen=True)
class L2(Separable):
    """g(w) = (lam / 2) ||w||^2; prox(v, s) = v / (1 + s lam).

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 2.2.
    """

    lam: Strength
    name: ClassVar[str] = "l2"

    def __post_init__(self) -> None:
        set_strengths(self, lam=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(l2=self.lam)

    def g(self, w: Tensor) -> Tensor:
        return (self.lam / 2 * w.square()).sum()

    def conjugate(self, u: Tensor) -> Tensor:
        """||u||^2 / (2 lam); where lam is 0, infinity unless u is 0."""
        return _quadratic(u.square(), self.lam)

    def scaled(self, factor: float) -> L2:
        return L2(factor * self.lam)


@dataclass(frozen=True)
class ElasticNet(Separable):
    """g(w) = l1 ||w||_1 + (l2 / 2) ||w||^2; prox(v, s) = S(v, s l1) / (1 + s l2).

    Source: Zou & Hastie, 2005; Parikh & Boyd, "Proximal algorithms", 2014, section 6.5.3.
    """

    l1: Strength
    l2: Strength
    name: ClassVar[str] = "elastic_net"

    def __post_init__(self) -> None:
        set_strengths(self, l1=None, l2=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(l1=self.l1, l2=self.l2)

    def g(self, w: Tensor) -> Tensor:
        return (self.l1 * w.abs() + self.l2 / 2 * w.square()).sum()

    def conjugate(self, u: Tensor) -> Tensor:
        """sum max(|u| - l1, 0)^2 / (2 l2); where l2 is 0, that of L1."""
        excess = (u.abs() - self.l1).clamp_min(0)
        return _quadratic(torch.where(excess <= slack(u, self.l1), 0.0, excess).square(), self.l2)

    def scaled(self, factor: float) -> ElasticNet:
        return ElasticNet(factor * self.l1, factor * self.l2)


def _quadratic(squares: Tensor, lam: Strength) -> Tensor:
    """sum squares / (2 lam), 0 / 0 being 0."""
    return torch.where(
        squares == 0, 0.0, squares / (2 * torch.as_tensor(lam, dtype=squares.dtype))
    ).sum()


@dataclass(frozen=True)
class NonNegative(Separable):
    """g(w) = 0 where w >= 0, else infinite; prox(v, s) = max(v, 0)."""

    name: ClassVar[str] = "non_negative"
    is_constraint = True

    @property
    def kernel(self) -> Kernel:
        return Kernel(low=0.0)

    def g(self, w: Tensor) -> Tensor:
        return as_indicator(w >= 0, w)

    def conjugate(self, u: Tensor) -> Tensor:
        """0 where u <= 0, else infinity."""
        return as_indicator(u <= 0, u)

    def scaled(self, factor: float) -> NonNegative:
        return self


@dataclass(frozen=True)
class NonNegativeL1(Separable):
    """g(w) = lam ||w||_1 where w >= 0, else infinite; prox(v, s) = max(v - s lam, 0)."""

    lam: Strength
    name: ClassVar[str] = "non_negative_l1"

    def __post_init__(self) -> None:
        set_strengths(self, lam=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(l1=self.lam, low=0.0)

    def g(self, w: Tensor) -> Tensor:
        return (self.lam * w.abs()).sum() + as_indicator(w >= 0, w)

    def conjugate(self, u: Tensor) -> Tensor:
        """0 where u <= lam, else infinity."""
        return as_indicator(u <= self.lam + slack(u, self.lam), u)

    def scaled(self, factor: float) -> NonNegativeL1:
        return NonNegativeL1(factor * self.lam)


@dataclass(frozen=True)
class Box(Separable):
    """g(w) = 0 where low <= w <= high, else infinite; prox(v, s) = min(max(v, low), high).

    ``low`` may be -infinity, ``high`` infinity.
    """

    low: float
    high: float
    name: ClassVar[str] = "box"
    is_constraint = True

    def __post_init__(self) -> None:
        for name in ("low", "high"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, numbers.Real):
                raise TypeError(f"Box: {name} must be a number, got {describe(value)}")
            object.__setattr__(self, name, float(value))
        if not self.low <= self.high or self.low == math.inf or self.high == -math.inf:
            raise ValueError(f"Box: low must be <= high, got low={self.low}, high={self.high}")

    @property
    def kernel(self) -> Kernel:
        return Kernel(low=self.low, high=self.high)

    def g(self, w: Tensor) -> Tensor:
        return as_indicator((w >= self.low) & (w <= self.high), w)

    def conjugate(self, u: Tensor) -> Tensor:
        """sum max(low u, high u)."""
        return torch.where(u == 0, 0.0, torch.maximum(self.low * u, self.high * u)).sum()

    def scaled(self, factor: float) -> Box:
        return self


@dataclass(frozen=True)
class Huber(Separable):
    """g(w) = lam sum h(w), h(x) = x^2 / 2 up to |x| = delta, delta |x| - delta^2 / 2 beyond.

    prox(v, s) = v / (1 + s lam) up to |v| = delta (1 + s lam), v - sign(v) s lam delta beyond.

    Source: Huber, 1964; Beck, "First-order methods in optimization", 2017, example 6.66.
    """

    lam: Strength
    delta: Strength
    name: ClassVar[str] = "huber"

    def __post_init__(self) -> None:
        set_strengths(self, lam=None, delta=0)

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.HUBER, self.lam, self.delta)

    def g(self, w: Tensor) -> Tensor:
        x = w.abs()
        below = torch.where(x <= self.delta, x, self.delta)  # of finite square
        return (self.lam * (below.square() / 2 + self.delta * (x - below))).sum()

    def conjugate(self, u: Tensor) -> Tensor:
        """||u||^2 / (2 lam) where max |u| <= lam delta, else infinity."""
        limit = self.lam * self.delta
        within = as_indicator(u.abs() <= limit + slack(u, limit), u)
        return _quadratic(u.square(), self.lam) + within

    def scaled(self, factor: float) -> Huber:
        return Huber(factor * self.lam, self.delta)
