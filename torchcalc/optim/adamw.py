"""AdamW with a proximal step."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc.optim._adaptive import CLIP
from torchcalc.optim.adam import Adam
from torchcalc.prox import Penalty


class AdamW(Adam):
    r"""w = prox(v, s), v the update of ``torch.optim.AdamW``, s the step of each coordinate.

    .. code-block:: text

        m = beta1 m + (1 - beta1) g;   n = beta2 n + (1 - beta2) g^2        (g = grad)
        d = sqrt(n / (1 - beta2^k)) + eps             (amsgrad: of the largest n so far; step k)
        v = (1 - lr weight_decay) w - lr m / ((1 - beta1^k) d)
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

    A step reads and writes 28 bytes of memory for each float32 parameter (4 arrays read, 3
    written), 36 with amsgrad; a penalty on each coordinate adds none.

    Args:
        params: parameters or groups of them, see :func:`torchcalc.optim.groups`.
        lr, betas, eps, weight_decay, amsgrad, maximize: as for ``torch.optim.AdamW``.
        foreach, fused, capturable, differentiable: see :class:`Adam`.
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

    Source: Loshchilov & Hutter, "Decoupled weight decay regularization", ICLR 2019; Duchi et al.,
    "Adaptive subgradient methods", JMLR 2011 (the prox in the adaptive metric).
    """

    later_options: ClassVar = {**Adam.later_options, "decoupled_weight_decay": True}

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float | Tensor, float | Tensor] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
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
        arguments.setdefault("decoupled_weight_decay", True)  # defaults of another one have it
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            maximize=maximize,
            foreach=foreach,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            penalty=penalty,
            prox_metric=prox_metric,
            prox_clip=prox_clip,
            prox_start=prox_start,
            state_dtype=state_dtype,
            stochastic_rounding=stochastic_rounding,
            **arguments,
        )

    def check_group(self, group: dict[str, Any]) -> Penalty | None:
        if not group["decoupled_weight_decay"] and group["weight_decay"]:
            raise ValueError(
                "AdamW: decoupled_weight_decay must be True, got the state of an Adam with "
                f"weight_decay={group['weight_decay']}, which torchcalc.optim.Adam takes"
            )
        return super().check_group(group)
