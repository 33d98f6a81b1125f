"""Penalties that are sums over groups of coordinates, and constraints on such groups."""

from __future__ import annotations

import math
import numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc._check import describe
from torchcalc.ops import penalty_prox as ops
from torchcalc.ops.penalty_prox import Kernel, Strength
from torchcalc.prox._base import Penalty, as_indicator, set_strengths, slack
from torchcalc.prox.separable import L1

Dims = int | tuple[int, ...]


def check_dims(op: str, dim: Any) -> Dims:
    dims = tuple(dim) if isinstance(dim, Sequence) and not isinstance(dim, str) else (dim,)
    for d in dims:
        if not isinstance(d, numbers.Integral) or isinstance(d, bool):
            raise TypeError(f"{op}: dim must be an int or a sequence of ints, got {describe(dim)}")
    found = tuple(map(int, dims))
    return found if isinstance(dim, Sequence) else found[0]


def check_whole(op: str, name: str, value: Any, least: int = 1) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} must be an int, got {describe(value)}")
    if value < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {value}")
    return int(value)


def positive_dims(op: str, dim: Dims, shape: torch.Size) -> list[int]:
    """The dimensions, counted from the front."""
    dims = []
    for d in dim if isinstance(dim, tuple) else (dim,):
        if not -len(shape) <= d < len(shape):
            raise ValueError(
                f"{op}: dim must be a dimension of the tensor, of shape {tuple(shape)}, got {dim}"
            )
        dims.append(d % len(shape))
    if len(set(dims)) < len(dims):
        raise ValueError(f"{op}: dim must name each dimension once, got {dim}")
    return dims


def _same(a: Dims, b: Dims) -> bool:
    x, y = (set(d) if isinstance(d, tuple) else {d} for d in (a, b))
    return x == y


class _Groups(Penalty):
    """``dim`` tells the groups: two coordinates are in one where they agree in these dimensions."""

    dim: Dims

    def indexes(self, shape: torch.Size) -> int:
        return sum(1 << d for d in positive_dims(type(self).__name__, self.dim, shape))

    @property
    def layout(self) -> Any:
        return self.dim

    def _norms(self, w: Tensor) -> Tensor:
        kept = positive_dims(type(self).__name__, self.dim, w.shape)
        inner = [d for d in range(w.dim()) if d not in kept]
        return torch.linalg.vector_norm(w, dim=inner) if inner else w.abs()


@dataclass(frozen=True)
class GroupL2(_Groups):
    """g(w) = lam sum of ||w_group||, the group lasso: whole groups become 0.

    prox(v, s) of a group: 0 where ||v / s|| <= lam, else v_i t / (t + s_i lam) with t = ||w||, the
    root of sum v_i^2 / (t + s_i lam)^2 = 1. With one step for all: v max(1 - s lam / ||v||, 0).

    Args:
        lam: a number >= 0. It is not weighted by the groups' sizes.
        dim: what tells the groups. Of a weight [out, in], dim=0 makes rows groups and dim=1
            columns; of a convolution's, dim=0 filters, dim=1 input channels, dim=(0, 1) kernels.

    Source: Yuan & Lin, "Model selection and estimation in regression with grouped variables", 2006.
    """

    lam: Strength
    dim: Dims = 0
    name: ClassVar[str] = "group_l2"

    def __post_init__(self) -> None:
        set_strengths(self, lam=None)
        object.__setattr__(self, "dim", check_dims("GroupL2", self.dim))

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.GROUP_L2, self.lam)

    def g(self, w: Tensor) -> Tensor:
        return (self.lam * self._norms(w)).sum()

    def conjugate(self, u: Tensor) -> Tensor:
        """0 where max ||u_group|| <= lam, else infinity."""
        norms = self._norms(u)
        terms = u.numel() // max(norms.numel(), 1)
        return as_indicator(norms <= self.lam + slack(u, self.lam, terms), u)

    def dual_norm(self, u: Tensor) -> Tensor:
        """max ||u_group||."""
        return self._norms(u).max()

    def scaled(self, factor: float) -> GroupL2:
        return GroupL2(factor * self.lam, self.dim)

    def plus(self, other: Penalty) -> Penalty | None:
        if isinstance(other, L1):
            return SparseGroupL2(other.lam, self.lam, self.dim)
        if isinstance(other, GroupL2) and _same(other.dim, self.dim):
            return GroupL2(self.lam + other.lam, self.dim)
        return None


@dataclass(frozen=True)
class SparseGroupL2(_Groups):
    """g(w) = l1 ||w||_1 + lam sum of ||w_group||: whole groups and single weights become 0.

    prox(v, s) is that of GroupL2(lam, dim) at S(v, s l1).

    Source: Simon, Friedman, Hastie & Tibshirani, "A sparse-group lasso", 2013.
    """

    l1: Strength
    lam: Strength
    dim: Dims = 0
    name: ClassVar[str] = "sparse_group_l2"

    def __post_init__(self) -> None:
        set_strengths(self, l1=None, lam=None)
        object.__setattr__(self, "dim", check_dims("SparseGroupL2", self.dim))

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.GROUP_L2, self.lam, l1=self.l1)

    def g(self, w: Tensor) -> Tensor:
        return (self.l1 * w.abs()).sum() + (self.lam * self._norms(w)).sum()

    def conjugate(self, u: Tensor) -> Tensor:
        """0 where max ||S(u, l1)_group|| <= lam, else infinity."""
        rest = torch.sign(u) * (u.abs() - self.l1).clamp_min(0)
        norms = self._norms(rest)
        terms = u.numel() // max(norms.numel(), 1)
        limit = self.lam + slack(u, self.lam, terms) + math.sqrt(terms) * slack(u, self.l1)
        return as_indicator(norms <= limit, u)

    def scaled(self, factor: float) -> SparseGroupL2:
        return SparseGroupL2(factor * self.l1, factor * self.lam, self.dim)

    def plus(self, other: Penalty) -> Penalty | None:
        if isinstance(other, L1):
            return SparseGroupL2(self.l1 + other.lam, self.lam, self.dim)
        if isinstance(other, GroupL2) and _same(other.dim, self.dim):
            return SparseGroupL2(self.l1, self.lam + other.lam, self.dim)
        if isinstance(other, SparseGroupL2) and _same(other.dim, self.dim):
            return SparseGroupL2(self.l1 + other.l1, self.lam + other.lam, self.dim)
        return None


class _Largest(Penalty):
    """Of each group some stay, those with the largest v^2 / step; of equals the lowest index."""

    is_convex = False
    is_constraint = True
    is_differentiable = False

    def scaled(self, factor: float) -> Penalty:
        return self


@dataclass(frozen=True)
class NMSparse(_Largest):
    """g(w) = 0 where of any m neighbours along dim at most n are not 0, else infinite.

    prox(v, s): the n of each m with the largest v^2 / s stay, the others become 0; of equals those
    of the lowest index stay. NMSparse(2, 4) is what sparse tensor cores take.

    Args:
        n, m: 1 <= n <= m; m divides the tensor's size in dim.
        dim: along which neighbours are counted.

    Source: Mishra et al., "Accelerating sparse deep neural networks", 2021.
    """

    n: int
    m: int
    dim: int = -1
    name: ClassVar[str] = "n_m_sparse"

    def __post_init__(self) -> None:
        object.__setattr__(self, "n", check_whole("NMSparse", "n", self.n))
        object.__setattr__(self, "m", check_whole("NMSparse", "m", self.m))
        object.__setattr__(self, "dim", check_whole("NMSparse", "dim", self.dim, -64))
        if self.n > self.m:
            raise ValueError(f"NMSparse: n must be at most m, got n={self.n}, m={self.m}")

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.LARGEST, float(self.n), factor=float(self.m))

    def indexes(self, shape: torch.Size) -> int:
        (d,) = positive_dims("NMSparse", self.dim, shape)
        if shape[d] % self.m:
            raise ValueError(
                f"NMSparse: m must divide the size of dimension {self.dim}, which is {shape[d]}, "
                f"got m={self.m}"
            )
        return (1 << len(shape)) - 1 - (1 << d)

    @property
    def layout(self) -> Any:
        return self.dim, self.m

    def g(self, w: Tensor) -> Tensor:
        self.indexes(w.shape)
        d = self.dim % w.dim()
        shape = (*w.shape[:d], w.shape[d] // self.m, self.m, *w.shape[d + 1 :])
        kept = (w != 0).reshape(shape).sum(d + 1)
        return as_indicator(kept <= self.n, w)


@dataclass(frozen=True)
class TopK(_Largest):
    """g(w) = 0 where at most k of all coordinates are not 0, else infinite.

    prox(v, s): the k with the largest v^2 / s stay, the others become 0; of equals those of the
    lowest index stay: row-major, and in an optimizer in the order of memory.

    Args:
        k: how many stay, >= 1; or
        density: which share of them, in (0, 1]: k = round(density n), at least 1.
    """

    k: int | None = None
    density: float | None = None
    name: ClassVar[str] = "top_k"

    def __post_init__(self) -> None:
        if (self.k is None) == (self.density is None):
            raise ValueError(
                f"TopK: one of k and density must be given, got k={self.k}, density={self.density}"
            )
        if self.k is not None:
            object.__setattr__(self, "k", check_whole("TopK", "k", self.k))
        else:
            if not isinstance(self.density, numbers.Real) or isinstance(self.density, bool):
                raise TypeError(f"TopK: density must be a number, got {describe(self.density)}")
            if not 0 < self.density <= 1:
                raise ValueError(f"TopK: density must be in (0, 1], got {self.density}")
            object.__setattr__(self, "density", float(self.density))

    @property
    def kernel(self) -> Kernel:
        return Kernel(ops.LARGEST, float(self.k or 0), self.density or 0.0, factor=0.0)

    @property
    def layout(self) -> Any:
        return self.k

    def indexes(self, shape: torch.Size) -> int:
        if self.k is not None and self.k > math.prod(shape):
            raise ValueError(
                f"TopK: k must be at most the number of coordinates, {math.prod(shape)}, "
                f"got {self.k}"
            )
        return 0

    def g(self, w: Tensor) -> Tensor:
        self.indexes(w.shape)
        k = self.k or max(1, round((self.density or 0.0) * w.numel()))
        return as_indicator((w != 0).sum() <= k, w)
