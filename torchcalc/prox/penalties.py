"""g(w) = l1 ||w||_1 + (l2 / 2) ||w||^2 and its special cases."""

from __future__ import annotations

import abc
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from torchcalc import functional
from torchcalc._check import check_finite


class Penalty(abc.ABC):
    """g(w), with prox(v, step) = argmin_w step g(w) + ||w - v||^2 / 2. Its strengths are finite.

    ``name`` and ``strengths`` are what an optimizer stores of it.
    """

    name: ClassVar[str]

    @property
    @abc.abstractmethod
    def strengths(self) -> tuple[float, float]:
        """(l1, l2) of g(w) = l1 ||w||_1 + (l2 / 2) ||w||^2."""

    def value(self, w: Tensor) -> Tensor:
        """g(w), a scalar; differentiable."""
        l1, l2 = self.strengths
        return l1 * w.abs().sum() + l2 / 2 * w.square().sum()

    def prox(self, v: Tensor, step: Tensor | float = 1.0) -> Tensor:
        """S(v, step l1) / (1 + step l2); ``step``: a number or a tensor that broadcasts to v."""
        l1, l2 = self.strengths
        return functional.prox_elastic_net(v, step * l1, step * l2)


@dataclass(frozen=True)
class L1(Penalty):
    """g(w) = lam ||w||_1; prox(v, step) = S(v, step lam), exactly 0 where |v| <= step lam."""

    lam: float
    name: ClassVar[str] = "l1"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", check_finite("L1", "lam", self.lam))

    @property
    def strengths(self) -> tuple[float, float]:
        return self.lam, 0.0


@dataclass(frozen=True)
class L2(Penalty):
    """g(w) = (lam / 2) ||w||^2; prox(v, step) = v / (1 + step lam)."""

    lam: float
    name: ClassVar[str] = "l2"

    def __post_init__(self) -> None:
        object.__setattr__(self, "lam", check_finite("L2", "lam", self.lam))

    @property
    def strengths(self) -> tuple[float, float]:
        return 0.0, self.lam


@dataclass(frozen=True)
class ElasticNet(Penalty):
    """g(w) = l1 ||w||_1 + (l2 / 2) ||w||^2; prox(v, step) = S(v, step l1) / (1 + step l2)."""

    l1: float
    l2: float
    name: ClassVar[str] = "elastic_net"

    def __post_init__(self) -> None:
        object.__setattr__(self, "l1", check_finite("ElasticNet", "l1", self.l1))
        object.__setattr__(self, "l2", check_finite("ElasticNet", "l2", self.l2))

    @property
    def strengths(self) -> tuple[float, float]:
        return self.l1, self.l2


# name -> the strengths that it has, of those that an optimizer stores
STRENGTHS = {L1.name: ("l1",), L2.name: ("l2",), ElasticNet.name: ("l1", "l2")}
