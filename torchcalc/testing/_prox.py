"""Rows of the proximal operators."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc.reference import prox as reference_op
from torchcalc.testing._rows import SHAPES, Call, Op, Random, Sample


def _prox_op(name: str, function: Call, reference: Call, strengths: int) -> Op:
    def sample(label: str, x: Tensor, *lams: Tensor | float) -> Sample:
        # A float strength is no input: it is not differentiable.
        numbers = [lam for lam in lams if not isinstance(lam, Tensor)]
        tensors = tuple(lam for lam in lams if isinstance(lam, Tensor))
        return Sample(
            label,
            (x, *tensors),
            lambda x, *t: function(x, *t, *numbers),
            lambda x, *t: reference(x, *t, *numbers),
        )

    def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        x = t(4, 5)
        yield sample("numbers", x, *(0.3, 0.7)[:strengths])
        yield sample("0-d tensors", x, *(t().abs() for _ in range(strengths)))
        yield sample("broadcast tensors", x, *(t(5).abs() for _ in range(strengths)))
        yield sample("full tensors", x, *(t(4, 5).abs() for _ in range(strengths)))
        if strengths == 2:
            yield sample("tensor and number", x, t(4, 1).abs(), 0.7)

    def shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        for shape in SHAPES:
            x = t(*shape)
            yield sample(f"{shape}, numbers", x, *(0.3, 0.7)[:strengths])
            yield sample(f"{shape}, tensors", x, *(t(*shape).abs() for _ in range(strengths)))

    return Op(name, samples, shapes)


OPS = [
    _prox_op("soft_threshold", functional.soft_threshold, reference_op.soft_threshold, 1),
    _prox_op("prox_l2", functional.prox_l2, lambda x, lam: reference_op.prox(x, 0.0, lam), 1),
    _prox_op("prox_elastic_net", functional.prox_elastic_net, reference_op.prox, 2),
]
