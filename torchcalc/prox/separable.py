"""Penalties that are sums over coordinates."""

from __future__ import annotations

import math
import numbers
from dataclasses import dataclass, replace
from typing import Any, ClassVar

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
        return _quadratic((u.abs() - self.l1 - slack(u, self.l1)).clamp_min(0).square(), self.l2)

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
        return (self.lam * w.abs().sqrt()).sum()

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


def _is_zero(strength: Strength) -> bool:
    return not isinstance(strength, Tensor) and strength == 0


def sum_of(a: Separable, b: Separable) -> Separable | None:
    """a + b, of a class of its own where there is one; None where there is no closed form."""
    x, y = a.kernel, b.kernel
    if type(a) is type(b) and isinstance(a, L0 | LHalf | Huber):
        same = not isinstance(a, Huber) or x.shape == y.shape
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
