"""What an L1 penalty adds to a step, in one thread; the baseline is the step without one.

The prox is the epilogue of the update: no memory but the update's is touched.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.bench_dtypes import DTYPES, size
from benchmarks.bench_optim import LAM, NO_PENALTY, OURS, step
from benchmarks.harness import SUBJECT, Config, Row, Task, dtype_name, size_name
from torchcalc.prox import L1

MUST, AIM = 1.15, 1.0


def tasks(config: Config) -> list[Task]:
    return [
        Task(f"{name}, {dtype_name(dtype)}", partial(row, config, name, dtype), alone=False)
        for name in OURS
        for dtype in DTYPES
    ]


def row(config: Config, name: str, dtype: torch.dtype) -> Row:
    count, numel = size(config)
    shapes, make = [(numel,)] * count, OURS[name]
    return config.compare(
        f"{name} + L1",
        f"{count} x {size_name(numel)}",
        dtype_name(dtype),
        {
            NO_PENALTY: step(config, shapes, make, dtype=dtype),
            SUBJECT: step(config, shapes, partial(make, penalty=L1(LAM)), dtype=dtype),
        },
        baseline=NO_PENALTY,
        bound=None if dtype == torch.float16 else config.bound(MUST, AIM),
        one_thread=True,
    )
