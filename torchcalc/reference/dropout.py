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


def philox(group: Tensor, seed: Tensor, *more: int) -> tuple[Tensor, ...]:
    """The words of each group; ``more`` are the last two words of the counter, 0 for dropout."""
    # 32-bit words in int64: products wrap modulo 2^64, which leaves both halves right.
    last = [torch.full_like(group, word) for word in more or (0, 0)]
    c = [group & _LOW, (group >> 32) & _LOW, *last]
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


def positions(block: Sequence[int], device: torch.device) -> Tensor:
    """The row-major index of each element of a block in the whole: int64 [*size].

    block = [*shape, *offset, *size]: the part of ``size`` of a tensor of ``shape`` from ``offset``.
    """
    n = len(block) // 3
    index = torch.zeros((), dtype=torch.int64, device=device)
    for whole, first, size in zip(block[:n], block[n : 2 * n], block[2 * n :], strict=True):
        index = index[..., None] * whole + torch.arange(first, first + size, device=device)
    return index


def dropout_mask(
    shape: Sequence[int],
    seed: Tensor,
    threshold: int,
    samples: int = 1,
    block: Sequence[int] | None = None,
    packed: bool = False,
) -> Tensor:
    """Bool [*shape], True where an element is kept.

    The shape is that of all samples; seed: int64, one for all of them or one for each. Packed: a
    bit for each element, the lowest of a byte first, uint8 [samples, bytes], or [bytes] of one.
    """
    n = math.prod(shape) // samples
    seeds = seed.reshape(-1, 1)
    if block is None:
        index = torch.arange(n, device=seed.device)
    else:
        index = positions(block, seed.device).reshape(-1)
    words = torch.stack(philox(index // 8, seeds), dim=-1)  # [seeds, n, 4]
    lanes = torch.stack((words & 0xFFFF, words >> 16), dim=-1).flatten(-2)  # [seeds, n, 8]
    lane = lanes.gather(-1, (index % 8).expand(seeds.shape[0], n)[..., None])[..., 0]
    kept = (lane >= threshold).expand(samples, n)
    if not packed:
        return kept.reshape(tuple(shape))
    weights = torch.tensor([1 << j for j in range(8)], dtype=torch.uint8, device=seed.device)
    padded = torch.nn.functional.pad(kept.to(torch.uint8), (0, -n % 8))
    bits = (padded.reshape(samples, -1, 8) * weights).sum(-1, dtype=torch.uint8)
    return bits[0] if samples == 1 else bits


def dropout(
    x: Tensor,
    residual: Tensor | None,
    seed: Tensor,
    threshold: int,
    samples: int = 1,
    block: Sequence[int] | None = None,
    shared: int = 1,
    scale: float | None = None,
    shift: float = 0.0,
    fill: float = 0.0,
) -> Tensor:
    """y = residual + (kept ? scale x + shift : fill); ``shared`` elements in a row are kept or not
    together."""
    if scale is None:
        scale = dropout_scale(threshold)
    if threshold == 0:
        kept = torch.ones(x.shape, dtype=torch.bool, device=x.device)
    else:
        draws = x.numel() // shared
        kept = dropout_mask((draws,), seed, threshold, samples, block)
        kept = kept[:, None].expand(draws, shared).reshape(x.shape)
    y = torch.where(kept, x * scale + shift, torch.full_like(x, fill))
    return y if residual is None else residual + y


def dropout_whole(x: Tensor, seed: Tensor, threshold: int, dims: int) -> Tensor:
    """A draw for each element of the first ``dims`` dimensions, which holds for all behind it."""
    return x * _whole_mask(x, seed, threshold, dims) * dropout_scale(threshold)


def alpha_dropout(x: Tensor, seed: Tensor, threshold: int, dims: int | None = None) -> Tensor:
    """Dropped elements become what selu saturates at; then mean 0 and variance 1 are restored.

    ``dims`` as in :func:`dropout_whole`; None: a draw for each element.
    """
    if threshold == LANE_RANGE:
        return x * 0
    kept = _whole_mask(x, seed, threshold, x.dim() if dims is None else dims)
    saturated = torch.nn.functional.selu(torch.tensor(-math.inf, dtype=torch.float64)).item()
    q = threshold / LANE_RANGE
    mean = q * saturated
    variance = (1 - q) + q * saturated**2 - mean**2
    return (torch.where(kept, x, saturated) - mean) / math.sqrt(variance)


def _whole_mask(x: Tensor, seed: Tensor, threshold: int, dims: int) -> Tensor:
    kept = dropout_mask(x.shape[:dims], seed, threshold)
    return kept.reshape((*x.shape[:dims], *[1] * (x.dim() - dims)))
