"""A row of the prox of penalties, and the penalties that rows have."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc.ops.penalty_prox import GROUP_L2, bounded_prox, formula
from torchcalc.prox import (
    L0,
    L1,
    L2,
    MCP,
    SCAD,
    TV1D,
    Box,
    ElasticNet,
    GroupL2,
    Huber,
    L1Ball,
    L2Ball,
    LHalf,
    LInf,
    NMSparse,
    NonNegative,
    NonNegativeL1,
    Penalty,
    Simplex,
    SparseGroupL2,
    TopK,
)
from torchcalc.reference import penalties as reference_op
from torchcalc.testing._rows import SHAPES, Op, Random, Sample

# Of each kernel one, with strengths that leave some coordinates at 0 and others not.
PENALTIES = {
    "ElasticNet": ElasticNet(2.0, 0.5),
    "NonNegativeL1": NonNegativeL1(2.0),
    "Box": Box(-0.5, 0.7),
    "Huber": Huber(4.0, 0.3),
    "L0": L0(1.0),
    "LHalf": LHalf(2.0),
    "MCP": MCP(2.0, 0.3),
    "SCAD": SCAD(2.0, 2.1, 3.0),
    "a sum": MCP(2.0, 3.0) + L1(1.0) + L2(0.5) + NonNegative(),
    "GroupL2": GroupL2(5.0),
    "GroupL2, columns": GroupL2(4.0, dim=1),
    "SparseGroupL2": SparseGroupL2(2.0, 3.0),
    "NMSparse": NMSparse(2, 5),
    "NMSparse, columns": NMSparse(1, 2, dim=0),
    "TopK": TopK(density=0.3),
    "LInf": LInf(20.0),
    "L1Ball": L1Ball(3.0),
    "L2Ball": L2Ball(2.0),
    "Simplex": Simplex(1.5),
}


def _sample(name: str, penalty: Penalty, v: Tensor, step: Tensor | float) -> Sample:
    kernel, indexes = penalty.kernel, penalty.indexes(v.shape)
    assert kernel is not None

    def reference(v: Tensor, step: Tensor | float) -> Tensor:
        if kernel.kind < GROUP_L2:
            return reference_op.separable(v, step, kernel.kind, kernel[1:])
        solve = partial(bounded_prox, kernel, indexes, float("inf"))
        return formula(v, step, kernel, indexes, solve)

    if isinstance(step, Tensor):
        return Sample(name, (v, step), lambda v, s: functional.prox(v, penalty, s), reference)
    number = step
    return Sample(
        name, (v,), lambda v: functional.prox(v, penalty, number), lambda v: reference(v, number)
    )


def _samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    v, step = t(2, 5), t(2, 5).abs() / 4 + 0.1
    for name in ("MCP", "GroupL2"):
        yield _sample(f"{name}, a number", PENALTIES[name], v, 0.25)
    for name, penalty in {**PENALTIES, "TV1D": TV1D(1.0), "TV1D, columns": TV1D(1.0, 0)}.items():
        if penalty.is_differentiable:
            yield _sample(name, penalty, v, step)


# Of a block for each group, many make the tests of the CUDA code slow; two are larger than a chunk.
GROUPED = (*(s for s in SHAPES if s and math.prod(s) < 1000), (2, 17_001))


def _shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
    t = Random(device, dtype)
    for shape in SHAPES:
        yield _sample(f"{shape}", MCP(2.0, 3.0), t(*shape), t(*shape).abs() / 4 + 0.1)
    for shape in GROUPED:
        v, step = t(*shape), t(*shape).abs() / 4 + 0.1
        yield _sample(f"{shape}, rows", GroupL2(1.7183), v, step)
        yield _sample(f"{shape}, whole", LInf(3.0), v, step)
        if math.prod(shape[1:]) < 1000:
            yield _sample(f"{shape}, columns", GroupL2(1.7183, -1), v, 0.25)


OPS = [Op("penalty_prox", _samples, _shapes, by_formula=True)]
