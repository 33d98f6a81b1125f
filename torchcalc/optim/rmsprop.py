"""RMSprop with a proximal step."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc.optim._adaptive import CLIP, AdaptiveOptimizer
from torchcalc.optim._penalty import check_range
from torchcalc.optim._proximal import given
from torchcalc.prox import Penalty
from torchcalc.reference.optim import RMSpropRule


class RMSprop(AdaptiveOptimizer):
    r"""w = prox(v, s), v the update of ``torch.optim.RMSprop``, s the step of each coordinate.

    .. code-block:: text

        g = grad + weight_decay w;   n = alpha n + (1 - alpha) g^2
        c = alpha c + (1 - alpha) g                     (centered; else c = 0)
        d = sqrt(n - c^2) + eps
        v = w - lr g / d;   with momentum b = momentum b + g / d,  v = w - lr b
        s = tau / d, but tau where n = 0;   tau = lr / (1 - momentum)
        u = argmin_u  penalty(u) + sum (u - v)^2 / (2 s)
        w = v - clip(v - u, -b, b),   b = prox_clip tau

    tau is what momentum makes of lr, so fixed points solve 0 in grad f + weight_decay w +
    d penalty. :class:`AdamW` tells of the clip. Centered there is none: the clip leaves the
    solutions alone because d is no less than the mean of the gradients, and there it may be.
    State and its keys are torch.optim.RMSprop's, and load both ways.

    A step reads and writes 20 bytes of memory for each float32 parameter, 8 more each with momentum
    and centered; a penalty on each coordinate adds none.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr, alpha, eps, weight_decay, momentum, centered, maximize: as for ``torch.optim.RMSprop``;
            with a penalty momentum must be < 1.
        capturable, foreach: ignored: there is one implementation, a fused kernel that can be
            captured in a CUDA graph.
        differentiable: must be False: a step is no function that autograd records.
        penalty: a ``torchcalc.prox`` penalty or None; a group may have its own. Groups store it as
            plain values, which a scheduler may change: ``penalty`` (its name), ``l1`` and ``l2`` of
            L1, L2 and ElasticNet, and the arguments of others as ``penalty_<argument>``.
        prox_metric: "adaptive" or "lr", which Nuclear needs.
        prox_clip: bound on the pull of a penalty in units of tau, > 1; None for no bound.
        prox_start: steps before the penalty acts; groups hold how many are left.
        state_dtype: torch.float32 for states that are more exact than parameters of half types;
            None for the parameters' dtype, as torch has it.
        stochastic_rounding: rounds parameters of half types up or down at random, so that the mean
            is exact; zeros stay zeros. Groups hold the seed, as ``rounding_seed``.
        arguments: these, with ``penalty`` the name of one: what groups and ``defaults`` of another
            optimizer hold.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.

    Source: Tieleman & Hinton, "Lecture 6.5: RMSprop", 2012; Graves, "Generating sequences with
    recurrent neural networks", 2013 (centered); Duchi et al., JMLR 2011 (the prox in the adaptive
    metric).
    """

    op = "rmsprop_step"
    counts = ("step",)
    later_options: ClassVar = {
        "momentum": 0.0,
        "centered": False,
        "capturable": False,
        "foreach": None,
        "maximize": False,
        "differentiable": False,
    }

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        capturable: bool = False,
        foreach: bool | None = None,
        maximize: bool = False,
        differentiable: bool = False,
        *,
        penalty: Penalty | str | None = None,
        prox_metric: str = "adaptive",
        prox_clip: float | None = CLIP,
        prox_start: int = 0,
        state_dtype: torch.dtype | None = None,
        stochastic_rounding: bool = False,
        **arguments: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "alpha": alpha,
            "eps": eps,
            "centered": centered,
            "weight_decay": weight_decay,
            "capturable": capturable,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "prox_metric": prox_metric,
            "prox_clip": prox_clip,
            "prox_start": prox_start,
            "state_dtype": state_dtype,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults, penalty, arguments)

    def check_group(self, group: dict[str, Any]) -> Penalty | None:
        penalty = super().check_group(group)
        check_range("RMSprop", "alpha", group["alpha"], 0.0)
        check_range("RMSprop", "momentum", group["momentum"], 0.0)
        if penalty is not None:  # else the step in the long run is no positive number
            check_range("RMSprop", "momentum with a penalty", group["momentum"], 0.0, 1.0)
        return penalty

    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        momentum = ["momentum_buffer"] if group["momentum"] else []
        return ("square_avg", *momentum, *(["grad_avg"] if group["centered"] else []))

    def rule(self, group: dict[str, Any], fresh: bool) -> RMSpropRule:
        return RMSpropRule(
            given(group["lr"]),
            group["alpha"],
            group["eps"],
            group["weight_decay"],
            group["momentum"],
            group["centered"],
            group["maximize"],
        )

    def metric(self, group: dict[str, Any]) -> tuple[bool, float]:
        adaptive, clip = super().metric(group)
        return adaptive, math.inf if group["centered"] else clip
