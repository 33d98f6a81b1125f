"""Tables that scikit-learn ships, split and standardised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn import datasets
from sklearn.model_selection import train_test_split
from torch import Tensor

_LOADERS = {
    "breast_cancer": datasets.load_breast_cancer,
    "wine": datasets.load_wine,
}


@dataclass(frozen=True)
class Table:
    """x: [n, inputs], as measured; y: [n], the class; names of the inputs and of the classes."""

    x: NDArray[np.floating[Any]]
    y: NDArray[np.integer[Any]]
    names: tuple[str, ...]
    classes: int


@dataclass(frozen=True)
class Part:
    x: Tensor  # float32 [n, inputs]
    y: Tensor  # int64 [n]


def load(name: str) -> Table:
    loaded = _LOADERS[name]()
    names = tuple(map(str, loaded.feature_names))
    return Table(loaded.data, loaded.target, names, len(loaded.target_names))


def split(table: Table, seed: int) -> tuple[Part, Part, Part]:
    """(train, validation, test): the test rows are the same for every seed, a quarter.

    Of the others a fifth, drawn by the seed, is for validation. Mean and deviation are those of
    the training rows.
    """
    every = np.arange(len(table.y))
    rest, test = train_test_split(every, test_size=0.25, stratify=table.y, random_state=0)
    train, validation = train_test_split(
        rest, test_size=0.2, stratify=table.y[rest], random_state=seed % 2**32
    )
    center, scale = table.x[train].mean(axis=0), table.x[train].std(axis=0)
    scale[scale == 0] = 1  # an input that is always the same

    def part(rows: NDArray[np.integer[Any]]) -> Part:
        return Part(
            torch.as_tensor((table.x[rows] - center) / scale, dtype=torch.float32),
            torch.as_tensor(table.y[rows], dtype=torch.int64),
        )

    return part(train), part(validation), part(test)
