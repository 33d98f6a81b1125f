"""The prox beside PyTorch; the baseline is a copy of the input."""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Config, Roof, Row, Run, Task, dtype_name, size_name
from torchcalc.functional import prox_elastic_net, soft_threshold

LAM = 0.5


def tasks(config: Config) -> list[Task]:
    tasks = [
        Task("soft threshold, forward", partial(forward, config, torch.float32)),
        Task("elastic net, learned strengths, backward", partial(backward, config)),
    ]
    if config.gpu is not None:
        half = partial(forward, config, torch.bfloat16)
        tasks.insert(1, Task("soft threshold, forward, bfloat16", half))
    return tasks


def forward(config: Config, dtype: torch.dtype) -> Row:
    x = config.tensor(size(config), dtype=dtype)
    implementations = {**config.with_compiled(F.softshrink), "torchcalc": soft_threshold}
    contenders: dict[str, Run] = {"x.clone()": x.clone}
    for name, shrink in implementations.items():
        contenders[name] = partial(shrink, x, LAM)
    return config.compare(
        "soft threshold, forward",
        size_name(x.numel()),
        dtype_name(dtype),
        contenders,
        baseline="x.clone()",
        roof=Roof("x.clone()", 2 * x.nbytes, "GB/s"),
    )


def elastic_net(x: Tensor, l1: Tensor, l2: Tensor) -> Tensor:
    """In the operations that PyTorch has."""
    return torch.sign(x) * F.relu(x.abs() - l1) / (1 + l2)


def backward(config: Config) -> Row:
    """Three gradients out of four tensors: seven passes, where a copy has two."""
    x = config.tensor(size(config))
    inputs = [x, *(torch.full_like(x, LAM) for _ in range(2))]
    for t in inputs:
        t.requires_grad_()
    grad = torch.randn_like(x)
    implementations = {**config.with_compiled(elastic_net), "torchcalc": prox_elastic_net}
    contenders: dict[str, Run] = {"x.clone()": x.detach().clone}
    for name, prox in implementations.items():
        contenders[name] = partial(
            torch.autograd.grad, prox(*inputs), inputs, grad, retain_graph=True
        )
    return config.compare(
        "elastic net, learned strengths, backward",
        size_name(x.numel()),
        "float32",
        contenders,
        baseline="x.clone()",
        roof=Roof("x.clone()", 2 * x.nbytes, "GB/s", 7 * x.nbytes),
    )


def size(config: Config) -> int:
    return config.size(2**14, 16 * 2**20, 128 * 2**20)
