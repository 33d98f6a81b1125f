"""What a module or a function of a model is to fusion: a linear layer, an activation, a dropout."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchcalc.fusion._swap import class_of, why_not_passed_over
from torchcalc.ops import activations
from torchcalc.reference import activations as reference

FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

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
    return is_linear(module) or class_of(module) in DROPOUTS or activation_name(module) is not None


def why_not(module: nn.Module) -> str | None:
    """Why a linear layer, an activation or a dropout cannot take part; None if it can."""
    reason = why_not_passed_over(module)
    if reason is not None:
        return reason
    if not is_linear(module):
        return None
    kind = class_of(module)
    if isinstance(module, nn.Linear) and kind.forward is not nn.Linear.forward:
        return f"is a {kind.__name__}, which overrides forward"
    weight = module._parameters.get("weight")
    if weight is None:
        return "its weight is no parameter of its own"
    if weight.dtype not in FLOATS:
        return f"its weight is {weight.dtype}"
    return None


def activation_name(module: Any) -> str | None:
    """The activation that a module of torch.nn is now; None where it is none of ours."""
    try:
        return activations.resolve("fuse", module).name
    except (TypeError, ValueError):
        return None


def probe(function: Callable[[Tensor], Any]) -> str | None:
    """The name of the activation that ``function`` computes, told by values and derivatives.

    It is called with numbers in float64; a module's modes are the caller's to set.
    """
    dense = torch.linspace(-12, 12, 4001, dtype=torch.float64)
    far = torch.tensor([-100.0, -30.0, 0.0, 1e-3, 30.0, 100.0], dtype=torch.float64)
    points = torch.cat([dense, far])
    for x in (points, points.flip(0)[:4000].reshape(4, 10, 100)):
        names = _matching(function, x)
        if names is None:
            return None
    return names


def _matching(function: Callable[[Tensor], Any], points: Tensor) -> str | None:
    got = _value_and_slope(function, points)
    if got is None:
        return None
    for name, known in reference.ACTIVATIONS.items():
        parameters = reference.DEFAULTS.get(name, ())
        expected = _value_and_slope(lambda x: known(x, *parameters), points)  # noqa: B023
        if name != "identity" and expected is not None and _agree(got, expected, points):
            return name
    return None


def _value_and_slope(function: Callable[[Tensor], Any], points: Tensor) -> Any:
    x = points.clone().requires_grad_()
    try:
        with torch.enable_grad(), torch.random.fork_rng(devices=[]):
            y = function(x * 1)  # which may be changed in place
            if type(y) is not Tensor or y.shape != x.shape or y.dtype != x.dtype:
                return None
            (slope,) = torch.autograd.grad(y.sum(), x)
    except Exception:  # whatever a model's function raises, it is no activation of ours
        return None
    return y.detach(), slope


def _agree(got: Any, expected: Any, points: Tensor) -> bool:
    # Rounding alone may differ. At a kink PyTorch's own derivatives differ, too.
    scale = 1e-13 * points.abs().clamp(min=1)
    kinks = torch.tensor([-3.0, 0.0, 1.0, 3.0, 6.0, -1.0], dtype=points.dtype)
    smooth = (points.unsqueeze(-1) - kinks).abs().amin(-1) > 1e-9
    values = ((got[0] - expected[0]).abs() <= scale).all()
    slopes = ((got[1] - expected[1]).abs() <= 10 * scale)[smooth].all()
    return bool(values and slopes)


_PROBED: dict[Any, str | None] = {}


def probe_module(module: nn.Module) -> str | None:
    """As :func:`probe`, of a module without parameters, which must be the same in both modes."""
    if next(itertools.chain(module.parameters(), module.buffers()), None) is not None:
        return None
    key = (class_of(module), *sorted((n, id(v)) for n, v in plain_attributes(module).items()))
    if key in _PROBED and not any(module.children()):
        return _PROBED[key]
    modes = [(m, m.training) for m in module.modules()]
    try:
        names = {probe(module.train(mode)) for mode in (True, False)}
    finally:
        for m, mode in modes:
            m.training = mode
    found = names.pop() if len(names) == 1 else None
    _PROBED[key] = found
    return found


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What its class has put into it, beside what every module has."""
    return {n: v for n, v in vars(module).items() if n[0] != "_" and n != "training"}
