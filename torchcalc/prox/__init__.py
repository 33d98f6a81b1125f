"""Penalties and constraints g(w) with their proximal operators.

Each is a small frozen object with ``value(w)``, ``prox(v, step)`` = argmin_w g(w) + sum (w - v)^2 /
(2 step), and, where they exist, ``conjugate(u)`` = sup_w <u, w> - g(w) and ``dual_norm(u)``, the
dual of the norm without its strength. An optimizer of ``torchcalc.optim`` takes one as ``penalty``
and applies its prox to what it has just updated.
"""

from torchcalc.prox._base import Penalty
from torchcalc.prox.groups import GroupL2, NMSparse, SparseGroupL2, TopK
from torchcalc.prox.nonconvex import L0, MCP, SCAD, LHalf
from torchcalc.prox.separable import L1, L2, Box, ElasticNet, Huber, NonNegative, NonNegativeL1
from torchcalc.prox.sums import SeparableSum
from torchcalc.prox.whole import TV1D, L1Ball, L2Ball, LInf, Nuclear, Simplex

__all__ = [
    "L0",
    "L1",
    "L2",
    "MCP",
    "SCAD",
    "TV1D",
    "Box",
    "ElasticNet",
    "GroupL2",
    "Huber",
    "L1Ball",
    "L2Ball",
    "LHalf",
    "LInf",
    "NMSparse",
    "NonNegative",
    "NonNegativeL1",
    "Nuclear",
    "Penalty",
    "SeparableSum",
    "Simplex",
    "SparseGroupL2",
    "TopK",
]
