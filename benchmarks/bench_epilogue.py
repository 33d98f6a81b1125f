"""What stands behind and before the GEMM, in bfloat16; the baseline is a copy of the output.

Forward is a linear layer of few input features: the GEMM writes the output's size, the epilogue
reads and writes it. Backward is the pass that makes dz of the gradient and z, and the bias gradient
with it. In PyTorch the mask of dropout is read, in torchcalc drawn again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Config, Roof, Row, Run, Task, dtype_name
from torchcalc.functional import linear_act
from torchcalc.ops.act import act_bias_grad
from torchcalc.ops.activations import INPUT, resolve
from torchcalc.reference.dropout import LANE_RANGE

FEATURES, P, DTYPE = 16, 0.1, torch.bfloat16
EAGER: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": partial(F.gelu, approximate="tanh"),
    "silu": F.silu,
}
PASSES = 3  # over a tensor of the output's size, in forward and in backward


def tasks(config: Config) -> list[Task]:
    rows = {f"{name}, forward": partial(forward, config, name, 0.0) for name in EAGER}
    rows["gelu + dropout, forward"] = partial(forward, config, "gelu", P)
    rows["gelu + dropout, backward"] = partial(backward, config)
    return [Task(name, partial(make, name)) for name, make in rows.items()]


def forward(config: Config, activation: str, p: float, name: str) -> Row:
    x, weight = (config.tensor(size(config), FEATURES, dtype=DTYPE) for _ in range(2))
    bias = config.tensor(size(config), dtype=DTYPE)

    def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        y = EAGER[activation](F.linear(x, weight, bias))
        return F.dropout(y, p) if p else y

    layers = {
        **config.with_compiled(eager),
        "torchcalc": partial(linear_act, activation=activation, dropout_p=p),
    }
    runs = {layer: partial(layers[layer], x, weight, bias) for layer in layers}
    return compare(config, name, runs)


def backward(config: Config, name: str) -> Row:
    grad, z = (config.tensor(size(config), size(config), dtype=DTYPE) for _ in range(2))
    mask = torch.rand_like(z) >= P

    def eager(grad: Tensor, z: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        undropped = torch.ops.aten.native_dropout_backward(grad, mask, 1 / (1 - P))
        dz = torch.ops.aten.gelu_backward(undropped, z)
        return dz, dz.sum(0)

    runs = {way: partial(run, grad, z, mask) for way, run in config.with_compiled(eager).items()}
    options = *resolve("act_bias_grad", "gelu")[1:], round(LANE_RANGE * P), 1, None, INPUT
    runs["torchcalc"] = partial(act_bias_grad, grad, z, config.seed(), *options)
    return compare(config, name, runs)


def compare(config: Config, name: str, runs: dict[str, Run]) -> Row:
    y = config.tensor(size(config), size(config), dtype=DTYPE)
    with torch.no_grad():
        return config.compare(
            name,
            f"{size(config)} x {size(config)}",
            dtype_name(DTYPE),
            {"y.clone()": y.clone, **runs},
            baseline="y.clone()",
            roof=Roof("y.clone()", 2 * y.nbytes, "GB/s", PASSES * y.nbytes),
        )


def size(config: Config) -> int:
    """Of both sides of the output."""
    return config.size(64, 2048, 8192)
