"""What the public functions share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

from torchcalc._check import MAX_SEED, int_seed
from torchcalc.ops._sharding import replicated

# (shape, offset): a tensor is the block that begins at ``offset`` of one of ``shape``.
Shard = tuple[Sequence[int], Sequence[int]]


def overridden(function: Any, *args: Any, **kwargs: Any) -> Tensor:
    # As the functions of torch.nn.functional: to torch.fx, to subclasses and modes that override
    # functions, each of these is one function.
    relevant = (*args, *kwargs.values())
    result: Tensor = handle_torch_function(function, relevant, *args, **kwargs)
    return result


def seed_tensor(op: str, seed: Any, x: Tensor) -> Tensor:
    """The seed as a tensor; drawn by torch's generator where it is None."""
    if seed is None:
        seed = torch.randint(0, MAX_SEED, (1,), dtype=torch.int64, device=x.device)
    elif not isinstance(seed, Tensor):
        # Filled on the device: a copy from here would wait for it, and no CUDA graph takes one.
        seed = torch.full((1,), int_seed(op, seed), dtype=torch.int64, device=x.device)
    return seed if type(x) is Tensor else replicated(seed, x)


def no_shard(op: str, shard: Shard | None) -> None:
    if shard is not None:
        raise ValueError(f"{op}: shard must be None where x is a DTensor, which knows its shard")
