"""Linear + gelu + dropout in one op; the baseline is the linear layer alone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Config, Roof, Row, Run, Task, dtype_name
from torchcalc.functional import linear_act

P = 0.1
INFERENCE, TRAINING, BACKWARD = "forward, no_grad", "forward, grad mode", "forward + backward"
HALF_ROUNDS = 11  # they take longest where bfloat16 is emulated
BOUNDS = {  # (must, aim)
    (INFERENCE, torch.float32): (1.25, 1.08),
    (INFERENCE, torch.bfloat16): (2.0, 1.4),
    (BACKWARD, torch.float32): (1.3, 1.1),
    (BACKWARD, torch.bfloat16): (1.9, 1.4),
}


def tasks(config: Config) -> list[Task]:
    dtypes = (torch.float32, torch.bfloat16)
    rows = [(mode, dtype) for mode in (INFERENCE, TRAINING, BACKWARD) for dtype in dtypes]
    if config.gpu is not None:  # where GEMMs are tuned for minutes: what matters most, first
        rows = [(mode, dtype) for dtype in reversed(dtypes) for mode in (INFERENCE, BACKWARD)]
    return [
        Task(f"{mode}, {dtype_name(dtype)}", partial(row, config, mode, dtype))
        for mode, dtype in rows
    ]


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.dropout(F.gelu(F.linear(x, weight, bias)), P)


def row(config: Config, mode: str, dtype: torch.dtype) -> Row:
    m, k, n = config.size(32, 4096, 8192), config.size(16, 1024, 2048), config.size(64, 4096, 8192)
    x = config.tensor(m, k, dtype=dtype)
    weight = config.tensor(n, k, dtype=dtype) / k**0.5
    inputs = [t.requires_grad_() for t in (x, weight, config.tensor(n, dtype=dtype))]
    grad = config.tensor(m, n, dtype=dtype)

    def contender(layer: Callable[..., Tensor]) -> Run:
        if mode == INFERENCE:
            return torch.no_grad()(partial(layer, *inputs))
        if mode == TRAINING:
            return partial(layer, *inputs)
        return lambda: torch.autograd.grad(layer(*inputs), inputs, grad)

    layers: dict[str, Callable[..., Tensor]] = {
        "F.linear": F.linear,
        **config.with_compiled(eager),
        "torchcalc": partial(linear_act, activation="gelu", dropout_p=P),
    }
    bound = BOUNDS.get((mode, dtype))
    gemms = 3 if mode == BACKWARD else 1
    return config.compare(
        mode,
        f"{m} x {k} -> {n}",
        dtype_name(dtype),
        {name: contender(layer) for name, layer in layers.items()},
        baseline="F.linear",
        bound=config.bound(*bound) if bound else None,
        roof=Roof("F.linear", gemms * 2 * m * k * n, "GFLOP/s"),
        rounds=HALF_ROUNDS if dtype == torch.bfloat16 else None,
    )
