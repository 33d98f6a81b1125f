"""Stochastic rounding in plain PyTorch (csrc/math/rounding.h has the definition)."""

from __future__ import annotations

import torch
from torch import Tensor

from torchcalc.reference.dropout import philox


def round_randomly(x: Tensor, dtype: torch.dtype, seed: int, number: int, time: int) -> Tensor:
    """float32 to bfloat16 or float16, up with a probability of how far x is from below."""
    index = torch.arange(x.numel(), device=x.device).view(x.shape)
    words = philox(index // 8, torch.tensor(seed, device=x.device), number, time)
    word = torch.stack(words).gather(0, (index % 8 // 2)[None])[0]
    random = (word >> (16 * (index % 2))) & 0xFFFF
    bits = x.contiguous().view(torch.int32).long() & 0xFFFFFFFF
    magnitude, sign = bits & 0x7FFFFFFF, bits >> 16 & 0x8000
    if dtype is torch.bfloat16:
        half = (magnitude + random) >> 16
    else:
        half = ((magnitude + (random >> 3)) >> 13) - ((127 - 15) << 10)
        below = (x.abs() * 2.0**24 + (random >> 4) * 2.0**-12).nan_to_num(0.0, 0.0).long()
        half = torch.where(magnitude < 0x38800000, below, half)
        half = torch.where(magnitude >= 0x47800000, 0x7C00, half)
    rounded = half | sign
    rounded = (rounded - ((rounded & 0x8000) << 1)).to(torch.int16).view(dtype)
    return torch.where(x.isfinite(), rounded, x.to(dtype))
