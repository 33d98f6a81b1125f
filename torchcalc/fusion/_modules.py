"""What a module of a model is to fusion: a linear layer, a dropout, an activation of torch."""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import nn

from torchcalc._check import FLOATING
from torchcalc.fusion._activation import of_torch
from torchcalc.fusion._looks import why_not_passed_over
from torchcalc.fusion._scope import is_plain_call
from torchcalc.fusion._swap import class_of

# nn.Dropout takes part in patterns; the others stand alone.
DROPOUTS: dict[type, str] = {
    nn.Dropout: "dropout",
    nn.Dropout1d: "dropout1d",
    nn.Dropout2d: "dropout2d",
    nn.Dropout3d: "dropout3d",
    nn.AlphaDropout: "alpha_dropout",
    nn.FeatureAlphaDropout: "feature_alpha_dropout",
}


def is_linear(module: nn.Module) -> bool:
    """Whether it is nn.Linear, or what computes the same by another name, or a subclass."""
    return isinstance(module, nn.Linear) or class_of(module) is _conv1d()


def _conv1d() -> Any:
    """GPT-2's linear layer, whose weight is [in, out]; None where transformers is not in use."""
    return getattr(sys.modules.get("transformers.pytorch_utils"), "Conv1D", None)


def is_told(module: nn.Module) -> bool:
    """Whether it is a linear layer, a dropout, or one of torch.nn's activations."""
    return is_linear(module) or class_of(module) in DROPOUTS or of_torch(module) is not None


def why_not(module: nn.Module) -> str | None:
    """Why a linear layer, an activation or a dropout cannot take part; None if it can."""
    reason = why_not_passed_over(module)
    if reason is not None:
        return reason
    kind = class_of(module)
    if not is_plain_call(kind):
        return f"is a {kind.__name__}, which overrides __call__"
    if not is_linear(module):
        return None
    if isinstance(module, nn.Linear) and kind.forward is not nn.Linear.forward:
        return f"is a {kind.__name__}, which overrides forward"
    weight = module._parameters.get("weight")
    if weight is None or "bias" not in module._parameters:
        return "its weight or bias is no parameter of its own"
    if weight.dtype not in FLOATING:
        return f"its weight is {weight.dtype}"
    if torch.nn.parameter.is_lazy(weight):
        return "its weight has no shape yet"
    bias = module._parameters["bias"]
    out = weight.shape[:1] if isinstance(module, nn.Linear) else weight.shape[1:]
    if bias is not None and bias.shape != out:
        return "its bias has another shape than its output"
    return None
