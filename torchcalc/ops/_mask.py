"""What tells an op which mask it draws, and what vmap makes of it.

Every op that draws a mask takes ``seed, threshold, samples, block``: an element is kept where its
16-bit draw is at least ``threshold``; the tensor is ``samples`` tensors one after the other, whose
draws each begin anew, with one seed for all or one for each; a sample is the whole of its tensor,
or where ``block`` = [*shape, *offset, *size] is given, such a part of one of that shape.
"""

from __future__ import annotations

from torch import Tensor


def sample_seeds(seed: Tensor | None, dim: int | None, size: int, samples: int) -> Tensor | None:
    """The seeds of a vmapped op whose ``size`` calls drew ``samples`` masks each."""
    if seed is None:
        return None
    if dim is None:
        if seed.numel() == 1:
            return seed  # for all samples of all calls
        return seed.reshape(1, samples).expand(size, samples).reshape(-1).contiguous()
    each = seed.movedim(dim, 0).unsqueeze(-1).flatten(1)
    return each.expand(size, samples).reshape(-1).contiguous()
