"""Adam with a proximal step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc.optim._adaptive import CLIP, AdaptiveOptimizer
from torchcalc.optim._penalty import check_range
from torchcalc.optim._proximal import given
from torchcalc.prox import Penalty
from torchcalc.reference.optim import AdamRule


class Adam(AdaptiveOptimizer):
    r"""w = prox(v, s), v the update of ``torch.optim.Adam``, s the step of each coordinate.

    .. code-block:: text

        g = grad + weight_decay w
        m = beta1 m + (1 - beta1) g;   n = beta2 n + (1 - beta2) g^2
        d = sqrt(n / (1 - beta2^k)) + eps             (amsgrad: of the largest n so far; step k)
        v = w - lr m / ((1 - beta1^k) d)
        s = lr / d, but lr where m = n = 0
        u = argmin_u  penalty(u) + sum (u - v)^2 / (2 s)
        w = v - clip(v - u, -b, b),   b = prox_clip lr

    With ``decoupled_weight_decay`` it is :class:`AdamW`, which tells of the prox. Fixed points
    solve 0 in grad f + weight_decay w + d penalty. State and its keys are torch.optim.Adam's, and
    load both ways.

    A step reads and writes 28 bytes of memory for each float32 parameter, 36 with amsgrad; a
    penalty on each coordinate adds none.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr, betas, eps, weight_decay, amsgrad, maximize, decoupled_weight_decay: as for
            ``torch.optim.Adam``.
        foreach, fused, capturable: ignored: there is one implementation, a fused kernel that can be
            captured in a CUDA graph.
        differentiable: must be False: a step is no function that autograd records.
        penalty: a ``torchcalc.prox`` penalty or None; a group may have its own. Groups store it as
            plain values, which a scheduler may change: ``penalty`` (its name), ``l1`` and ``l2`` of
            L1, L2 and ElasticNet, and the arguments of others as ``penalty_<argument>``.
        prox_metric: "adaptive" or "lr", which Nuclear needs.
        prox_clip: bound on the pull of a penalty in units of lr, > 1; None for no bound.
        prox_start: steps before the penalty acts; groups hold how many are left.
        state_dtype: torch.float32 for states that are more exact than parameters of half types;
            None for the parameters' dtype, as torch has it.
        stochastic_rounding: rounds parameters of half types up or down at random, so that the mean
            is exact; zeros stay zeros. Groups hold the seed, as ``rounding_seed``.
        arguments: these, with ``penalty`` the name of one: what groups and ``defaults`` of another
            optimizer hold.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.

    Source: Kingma & Ba, "Adam: a method for stochastic optimization", ICLR 2015; Reddi, Kale &
    Kumar, "On the convergence of Adam and beyond", ICLR 2018 (amsgrad); Duchi et al., "Adaptive
    subgradient methods", JMLR 2011 (the prox in the adaptive metric).
    """

    op = "adam_step"
    counts = ("step",)
    later_options: ClassVar = {
        "prox_clip": CLIP,
        "amsgrad": False,
        "foreach": None,
        "capturable": False,
        "differentiable": False,
        "fused": None,
        "decoupled_weight_decay": False,
    }

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
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
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
            "prox_metric": prox_metric,
            "prox_clip": prox_clip,
            "prox_start": prox_start,
            "state_dtype": state_dtype,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults, penalty, arguments)

    def check_group(self, group: dict[str, Any]) -> Penalty | None:
        op = type(self).__name__
        penalty = super().check_group(group)
        if not isinstance(group["betas"], Sequence) or len(group["betas"]) != 2:
            raise ValueError(f"{op}: betas must be two numbers, got {group['betas']!r}")
        for beta in group["betas"]:
            check_range(op, "betas", given(beta), 0.0, 1.0)
        return penalty

    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", *(["max_exp_avg_sq"] if group["amsgrad"] else []))

    def rule(self, group: dict[str, Any], fresh: bool) -> AdamRule:
        beta1, beta2 = group["betas"]
        return AdamRule(
            given(group["lr"]),
            given(beta1),
            given(beta2),
            group["eps"],
            group["weight_decay"],
            group["amsgrad"],
            group["decoupled_weight_decay"],
            group["maximize"],
        )

    def live(self, group: dict[str, Any]) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {"lr": group["lr"], "beta1": beta1, "beta2": beta2}
