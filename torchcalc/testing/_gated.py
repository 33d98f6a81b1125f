"""Rows of gated_linear."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc.ops.activations import resolve
from torchcalc.reference import gated as reference_op
from torchcalc.testing._rows import LANE_RANGE, SEED, Op, Random, Sample


def _gated(
    name: str, activation: str, inputs: Mapping[str, Tensor], dropout_p: float = 0.0
) -> Sample:
    """``inputs`` by reference_op's names."""
    names = tuple(inputs)

    def arguments(tensors: tuple[Tensor, ...]) -> list[Tensor | None]:
        given = dict(zip(names, tensors, strict=True))
        return [given.get(n) for n in ("x", "weight", "weight_value", "bias", "bias_value")]

    def call(*tensors: Tensor) -> Tensor:
        x, weight, weight_value, bias, bias_value = arguments(tensors)
        return functional.gated_linear(
            x,  # type: ignore[arg-type]
            weight if weight_value is None else (weight, weight_value),  # type: ignore[arg-type]
            bias if bias_value is None else (bias, bias_value),  # type: ignore[arg-type]
            activation,
            dropout_p=dropout_p,
            seed=SEED if dropout_p else None,
        )

    def reference(*tensors: Tensor) -> Tensor:
        return reference_op.gated_linear(
            *arguments(tensors),  # type: ignore[arg-type]
            resolve("gated_linear", activation),
            torch.tensor([SEED], device=tensors[0].device) if dropout_p else None,
            round(LANE_RANGE * dropout_p),
        )

    return Sample(name, tuple(inputs.values()), call, reference)


def _gated_op(activation: str) -> Op:
    def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        one = {"x": t(3, 5), "weight": t(14, 5), "bias": t(14)}
        pair = {"x": t(3, 5), "weight": t(7, 5), "weight_value": t(7, 5)}
        pair |= {"bias": t(7), "bias_value": t(7)}
        yield _gated("plain", activation, one)
        yield _gated("dropout", activation, one, 0.4)
        yield _gated("pair", activation, pair)
        yield _gated("pair, dropout", activation, pair, 0.4)
        del one["bias"], pair["bias"], pair["bias_value"]
        yield _gated("dropout, no bias", activation, one, 0.4)
        yield _gated("pair, no bias", activation, pair)

    def shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        for lead, n, k in (
            ((7,), 2, 3),
            ((5,), 13, 11),
            ((), 17, 3),
            ((2, 3, 1), 8, 4),
            ((0,), 4, 3),
            ((3,), 0, 2),
            ((2,), 3, 0),
            ((3,), 1031, 2),  # longer than a segment, and no multiple of 8
            ((531,), 257, 3),  # higher than a block of the GEMM and than a chunk of rows
            ((130,), 24, 5),
            ((1,), 1, 1),
        ):
            one = {"x": t(*lead, k), "weight": t(2 * n, k), "bias": t(2 * n)}
            pair = {"x": one["x"], "weight": t(n, k), "weight_value": t(n, k)}
            pair |= {"bias": t(n), "bias_value": t(n)}
            name = f"{(*lead, k)} to {n}"
            yield _gated(name, activation, one, 0.3)
            yield _gated(f"{name}, pair", activation, pair, 0.3)

    return Op(f"gated_linear[{activation}]", samples, shapes)


# From the input, the output, a bit: an activation each, and those with a name of their own.
OPS = [_gated_op(name) for name in ("silu", "gelu", "identity", "relu", "sigmoid")]
