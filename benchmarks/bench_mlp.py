"""The MLP block with both dropouts, forward + backward, beside its GEMMs, eager and two LinearActs.

As many features come out as go in.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import bench_gated, layers
from benchmarks.harness import Config, Row, Task, dtype_name
from torchcalc.functional import linear_act, mlp

GEMMS, GEMMS_MUST = "two F.linear", 1.12
TWO = "two linear_act"
GATED_SHAPES = ((512, 256, 1024), (8192, 64, 64))


def tasks(config: Config) -> list[Task]:
    rows = [(shape, torch.float32, layers.P) for shape in layers.SHAPES]
    rows += [(layers.SMALL, torch.float32, 0.0)]
    rows += [(shape, torch.bfloat16, layers.P) for shape in layers.HALF_SHAPES]
    gated = [
        Task(f"gated silu, {layers.sizes_name(shape)}", partial(gated_row, config, shape))
        for shape in GATED_SHAPES
    ]
    return gated + [
        Task(
            f"{layers.sizes_name(shape)}, {dtype_name(dtype)}",
            partial(row, config, shape, dtype, p),
            alone=shape != layers.SMALL,
        )
        for shape, dtype, p in rows
    ]


def row(config: Config, shape: layers.Shape, dtype: torch.dtype, p: float) -> Row:
    rows, k, hidden = layers.sizes(config, shape)
    large = shape == layers.LARGE
    contenders: dict[str, layers.Layer] = {
        GEMMS: gemms,
        "eager": partial(eager, p),
        TWO: partial(two_linear_acts, p),
        "torchcalc": partial(mlp, hidden_dropout_p=p, dropout_p=p),
    }
    if not large:
        del contenders[GEMMS]
    return layers.compare(
        config,
        "gelu + dropouts" if p else "gelu",
        (*shape, shape[1]),
        dtype,
        contenders,
        layers.inputs(config, dtype, rows, k, hidden, k),
        must=GEMMS_MUST if large else layers.must(shape, p),
        baseline=GEMMS if large else "eager",
        rounds=layers.rounds(shape),
    )


def gated_row(config: Config, shape: layers.Shape) -> Row:
    """SwiGLU as the hidden layer."""
    rows, k, hidden = layers.sizes(config, shape)
    tensors = [
        *layers.inputs(config, torch.float32, rows, k, 2 * hidden),
        *layers.inputs(config, torch.float32, rows, hidden, k)[1:],
    ]
    return layers.compare(
        config,
        "gated silu + dropouts",
        (*shape, shape[1]),
        torch.float32,
        {
            "eager": gated_eager,
            "torchcalc": partial(
                mlp, activation="silu", gated=True, hidden_dropout_p=layers.P, dropout_p=layers.P
            ),
        },
        tensors,
        must=layers.must(shape),
    )


def gated_eager(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    hidden = bench_gated.eager("silu", layers.P, x, w1, b1)
    return F.dropout(F.linear(hidden, w2, b2), layers.P)


def gemms(x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return F.linear(F.linear(x, w1, b1), w2, b2)


def eager(p: float, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    if not p:
        return F.linear(F.gelu(F.linear(x, w1, b1)), w2, b2)
    return F.dropout(F.linear(F.dropout(F.gelu(F.linear(x, w1, b1)), p), w2, b2), p)


def two_linear_acts(p: float, x: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    return linear_act(linear_act(x, w1, b1, dropout_p=p), w2, b2, "identity", dropout_p=p)
