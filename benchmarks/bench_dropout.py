"""Seeded dropout beside torch.nn.functional.dropout; the baseline is a copy of the input.

Then every kind of dropout, forward + backward, beside PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import layers
from benchmarks.harness import Config, Roof, Row, Run, Task, dtype_name, size_name
from torchcalc import functional
from torchcalc.functional import dropout

P = 0.1
KINDS_ROUNDS = 11


def drop_path(x: Tensor, p: float) -> Tensor:
    """Stochastic depth in PyTorch's operations."""
    mask = x.new_empty(x.shape[:1] + (1,) * (x.dim() - 1)).bernoulli_(1 - p)
    return x * (mask.div_(1 - p) if p < 1 else mask)


def dropout_add(x: Tensor, residual: Tensor, p: float) -> Tensor:
    return residual + F.dropout(x, p)


# What each kind is in PyTorch, and the size of what it is given: images where channels matter.
KINDS: dict[str, tuple[Callable[..., Tensor], tuple[int, ...]]] = {
    "dropout": (F.dropout, (16 * 2**20,)),
    "dropout_add": (dropout_add, (16 * 2**20,)),
    "alpha_dropout": (partial(F.alpha_dropout, training=True), (16 * 2**20,)),
    "dropout1d": (F.dropout1d, (64, 64, 4096)),
    "dropout2d": (F.dropout2d, (64, 64, 64, 64)),
    "dropout3d": (F.dropout3d, (16, 32, 32, 32, 32)),
    "feature_alpha_dropout": (partial(F.feature_alpha_dropout, training=True), (64, 64, 64, 64)),
    "drop_path": (drop_path, (64, 64, 64, 64)),
}
# Their masks are next to nothing, and memory's bandwidth all that counts.
BANDWIDTH_ONLY = ("dropout1d", "dropout2d", "dropout3d", "drop_path")


def tasks(config: Config) -> list[Task]:
    tasks = [
        Task("forward, float32", partial(forward, config, torch.float32)),
        Task("forward, bfloat16", partial(forward, config, torch.bfloat16)),
        Task("forward + backward, float32", partial(forward_backward, config, torch.float32)),
    ]
    if config.gpu is not None:
        half = partial(forward_backward, config, torch.bfloat16)
        tasks.append(Task("forward + backward, bfloat16", half))
    return tasks + [Task(name, partial(kind, config, name)) for name in KINDS]


def forward(config: Config, dtype: torch.dtype) -> Row:
    x = config.tensor(size(config), dtype=dtype)
    contenders: dict[str, Run] = {"x.clone()": x.clone}
    for name, drop in implementations(config).items():
        contenders[name] = partial(drop, x, P)
    return config.compare(
        "forward",
        size_name(x.numel()),
        dtype_name(dtype),
        contenders,
        baseline="x.clone()",
        bound=config.bound(must=2.0, aim=1.1) if dtype == torch.float32 else None,
        roof=Roof("x.clone()", 2 * x.nbytes, "GB/s"),
    )


def forward_backward(config: Config, dtype: torch.dtype) -> Row:
    x = config.tensor(size(config), dtype=dtype).requires_grad_()
    grad = torch.randn_like(x)
    contenders: dict[str, Run] = {"two clones": lambda: (x.detach().clone(), grad.clone())}
    for name, drop in implementations(config).items():
        contenders[name] = partial(gradient, drop, x, grad)
    return config.compare(
        "forward + backward",
        size_name(x.numel()),
        dtype_name(dtype),
        contenders,
        baseline="two clones",
        roof=Roof("two clones", 4 * x.nbytes, "GB/s"),
    )


def ours(name: str) -> Callable[..., Tensor]:
    """A kind of dropout, while training."""
    return partial(getattr(functional, name), p=P, training=True)


def kind(config: Config, name: str) -> Row:
    theirs, shape = KINDS[name]
    shape = layers.sizes(config, shape, quick=4)
    operands = [
        config.tensor(*shape).requires_grad_() for _ in range(2 if name == "dropout_add" else 1)
    ]
    return config.compare(
        f"{name}, forward + backward",
        " x ".join(map(size_name, shape)),
        "float32",
        {
            "eager": layers.step(partial(theirs, p=P), operands),
            "torchcalc": layers.step(ours(name), operands),
        },
        baseline="eager",
        bound=config.bound(layers.BANDWIDTH_MUST if name in BANDWIDTH_ONLY else layers.BEATS_EAGER),
        rounds=KINDS_ROUNDS,
    )


def size(config: Config) -> int:
    return config.size(2**14, 16 * 2**20, 128 * 2**20)


def implementations(config: Config) -> dict[str, Callable[..., Tensor]]:
    return {**config.with_compiled(F.dropout), "torchcalc": dropout}


def gradient(drop: Callable[..., Tensor], x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(drop(x, P), x, grad)
