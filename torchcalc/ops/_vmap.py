"""vmap of the layers: samples stand one after the other in memory, and the kernels know."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchcalc.ops._autograd import in_front
from torchcalc.ops._mask import sample_seeds


def vmap_options(options: tuple[Any, ...], size: int) -> tuple[Any, ...]:
    *activation, threshold, samples, block = options[:6]
    return *activation, threshold, samples * size, block, *options[6:]


def batched_linear(
    tensors: tuple[Tensor | None, ...],
    in_dims: tuple[int | None, ...],
    size: int,
    parameters: tuple[int, ...] = (1, 2),
) -> tuple[tuple[Tensor | None, ...], Callable[[Tensor], Tensor]]:
    """The tensors of vmapped linear layers, as those of one call; and what gives its outputs their
    dimensions back. ``parameters``: which of the tensors are weights, the first of all, and biases;
    the others are inputs, residuals. Where parameters are vmapped it is a batch of products."""
    weight, at = tensors[parameters[0]], in_dims[parameters[0]]
    assert weight is not None
    batches = weight.dim() - (2 if at is not None else 1)  # 2: weights have been vmapped before
    if batches == 1 and all(in_dims[i] is None for i in parameters):
        return tuple(
            t if i in parameters else in_front(t, d, size)
            for i, (t, d) in enumerate(zip(tensors, in_dims, strict=True))
        ), lambda y: y
    lead: torch.Size | None = None

    def flat(i: int, t: Tensor | None, dim: int | None) -> Tensor | None:
        nonlocal lead
        t = in_front(t, dim, size)
        if t is None or (i in parameters and batches == 1):
            return t
        if i in parameters:
            return t.flatten(0, 1)
        lead = t.shape[:-1]
        if len(lead) == 2 and batches == 1:
            return t
        return t.reshape(lead[:batches].numel(), lead[batches:].numel(), t.shape[-1])

    args = tuple(flat(i, t, d) for i, (t, d) in enumerate(zip(tensors, in_dims, strict=True)))

    def back(y: Tensor) -> Tensor:
        return y if y.shape[:-1] == lead else y.reshape(*(lead or ()), y.shape[-1])

    return args, back


def vmap_elementwise(op: Any, tensors: int, info: Any, in_dims: Any, *args: Any) -> Any:
    """Of an op whose first arguments are so many tensors of the mask's rows, and a seed."""
    size = info.batch_size
    options = args[tensors + 1 :]
    seed = sample_seeds(args[tensors], in_dims[tensors], size, options[4])
    like = [in_front(args[i], in_dims[i], size) for i in range(tensors)]
    outputs = op(*like, seed, *vmap_options(options, size))
    return outputs, 0 if isinstance(outputs, Tensor) else (0,) * len(outputs)
