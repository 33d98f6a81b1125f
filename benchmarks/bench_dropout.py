"""Seeded dropout beside torch.nn.functional.dropout; the baseline is a copy of the input."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Config, Roof, Row, Run, Task, dtype_name, size_name
from torchcalc.functional import dropout

P = 0.1


def tasks(config: Config) -> list[Task]:
    tasks = [
        Task("forward, float32", partial(forward, config, torch.float32)),
        Task("forward, bfloat16", partial(forward, config, torch.bfloat16)),
        Task("forward + backward, float32", partial(forward_backward, config, torch.float32)),
    ]
    if config.gpu is not None:
        half = partial(forward_backward, config, torch.bfloat16)
        tasks.append(Task("forward + backward, bfloat16", half))
    return tasks


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


def size(config: Config) -> int:
    return config.size(2**14, 16 * 2**20, 128 * 2**20)


def implementations(config: Config) -> dict[str, Callable[..., Tensor]]:
    return {**config.with_compiled(F.dropout), "torchcalc": dropout}


def gradient(drop: Callable[..., Tensor], x: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(drop(x, P), x, grad)
