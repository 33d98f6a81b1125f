"""Dropout in plain PyTorch: the oracle of the kernels, and the path of other devices.

Element i of the row-major tensor takes lane i % 8 of the Philox4x32-10 words of group i // 8 and is
kept iff lane >= round(65536 p) (csrc/math/philox.h has the whole definition).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LOW = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
LANE_RANGE = 65536


def dropout_scale(threshold: int) -> float:
    """The factor of kept values: 65536 / (65536 - threshold), and 0 where none is kept."""
    return 0.0 if threshold >= LANE_RANGE else LANE_RANGE / (LANE_RANGE - threshold)


def _philox(group: Tensor, seed: Tensor) -> tuple[Tensor, ...]:
    # 32-bit words in int64: products wrap modulo 2^64, which leaves both halves right.
    zero = torch.zeros_like(group)
    c = [group & _LOW, (group >> 32) & _LOW, zero, zero]
    key = [seed & _LOW, (seed >> 32) & _LOW]
    for _ in range(_ROUNDS):
        p0, p1 = _MULTIPLIERS[0] * c[0], _MULTIPLIERS[1] * c[2]
        c = [
            ((p1 >> 32) & _LOW) ^ c[1] ^ key[0],
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ c[3] ^ key[1],
            p0 & _LOW,
        ]
        key = [(k + w) & _LOW for k, w in zip(key, _WEYL, strict=True)]
    return tuple(c)


def dropout_mask(shape: Sequence[int], seed: Tensor, threshold: int) -> Tensor:
    """Bool [*shape], True where an element is kept. seed: one int64 element."""
    n = math.prod(shape)
    group = torch.arange((n + 7) // 8, device=seed.device)
    words = torch.stack(_philox(group, seed.reshape(())), dim=-1)  # [groups, 4]
    lanes = torch.stack((words & 0xFFFF, words >> 16), dim=-1)  # [groups, 4, 2]
    return (lanes.reshape(-1)[:n] >= threshold).reshape(tuple(shape))


def dropout(x: Tensor, seed: Tensor, threshold: int) -> Tensor:
    """y = kept ? x * scale : 0."""
    if threshold == 0:
        return x.clone()
    kept = dropout_mask(x.shape, seed, threshold)
    return torch.where(kept, x * dropout_scale(threshold), torch.zeros_like(x))
