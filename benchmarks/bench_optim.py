"""A step with the L1 prox in the kernel, beside torch's fused step and its own without a penalty.

"eager" is torch's fused step (of RMSprop, which has none, foreach's) and a soft-threshold pass over
the parameters, by lr * lam; in torchcalc's optimizers with a step for each coordinate, whose metric
is the default one, that differs for each. The roof is an in-place pass over a tensor that reads and
writes as many bytes as a step. SGD's step over many small parameters, which costs as much as its
call, has one thread, as have all calls (bench_calls). Where a neuron is dead, its gradients are 0,
and averages of earlier ones become subnormal numbers, which torch's step keeps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import SUBJECT, Bound, Config, Roof, Row, Run, Task, size_name
from torchcalc import optim
from torchcalc.prox import L1

LR, LAM, MOMENTUM = 1e-3, 1e-2, 0.9
NO_PENALTY = "torchcalc, no penalty"
Make = Callable[[list[Tensor]], torch.optim.Optimizer]
OURS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "SGD": partial(optim.SGD, lr=LR, momentum=MOMENTUM),
    "AdamW": partial(optim.AdamW, lr=LR),
}
# BERT-base: embeddings, 12 layers, pooler.
_WIDTH, _HIDDEN = 768, 3072
_LAYER = [(_WIDTH, _WIDTH), (_WIDTH,)] * 4 + [(_WIDTH,)] * 4
_LAYER += [(_HIDDEN, _WIDTH), (_HIDDEN,), (_WIDTH, _HIDDEN), (_WIDTH,)]
_EMBEDDINGS = [(30522, _WIDTH), (512, _WIDTH), (2, _WIDTH), (_WIDTH,), (_WIDTH,)]
BERT = [*_EMBEDDINGS, *_LAYER * 12, (_WIDTH, _WIDTH), (_WIDTH,)]


class Kind(NamedTuple):
    """An optimizer beside torch's; ``passes``: how often a step reads or writes as much memory as
    the parameters take."""

    ours: Callable[..., torch.optim.Optimizer]
    penalty: dict[str, Any]
    theirs: Callable[..., torch.optim.Optimizer] | None
    fused: str
    passes: int


def _kind(name: str, passes: int, fused: str = "fused", **options: Any) -> Kind:
    theirs = partial(getattr(torch.optim, name), lr=LR, **{fused: True}, **options)
    ours = partial(getattr(optim, name), lr=LR, **options)
    return Kind(ours, {"penalty": L1(LAM)}, theirs, f"{name}({fused})", passes)


KINDS = {
    "AdamW": _kind("AdamW", 7),
    "SGD": _kind("SGD", 5, momentum=MOMENTUM),
    "Adam": _kind("Adam", 7),
    "Adagrad": _kind("Adagrad", 5),
    "RMSprop": _kind("RMSprop", 5, "foreach"),
    "FTRL": Kind(partial(optim.FTRL, lr=LR), {"l1": LAM}, None, "", 7),
}


def tasks(config: Config) -> list[Task]:
    few = [(config.size(1024, 2**20, 2**22),)] * (2 if config.quick else 16)
    many = [(16,)] * 10 if config.quick else [(1000,)] * 1000
    bert = [(16, 16)] * 4 if config.quick else BERT
    made = [Task("SGD, many small, one thread", partial(row, config, "SGD", many, one_thread=True))]
    for name, kind in KINDS.items():
        made.append(Task(f"{name}, the penalty", partial(penalty_row, config, name, few)))
        if kind.theirs is None:
            continue
        at = partial(row, config, name)
        made += [
            Task(f"{name}, few large", partial(at, few, must=1.05, aim=1.0)),
            Task(f"{name}, many small", partial(at, many, must=0.5, aim=0.3)),
            Task(
                f"{name}, few large, bfloat16",
                partial(at, few, must=1.05, aim=1.0, dtype=torch.bfloat16),
            ),
        ]
    made.append(Task("AdamW, dead neurons", partial(dead_row, config, few[0])))
    made.append(Task("AdamW, BERT-base", partial(row, config, "AdamW", bert, must=1.05, aim=1.0)))
    return made


def penalty_row(config: Config, name: str, shapes: list[tuple[int, ...]]) -> Row:
    """Over the same parameters: where they lie makes a difference of some percent."""
    kind, params = KINDS[name], _params(config, shapes)
    return config.compare(
        f"{name} + L1",
        sizes(shapes),
        "float32",
        {NO_PENALTY: kind.ours(params).step, SUBJECT: kind.ours(params, **kind.penalty).step},
        baseline=NO_PENALTY,
        bound=config.bound(1.05, 1.0),
    )


def row(
    config: Config,
    name: str,
    shapes: list[tuple[int, ...]],
    must: float | None = None,
    aim: float | None = None,
    one_thread: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Row:
    kind = KINDS[name]
    assert kind.theirs is not None
    contenders = {
        kind.fused: step(config, shapes, kind.theirs, dtype=dtype),
        "eager": step(config, shapes, kind.theirs, shrink=True, dtype=dtype),
        NO_PENALTY: step(config, shapes, kind.ours, dtype=dtype),
        SUBJECT: step(config, shapes, partial(kind.ours, **kind.penalty), dtype=dtype),
    }
    numel = sum(map(math.prod, shapes))
    traffic = torch.zeros(kind.passes * numel // 2, device=config.device, dtype=dtype)
    contenders["in-place pass"] = traffic.neg_
    bound: Bound | None = config.bound(must, aim) if must and aim else None
    return config.compare(
        f"{name} + L1",
        sizes(shapes) + ", one thread" * one_thread,
        str(dtype).removeprefix("torch."),
        contenders,
        baseline=kind.fused,
        bound=bound,
        roof=Roof("in-place pass", 2 * traffic.nbytes, "GB/s"),
        one_thread=one_thread,
    )


def dead_row(config: Config, shape: tuple[int, ...]) -> Row:
    """Without a penalty: its gradients are 0, and its averages are what 1000 steps make of them."""
    kind = KINDS["AdamW"]
    assert kind.theirs is not None

    def dead(make: Make) -> Run:
        params = _params(config, [shape])
        optimizer = make(params)
        optimizer.step()
        params[0].grad.zero_()
        optimizer.state[params[0]]["exp_avg"].fill_(1e-44)
        return optimizer.step

    return config.compare(
        "AdamW, gradients that became 0",
        sizes([shape]),
        "float32",
        {kind.fused: dead(kind.theirs), SUBJECT: dead(kind.ours)},
        baseline=kind.fused,
        bound=config.bound(0.5, 0.2),
    )


def sizes(shapes: list[tuple[int, ...]]) -> str:
    if len(set(shapes)) > 1:
        return f"{len(shapes)} tensors of BERT-base"
    return f"{len(shapes)} x {size_name(math.prod(shapes[0]))}"


def _params(
    config: Config, shapes: list[tuple[int, ...]], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    params = [config.tensor(*shape, dtype=dtype).requires_grad_() for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def step(
    config: Config,
    shapes: list[tuple[int, ...]],
    make: Make,
    shrink: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Run:
    """One step over parameters of its own, followed by ``shrink_`` if asked for."""
    params = _params(config, shapes, dtype)
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
