"""Sums of penalties that are sums over coordinates."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor

from torchcalc.ops import penalty_prox as ops
from torchcalc.ops.penalty_prox import Kernel, Strength
from torchcalc.prox._base import Penalty, set_strengths
from torchcalc.prox.nonconvex import L0, MCP, SCAD, LHalf
from torchcalc.prox.separable import (
    L1,
    L2,
    Box,
    ElasticNet,
    Huber,
    NonNegative,
    NonNegativeL1,
    Separable,
)


@dataclass(frozen=True)
class SeparableSum(Separable):
    """g(w) = f(w) + l1 ||w||_1 + (l2 / 2) ||w||^2 where low <= w <= high, else infinite.

    prox(v, s) is the prox of f at S(v, s l1) / (1 + s l2) with step s / (1 + s l2), projected on
    [low, high]. The sum of two penalties is one of these where it has no class of its own.

    Args:
        of: the name of f, "huber", "l0", "l_half", "mcp" or "scad"; or "" for 0.
        lam, shape, factor: the arguments of f: ``shape`` is Huber's delta, gamma of MCP, a of SCAD.
        l1, l2, low, high: as above. Where f is not convex, low to high must be 0 to infinity or
            everything.

    Source: f is even and grows with |x|, so that for x >= 0 the terms l1 and l2 complete a square;
    for the projection see Beck, "First-order methods in optimization", 2017, theorem 6.13 and
    example 6.22: a convex function of one variable has its minimum over an interval next to its
    own.
    """

    of: str = ""
    lam: Strength = 0.0
    shape: Strength = 0.0
    factor: Strength = 1.0
    l1: Strength = 0.0
    l2: Strength = 0.0
    low: float = -math.inf
    high: float = math.inf
    name: ClassVar[str] = "separable_sum"

    def __post_init__(self) -> None:
        if self.of not in ("", *_BASES):
            raise ValueError(
                f"SeparableSum: of must be '' or one of {', '.join(_BASES)}, got {self.of!r}"
            )
        set_strengths(self, lam=None, shape=None, factor=None, l1=None, l2=None)
        box = Box(self.low, self.high)
        object.__setattr__(self, "low", box.low)
        object.__setattr__(self, "high", box.high)
        self._base()
        if not self.is_convex and (self.low, self.high) not in (
            (-math.inf, math.inf),
            (0.0, math.inf),
        ):
            raise ValueError(
                "SeparableSum: low and high must be 0 and infinity, or both infinite, where "
                f"{self.of} is not convex; got {self.low} and {self.high}"
            )

    @property
    def is_convex(self) -> bool:  # type: ignore[override]
        return self.of in ("", "huber")

    def _base(self) -> Separable | None:
        if not self.of:
            return None
        made: Separable = _BASES[self.of](self.lam, self.shape, self.factor)
        return made

    @property
    def kernel(self) -> Kernel:
        made = self._base()
        own = made.kernel if made is not None else Kernel()
        return own._replace(l1=self.l1, l2=self.l2, low=self.low, high=self.high)

    def g(self, w: Tensor) -> Tensor:
        made = self._base()
        total = ElasticNet(self.l1, self.l2).g(w) + Box(self.low, self.high).g(w)
        return total if made is None else total + made.g(w)

    def scaled(self, factor: float) -> Penalty:
        made = self._base()
        rest = SeparableSum(l1=factor * self.l1, l2=factor * self.l2, low=self.low, high=self.high)
        return rest if made is None else sum_of(made.scaled(factor), rest)  # type: ignore[return-value,arg-type]


_BASES: dict[str, Any] = {
    "huber": lambda lam, shape, factor: Huber(lam, shape),
    "l0": lambda lam, shape, factor: L0(lam),
    "l_half": lambda lam, shape, factor: LHalf(lam),
    "mcp": lambda lam, shape, factor: MCP(lam, shape),
    "scad": SCAD,
}
_KINDS = {ops.HUBER: "huber", ops.L0: "l0", ops.L_HALF: "l_half", ops.MCP: "mcp", ops.SCAD: "scad"}


def _are_equal(x: Strength, y: Strength) -> bool:
    return x is y or not (isinstance(x, Tensor) or isinstance(y, Tensor) or x != y)


def _is_zero(strength: Strength) -> bool:
    return not isinstance(strength, Tensor) and strength == 0


def sum_of(a: Separable, b: Separable) -> Separable | None:
    """a + b, of a class of its own where there is one; None where there is no closed form."""
    x, y = a.kernel, b.kernel
    if type(a) is type(b) and isinstance(a, L0 | LHalf | Huber):
        same = not isinstance(a, Huber) or _are_equal(x.shape, y.shape)
        return replace(a, lam=x.lam + y.lam) if same else None
    if x.kind != ops.PLAIN and y.kind != ops.PLAIN:
        return None
    own = x if x.kind != ops.PLAIN else y
    l1, l2 = x.l1 + y.l1, x.l2 + y.l2
    low, high = max(x.low, y.low), min(x.high, y.high)
    if low > high:
        raise ValueError(f"the sum of {a} and {b} is infinite everywhere: no w meets both")
    everything, no_l1, no_l2 = (low, high) == (-math.inf, math.inf), _is_zero(l1), _is_zero(l2)
    if own.kind == ops.PLAIN:
        if everything:
            return L1(l1) if no_l2 else L2(l2) if no_l1 else ElasticNet(l1, l2)
        if no_l2 and (low, high) == (0.0, math.inf):
            return NonNegative() if no_l1 else NonNegativeL1(l1)
        if no_l1 and no_l2:
            return Box(low, high)
    elif everything and no_l1 and no_l2:
        return a if x is own else b
    if own.kind not in (ops.PLAIN, ops.HUBER) and not everything and (low, high) != (0.0, math.inf):
        return None
    of = _KINDS.get(own.kind, "")
    return SeparableSum(of, own.lam, own.shape, own.factor, l1, l2, low, high)
