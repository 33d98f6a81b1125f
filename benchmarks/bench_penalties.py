"""What each penalty adds to a step of AdamW, and projections beside their formulas in PyTorch.

Of the steps the baseline is the one without a penalty, over 16 x 1 Mi elements: what a separable
penalty does stays in registers and cache, one by groups reads the rows that were just written. Of
the projections it is the formula that sorts, which jaxopt has as well: Duchi et al., 2008.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness import SUBJECT, Config, Row, Task, size_name
from torchcalc import optim, prox
from torchcalc.prox import Penalty

NO_PENALTY = "torchcalc, no penalty"
LAM = 1e-2
# penalty, the most that a step may take with it
STEPS: dict[str, tuple[Penalty, float | None]] = {
    "L1": (prox.L1(LAM), 1.05),
    "L2": (prox.L2(LAM), 1.05),
    "ElasticNet": (prox.ElasticNet(LAM, LAM), 1.05),
    "NonNegative": (prox.NonNegative(), 1.05),
    "NonNegativeL1": (prox.NonNegativeL1(LAM), 1.05),
    "Box": (prox.Box(-1.0, 1.0), 1.05),
    "Huber": (prox.Huber(LAM, 0.1), 1.05),
    "L0": (prox.L0(LAM), 1.05),
    "MCP": (prox.MCP(LAM), 1.05),
    "SCAD": (prox.SCAD(LAM), 1.05),
    "LHalf": (prox.LHalf(LAM), 1.25),
    "GroupL2, rows": (prox.GroupL2(LAM), 1.15),
    "GroupL2, columns": (prox.GroupL2(LAM, dim=1), None),
    "SparseGroupL2, rows": (prox.SparseGroupL2(LAM, LAM), None),
    "NMSparse 2:4": (prox.NMSparse(2, 4), 1.15),
    "TopK, half": (prox.TopK(density=0.5), None),
}
PROJECTIONS: dict[str, tuple[Callable[[float], Penalty], float]] = {
    "L1Ball": (prox.L1Ball, 100.0),
    "Simplex": (prox.Simplex, 1.0),
}


def tasks(config: Config) -> list[Task]:
    return [
        *(Task(f"AdamW + {name}", partial(step_row, config, name)) for name in STEPS),
        *(Task(f"projection, {name}", partial(projection, config, name)) for name in PROJECTIONS),
    ]


def step_row(config: Config, name: str) -> Row:
    count, side = (2, 32) if config.quick else (16, config.size(32, 1024, 2048))
    penalty, must = STEPS[name]
    # The same memory for both: where it lies makes a difference of some percent.
    params = [config.tensor(side, side).requires_grad_() for _ in range(count)]
    for param in params:
        param.grad = torch.randn_like(param)

    def step(penalty: Penalty | None) -> Callable[[], object]:
        return optim.AdamW(params, lr=1e-3, penalty=penalty).step

    return config.compare(
        f"AdamW + {name}",
        f"{count} x {size_name(side * side)}",
        "float32",
        {NO_PENALTY: step(None), SUBJECT: step(penalty)},
        baseline=NO_PENALTY,
        bound=config.bound(must, 1.0) if must else None,
    )


def onto_simplex(v: Tensor, total: float) -> Tensor:
    """max(v - t, 0), t told by the sorted values."""
    u, _ = torch.sort(v, descending=True)
    levels = (u.cumsum(0) - total) / torch.arange(1, len(u) + 1, device=u.device)
    return (v - levels[(u > levels).sum() - 1]).clamp_min(0)


def onto_l1_ball(v: Tensor, radius: float) -> Tensor:
    return torch.sign(v) * onto_simplex(v.abs(), radius)


def projection(config: Config, name: str) -> Row:
    v = config.tensor(config.size(2**10, 2**20, 2**24))
    make, size = PROJECTIONS[name]
    penalty = make(size)
    sorts = partial(onto_l1_ball if name == "L1Ball" else onto_simplex, v, size)
    torch.testing.assert_close(penalty.prox(v), sorts(), atol=1e-3 / math.sqrt(size), rtol=1e-3)
    return config.compare(
        f"projection on {name}",
        size_name(v.numel()),
        "float32",
        {"sorted, in PyTorch": sorts, SUBJECT: partial(penalty.prox, v)},
        baseline="sorted, in PyTorch",
        bound=config.bound(0.5, 0.1),
    )
