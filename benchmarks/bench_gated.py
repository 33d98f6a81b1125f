"""Gated linear units, forward + backward, beside their GEMM and beside eager.

The out features are those of the output: gate and value have as many each.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import layers
from benchmarks.harness import Config, Row, Task, dtype_name
from torchcalc.functional import gated_linear

LARGE = (4096, 1024, 2816)
GATES = ("identity", "sigmoid", "relu", "gelu")  # beside silu, at one shape
GATES_SHAPE = (512, 256, 1024)
GEMM, GEMM_MUST = "F.linear", 1.15


def tasks(config: Config) -> list[Task]:
    shapes = [LARGE, *(shape for shape in layers.SHAPES if shape != layers.LARGE)]
    rows = [("silu", shape, torch.float32, layers.P) for shape in shapes]
    rows += [("silu", layers.SMALL, torch.float32, 0.0)]
    rows += [(f, GATES_SHAPE, torch.float32, layers.P) for f in GATES]
    rows += [("silu", shape, torch.bfloat16, layers.P) for shape in layers.HALF_SHAPES]
    return [
        Task(
            f"{f}, {layers.sizes_name(shape)}, {dtype_name(dtype)}",
            partial(row, config, f, shape, dtype, p),
            alone=shape != layers.SMALL,
        )
        for f, shape, dtype, p in rows
    ]


def row(config: Config, activation: str, shape: layers.Shape, dtype: torch.dtype, p: float) -> Row:
    rows, k, n = layers.sizes(config, shape)
    large = shape == LARGE
    contenders: dict[str, layers.Layer] = {
        GEMM: F.linear,
        "eager": partial(eager, activation, p),
        "torchcalc": partial(gated_linear, activation=activation, dropout_p=p),
    }
    if not large:
        del contenders[GEMM]
    return layers.compare(
        config,
        activation + " + dropout" * (p > 0),
        shape,
        dtype,
        contenders,
        layers.inputs(config, dtype, rows, k, 2 * n),
        must=GEMM_MUST if large else layers.must(shape, p),
        baseline=GEMM if large else "eager",
        rounds=layers.rounds(shape),
    )


def eager(activation: str, p: float, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    gate, value = F.linear(x, weight, bias).chunk(2, -1)
    y = layers.ACTIVATIONS[activation](gate) * value
    return F.dropout(y, p) if p else y
