"""scikit-learn's handwritten digits: 1797 pictures of 8 x 8 pixels, shipped inside the package."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

SIDE = 8
_BRIGHTEST = 16  # the pixels are integers from 0 to this


@dataclass(frozen=True)
class Split:
    """x: float32 [n, 64] in [0, 1]; y: int64 [n], the digit."""

    x: Tensor
    y: Tensor


def load(device: torch.device) -> tuple[Split, Split]:
    """(train, test): 1347 and 450 digits, always the same, each digit with its share in both."""
    pixels, digit = load_digits(return_X_y=True)
    train_x, test_x, train_y, test_y = train_test_split(
        pixels / _BRIGHTEST, digit, test_size=0.25, stratify=digit, random_state=0
    )

    def split(x: object, y: object) -> Split:
        return Split(
            torch.as_tensor(x, dtype=torch.float32, device=device),
            torch.as_tensor(y, dtype=torch.int64, device=device),
        )

    return split(train_x, train_y), split(test_x, test_y)


def batches(n: int, steps: int, batch_size: int, seed: int) -> Tensor:
    """Indices in [0, n), [steps, batch_size]: one shuffled epoch after the other."""
    generator = torch.Generator().manual_seed(seed)
    epochs = -(-steps * batch_size // n)
    order = torch.cat([torch.randperm(n, generator=generator) for _ in range(epochs)])
    return order[: steps * batch_size].view(steps, batch_size)
