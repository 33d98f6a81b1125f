"""Linear + activation + dropout in large, small and lopsided shapes, forward + backward."""

from __future__ import annotations

from functools import partial

import torch

from benchmarks import layers
from benchmarks.harness import Config, Row, Task, dtype_name
from torchcalc.functional import linear_act

RELU_SHAPES = ((512, 256, 1024), layers.SMALL)


def tasks(config: Config) -> list[Task]:
    rows = [("gelu", shape, torch.float32, layers.P) for shape in layers.SHAPES]
    rows += [("relu", shape, torch.float32, layers.P) for shape in RELU_SHAPES]
    rows += [(f, layers.SMALL, torch.float32, 0.0) for f in ("gelu", "relu")]
    rows += [("gelu", shape, torch.bfloat16, layers.P) for shape in layers.HALF_SHAPES]
    return [
        Task(
            f"{f}, {layers.sizes_name(shape)}, {dtype_name(dtype)}",
            partial(row, config, f, shape, dtype, p),
            alone=shape != layers.SMALL,
        )
        for f, shape, dtype, p in rows
    ]


def row(config: Config, activation: str, shape: layers.Shape, dtype: torch.dtype, p: float) -> Row:
    return layers.compare(
        config,
        activation + " + dropout" * (p > 0),
        shape,
        dtype,
        {
            "eager": layers.eager_linear_act(activation, p),
            "torchcalc": partial(linear_act, activation=activation, dropout_p=p),
        },
        layers.inputs(config, dtype, *layers.sizes(config, shape)),
        must=layers.must(shape, p),
        rounds=layers.rounds(shape),
    )
