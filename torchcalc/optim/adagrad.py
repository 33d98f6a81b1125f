"""Adagrad with a proximal step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc.optim._adaptive import CLIP, AdaptiveOptimizer
from torchcalc.optim._penalty import check_range
from torchcalc.optim._proximal import given
from torchcalc.prox import Penalty
from torchcalc.reference.optim import AdagradRule


class Adagrad(AdaptiveOptimizer):
    r"""w = prox(v, s), v the update of ``torch.optim.Adagrad``, s the step of each coordinate.

    .. code-block:: text

        g = grad + weight_decay w;   n = n + g^2      (n = initial_accumulator_value at first)
        a = lr / (1 + (k - 1) lr_decay);   d = sqrt(n) + eps      (step k)
        v = w - a g / d
        s = a / d, but a where n = 0
        u = argmin_u  penalty(u) + sum (u - v)^2 / (2 s)
        w = v - clip(v - u, -b, b),   b = prox_clip a

    s is the step of the update itself, so fixed points solve 0 in grad f + weight_decay w +
    d penalty. With ``prox_clip=None`` this is the proximal Adagrad of Duchi & Singer, TensorFlow's
    ``ProximalAdagrad``, but for eps, which is not in theirs. :class:`AdamW` tells of the clip.
    State and its keys are torch.optim.Adagrad's, made at construction as there, and load both ways.

    A step reads and writes 20 bytes of memory for each float32 parameter; a penalty on each
    coordinate adds none.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr, lr_decay, weight_decay, initial_accumulator_value, eps, maximize: as for
            ``torch.optim.Adagrad``.
        foreach, fused: ignored: there is one implementation, a fused kernel.
        differentiable: must be False: a step is no function that autograd records.
        penalty: a ``torchcalc.prox`` penalty or None; a group may have its own. Groups store it as
            plain values, which a scheduler may change: ``penalty`` (its name), ``l1`` and ``l2`` of
            L1, L2 and ElasticNet, and the arguments of others as ``penalty_<argument>``.
        prox_metric: "adaptive" or "lr", which Nuclear needs.
        prox_clip: bound on the pull of a penalty in units of a, > 1; None for no bound.
        prox_start: steps before the penalty acts; groups hold how many are left.
        state_dtype: torch.float32 for states that are more exact than parameters of half types;
            None for the parameters' dtype, as torch has it.
        stochastic_rounding: rounds parameters of half types up or down at random, so that the mean
            is exact; zeros stay zeros. Groups hold the seed, as ``rounding_seed``.
        arguments: these, with ``penalty`` the name of one: what groups and ``defaults`` of another
            optimizer hold.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.

    Source: Duchi, Hazan & Singer, "Adaptive subgradient methods", JMLR 2011.
    """

    op = "adagrad_step"
    takes_sparse = True
    counts = ("step",)
    later_options: ClassVar = {
        "foreach": None,
        "maximize": False,
        "differentiable": False,
        "fused": None,
    }

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
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
            "lr_decay": lr_decay,
            "eps": eps,
            "weight_decay": weight_decay,
            "initial_accumulator_value": initial_accumulator_value,
            "foreach": foreach,
            "maximize": maximize,
            "differentiable": differentiable,
            "fused": fused,
            "prox_metric": prox_metric,
            "prox_clip": prox_clip,
            "prox_start": prox_start,
            "state_dtype": state_dtype,
            "stochastic_rounding": stochastic_rounding,
        }
        super().__init__(params, defaults, penalty, arguments)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        for param in group["params"]:
            value = group["initial_accumulator_value"]
            self.state[param]["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            dtype = self.dtype_of(group, param)
            self.state[param]["sum"] = torch.full_like(
                param, value, dtype=dtype, requires_grad=False
            )

    def check_group(self, group: dict[str, Any]) -> Penalty | None:
        penalty = super().check_group(group)
        check_range("Adagrad", "lr_decay", group["lr_decay"], 0.0)
        check_range("Adagrad", "initial_accumulator_value", group["initial_accumulator_value"], 0.0)
        return penalty

    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("sum",)

    def rule(self, group: dict[str, Any], fresh: bool) -> AdagradRule:
        return AdagradRule(
            given(group["lr"]),
            group["lr_decay"],
            group["weight_decay"],
            group["eps"],
            group["maximize"],
        )
