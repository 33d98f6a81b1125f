"""Optimizer updates of one tensor in plain PyTorch, followed by a prox."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Prox = Callable[[Tensor, Tensor | float], Tensor]  # of a penalty: (v, step) -> w


def sgd_prox_step(lr: float, momentum: float, dampening: float) -> float:
    """How far a constant gradient of 1 moves a coordinate a step in the end."""
    return lr * (1 - dampening) / (1 - momentum) if momentum else lr


def adamw_prox_step(
    exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, *, lr: float, beta2: float, eps: float
) -> Tensor:
    """s = lr / d where a gradient was ever seen, else lr; ``step`` counts this one."""
    correction = 1 - beta2 ** step.double()
    d = torch.sqrt(exp_avg_sq / correction.to(exp_avg_sq.dtype)) + eps
    unseen = (exp_avg == 0) & (exp_avg_sq == 0)
    s: Tensor = torch.where(unseen, lr, lr / d).clamp_max(torch.finfo(d.dtype).max)
    return s


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
    prox: Prox | None = None,
) -> None:
    """v = w - lr d as in torch.optim.SGD, then w = prox(v, sgd_prox_step); in place."""
    d = -grad if maximize else grad
    if weight_decay:  # 0 times an infinite weight is NaN
        d = d + weight_decay * param
    if momentum_buffer is not None:
        momentum_buffer.copy_(d if first_step else momentum * momentum_buffer + (1 - dampening) * d)
        d = d + momentum * momentum_buffer if nesterov else momentum_buffer
    v = param - lr * d
    param.copy_(prox(v, sgd_prox_step(lr, momentum, dampening)) if prox else v)


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
    prox: Prox | None = None,
    adaptive: bool = True,
) -> None:
    """v as in torch.optim.AdamW, then w = prox(v, s); in place.

    s is adamw_prox_step where adaptive, else lr.
    """
    step += 1
    k = float(step)
    g = -grad if maximize else grad
    exp_avg.copy_(beta1 * exp_avg + (1 - beta1) * g)
    exp_avg_sq.copy_(beta2 * exp_avg_sq + (1 - beta2) * g * g)
    d = torch.sqrt(exp_avg_sq / (1 - beta2**k)) + eps
    v = param * (1 - lr * weight_decay) - lr * (exp_avg / (1 - beta1**k)) / d
    s = adamw_prox_step(exp_avg, exp_avg_sq, step, lr=lr, beta2=beta2, eps=eps) if adaptive else lr
    param.copy_(prox(v, s) if prox else v)
