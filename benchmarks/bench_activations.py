"""Every activation behind a linear layer, with dropout, forward + backward, beside eager.

32 input features: the GEMM takes less than the epilogue, also where bfloat16 is emulated, so that
a slow formula shows, and enough for it to be the layer's and not a row times a column.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F

from benchmarks import layers
from benchmarks.harness import Config, Row, Task, dtype_name
from torchcalc.functional import linear_act
from torchcalc.ops.activations import NAMES

ROUNDS = 11  # there are many rows


def tasks(config: Config) -> list[Task]:
    # In one process: all allocate the same.
    return [
        Task(f"{name}, {dtype_name(dtype)}", partial(row, config, name, dtype), alone=False)
        for dtype in (torch.float32, torch.bfloat16)
        for name in NAMES
    ]


def row(config: Config, activation: str, dtype: torch.dtype) -> Row:
    side = config.size(32, 2048, 8192)
    shape = side, 32, side
    return layers.compare(
        config,
        activation,
        shape,
        dtype,
        {
            "eager": layers.eager_linear_act(activation, layers.P),
            "F.linear": F.linear,
            "torchcalc": partial(linear_act, activation=activation, dropout_p=layers.P),
        },
        layers.inputs(config, dtype, *shape),
        must=layers.BEATS_EAGER,
        rounds=ROUNDS,
    )
