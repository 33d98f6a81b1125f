"""The same MLP in plain PyTorch and with torchcalc."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

import torchcalc
from torchcalc.prox import L1, GroupL2

WIDTHS = (64, 256, 256, 10)
P = 0.1  # of dropout


def dense() -> nn.Sequential:
    """Linear, GELU, Dropout as three modules; parameters drawn from torch's generator."""
    *hidden, last = pairwise(WIDTHS)
    layers: list[nn.Module] = []
    for width_in, width_out in hidden:
        layers += [nn.Linear(width_in, width_out), nn.GELU(), nn.Dropout(P)]
    return nn.Sequential(*layers, nn.Linear(*last))


def sparse(widths: Sequence[int] = WIDTHS) -> nn.Sequential:
    """Linear + GELU + dropout as one module; with a report's widths it takes compacted.pt."""
    *hidden, last = pairwise(widths)
    layers = [torchcalc.nn.LinearAct(*pair, activation="gelu", dropout_p=P) for pair in hidden]
    return nn.Sequential(*layers, torchcalc.nn.LinearAct(*last, activation="identity"))


def sparse_like(model: nn.Module) -> nn.Sequential:
    """Parameters are copies of ``model``'s."""
    twin = sparse()
    with torch.no_grad():
        for copy, original in zip(twin.parameters(), model.parameters(), strict=True):
            copy.copy_(original)
    return twin


def widths(model: nn.Module) -> list[int]:
    """Of the inputs and of each layer, the hidden neurons among them."""
    matrices = [parameter for parameter in model.parameters() if parameter.dim() == 2]
    return [matrices[0].shape[1], *(len(matrix) for matrix in matrices)]


def dense_optimizer(model: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=lr)


def sparse_optimizer(model: nn.Module, lr: float, lam: float) -> torch.optim.Optimizer:
    """AdamW again, its kernel ending with the prox of lam ||W||_1 for every weight matrix."""
    rules = {"*.weight": L1(lam), "*.bias": None}
    return torchcalc.optim.AdamW(torchcalc.optim.groups(model, rules), lr=lr)


def group_optimizer(model: nn.Module, lr: float, lam: float) -> torch.optim.Optimizer:
    """The same with lam times the sum of the norms of what belongs to a hidden neuron.

    That is what it reads in the first layer, a row, and what reads it in the others, a column.
    """
    rules = {"0.weight": GroupL2(lam, dim=0), "*.weight": GroupL2(lam, dim=1), "*.bias": None}
    return torchcalc.optim.AdamW(torchcalc.optim.groups(model, rules), lr=lr)
