"""Proximal operators of l1 |y| + (l2 / 2) y^2 in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

Strength = Tensor | float


def soft_threshold(x: Tensor, lam: Strength) -> Tensor:
    """S(x, lam) = sign(x) max(|x| - lam, 0); NaN in either gives NaN."""
    shrunk = torch.where(x < 0, x + lam, x - lam)
    return torch.where(x.abs() - lam <= 0, torch.zeros_like(shrunk), shrunk)


def prox(x: Tensor, l1: Strength, l2: Strength) -> Tensor:
    """S(x, l1) / (1 + l2)."""
    return soft_threshold(x, l1) / (1 + l2)


def prox_grad(grad: Tensor, x: Tensor, l1: Tensor, l2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Cotangents (dx, dl1, dl2) of ``prox``; all tensors have x's shape."""
    dx, dl1, dl2 = torch.func.vjp(prox, x, l1, l2)[1](grad)
    return dx, dl1, dl2


def prox_grad_grad(
    cx: Tensor, c1: Tensor, c2: Tensor, grad: Tensor, x: Tensor, l1: Tensor, l2: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cotangents (dgrad, dx, dl1, dl2) of ``prox_grad`` for (cx, c1, c2), those of its results."""
    dgrad, dx, dl1, dl2 = torch.func.vjp(prox_grad, grad, x, l1, l2)[1]((cx, c1, c2))
    return dgrad, dx, dl1, dl2
