"""Weights with two zeros in every four, for the tensor cores that skip them."""

from __future__ import annotations

import torch
from torch import nn

from torchcalc.sparsity._trace import copied


def to_semi_structured(model: nn.Module) -> nn.Module:
    """A copy of a model whose 2:4 weights are ``torch.sparse.SparseSemiStructuredTensor``.

    Of nn.Linear layers on a GPU of compute capability 8.0 or later, in float16 or bfloat16, with
    sizes that are multiples of 64 and at most two weights of every four in a row that are not 0, as
    :class:`torchcalc.prox.NMSparse` (2, 4) leaves them. Other layers stay as they are. For
    inference: such weights have no gradients.

    Raises:
        TypeError: model is no module.
        RuntimeError: there is no such GPU, or no layer is fit; the message says why.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"to_semi_structured: model must be a torch.nn.Module, got {type(model).__name__}"
        )
    reasons = [_unfit(m) for m in model.modules() if type(m) is nn.Linear]
    if all(reasons):
        why = "; ".join(sorted({r for r in reasons if r})) or "it has no nn.Linear"
        raise RuntimeError(f"to_semi_structured: no layer of the model is fit: {why}")
    made = copied(model)
    for module in made.modules():
        if type(module) is nn.Linear and not _unfit(module):
            weight = torch.sparse.to_sparse_semi_structured(module.weight.detach())
            module.weight = nn.Parameter(weight, requires_grad=False)
    return made


def _unfit(module: nn.Linear) -> str:
    """Why a weight cannot be compressed; empty where it can."""
    if "weight" not in module._parameters:
        return "weights are made of others: make pruning permanent first"
    weight = module.weight.detach()
    if weight.device.type != "cuda":
        return f"weights are on {weight.device.type}, not on a GPU"
    if torch.cuda.get_device_capability(weight.device) < (8, 0):
        return "the GPU is older than compute capability 8.0"
    if weight.dtype not in (torch.float16, torch.bfloat16):
        return f"weights are {weight.dtype}, not float16 or bfloat16"
    if weight.shape[0] % 64 or weight.shape[1] % 64:
        return "sizes are no multiples of 64"
    if ((weight.reshape(len(weight), -1, 4) != 0).sum(-1) > 2).any():
        return "more than two weights of four are not 0"
    return ""
