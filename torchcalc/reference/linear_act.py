"""Linear + activation + dropout + residual in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from torchcalc.reference.dropout import dropout

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


def _gelu_third(z: Tensor) -> Tensor:
    return (z**3 - 4 * z) * torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)


def _gelu_tanh_third(z: Tensor) -> Tensor:
    k, c = math.sqrt(2 / math.pi), 0.044715
    t = torch.tanh(k * (z + c * z**3))
    w1, w2, w3 = k * (1 + 3 * c * z * z), 6 * k * c * z, 6 * k * c  # derivatives of tanh's argument
    t2 = w2 - 2 * t * w1 * w1
    t3 = w3 - 6 * t * w1 * w2 - 2 * w1**3 * (1 - 3 * t * t)
    return (1 - t * t) * (1.5 * t2 + z / 2 * t3)


def _silu_third(z: Tensor) -> Tensor:
    s = torch.sigmoid(z)
    p, q = s * (1 - s), 1 - 2 * s
    return p * (q * (3 + z * q) - 2 * z * p)


# F_3, out of operations that autograd differentiates on: where it is not 0.
THIRD: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": _gelu_third,
    "gelu_tanh": _gelu_tanh_third,
    "silu": _silu_third,
    "tanh": lambda a: torch.full_like(a, -2.0),
    "sigmoid": lambda a: torch.full_like(a, -2.0),
}
