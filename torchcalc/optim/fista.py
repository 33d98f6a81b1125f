"""FISTA for full-batch convex problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from torchcalc._check import check_floating
from torchcalc.optim import _penalty
from torchcalc.optim._penalty import check_range
from torchcalc.prox import ElasticNet, Penalty

_SHRINK = 0.5
_NONE = ElasticNet(0.0, 0.0)


class FISTA(torch.optim.Optimizer):
    r"""Minimises f(w) + penalty(w), f convex and smooth, by accelerated proximal gradients.

    .. code-block:: text

        w' = prox(y - lr grad f(y), lr)
        t' = (1 + sqrt(1 + 4 t^2)) / 2                       (t = 1, y = w at first)
        y' = w' + (t - 1) / t' (w' - w)
        restart: where <y - w', w' - w> > 0, t' = 1 and y' = w'
        backtracking: lr is halved until
            f(w') <= f(y) + <grad f(y), w' - y> + ||w' - y||^2 / (2 lr)

    f(w) - f(w*) falls as 1 / k^2, and with restarts linearly where f is strongly convex. lr must be
    at most 1 / L for a gradient with Lipschitz constant L; backtracking finds it. Penalties that
    are not convex (MCP, SCAD, L0, n:m ...) are taken; then a stationary point is what is found.

    After each step the parameters are w. The closure is evaluated at y, and while backtracking at
    w', too. As it must be a function of the parameters only, there is no dropout and no batch
    sampling in it: it is the loss of all data.

    Args:
        params: parameters or groups of them; a group may have a penalty of its own.
        lr: > 0, or None to find it.
        penalty: a ``torchcalc.prox`` penalty or None. Groups store it as plain values, as those of
            :class:`SGD`.
        restart: whether momentum starts anew when it leads uphill (O'Donoghue & Candes).
        backtracking: whether lr is found; None for where lr is None.
        tol: :meth:`step` stops, and ``converged`` is True, when the certificate is <= tol; 0 for
            never. The certificate is a bound on f(w) + penalty(w) - minimum where each penalty has
            a conjugate that is finite everywhere (those with an l2 part, Box, balls, Simplex), the
            duality gap
              <grad f(y), w'> + penalty(w') + penalty*(-grad f(y)) + ||w' - y||^2 / (2 lr),
            and else the largest coordinate of (y - w') / lr, the prox-gradient residual.
        max_iter: iterations of a step.

    Raises:
        TypeError, ValueError: an argument is not valid; the message names it.

    Source: Beck & Teboulle, "A fast iterative shrinkage-thresholding algorithm", SIAM J. Imaging
    Sci. 2009; O'Donoghue & Candes, "Adaptive restart for accelerated gradient schemes", 2015.
    """

    # Of the class: what was pickled by earlier versions has none of its own.
    converged = False
    certificate = math.inf

    def __init__(
        self,
        params: Any,
        lr: float | None = None,
        penalty: Penalty | str | None = None,
        restart: bool = True,
        backtracking: bool | None = None,
        tol: float = 0.0,
        max_iter: int = 1,
        **arguments: Any,
    ) -> None:
        for key in arguments:
            if not _penalty.is_key(key):
                raise TypeError(f"FISTA: unknown argument {key!r}")
        if lr is None and backtracking is False:
            raise ValueError("FISTA: lr must be a number where backtracking is False, got None")
        if lr is not None:
            check_range("FISTA", "lr", lr, 0.0)
            if lr == 0:
                raise ValueError("FISTA: lr must be > 0, got 0")
        check_range("FISTA", "tol", tol, 0.0)
        if not isinstance(max_iter, int) or isinstance(max_iter, bool) or max_iter < 1:
            raise ValueError(f"FISTA: max_iter must be an integer >= 1, got {max_iter!r}")
        defaults = {
            "lr": 1.0 if lr is None else float(lr),
            "restart": bool(restart),
            "backtracking": lr is None if backtracking is None else bool(backtracking),
            "tol": tol,
            "max_iter": max_iter,
            "t": 1.0,
        }
        plain = _penalty.plain("FISTA", {"penalty": penalty, **arguments})
        super().__init__(params, {**defaults, **plain})

    def __getstate__(self) -> dict[str, Any]:
        found = {"converged": self.converged, "certificate": self.certificate}
        return {**super().__getstate__(), **found}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        if "penalty" in param_group:
            param_group = {**param_group, **_penalty.plain("FISTA", param_group)}
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _penalty.forget_others(group)
            penalty = _penalty.check("FISTA", group)
            _penalty.check_used("FISTA", group)
            for param in group["params"]:
                check_floating("FISTA", "params", param)
                if penalty is not None:
                    penalty.indexes(param.shape)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Up to ``max_iter`` iterations.

        Args:
            closure: clears the gradients, computes the loss of all data, calls ``backward`` and
                returns the loss.

        Returns:
            The loss at the first point, y.

        Raises:
            ValueError: a value of a group is not valid.
        """
        evaluate = torch.enable_grad()(closure)
        first = None
        for _ in range(self.param_groups[0]["max_iter"]):
            loss = self._iterate(evaluate)
            first = loss if first is None else first
            if self.converged:
                break
        return first

    def _iterate(self, evaluate: Callable[[], Any]) -> Any:
        groups = self.param_groups
        penalties = [_penalty.check("FISTA", group) or _NONE for group in groups]
        owners = [
            (p, g) for group, g in zip(groups, penalties, strict=True) for p in group["params"]
        ]
        params = [p for p, _ in owners]
        lrs = [group["lr"] for group in groups for _ in group["params"]]
        before = [p.clone() for p in params]  # w
        points = [self.state[p].get("y", w).clone() for p, w in zip(params, before, strict=True)]
        for w, y in zip(before, points, strict=True):
            if y.shape != w.shape:
                raise ValueError(
                    f"FISTA: state 'y' must have shape {tuple(w.shape)}, got {tuple(y.shape)}"
                )
        _assign(params, points)
        loss = evaluate()
        grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in params]
        value = float(loss)

        while True:
            moved = [
                g.prox(y - lr * d, lr)
                for (_, g), y, d, lr in zip(owners, points, grads, lrs, strict=True)
            ]
            steps = [w - y for w, y in zip(moved, points, strict=True)]
            _assign(params, moved)
            curvature = sum(_dot(s, s) / (2 * lr) for s, lr in zip(steps, lrs, strict=True))
            if not groups[0]["backtracking"]:
                break
            slope = sum(_dot(d, s) for d, s in zip(grads, steps, strict=True))
            rounding = 8 * torch.finfo(params[0].dtype).eps * abs(value)
            if not float(evaluate()) > value + slope + curvature + rounding or max(lrs) < 1e-30:
                break
            lrs = [lr * _SHRINK for lr in lrs]
        self._certify(owners, grads, moved, steps, lrs, curvature)

        t = groups[0]["t"]
        uphill = sum(_dot(-s, w - b) for s, w, b in zip(steps, moved, before, strict=True))
        restarts = groups[0]["restart"] and uphill > 0
        next_t = 1.0 if restarts else (1 + math.sqrt(1 + 4 * t * t)) / 2
        momentum = 0.0 if restarts else (t - 1) / next_t
        for p, w, b in zip(params, moved, before, strict=True):
            self.state[p]["y"] = w + momentum * (w - b)
        for group in groups:
            group["t"] = next_t
        position = 0
        for group in groups:
            if group["params"]:
                group["lr"] = lrs[position]
            position += len(group["params"])
        return loss

    def _certify(
        self,
        owners: Sequence[tuple[Tensor, Penalty]],
        grads: list[Tensor],
        moved: list[Tensor],
        steps: list[Tensor],
        lrs: list[float],
        curvature: float,
    ) -> None:
        tol = self.param_groups[0]["tol"]
        if tol == 0:
            return
        gap = curvature
        for (_, g), d, w in zip(owners, grads, moved, strict=True):
            conjugate = getattr(g, "conjugate", None) if g.is_convex else None
            if conjugate is None or gap == math.inf:
                gap = math.inf
                break
            gap += _dot(d, w) + float(g.value(w)) + float(conjugate(-d))
        residuals = (
            float(s.abs().max()) / lr for s, lr in zip(steps, lrs, strict=True) if s.numel()
        )
        self.certificate = gap if gap < math.inf else max(residuals, default=0.0)
        self.converged = self.certificate <= tol


def _assign(params: list[Tensor], values: list[Tensor]) -> None:
    for p, value in zip(params, values, strict=True):
        p.copy_(value)


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.double() * b.double()).sum())
