"""The prox of a penalty, argmin_x g(x) + sum (x - v)^2 / (2 step), and its derivatives.

The op takes numbers as strengths. What it gives tells a formula that PyTorch can differentiate, any
number of times (reference/penalties.py): a root, or which coordinates are not 0. Strengths that are
tensors are those of the formula; where it needs the prox first, that is taken with strengths of 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from torchcalc._check import check_floating
from torchcalc.ops._autograd import below_autograd, in_front, register, register_vmap
from torchcalc.reference import penalties as reference
from torchcalc.reference.prox import soft_threshold

Strength = Tensor | float


class Kernel(NamedTuple):
    """A penalty as the kernels take it (csrc/math/penalty.h): factor f + l1 |x| + (l2 / 2) x^2.

    ``kind`` is the number of f, and ``lam`` and ``shape`` are its own; low <= x <= high.
    """

    kind: int = 0
    lam: Strength = 0.0
    shape: Strength = 0.0
    factor: Strength = 1.0
    l1: Strength = 0.0
    l2: Strength = 0.0
    low: float = -math.inf
    high: float = math.inf


# As csrc/math/penalty.h numbers them.
PLAIN, HUBER, L0, L_HALF, MCP, SCAD, GROUP_L2, LARGEST, L_INF, L1_BALL, L2_BALL, SIMPLEX, TV = (
    range(13)
)
_FIRST_BY_GROUPS = GROUP_L2
SETS = (LARGEST, L1_BALL, L2_BALL, SIMPLEX)


def rows_of(t: Tensor, indexes: int, block: int = 0) -> tuple[Tensor, Any]:
    """A tensor as [groups, size], and the function that undoes it (GroupLayout::make)."""
    shape = t.shape
    dims = range(t.dim())
    inner = [d for d in dims if not indexes >> d & 1]
    if block:
        (d,) = inner
        t = t.reshape(*shape[:d], shape[d] // block, block, *shape[d + 1 :])
        inner = [d + 1]
    order = [d for d in range(t.dim()) if d not in inner] + inner
    moved = t.permute(order)
    groups = t.dim() - len(inner)
    matrix = math.prod(moved.shape[:groups]), math.prod(moved.shape[groups:])

    def back(rows: Tensor) -> Tensor:
        inverse = [order.index(d) for d in range(len(order))]
        return rows.reshape(moved.shape).permute(inverse).reshape(shape)

    return moved.reshape(matrix), back


def is_separable(kernel: Kernel) -> bool:
    return kernel.kind < _FIRST_BY_GROUPS


def _is_tensor(numbers: Sequence[Strength]) -> bool:
    return any(isinstance(t, Tensor) for t in numbers)


def _solution(v: Tensor, s: Strength, kernel: Kernel, indexes: int) -> Tensor:
    """The prox of a penalty by groups, without derivatives."""
    v = v.detach()
    s, *numbers = (t.detach() if isinstance(t, Tensor) else t for t in (s, *kernel[1:]))
    kernel = Kernel._make((kernel.kind, *numbers))
    if _is_tensor(numbers):
        # prox of lam g is that of g with step lam s, and a ball of radius r is r times that of 1.
        unit = Kernel(kernel.kind, 1.0)
        lam = torch.as_tensor(kernel.lam, dtype=v.dtype, device=v.device)
        if kernel.kind in (L1_BALL, L2_BALL, SIMPLEX):
            safe = torch.where(lam == 0, 1.0, lam)
            return torch.where(lam == 0, 0.0, safe * _solution(v / safe, s, unit, indexes))
        if kernel.kind == GROUP_L2:
            v = soft_threshold(v, s * kernel.l1)
        step = s * torch.where(lam == 0, 1.0, lam)
        return torch.where(lam == 0, v, _solution(v, step, unit, indexes))
    steps, value = (s.expand(v.shape), 0.0) if isinstance(s, Tensor) else (None, s)
    # Below autograd, or a dual level would lead here again; in a graph of Dynamo's it is one op.
    is_traced = torch.compiler.is_dynamo_compiling()
    op = torch.ops.torchcalc.penalty_prox if is_traced else below_autograd.penalty_prox
    solved: Tensor = op(v, steps, value, kernel.kind, numbers, indexes)
    return solved


def formula(
    v: Tensor,
    s: Strength,
    kernel: Kernel,
    indexes: int,
    solve: Callable[[Tensor, Strength], Tensor] | None = None,
) -> Tensor:
    """The prox in operations that autograd differentiates; v may be of a half type, s is not.

    ``solve`` gives the prox without derivatives, in place of the op.
    """
    if v.dtype.itemsize < 4:
        return formula(v.float(), s, kernel, indexes, solve).to(v.dtype)
    kind, *numbers = kernel
    if kind < _FIRST_BY_GROUPS:
        return reference.separable(v, s, kind, tuple(numbers))
    if not isinstance(s, Tensor) and s == 0 and kind not in SETS:
        return v.clone()  # nothing moves
    if solve is not None:
        solved = solve(v.detach(), s.detach() if isinstance(s, Tensor) else s)
    else:
        solved = _solution(v, s, kernel, indexes)
    if kind == LARGEST:
        check_constant(v, s)
        return solved
    if v.numel() == 0:
        return v * s
    steps = torch.as_tensor(s, dtype=v.dtype, device=v.device).expand(v.shape)
    rows, back = rows_of(v, indexes, 0)
    solved, steps = (rows_of(t, indexes, 0)[0] for t in (solved, steps))
    if kind in (L1_BALL, L2_BALL):  # where it was scaled, rounding has moved what is inside
        solved = torch.where(reference.is_inside(rows, kind, kernel.lam), rows.detach(), solved)
    derived = reference.by_groups(rows, steps, solved, kind, tuple(numbers))
    # The value is the solution, the derivatives are those of the formula.
    exact = solved + (derived - derived.detach())
    result: Tensor = back(torch.where(derived.isfinite() & solved.isfinite(), exact, solved))
    return result


def check_constant(*inputs: Any) -> None:
    """Raises where a derivative is wanted that does not exist."""

    def varies(t: Tensor) -> bool:
        if torch.is_grad_enabled() and t.requires_grad:
            return True
        level = forward_ad._current_level
        return level >= 0 and forward_ad.unpack_dual(t).tangent is not None  # type: ignore[no-untyped-call]

    if any(varies(t) for t in inputs if isinstance(t, Tensor)):
        raise NotImplementedError(
            "prox: the prox of NMSparse and TopK is not differentiable: which coordinates stay "
            "jumps with v. Take it under torch.no_grad() or of v.detach()"
        )


def _derived(
    v: Tensor, step: Tensor | None, step_value: float, kind: int, numbers: Any, indexes: int
) -> Tensor:
    s = step_value if step is None else step
    return formula(v, s, Kernel._make((kind, *numbers)), indexes)


def _solve_in_pytorch(kernel: Kernel, indexes: int, v: Tensor, s: Strength) -> Tensor:
    """The prox of a penalty by groups on devices without kernels, without derivatives."""
    if v.numel() == 0:
        return v.clone()
    dtype = v.dtype if v.device.type == "mps" else torch.float64  # which has no doubles
    block = int(kernel.factor) if kernel.kind == LARGEST else 0
    rows, back = rows_of(v.to(dtype), indexes, block)
    steps = torch.as_tensor(s, dtype=dtype, device=v.device).expand(v.shape)
    solved = reference.solve(rows, rows_of(steps, indexes, block)[0], kernel.kind, kernel[1:])  # type: ignore[arg-type]
    return back(solved).to(v.dtype).contiguous()  # type: ignore[no-any-return]


def _reference(
    v: Tensor, step: Tensor | None, step_value: float, kind: int, numbers: Any, indexes: int
) -> Tensor:
    """On devices without kernels."""
    check_floating("penalty_prox", "v", v)
    kernel = Kernel._make((kind, *numbers))
    solve = partial(_solve_in_pytorch, kernel, indexes)
    return formula(v, step_value if step is None else step, kernel, indexes, solve)


def bounded_prox(
    kernel: Kernel, indexes: int, bound: float, v: Tensor, s: Tensor | float
) -> Tensor:
    """The reference's prox, but no farther than ``bound`` from v; constraints are met.

    The bound is on a coordinate; by groups of n, on the norm of v - x, and sqrt(n) as large.
    """
    if v.numel() == 0:
        return v.clone()
    if kernel.kind in SETS and not isinstance(s, Tensor):
        s = 1.0  # a projection is the same with any one step for all
    free = kernel._replace(low=-math.inf, high=math.inf)
    step, value = (s, 0.0) if isinstance(s, Tensor) else (None, s)
    with torch.no_grad():
        x = _reference(v, step, value, free.kind, free[1:], indexes)
    if bound < math.inf and kernel.kind not in SETS:
        if kernel.kind < _FIRST_BY_GROUPS:
            x = torch.where((v - x).abs() <= bound, x, v - bound * torch.sign(v - x))
        else:
            x = within(bound, v, x, indexes)
    return x.clamp(float(kernel.low), float(kernel.high))


def within(bound: float, v: Tensor, x: Tensor, indexes: int) -> Tensor:
    """x, but in each group of n no farther from v than sqrt(n) times the bound."""
    pull, back = rows_of(torch.where(v == x, 0.0, v - x), indexes)
    norm = torch.linalg.vector_norm(pull, dim=1, keepdim=True)
    most = bound * math.sqrt(pull.shape[1])
    moved: Tensor = v - back(torch.where(norm <= most, pull, pull * (most / norm)))
    return torch.where(back(norm.expand(pull.shape)) <= most, x, moved)


# penalty_prox(v, step, step_value, penalty, numbers, indexes) -> x; step_value counts where step is
# None; csrc/math/penalty.h and csrc/ops/penalty.h say what the rest is.
penalty_prox = register("penalty_prox", _derived, _reference, if_recorded=True)


def _vmap(
    info: Any, in_dims: Any, v: Tensor, step: Tensor | None, *rest: Any
) -> tuple[Tensor, int]:
    *numbers, indexes = rest
    v, step = in_front(v, in_dims[0], info.batch_size), in_front(step, in_dims[1], info.batch_size)
    return penalty_prox(v, step, *numbers, indexes << 1 | 1), 0  # a sample's groups are its own


register_vmap("penalty_prox", _vmap)


@torch.library.register_fake("torchcalc::penalty_prox")
def _(v, step, step_value, penalty, numbers, indexes):  # type: ignore[no-untyped-def]
    check_floating("penalty_prox", "v", v)
    return v.new_empty(v.shape)
