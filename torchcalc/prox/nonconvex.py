"""Sums over coordinates that are not convex: what pulls large weights less, or not at all."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from torchcalc.ops import penalty_prox as ops
from torchcalc.ops.penalty_prox import Kernel, Strength
from torchcalc.prox._base import set_strengths
from torchcalc.prox.separable import Separable


@dataclass(frozen=True)
class L0(Separable):
    """g(w) = lam times how many w are not 0; prox(v, s) = v where |v| > sqrt(2 s lam), else 0.

    Source: Blumensath & Davies, "Iterative thresholding for sparse approximations", 2008.
    """

    lam: Strength
    name: ClassVar[str] = "l0"
    is_convex = False

    def __post_init__(self) -> None:
        set_strengths(self, lam=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.L0, self.lam)

    def g(self, w: Tensor) -> Tensor:
        return (self.lam * (w != 0).to(w.dtype)).sum()

    def scaled(self, factor: float) -> L0:
        return L0(factor * self.lam)


@dataclass(frozen=True)
class LHalf(Separable):
    """g(w) = lam sum sqrt|w|; prox(v, s) = 0 where |v| <= (3/2) (s lam)^(2/3), else

    (2/3) v (1 + cos((2/3) (pi - arccos((s lam / 4) (|v| / 3)^(-3/2))))).

    Source: Xu, Chang, Xu & Zhang, "L1/2 regularization: a thresholding representation theory and a
    fast solver", 2012.
    """

    lam: Strength
    name: ClassVar[str] = "l_half"
    is_convex = False

    def __post_init__(self) -> None:
        set_strengths(self, lam=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.L_HALF, self.lam)

    def g(self, w: Tensor) -> Tensor:
        x = torch.where(w == 0, 1.0, w.abs()).sqrt()  # of 0, where it has none, a gradient of 0
        return (self.lam * torch.where(w == 0, 0.0, x)).sum()

    def scaled(self, factor: float) -> LHalf:
        return LHalf(factor * self.lam)


@dataclass(frozen=True)
class MCP(Separable):
    """g(w) = sum of lam |w| - w^2 / (2 gamma) up to |w| = gamma lam, gamma lam^2 / 2 beyond.

    prox(v, s), for s < gamma: S(v, s lam) / (1 - s / gamma) up to |v| = gamma lam, v beyond. For
    s >= gamma: 0 up to |v| = lam sqrt(s gamma), v beyond.

    Source: Zhang, "Nearly unbiased variable selection under minimax concave penalty", 2010, for
    s < gamma. With a larger s, g + (w - v)^2 / (2 s) is concave up to gamma lam, so that its
    minimum is at 0 or at v: at v where v^2 / (2 s) > gamma lam^2 / 2.
    """

    lam: Strength
    gamma: Strength = 3.0
    name: ClassVar[str] = "mcp"
    is_convex = False

    def __post_init__(self) -> None:
        set_strengths(self, lam=None, gamma=0)

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.MCP, self.lam, self.gamma)

    def g(self, w: Tensor) -> Tensor:
        knee = self.gamma * self.lam
        x = torch.where(w.abs() <= knee, w.abs(), knee)
        return (self.lam * x - x.square() / (2 * self.gamma)).sum()

    def scaled(self, factor: float) -> MCP:
        return MCP(factor * self.lam, self.gamma / factor if factor else self.gamma)


@dataclass(frozen=True)
class SCAD(Separable):
    """g(w) = factor sum p(w): p rises with slope lam up to |w| = lam, then its slope falls to 0.

    p(x) = lam |x|, then (2 a lam |x| - x^2 - lam^2) / (2 (a - 1)) up to |x| = a lam, then
    lam^2 (a + 1) / 2. With t = s factor, prox(v, s) is

    - t < a - 1: S(v, t lam) up to |v| = lam (1 + t), ((a - 1) v - sign(v) t a lam) / (a - 1 - t) up
      to a lam, v beyond;
    - a - 1 <= t < a + 1: S(v, t lam) up to |v| = lam (a + 1 + t) / 2, v beyond;
    - t >= a + 1: 0 up to |v| = lam sqrt(t (a + 1)), v beyond.

    Source: Fan & Li, "Variable selection via nonconcave penalized likelihood", 2001, for t = 1. The
    other thresholds are where two local minima of g + (w - v)^2 / (2 s) are equal.
    """

    lam: Strength
    a: Strength = 3.7
    factor: Strength = 1.0
    name: ClassVar[str] = "scad"
    is_convex = False

    def __post_init__(self) -> None:
        set_strengths(self, lam=None, a=2, factor=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.SCAD, self.lam, self.a, self.factor)

    def g(self, w: Tensor) -> Tensor:
        lam, a = self.lam, self.a
        x = w.abs()
        middle = (2 * a * lam * x - x.square() - lam * lam) / (2 * (a - 1))
        flat = lam * lam * (a + 1) / 2
        p = torch.where(x <= lam, lam * x, torch.where(x <= a * lam, middle, flat))
        return (self.factor * p).sum()

    def scaled(self, factor: float) -> SCAD:
        return replace(self, factor=factor * self.factor)
