"""Optimizer updates of one tensor in plain PyTorch, with a written-out prox step."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcalc.reference.prox import prox


def sgd_step(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    dampening: float = 0.0,
    weight_decay: float = 0.0,
    nesterov: bool = False,
    maximize: bool = False,
    first_step: bool = False,
    l1: float = 0.0,
    l2: float = 0.0,
) -> None:
    """v = w - lr d as in torch.optim.SGD, then w = S(v, s l1) / (1 + s l2); in place.

    s: how far a constant gradient of 1 moves w a step in the end.
    """
    d = -grad if maximize else grad
    if weight_decay:  # 0 times an infinite weight is NaN
        d = d + weight_decay * param
    if momentum_buffer is not None:
        momentum_buffer.copy_(d if first_step else momentum * momentum_buffer + (1 - dampening) * d)
        d = d + momentum * momentum_buffer if nesterov else momentum_buffer
    s = lr * (1 - dampening) / (1 - momentum) if momentum else lr
    param.copy_(prox(param - lr * d, s * l1, s * l2))


def adamw_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
    maximize: bool = False,
    l1: float = 0.0,
    l2: float = 0.0,
    adaptive: bool = True,
    bound: float = float("inf"),
) -> None:
    """v as in torch.optim.AdamW, then w = S(v, s l1) / (1 + s l2), but |v - w| <= bound; in place.

    s = lr / d where adaptive and a gradient was ever seen, else lr.
    """
    step += 1
    k = float(step)
    g = -grad if maximize else grad
    exp_avg.copy_(beta1 * exp_avg + (1 - beta1) * g)
    exp_avg_sq.copy_(beta2 * exp_avg_sq + (1 - beta2) * g * g)
    d = torch.sqrt(exp_avg_sq / (1 - beta2**k)) + eps
    v = param * (1 - lr * weight_decay) - lr * (exp_avg / (1 - beta1**k)) / d
    unseen = (exp_avg == 0) & (exp_avg_sq == 0)
    s = torch.where(unseen, lr, lr / d) if adaptive else torch.full_like(d, lr)
    w = prox(v, s * l1, s * l2)
    if bound != float("inf"):
        w = torch.where((v - w).abs() <= bound, w, v - bound * torch.sign(v - w))
    param.copy_(w)
