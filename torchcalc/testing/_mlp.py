"""Rows of mlp."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from torchcalc import functional
from torchcalc.ops.activations import resolve
from torchcalc.reference import gated as gated_reference
from torchcalc.reference import linear_act as reference_op
from torchcalc.testing._rows import LANE_RANGE, SEED, Op, Random, Sample


def _mlp(
    name: str,
    activation: str,
    gated: bool,
    inputs: Mapping[str, Tensor],
    p1: float = 0.0,
    p2: float = 0.0,
) -> Sample:
    names = tuple(inputs)

    def given(tensors: tuple[Tensor, ...]) -> dict[str, Tensor | None]:
        empty: dict[str, Tensor | None] = {"bias1": None, "bias2": None, "residual": None}
        return empty | dict(zip(names, tensors, strict=True))

    def call(*tensors: Tensor) -> Tensor:
        return functional.mlp(
            **given(tensors),  # type: ignore[arg-type]
            activation=activation,
            gated=gated,
            hidden_dropout_p=p1,
            dropout_p=p2,
            seed=SEED if p1 or p2 else None,
        )

    def reference(*tensors: Tensor) -> Tensor:
        t = given(tensors)
        x, weight1, weight2 = t["x"], t["weight1"], t["weight2"]
        assert x is not None
        assert weight1 is not None
        assert weight2 is not None
        seeds = (torch.tensor([SEED + k], device=x.device) for k in (0, 1))
        thresholds = (round(LANE_RANGE * p) for p in (p1, p2))
        layer = reference_op.linear_act
        f, identity = resolve("mlp", activation), resolve("mlp", "identity")
        mask = next(seeds), next(thresholds)
        if gated:
            h = gated_reference.gated_linear(x, weight1, None, t["bias1"], None, f, *mask)
        else:
            h = layer(x, weight1, t["bias1"], f, None, *mask)
        return layer(h, weight2, t["bias2"], identity, t["residual"], next(seeds), next(thresholds))

    return Sample(name, tuple(inputs.values()), call, reference)


def _mlp_op(activation: str, gated: bool = False) -> Op:
    halves = 2 if gated else 1

    def samples(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        inputs = {
            "x": t(3, 5),
            "weight1": t(7 * halves, 5),
            "bias1": t(7 * halves),
            "weight2": t(4, 7),
        }
        inputs |= {"bias2": t(4), "residual": t(3, 4)}
        yield _mlp("plain", activation, gated, {k: inputs[k] for k in ("x", "weight1", "weight2")})
        yield _mlp("dropout and residual", activation, gated, inputs, 0.3, 0.4)
        del inputs["residual"]
        yield _mlp("hidden dropout", activation, gated, inputs, 0.3)

    def shapes(device: torch.device, dtype: torch.dtype) -> Iterator[Sample]:
        t = Random(device, dtype)
        for lead, k, h, n in (
            ((1,), 1, 1, 1),
            ((), 3, 17, 5),
            ((2, 3, 1), 4, 8, 1),
            ((0,), 3, 4, 2),
            ((3,), 2, 0, 4),
            ((3,), 2, 5, 0),
            ((3,), 2, 1031, 3),
            ((531,), 3, 9, 7),  # higher than a chunk of rows
            ((2701,), 2, 100, 3),  # higher than blocks of the GEMM, which are no whole chunks
        ):
            inputs = {
                "x": t(*lead, k),
                "weight1": t(h * halves, k),
                "bias1": t(h * halves),
                "weight2": t(n, h),
            }
            inputs |= {"bias2": t(n), "residual": t(*lead, n)}
            yield _mlp(f"{(*lead, k)} to {h} to {n}", activation, gated, inputs, 0.3, 0.2)

    return Op(f"mlp[{activation}{', gated' if gated else ''}]", samples, shapes)


# One whose hidden activation is made again from z, and one whose hidden activation is kept.
OPS = [*(_mlp_op(activation) for activation in ("gelu", "relu")), _mlp_op("silu", gated=True)]
