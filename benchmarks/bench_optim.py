"""A step with the L1 prox in the kernel; the baseline is torch's fused step without a penalty.

"eager" is torch's fused step and a soft-threshold pass over the parameters, by lr * lam; in
torchcalc's AdamW, whose metric is the default one, that differs for each coordinate. The roof is an
in-place pass over a tensor that reads and writes as many bytes as a step. SGD's step over many
small parameters, which costs as much as its call, has one thread, as have all calls (bench_calls).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness import Config, Roof, Row, Run, Task, size_name
from torchcalc import optim
from torchcalc.prox import L1

LR, LAM, MOMENTUM = 1e-3, 1e-2, 0.9
NO_PENALTY = "torchcalc, no penalty"
Make = Callable[[list[Tensor]], torch.optim.Optimizer]
OURS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(optim.SGD, lr=LR, momentum=MOMENTUM),
    "AdamW": partial(optim.AdamW, lr=LR),
}


def tasks(config: Config) -> list[Task]:
    few = (2 if config.quick else 16, config.size(1024, 2**20, 2**22))
    many = (10, 16) if config.quick else (1000, 1000)
    adamw = partial(row, config, "AdamW", torch.optim.AdamW, optim.AdamW, {}, 7)
    sgd = partial(row, config, "SGD", torch.optim.SGD, optim.SGD, {"momentum": MOMENTUM}, 5)
    return [
        Task("AdamW, few large", partial(adamw, few, must=1.10, aim=1.0)),
        Task("AdamW, many small", partial(adamw, many, must=0.7, aim=0.3)),
        Task("SGD, few large", partial(sgd, few)),
        Task("SGD, many small", partial(sgd, many, must=0.8, aim=0.4)),
        Task("SGD, many small, one thread", partial(sgd, many, one_thread=True)),
    ]


def row(
    config: Config,
    name: str,
    theirs: Callable[..., torch.optim.Optimizer],
    ours: Callable[..., torch.optim.Optimizer],
    options: dict[str, Any],
    passes: int,
    sizes: tuple[int, int],
    must: float | None = None,
    aim: float | None = None,
    one_thread: bool = False,
) -> Row:
    """``passes``: how often a step reads or writes as much memory as the parameters take."""
    fused = partial(theirs, lr=LR, fused=True, **options)
    plain = partial(ours, lr=LR, **options)
    baseline = f"{name}(fused)"
    contenders = {
        baseline: step(config, sizes, fused),
        "eager": step(config, sizes, fused, shrink=True),
        NO_PENALTY: step(config, sizes, plain),
        "torchcalc": step(config, sizes, partial(plain, penalty=L1(LAM))),
    }
    count, numel = sizes
    traffic = torch.zeros(passes * count * numel // 2, device=config.device)
    contenders["in-place pass"] = traffic.neg_
    return config.compare(
        f"{name} + L1",
        f"{count} x {size_name(numel)}" + ", one thread" * one_thread,
        "float32",
        contenders,
        baseline=baseline,
        bound=config.bound(must, aim) if must and aim else None,
        roof=Roof("in-place pass", 2 * traffic.nbytes, "GB/s"),
        one_thread=one_thread,
    )


def step(
    config: Config,
    sizes: tuple[int, int],
    make: Make,
    shrink: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Run:
    """One step over parameters of its own, followed by ``shrink_`` if asked for."""
    count, numel = sizes
    params = [config.tensor(numel, dtype=dtype).requires_grad_() for _ in range(count)]
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer = make(params)
    if not shrink:
        return optimizer.step

    def run() -> None:
        optimizer.step()
        shrink_(params, LR * LAM, config.gpu is not None)

    return run


@torch.no_grad()
def shrink_(params: list[Tensor], lam: float, on_gpu: bool) -> None:
    """w = S(w, lam), the fastest way that plain PyTorch has."""
    if on_gpu:  # few launches matter more than few passes
        clipped = torch._foreach_clamp_min(params, -lam)
        torch._foreach_clamp_max_(clipped, lam)
        torch._foreach_sub_(params, clipped)
    else:
        for param in params:
            torch.ops.aten.softshrink.out(param, lam, out=param)
