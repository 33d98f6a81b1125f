"""Every op and optimizer in every dtype, in one thread: a loop that lost its vectors shows.

The baseline is torchcalc itself in float32; half types, which are half as much memory and the same
arithmetic, must stay near it. float64 has no bound: its vectors are half as long, and its
polynomials longer.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.bench_optim import LAM, OURS, step
from benchmarks.harness import Config, Row, Run, Task, dtype_name, size_name
from torchcalc.functional import dropout, linear_act, prox_elastic_net, prox_l2, soft_threshold
from torchcalc.ops.act import act_grad
from torchcalc.ops.activations import INPUT, NAMES, resolve
from torchcalc.ops.prox import prox_grad_grad
from torchcalc.prox import L1

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
BASELINE, HALF = "float32", ("bfloat16", "float16")
MUST, AIM = 2.5, 1.0
P, STRENGTH = 0.1, 0.5
PROXES: dict[str, Callable[..., Tensor]] = {
    "soft_threshold": soft_threshold,
    "prox_l2": prox_l2,
    "prox_elastic_net": prox_elastic_net,
}
STRENGTHS = ("a number", "one element", "x's shape")  # the latter two are tensors

# What makes the run of a dtype: of a forward, a backward or a step.
Make = Callable[[Config, torch.dtype], Run]


def tasks(config: Config) -> list[Task]:
    rows: dict[str, Make] = {"dropout": drop}
    for name in PROXES:
        for strength in STRENGTHS:
            rows[f"{name} by {strength}"] = partial(prox, name, strength)
    for activation in NAMES:
        rows[f"linear_act {activation}"] = partial(epilogue, activation, 0.0)
    rows["linear_act gelu + dropout"] = partial(epilogue, "gelu", P)
    both = {
        f"{name}, {mode}": partial(make, mode == "backward")
        for name, make in rows.items()
        for mode in ("forward", "backward")
    }
    for order in (1, 2):
        both[f"act_grad gelu, order {order}"] = partial(act_grad_alone, order)
    both["prox_grad_grad"] = second_derivative
    for name in OURS:
        both[f"{name} step"] = partial(optimizer, name, {})
        both[f"{name} + L1 step"] = partial(optimizer, name, {"penalty": L1(LAM)})
    # In one process: allocations are alike in every row, and its start takes longer than a row.
    return [
        Task(name, partial(row, config, name, make), alone=False) for name, make in both.items()
    ]


def row(config: Config, name: str, make: Make) -> Row:
    count, numel = size(config)
    return config.compare(
        name,
        f"{count} x {size_name(numel)}",
        "",
        {dtype_name(dtype): make(config, dtype) for dtype in DTYPES},
        baseline=BASELINE,
        bound=config.bound(MUST, AIM),
        subjects=HALF,
        one_thread=True,
    )


def size(config: Config) -> tuple[int, int]:
    return 2, 1024 if config.quick else 2**20


def pass_of(backward: bool, op: Callable[[], Tensor], inputs: list[Tensor]) -> Run:
    """``op`` without autograd, or only its backward."""
    if not backward:
        return torch.no_grad()(op)
    for t in inputs:
        t.requires_grad_()
    y = op()
    return partial(torch.autograd.grad, y, inputs, torch.randn_like(y), retain_graph=True)


def drop(backward: bool, config: Config, dtype: torch.dtype) -> Run:
    x = config.tensor(*size(config), dtype=dtype)
    return pass_of(backward, partial(dropout, x, P, seed=config.seed()), [x])


def prox(name: str, strength: str, backward: bool, config: Config, dtype: torch.dtype) -> Run:
    x = config.tensor(*size(config), dtype=dtype)
    count = 2 if name == "prox_elastic_net" else 1
    if strength == "a number":
        return pass_of(backward, partial(PROXES[name], x, *[STRENGTH] * count), [x])
    shape = x.shape if strength == "x's shape" else ()
    lams = [x.new_full(shape, STRENGTH) for _ in range(count)]
    return pass_of(backward, partial(PROXES[name], x, *lams), [x, *lams])


def epilogue(activation: str, p: float, backward: bool, config: Config, dtype: torch.dtype) -> Run:
    """linear_act with one input feature, and a backward that ends at the bias: hardly any GEMM."""
    rows, columns = (64, 32) if config.quick else (2048, 1024)
    x, weight = config.tensor(rows, 1, dtype=dtype), config.tensor(columns, 1, dtype=dtype)
    bias = config.tensor(columns, dtype=dtype)
    op = partial(linear_act, x, weight, bias, activation, dropout_p=p, seed=config.seed())
    return pass_of(backward, op, [bias])


def act_grad_alone(order: int, config: Config, dtype: torch.dtype) -> Run:
    """Where there is no bias, and at the second order, backward runs another loop."""
    grad, z = (config.tensor(*size(config), dtype=dtype) for _ in range(2))
    options = *resolve("act_grad", "gelu")[1:], 0, 1, None, INPUT, order
    return torch.no_grad()(partial(act_grad, grad, z, None, *options))


def second_derivative(config: Config, dtype: torch.dtype) -> Run:
    tensors = (config.tensor(*size(config), dtype=dtype) for _ in range(7))
    return torch.no_grad()(partial(prox_grad_grad, *tensors, 0.0, 0.0))


def optimizer(name: str, options: dict[str, Any], config: Config, dtype: torch.dtype) -> Run:
    count, numel = size(config)
    return step(config, [(numel,)] * count, partial(OURS[name], **options), dtype=dtype)
