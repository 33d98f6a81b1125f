"""Proximal operators of penalties in plain PyTorch, differentiable in all that are tensors.

prox(v, s) = argmin_x  g(x) + sum (x - v)^2 / (2 s). ``s`` is a number or broadcasts to v, and so do
strengths.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from torchcalc.reference.prox import soft_threshold

Strength = Tensor | float
Numbers = tuple[Strength, ...]  # lam, shape, factor, l1, l2, low, high: csrc/math/penalty.h


def _huber(v: Tensor, s: Strength, lam: Strength, delta: Strength) -> Tensor:
    k = s * lam
    return torch.where(v.abs() <= delta * (1 + k), v / (1 + k), v - torch.sign(v) * (delta * k))


def _l0(v: Tensor, s: Strength, lam: Strength, _: Strength) -> Tensor:
    s, lam = (torch.as_tensor(t, dtype=v.dtype, device=v.device) for t in (s, lam))
    threshold = (2 * s).sqrt() * lam.sqrt()
    kept = v + 0 * s * lam  # a derivative of 0
    return torch.where(v.abs() <= threshold.detach(), torch.zeros_like(v), kept)


def _l_half(v: Tensor, s: Strength, lam: Strength, _: Strength) -> Tensor:
    k = torch.as_tensor(s * lam, dtype=v.dtype, device=v.device)
    shrinks = (v.abs() > 1.5 * k ** (2 / 3)) & (k > 0)
    one, k = torch.ones_like(v), torch.where(k > 0, k, 1.0)
    x = torch.where(shrinks, v, one * k ** (2 / 3) * 3)  # elsewhere whatever has derivatives
    angle = torch.arccos(k / 4 * (x.abs() / 3) ** -1.5)
    y = 2 / 3 * x * (1 + torch.cos(2 / 3 * (math.pi - angle)))
    nothing = torch.as_tensor(s * lam == 0, device=v.device)
    return torch.where(shrinks, y, torch.where(nothing | v.isnan(), v, torch.zeros_like(v)))


def _mcp(v: Tensor, s: Strength, lam: Strength, gamma: Strength) -> Tensor:
    s, lam, gamma = (torch.as_tensor(t, dtype=v.dtype, device=v.device) for t in (s, lam, gamma))
    soft = s < gamma
    room = torch.where(soft, 1 - s / gamma, 1.0)
    firm = torch.where(v.abs() <= gamma * lam, soft_threshold(v, s * lam) / room, v)
    threshold = lam * s.sqrt() * gamma.sqrt()
    hard = torch.where(v.abs() <= threshold, torch.zeros_like(v), v)
    return torch.where(soft, firm, hard)


def _scad(v: Tensor, s: Strength, lam: Strength, a: Strength) -> Tensor:
    s, lam, a = (torch.as_tensor(t, dtype=v.dtype, device=v.device) for t in (s, lam, a))
    size = v.abs()
    shrunk = soft_threshold(v, s * lam)
    room = torch.where(s < a - 1, a - 1 - s, 1.0)
    line = ((a - 1) * v - torch.sign(v) * (s * a * lam)) / room
    small = torch.where(size <= lam * (1 + s), shrunk, torch.where(size <= a * lam, line, v))
    large = torch.where(size <= lam * (a + 1 + s) / 2, shrunk, v)
    hard = torch.where(size <= lam * s.sqrt() * (a + 1).sqrt(), torch.zeros_like(v), v)
    return torch.where(s < a - 1, small, torch.where(s < a + 1, large, hard))


_SEPARABLE: tuple[Callable[[Tensor, Strength, Strength, Strength], Tensor], ...] = (
    lambda v, s, lam, shape: v,
    _huber,
    _l0,
    _l_half,
    _mcp,
    _scad,
)


def separable(v: Tensor, s: Strength, kind: int, numbers: Numbers) -> Tensor:
    """Of factor f(x; lam, shape) + l1 |x| + (l2 / 2) x^2 within [low, high]."""
    lam, shape, factor, l1, l2, low, high = numbers
    x = soft_threshold(v, s * l1) / (1 + s * l2)
    x = _SEPARABLE[kind](x, s * factor / (1 + s * l2), lam, shape)
    x = torch.where(x < low, low, x)
    return torch.where(x > high, high, x)


# By groups: v and s are [groups, size], and x0 is the prox itself, without derivatives. What it
# tells (a root, which coordinates are not 0) makes a formula that can be differentiated.


def _polished(root: Tensor, residual: Callable[[Tensor], tuple[Tensor, Tensor]]) -> Tensor:
    """A root with its derivatives: Newton steps from it, of which each doubles their order."""
    for _ in range(2):
        value, slope = residual(root)
        root = root - torch.where(slope == 0, 0.0, value / torch.where(slope == 0, 1.0, slope))
    return root


def _scale(v: Tensor) -> Tensor:
    """The largest of each group, 1 where that is no scale: squares of v / scale keep in range."""
    most = v.detach().abs().amax(1, keepdim=True)
    return torch.where((most > 0) & most.isfinite(), most, 1.0)


def _group_l2(v: Tensor, s: Tensor, x0: Tensor, numbers: Numbers) -> Tensor:
    lam, l1 = numbers[0], numbers[3]
    a = soft_threshold(v, s * l1)
    scale = _scale(v)
    c = s * lam / scale
    norm = torch.linalg.vector_norm(x0 / scale, dim=1, keepdim=True)
    lives = norm > 0
    a, c = (torch.where(lives, t, 1.0) for t in (a / scale, c))  # elsewhere what has derivatives
    root = torch.where(lives, norm, 1.0)

    def residual(t: Tensor) -> tuple[Tensor, Tensor]:
        q = 1 / (t + c)
        square = (a * q).square().sum(1, keepdim=True)
        cube = ((a * q).square() * q).sum(1, keepdim=True)
        return 1 - square**-0.5, -(square**-1.5) * cube

    t = _polished(root, residual)
    return torch.where(lives, scale * a * t / (t + c), 0.0)


def is_inside(v: Tensor, kind: int, radius: Strength) -> Tensor:
    """Of each group whether it meets the constraint of a ball."""
    scale = _scale(v)
    order = 1 if kind == 9 else 2
    norm: Tensor = torch.linalg.vector_norm(v.detach() / scale, order, dim=1, keepdim=True)
    return norm <= (radius.detach() if isinstance(radius, Tensor) else radius) / scale


def _l2_ball(v: Tensor, s: Tensor, x0: Tensor, numbers: Numbers) -> Tensor:
    outside = ~is_inside(v, 10, numbers[0])
    scale = _scale(v)
    radius = numbers[0] / scale
    w = torch.where(outside, v / scale, 1.0)
    with torch.no_grad():
        y = torch.where(outside, x0 / scale, 1.0)
        root = ((w - y) * y).sum(1, keepdim=True) / (s * y * y).sum(1, keepdim=True)
        root = torch.where(root.isfinite(), root, 0.0)

    def residual(t: Tensor) -> tuple[Tensor, Tensor]:
        q = 1 / (1 + t * s)
        square = (w * q).square().sum(1, keepdim=True)
        cube = ((w * q).square() * q * s).sum(1, keepdim=True)
        return torch.where(outside, radius * square**-0.5 - 1, 0.0), radius * square**-1.5 * cube

    t = _polished(root, residual)
    return torch.where(outside, scale * w / (1 + t * s), v)


def _level(a: Tensor, c: Tensor, active: Tensor, r: Strength) -> Tensor:
    """The t with sum over the active of a - c t = r."""
    sums = [torch.where(active, t, 0.0).sum(1, keepdim=True) for t in (a, c)]
    return (sums[0] - r) / torch.where(sums[1] == 0, 1.0, sums[1])


def _l1_ball(v: Tensor, s: Tensor, x0: Tensor, numbers: Numbers) -> Tensor:
    inside, active = is_inside(v, 9, numbers[0]), x0 != 0
    t = _level(v.abs(), s, active, numbers[0])
    return torch.where(inside, v, torch.where(active, v - torch.sign(v) * t * s, 0.0))


def _simplex(v: Tensor, s: Tensor, x0: Tensor, numbers: Numbers) -> Tensor:
    active = x0 > 0
    return torch.where(active, v - _level(v, s, active, numbers[0]) * s, 0.0)


def _l_inf(v: Tensor, s: Tensor, x0: Tensor, numbers: Numbers) -> Tensor:
    active = (x0 - v.detach()) != 0
    t = _level(v.abs() / s, 1 / s, active, numbers[0])
    lives = (x0 != 0).any(1, keepdim=True)
    return torch.where(active, torch.where(lives, torch.sign(v) * t, 0.0), v)


def _total_variation(v: Tensor, s: Tensor, x0: Tensor, numbers: Numbers) -> Tensor:
    if v.shape[1] < 2:
        return v + 0 * s
    jumps = x0.diff(dim=1)
    size = x0.nan_to_num(0.0, 0.0, 0.0).abs().amax(1, keepdim=True)
    is_one = jumps.abs() > 1e-12 * size  # more than what solve leaves open
    rises = torch.where(is_one, torch.sign(jumps), 0.0)
    edge = torch.zeros_like(x0[:, :1])
    piece = torch.cat([edge, rises.abs()], 1).cumsum(1).long()
    # Each piece is where its elements and the differences at its ends pull it.
    pull = torch.cat([rises, edge], 1) - torch.cat([edge, rises], 1)
    w = 1 / s.expand(v.shape)

    def total(t: Tensor) -> Tensor:
        return torch.zeros_like(v).scatter_add(1, piece, t).gather(1, piece)

    return total(v * w + numbers[0] * pull) / total(w)


_BY_GROUPS: dict[int, Callable[[Tensor, Tensor, Tensor, Numbers], Tensor]] = {
    6: _group_l2,
    8: _l_inf,
    9: _l1_ball,
    10: _l2_ball,
    11: _simplex,
    12: _total_variation,
}


def by_groups(v: Tensor, s: Tensor, x0: Tensor, kind: int, numbers: Numbers) -> Tensor:
    """The prox once more, from what it is: with derivatives."""
    return _BY_GROUPS[kind](v, s, x0, numbers)


# --- the same, solved


def _secular(a: Tensor, c: Tensor, r: Tensor) -> Tensor:
    """t >= 0 with sum a^2 / (t + c)^2 = r^2, by bisection; 0 where there is none."""
    low = torch.zeros_like(a[:, :1])
    high: Tensor = torch.linalg.vector_norm(a, dim=1, keepdim=True) / r
    for _ in range(200):
        middle = (low + high) / 2
        above = torch.linalg.vector_norm(a / (middle + c), dim=1, keepdim=True) > r
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return high


def _water(a: Tensor, c: Tensor, r: Strength) -> Tensor:
    """t with sum max(a - c t, 0) = r: sorted by where a term ends, the last that is within."""
    order = torch.argsort(a / c, dim=1, descending=True)
    a, c = a.gather(1, order), c.gather(1, order)
    levels = (a.cumsum(1) - r) / c.cumsum(1)
    count = (a / c > levels).sum(1, keepdim=True).clamp_min(1)
    return levels.gather(1, count - 1)


def _line(v: Tensor, w: Tensor, lam: float) -> Tensor:
    """Total variation of a line: its dual, |u| <= lam, by active sets of pieces merged in turn."""
    best = v.clone()
    n = len(v)
    if n < 2 or lam == 0:
        return best
    # min over u in [-lam, lam]^(n-1) of ||sqrt(1/w) (w v - D^T u)||^2, by projected Newton.
    u = torch.zeros(n - 1, dtype=v.dtype, device=v.device)
    for _ in range(20 * n + 100):
        x = v + (torch.cat([u, u.new_zeros(1)]) - torch.cat([u.new_zeros(1), u])) / w
        gradient = x.diff()
        gradient = -gradient
        free = ~(((u >= lam) & (gradient < 0)) | ((u <= -lam) & (gradient > 0)))
        if not free.any() or gradient[free].abs().max() <= 1e-14 * v.abs().max():
            return x
        inverse = 1 / w
        hessian = torch.diag(inverse[:-1] + inverse[1:])
        hessian = hessian - torch.diag(inverse[1:-1], 1) - torch.diag(inverse[1:-1], -1)
        step = torch.zeros_like(u)
        step[free] = torch.linalg.solve(hessian[free][:, free], gradient[free])
        u = (u - step).clamp(-lam, lam)
    return x


def solve(v: Tensor, s: Tensor, kind: int, numbers: tuple[float, ...]) -> Tensor:
    """The prox by groups, [groups, size]. NaN where there is none, as for an infinite v."""
    good = ~v.isnan().any(1, keepdim=True) if kind == 6 else v.isfinite().all(1, keepdim=True)
    x = _solve(v if kind == 7 else torch.where(good, v, 0.0), s, kind, numbers)
    return x if kind == 7 else torch.where(good, x, math.nan)


def _solve(v: Tensor, s: Tensor, kind: int, numbers: tuple[float, ...]) -> Tensor:
    lam, shape, _, l1 = numbers[:4]
    if kind == 6:
        a = soft_threshold(v, s * l1)
        if lam == 0:
            return a
        t = _secular(a, lam * s, v.new_ones(()))
        alive = torch.linalg.vector_norm(a / s, dim=1, keepdim=True) > lam
        infinite = torch.linalg.vector_norm(a, dim=1, keepdim=True).isinf()
        shrunk = torch.where(infinite, a, a * t / (t + lam * s))
        return torch.where(alive, shrunk, 0.0)
    if kind == 7:
        n = v.shape[1]
        k = int(lam) if lam > 0 else max(1, round(shape * n))
        order = torch.argsort(v.square() / s, dim=1, descending=True, stable=True)
        kept = torch.zeros_like(v, dtype=torch.bool).scatter(1, order[:, :k], True)
        return torch.where(kept, v, 0.0)
    if kind == 8:
        t = _water(v.abs() / s, 1 / s, lam)
        alive = (v.abs() / s).sum(1, keepdim=True) > lam
        return torch.where(alive, torch.minimum(torch.maximum(v, -t), t), 0.0)
    if kind == 9:
        inside = v.abs().sum(1, keepdim=True) <= lam
        shrunk = soft_threshold(v, _water(v.abs(), s, lam) * s) if lam else torch.zeros_like(v)
        return torch.where(inside, v, shrunk)
    if kind == 10:
        inside = torch.linalg.vector_norm(v, dim=1, keepdim=True) <= lam
        shrunk = (
            (v / s) / (_secular(v / s, 1 / s, v.new_full((), lam)) + 1 / s)
            if lam
            else torch.zeros_like(v)
        )
        return torch.where(inside, v, shrunk)
    if kind == 11:
        return (v - _water(v, s, lam) * s).clamp_min(0) if lam else torch.zeros_like(v)
    return torch.stack([_line(row, 1 / t, lam) for row, t in zip(v, s, strict=True)])
