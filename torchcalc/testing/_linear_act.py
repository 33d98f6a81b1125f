"""Rows of linear_act."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc.ops.activations import NAMES, resolve
from torchcalc.reference import linear_act as reference_op
from torchcalc.testing._rows import LANE_RANGE, SEED, Op, Random, Sample


def _linear_act(
    name: str,
    activation: str,
    inputs: Mapping[str, Tensor],
    dropout_p: float = 0.0,
) -> Sample:
    names = tuple(inputs)

    def call(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        return functional.linear_act(
            **given,  # type: ignore[arg-type]
            activation=activation,
            dropout_p=dropout_p,
            seed=SEED if dropout_p else None,
        )

    def reference(*tensors: Tensor) -> Tensor:
        given = dict(zip(names, tensors, strict=True))
        return reference_op.linear_act(
            given["x"],
            given["weight"],
            given.get("bias"),
            resolve("linear_act", activation),
            given.get("residual"),
            torch.tensor([SEED], device=given["x"].device) if dropout_p else None,
            round(LANE_RANGE * dropout_p),
        )

    return Sample(name, tuple(inputs.values()), call, reference)


def _linear_act_op(activation: str) -> Op:
    def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        inputs = {"x": t(3, 5), "weight": t(7, 5), "bias": t(7), "residual": t(3, 7)}
        some = {k: inputs[k] for k in ("x", "weight", "bias")}
        yield _linear_act("plain", activation, some)
        yield _linear_act("dropout", activation, some, 0.4)
        yield _linear_act("residual", activation, inputs)
        yield _linear_act("residual and dropout", activation, inputs, 0.4)
        yield _linear_act(
            "dropout, no bias", activation, {k: inputs[k] for k in ("x", "weight")}, 0.4
        )

    def shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        for lead, n, k in (
            ((1,), 1, 1),
            ((7,), 1, 3),
            ((5,), 13, 11),
            ((), 17, 3),
            ((2, 3, 1), 8, 4),
            ((0,), 4, 3),
            ((3,), 0, 2),
            ((2,), 3, 0),
            ((3,), 1031, 2),  # longer than a segment, and no multiple of 8
            ((531,), 9, 3),  # higher than a block of the GEMM and than a chunk of rows
            ((130,), 24, 5),
        ):
            inputs = {"x": t(*lead, k), "weight": t(n, k), "bias": t(n)}
            inputs["residual"] = t(*lead, n)
            name = f"{(*lead, k)} to {n}"
            yield _linear_act(name, activation, inputs, 0.3)
            del inputs["residual"]
            yield _linear_act(f"{name}, no residual", activation, inputs, 0.3)

    return Op(f"linear_act[{activation}]", samples, shapes)


OPS = [_linear_act_op(activation) for activation in NAMES]
