"""Penalties and constraints on a tensor as a whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc.ops import penalty_prox as ops
from torchcalc.ops.penalty_prox import Kernel, Strength
from torchcalc.prox._base import Penalty, as_indicator, set_strengths, slack, wide
from torchcalc.prox.groups import check_whole, positive_dims


@dataclass(frozen=True)
class LInf(Penalty):
    """g(w) = lam max |w|; prox(v, s) = min(max(v, -t), t), sum max(|v| - t, 0) / s = lam.

    0 where sum |v| / s <= lam.

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 6.5.2, by Moreau's identity.
    """

    lam: Strength
    name: ClassVar[str] = "l_inf"

    def __post_init__(self) -> None:
        set_strengths(self, lam=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.L_INF, self.lam)

    def g(self, w: Tensor) -> Tensor:
        return self.lam * (w.abs().max() if w.numel() else w.sum())

    def conjugate(self, u: Tensor) -> Tensor:
        """0 where ||u||_1 <= lam, else infinity."""
        return as_indicator(u.abs().sum() <= self.lam + slack(u, self.lam, u.numel()), u)

    def dual_norm(self, u: Tensor) -> Tensor:
        """||u||_1."""
        return u.abs().sum()

    def scaled(self, factor: float) -> LInf:
        return LInf(factor * self.lam)

    def plus(self, other: Penalty) -> Penalty | None:
        return LInf(self.lam + other.lam) if isinstance(other, LInf) else None


class _Constraint(Penalty):
    is_constraint = True

    def scaled(self, factor: float) -> Penalty:
        return self


@dataclass(frozen=True)
class L1Ball(_Constraint):
    """g(w) = 0 where ||w||_1 <= radius, else infinite; prox(v, s) = S(v, t s).

    ||S(v, t s)||_1 = radius; v where it meets the constraint.

    Source: Duchi, Shalev-Shwartz, Singer & Chandra, "Efficient projections onto the l1-ball for
    learning in high dimensions", 2008.
    """

    radius: Strength
    name: ClassVar[str] = "l1_ball"

    def __post_init__(self) -> None:
        set_strengths(self, radius=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.L1_BALL, self.radius)

    def g(self, w: Tensor) -> Tensor:
        limit = self.radius + slack(w, self.radius, w.numel())
        return as_indicator(wide(w).abs().sum() <= limit, w)

    def conjugate(self, u: Tensor) -> Tensor:
        """radius max |u|."""
        return self.radius * u.abs().max()


@dataclass(frozen=True)
class L2Ball(_Constraint):
    """g(w) = 0 where ||w|| <= radius, else infinite; prox(v, s) = v / (1 + t s) of norm radius.

    v where it meets the constraint. With one step for all: v min(1, radius / ||v||).

    Source: Parikh & Boyd, "Proximal algorithms", 2014, section 6.5.1.
    """

    radius: Strength
    name: ClassVar[str] = "l2_ball"

    def __post_init__(self) -> None:
        set_strengths(self, radius=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.L2_BALL, self.radius)

    def g(self, w: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(wide(w))
        return as_indicator(norm <= self.radius + slack(w, self.radius, w.numel()), w)

    def conjugate(self, u: Tensor) -> Tensor:
        """radius ||u||."""
        norm: Tensor = self.radius * torch.linalg.vector_norm(u)
        return norm


@dataclass(frozen=True)
class Simplex(_Constraint):
    """g(w) = 0 where w >= 0 and sum w = total, else infinite; prox(v, s) = max(v - t s, 0).

    t is such that the sum is total.

    Source: Held, Wolfe & Crowder, "Validation of subgradient optimization", 1974; Condat, "Fast
    projection onto the simplex and the l1 ball", 2016.
    """

    total: Strength = 1.0
    name: ClassVar[str] = "simplex"

    def __post_init__(self) -> None:
        set_strengths(self, total=None)

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.SIMPLEX, self.total)

    def g(self, w: Tensor) -> Tensor:
        error = (wide(w).sum() - self.total).abs()
        meets = (error <= slack(w, self.total, w.numel())) & (w >= 0).all()
        return as_indicator(meets, w)

    def conjugate(self, u: Tensor) -> Tensor:
        """total max u."""
        return self.total * u.max()


@dataclass(frozen=True)
class TV1D(Penalty):
    """g(w) = lam sum |w_(i+1) - w_i| along dim, over all lines: they become piecewise constant.

    prox(v, s) by dynamic programming, in time proportional to the length.

    Source: Johnson, "A dynamic programming algorithm for the fused lasso and L0-segmentation",
    2013, with weights 1 / s.
    """

    lam: Strength
    dim: int = -1
    name: ClassVar[str] = "tv1d"

    def __post_init__(self) -> None:
        set_strengths(self, lam=None)
        object.__setattr__(self, "dim", check_whole("TV1D", "dim", self.dim, -64))

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.TV, self.lam)

    def indexes(self, shape: torch.Size) -> int:
        (d,) = positive_dims("TV1D", self.dim, shape)
        return (1 << len(shape)) - 1 - (1 << d)

    @property
    def layout(self) -> Any:
        return self.dim

    def g(self, w: Tensor) -> Tensor:
        positive_dims("TV1D", self.dim, w.shape)
        return (self.lam * w.diff(dim=self.dim).abs()).sum()

    def conjugate(self, u: Tensor) -> Tensor:
        """0 where along each line |u_1 + ... + u_i| <= lam, and 0 for the whole; else infinity."""
        positive_dims("TV1D", self.dim, u.shape)
        sums = u.cumsum(self.dim).movedim(self.dim, -1)
        error = math.sqrt(u.numel()) * slack(u, self.lam + u.abs().max())  # one after the other
        return as_indicator(
            (sums.abs() <= self.lam + error).all() & (sums[..., -1].abs() <= error).all(), u
        )

    def scaled(self, factor: float) -> TV1D:
        return TV1D(factor * self.lam, self.dim)

    def plus(self, other: Penalty) -> Penalty | None:
        if isinstance(other, TV1D) and other.dim == self.dim:
            return TV1D(self.lam + other.lam, self.dim)
        return None


@dataclass(frozen=True)
class Nuclear(Penalty):
    """g(w) = lam times the sum of w's singular values; prox(v, s) = U diag(S(sigma, s lam)) V^T.

    w is a matrix, and s one number for all of it. The rank goes down. Gradients are those of
    ``torch.linalg.svd``: NaN where two singular values are equal.

    Source: Cai, Candes & Shen, "A singular value thresholding algorithm for matrix completion",
    2010.
    """

    lam: Strength
    name: ClassVar[str] = "nuclear"
    takes_metric = False

    def __post_init__(self) -> None:
        set_strengths(self, lam=None)

    def indexes(self, shape: torch.Size) -> int:
        if len(shape) != 2:
            raise ValueError(f"Nuclear: the tensor must be a matrix, got shape {tuple(shape)}")
        return 0

    def apply(self, v: Tensor, step: Strength) -> Tensor:
        finite = v.isfinite().all()
        u, sigma, vh = torch.linalg.svd(torch.where(finite, v, 0.0), full_matrices=False)
        shrunk: Tensor = (u * (sigma - step * self.lam).clamp_min(0)) @ vh
        return torch.where(finite, shrunk, math.nan)

    def g(self, w: Tensor) -> Tensor:
        self.indexes(w.shape)
        total: Tensor = self.lam * torch.linalg.svdvals(w).sum()
        return total

    def conjugate(self, u: Tensor) -> Tensor:
        """0 where the largest singular value <= lam, else infinity."""
        return as_indicator(self.dual_norm(u) <= self.lam + slack(u, self.lam, u.numel()), u)

    def dual_norm(self, u: Tensor) -> Tensor:
        """The largest singular value."""
        self.indexes(u.shape)
        largest: Tensor = torch.linalg.matrix_norm(u, 2)
        return largest

    def scaled(self, factor: float) -> Nuclear:
        return Nuclear(factor * self.lam)

    def plus(self, other: Penalty) -> Penalty | None:
        return Nuclear(self.lam + other.lam) if isinstance(other, Nuclear) else None
