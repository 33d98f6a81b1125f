"""AdamW with a proximal step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchcalc.optim._proximal import ProximalOptimizer, check_range
from torchcalc.optim._state import Batch
from torchcalc.prox import Penalty

_METRICS = ("adaptive", "lr")


class AdamW(ProximalOptimizer):
    r"""w = prox(v, s), v the update of ``torch.optim.AdamW``, s the step of each coordinate.

    .. code-block:: text

        m = beta1 m + (1 - beta1) g;   n = beta2 n + (1 - beta2) g^2        (g = grad)
        d = sqrt(n / (1 - beta2^k)) + eps
        v = (1 - lr weight_decay) w - lr m / ((1 - beta1^k) d)               (step k)
        w = argmin_w  lr penalty(w) + (w - v)^T D (w - v) / 2

    With ``prox_metric="adaptive"`` D = diag(d), so s = lr / d: the metric of the update itself,
    whose fixed points solve 0 in grad f + d penalty. With "lr" D is the identity, so s = lr. With
    L1, w is S(v, s lam): weights become exactly zero. Bias corrections are computed in double.
    State and its keys are torch.optim.AdamW's, and load both ways.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr, betas, eps, weight_decay, maximize: as for ``torch.optim.AdamW``.
        penalty: a ``torchcalc.prox`` penalty or None; a group may have its own. Groups store it as
            plain values: ``penalty`` (its name), ``l1`` and ``l2``, which a scheduler may change.
        prox_metric: "adaptive" or "lr".

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019; Duchi et al.,
    "Adaptive subgradient methods", JMLR 2011 (the prox in the adaptive metric).
    """

    counts = ("step",)

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        maximize: bool = False,
        penalty: Penalty | None = None,
        prox_metric: str = "adaptive",
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "prox_metric": prox_metric,
        }
        super().__init__(params, defaults, penalty)

    def check_group(self, group: dict[str, Any]) -> None:
        super().check_group(group)
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
        # Keys that a state of torch.optim may bring.
        if group.get("amsgrad"):
            raise ValueError("AdamW: amsgrad=True is not supported")
        if not group.get("decoupled_weight_decay", True) and group["weight_decay"]:
            raise ValueError("AdamW: the weight decay of Adam (not AdamW) is not supported")

    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq")

    def run_kernel(self, group: dict[str, Any], batch: Batch, l1: float, l2: float) -> None:
        torch.ops.torchcalc.adamw_step(
            batch.params,
            batch.grads,
            *batch.pack.flats,
            batch.offsets,
            batch.indices,
            group["lr"],
            *group["betas"],
            group["eps"],
            group["weight_decay"],
            group["maximize"],
            l1,
            l2,
            group["prox_metric"] == "adaptive",
        )
