"""Linear + activation + dropout + residual in plain PyTorch."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcalc.reference.dropout import dropout, dropout_mask, dropout_scale

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "relu": F.relu,
    "gelu": F.gelu,
    "gelu_tanh": lambda z: F.gelu(z, approximate="tanh"),
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}

# f'(z) as a function of the output a = f(z), where it is one.
FROM_OUTPUT: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda a: (~(a <= 0)).to(a.dtype),
    "tanh": lambda a: 1 - a * a,
    "sigmoid": lambda a: a * (1 - a),
}


def linear_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    residual: Tensor | None = None,
    seed: Tensor | None = None,
    threshold: int = 0,
) -> Tensor:
    """y = residual + dropout(f(x W^T + b)).  x [M, K], weight [N, K], bias [N], residual [M, N]."""
    y = ACTIVATIONS[activation](F.linear(x, weight, bias))
    if seed is not None:
        y = dropout(y, seed, threshold)
    return y if residual is None else residual + y


def derivative(c: Tensor, u: Tensor, activation: str, order: int) -> Tensor:
    """c * F_order(u), with u = z and F_k = f^(k), or u = a and F_k the (k-1)th derivative of F_1.

    Autograd takes the derivatives one from another, so the order has no bound.
    """
    if activation in FROM_OUTPUT:
        if order == 1:
            return c * FROM_OUTPUT[activation](u)
    elif order == 0:
        return c * ACTIVATIONS[activation](u)
    lower = torch.func.vjp(lambda v: derivative(torch.ones_like(v), v, activation, order - 1), u)[1]
    return torch.as_tensor(lower(c)[0])


def act_grad(
    grad: Tensor,
    saved: Tensor | None,
    seed: Tensor | None,
    activation: str,
    order: int,
    threshold: int,
    from_output: bool = False,
) -> Tensor:
    """mask(scale * c * F_order(u)); with ``from_output`` saved is y = scale * a, else it is u."""
    if activation == "identity":
        dz = grad if order == 1 else torch.zeros_like(grad)
        return dz if seed is None else dropout(dz, seed, threshold)
    assert saved is not None
    scale = dropout_scale(threshold)
    unscale = 1 / scale if from_output and scale > 0 else 1.0
    dz = derivative(grad, saved * unscale, activation, order) * (scale * unscale ** (order - 1))
    if seed is None:
        return dz
    return torch.where(dropout_mask(grad.shape, seed, threshold), dz, torch.zeros_like(dz))
