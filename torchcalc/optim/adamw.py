"""AdamW with a proximal step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc.ops.penalty_prox import Kernel
from torchcalc.optim._penalty import check_range
from torchcalc.optim._plan import Call
from torchcalc.optim._proximal import ProximalOptimizer
from torchcalc.prox import Penalty
from torchcalc.reference.optim import adamw_prox_step

_METRICS = ("adaptive", "lr")
_CLIP = 1.25


class AdamW(ProximalOptimizer):
    r"""w = prox(v, s), v the update of ``torch.optim.AdamW``, s the step of each coordinate.

    .. code-block:: text

        m = beta1 m + (1 - beta1) g;   n = beta2 n + (1 - beta2) g^2        (g = grad)
        d = sqrt(n / (1 - beta2^k)) + eps
        v = (1 - lr weight_decay) w - lr m / ((1 - beta1^k) d)               (step k)
        s = lr / d, but lr where m = n = 0
        u = argmin_u  penalty(u) + sum (u - v)^2 / (2 s)
        w = v - clip(v - u, -b, b),   b = prox_clip lr

    s is the step of the update itself, so fixed points solve 0 in grad f + d penalty where
    weight_decay is 0. With ``prox_metric="lr"`` s is lr everywhere, and another problem is solved.
    With L1 and without the clip w is S(v, s lam): weights become exactly zero. Bias corrections are
    computed in double. State and its keys are torch.optim.AdamW's, and load both ways. The clip is
    that of each coordinate; where the penalty is on groups or on the tensor as a whole,
    ||w - v|| <= b sqrt(n) for the n coordinates of a group. Constraints are met after every step,
    with lr = 0 as well: such a step is how torch.distributed.checkpoint makes states.

    The pull of a penalty is v - u, how far its prox moves a coordinate; by Moreau it is s times a
    subgradient of the penalty at u. Adam moves a coordinate by about lr a step, and ``prox_clip``
    holds the penalty to about that too: where gradients are tiny, s alone has no bound. A weight
    at rest feels |m| / d <= 1 from its gradients, so with prox_clip > 1 no weight rests where the
    pull is clipped, and the solutions are those without the clip, of every penalty; but where the
    gradient pushes outward a weight shrinks by (prox_clip - 1) lr a step only. Coordinates
    that have seen no gradient yet (rows of an embedding that were in no batch, experts that got no
    token, what lies behind a layer of zeros) shrink by lr lam a step with L1, and survive until
    there is one. No promise is made for features that are rarer than one step in 1 / (1 - beta2):
    between two gradients d decays, and with it what holds against the penalty, at up to
    prox_clip lr a step.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr, betas, eps, weight_decay, maximize: as for ``torch.optim.AdamW``.
        penalty: a ``torchcalc.prox`` penalty or None; a group may have its own. Groups store it as
            plain values, which a scheduler may change: ``penalty`` (its name), ``l1`` and ``l2`` of
            L1, L2 and ElasticNet, and the arguments of others as ``penalty_<argument>``.
        prox_metric: "adaptive" or "lr", which Nuclear needs.
        prox_clip: bound on the pull of a penalty in units of lr, > 1; None for no bound.
        arguments: these, with ``penalty`` the name of one: what groups and ``defaults`` of another
            optimizer hold.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019; Duchi et al.,
    "Adaptive subgradient methods", JMLR 2011 (the prox in the adaptive metric).
    """

    counts = ("step",)
    later_options: ClassVar = {"prox_clip": _CLIP}

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        penalty: Penalty | str | None = None,
        prox_metric: str = "adaptive",
        prox_clip: float | None = _CLIP,
        **arguments: Any,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "prox_metric": prox_metric,
            "prox_clip": prox_clip,
        }
        super().__init__(params, defaults, penalty, arguments)

    def check_group(self, group: dict[str, Any]) -> Penalty | None:
        penalty = super().check_group(group)
        if not isinstance(group["betas"], Sequence) or len(group["betas"]) != 2:
            raise ValueError(f"AdamW: betas must be two numbers, got {group['betas']!r}")
        for beta in group["betas"]:
            check_range("AdamW", "betas", beta, 0.0, 1.0)
        check_range("AdamW", "eps", group["eps"], 0.0)
        if group["prox_metric"] not in _METRICS:
            raise ValueError(
                f"AdamW: prox_metric must be one of {', '.join(_METRICS)}, "
                f"got {group['prox_metric']!r}"
            )
        if group["prox_clip"] is not None:
            check_range("AdamW", "prox_clip", group["prox_clip"], 1.0)
            if group["prox_clip"] == 1:
                raise ValueError("AdamW: prox_clip must be > 1 or None, got 1")
        # Keys that a state of torch.optim may bring.
        if group.get("amsgrad"):
            raise ValueError("AdamW: amsgrad=True is not supported")
        if not group.get("decoupled_weight_decay", True) and group["weight_decay"]:
            raise ValueError("AdamW: the weight decay of Adam (not AdamW) is not supported")
        if penalty is not None and not penalty.takes_metric and group["prox_metric"] != "lr":
            raise ValueError(
                f"AdamW: prox_metric must be 'lr' with {type(penalty).__name__}, whose prox takes "
                f"one step for all coordinates, got {group['prox_metric']!r}"
            )
        return penalty

    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def run_kernel(self, group: dict[str, Any], call: Call, kernel: Kernel) -> None:
        torch.ops.torchcalc.adamw_step(
            call.params,
            call.grads,
            call.states,
            call.places,
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["maximize"],
            kernel[0],
            kernel[1:],
            _is_adaptive(group),
            self.prox_bound(group),
        )

    def prox_step(self, group: dict[str, Any], state: Sequence[Tensor]) -> Tensor | float:
        if not _is_adaptive(group):
            return float(group["lr"])
        options = {"lr": group["lr"], "beta2": group["betas"][1], "eps": group["eps"]}
        exp_avg, exp_avg_sq, step = state
        wide = torch.promote_types(exp_avg.dtype, torch.float32)
        return adamw_prox_step(exp_avg.to(wide), exp_avg_sq.to(wide), step, **options)

    def prox_bound(self, group: dict[str, Any]) -> float:
        clip = group["prox_clip"]
        return math.inf if clip is None else clip * group["lr"]


def _is_adaptive(group: dict[str, Any]) -> bool:
    # With lr = 0 all steps are 0, and a constraint is met in the metric of one step for all.
    return bool(group["prox_metric"] == "adaptive" and group["lr"] > 0)
