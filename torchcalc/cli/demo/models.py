"""The same MLP in plain PyTorch and with torchcalc."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import nn

import torchcalc

WIDTHS = (64, 256, 256, 10)
P = 0.1  # of dropout


def dense() -> nn.Sequential:
    """Linear, GELU, Dropout as three modules; parameters drawn from torch's generator."""
    *hidden, last = pairwise(WIDTHS)
    layers: list[nn.Module] = []
    for width_in, width_out in hidden:
        layers += [nn.Linear(width_in, width_out), nn.GELU(), nn.Dropout(P)]
    return nn.Sequential(*layers, nn.Linear(*last))


def sparse_like(model: nn.Module) -> nn.Sequential:
    """Linear + GELU + dropout as one module; parameters are copies of ``model``'s."""
    *hidden, last = pairwise(WIDTHS)
    layers = [torchcalc.nn.LinearAct(*widths, activation="gelu", dropout_p=P) for widths in hidden]
    twin = nn.Sequential(*layers, torchcalc.nn.LinearAct(*last, activation="identity"))
    with torch.no_grad():
        for copy, original in zip(twin.parameters(), model.parameters(), strict=True):
            copy.copy_(original)
    return twin


def dense_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr)


def sparse_optimizer(model: nn.Module, lr: float, lam: float) -> torch.optim.Optimizer:
    """AdamW again, its kernel ending with the prox of lam ||W||_1 for every weight matrix."""
    rules = {"*.weight": torchcalc.prox.L1(lam), "*.bias": None}
    return torchcalc.optim.AdamW(torchcalc.optim.groups(model, rules), lr=lr)
