"""Selecting inputs: a penalty on columns, the strength by a rule, how stable what survives is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import sqrt
from statistics import mean, stdev

import torch
import torch.nn.functional as F
from torch import nn

import torchcalc
from torchcalc.cli.features.settings import Settings
from torchcalc.cli.features.tables import Part
from torchcalc.prox import GroupL2

HIDDEN = 32


@dataclass(frozen=True)
class Fit:
    """A trained model: the norm of each input's weights, and how good it is."""

    norms: tuple[float, ...]
    validation_loss: float
    accuracy: float  # on the test rows, in [0, 1]

    @property
    def selected(self) -> frozenset[int]:
        """Inputs whose weights are not exactly zero, all of them."""
        return frozenset(i for i, norm in enumerate(self.norms) if norm != 0)


def fit(
    parts: tuple[Part, Part, Part], classes: int, lam: float, seed: int, settings: Settings
) -> Fit:
    """An MLP with lam times the sum of the norms of the first weight's columns; all rows a step."""
    train, validation, test = parts
    torch.manual_seed(seed)
    model = nn.Sequential(
        torchcalc.nn.LinearAct(train.x.shape[1], HIDDEN, activation="relu"),
        torchcalc.nn.LinearAct(HIDDEN, classes, activation="identity"),
    )
    rules = {"0.weight": GroupL2(lam, dim=1) if lam else None, "*": None}
    optimizer = torchcalc.optim.AdamW(
        torchcalc.optim.groups(model, rules), lr=settings.lr, weight_decay=settings.weight_decay
    )
    for _ in range(settings.steps):
        optimizer.zero_grad()
        F.cross_entropy(model(train.x), train.y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        norms = next(model.parameters()).norm(dim=0)
        loss = F.cross_entropy(model(validation.x), validation.y)
        hits = (model(test.x).argmax(dim=1) == test.y).double().mean()
    return Fit(tuple(norms.tolist()), float(loss), float(hits))


def standard_error(values: Sequence[float]) -> float:
    return stdev(values) / sqrt(len(values)) if len(values) > 1 else 0.0


def one_standard_error(losses: Mapping[float, Sequence[float]]) -> float:
    """The largest strength whose mean loss is within one standard error of the smallest one.

    (Breiman, Friedman, Olshen & Stone, 1984.)
    """
    best = min(losses, key=lambda lam: mean(losses[lam]))
    limit = mean(losses[best]) + standard_error(losses[best])
    return max(lam for lam, values in losses.items() if mean(values) <= limit or lam == best)


def jaccard(sets: Sequence[frozenset[int]]) -> float:
    """Mean over all pairs of |a and b| / |a or b|; 1 where there is no pair, or nothing in it."""
    pairs = [len(a & b) / len(a | b) if a | b else 1.0 for a, b in combinations(sets, 2)]
    return mean(pairs) if pairs else 1.0
