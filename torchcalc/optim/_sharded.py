"""Parameters that are shards of whole tensors (DTensor: FSDP2, tensor parallel).

Update rules are of each coordinate, and so are most penalties: the kernels get a rank's own part.
Groups of a penalty that lie on several ranks are pulled here, after the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torchcalc._check import is_sharded
from torchcalc.ops.penalty_prox import GROUP_L2, Kernel, rows_of
from torchcalc.prox import Penalty
from torchcalc.reference.prox import soft_threshold

_WHOLE = (torch.nn.Parameter, Tensor)
_EPS = torch.finfo(torch.float64).eps / 4


def is_any(tensors: Sequence[Tensor]) -> bool:
    """Quickly, of very many."""
    return not set(map(type, tensors)).issubset(_WHOLE) and any(map(is_sharded, tensors))


def local(t: Tensor) -> Tensor:
    """What this rank has of it, the same memory."""
    part: Tensor = getattr(t, "_local_tensor", t)  # to_local() is a new tensor each time
    return part


def placed_as(param: Tensor, t: Tensor) -> Tensor:
    """A gradient or state of ``param``, of the same shape as a whole, placed like it."""
    if not is_sharded(param):
        return t
    from torch.distributed.tensor import distribute_tensor

    like: Any = param
    if not is_sharded(t):  # whole, on every rank
        return distribute_tensor(t, like.device_mesh, like.placements, src_data_rank=None)
    sharded: Any = t
    if sharded.placements != like.placements or sharded.device_mesh != like.device_mesh:
        sharded = sharded.redistribute(like.device_mesh, like.placements)
    return sharded  # type: ignore[no-any-return]


def wrap(param: Tensor, part: Tensor) -> Tensor:
    """The whole tensor of which ``part`` is what this rank has."""
    if not is_sharded(param):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    # The same memory, but as a storage of its own: torch cannot pickle a DTensor with an offset.
    begin = part.storage_offset() * part.itemsize
    storage = part.untyped_storage()[begin : begin + part.numel() * part.itemsize]
    part = part.new_empty(0).set_(storage, 0, part.shape, part.stride())
    return DTensor.from_local(
        part, mesh, placements, run_check=False, shape=param.shape, stride=param.stride()
    )


def mesh_dims_across(param: Tensor, indexes: int) -> tuple[int, ...]:
    """The dimensions of the mesh along which a group has parts on several ranks."""
    if not is_sharded(param):
        return ()
    mesh, placements = param.device_mesh, param.placements  # type: ignore[attr-defined]
    return tuple(
        i
        for i, placement in enumerate(placements)
        if mesh.size(i) > 1 and hasattr(placement, "dim") and not indexes >> placement.dim & 1
    )


class Pull(NamedTuple):
    """A parameter whose groups lie on several ranks, and the prox to be taken of it."""

    param: Tensor
    penalty: Penalty
    prox: Callable[[Tensor, Tensor | float], Tensor]  # bounded, of the whole tensor
    step: Tensor | float  # of this rank's coordinates, or of all
    bound: float
    write: Callable[[Tensor], None]  # this rank's part of the result

    @property
    def indexes(self) -> int:
        return self.penalty.indexes(self.param.shape)


@torch.no_grad()
def pull(pulls: Sequence[Pull]) -> None:
    """Group norms take one all-reduce for all, one more a Newton iteration where steps differ."""
    by_ranks: dict[Any, list[Pull]] = {}
    for p in pulls:
        if _is_group_norm(p.penalty.kernel):
            mesh: Any = p.param.device_mesh  # type: ignore[attr-defined]
            by_ranks.setdefault((mesh, mesh_dims_across(p.param, p.indexes)), []).append(p)
        else:
            whole = p.param.full_tensor()  # type: ignore[attr-defined]
            step = p.step
            if isinstance(step, Tensor):
                step = wrap(p.param, step).full_tensor()  # type: ignore[attr-defined]
            p.write(local(placed_as(p.param, p.prox(whole, step))))
    for (mesh, dims), some in by_ranks.items():
        _GroupNorms(some, [mesh.get_group(dim) for dim in dims]).pull()


def _is_group_norm(kernel: Kernel | None) -> bool:
    return (
        kernel is not None
        and kernel.kind == GROUP_L2
        and kernel == Kernel(GROUP_L2, kernel.lam, l1=kernel.l1)
    )


class _GroupNorms:
    """The prox of lam ||x|| + l1 ||x||_1 of all groups together, in double.

    As csrc/math/group_prox.h: x = a / (1 + s lam / t), a = S(v, s l1), where t is the root of
    sum a^2 / (t + s lam)^2 = 1 and, where s is one, ||a|| - s lam.
    """

    def __init__(self, pulls: Sequence[Pull], process_groups: Sequence[Any]) -> None:
        self.pulls, self.process_groups = pulls, process_groups
        dtype = torch.float64
        self.v, self.s, self.back = [], [], []
        for p in pulls:
            part = local(p.param)
            step = torch.as_tensor(p.step, dtype=dtype, device=part.device).expand(part.shape)
            rows, back = rows_of(part.to(dtype), p.indexes)
            self.v.append(rows)
            self.s.append(rows_of(step, p.indexes)[0])
            self.back.append(back)
        kernels = [p.penalty.kernel or Kernel() for p in pulls]
        self.a = [
            soft_threshold(v, s * k.l1) for v, s, k in zip(self.v, self.s, kernels, strict=True)
        ]
        self.c = [s * k.lam for s, k in zip(self.s, kernels, strict=True)]
        self.counts = [len(rows) for rows in self.v]

    def pull(self) -> None:
        norms = torch.split(self._norms(), self.counts)
        x = [
            torch.where(
                t[:, None] > 0, a / (1 + c / t[:, None]), torch.where(t.isnan(), t, 0)[:, None]
            )
            for a, c, t in zip(self.a, self.c, norms, strict=True)
        ]
        if any(p.bound < math.inf for p in self.pulls):
            (squares,) = self._sums(lambda i: [(self.v[i] - x[i]).square()])
            for i, (p, square) in enumerate(
                zip(self.pulls, torch.split(squares, self.counts), strict=True)
            ):
                size = math.prod(n for d, n in enumerate(p.param.shape) if not p.indexes >> d & 1)
                share = (p.bound * math.sqrt(size) / square.sqrt()).clamp_max(1)[:, None]
                x[i] = torch.where(share < 1, self.v[i] - share * (self.v[i] - x[i]), x[i])
        for p, back, rows in zip(self.pulls, self.back, x, strict=True):
            p.write(back(rows))

    def _sums(self, terms: Callable[[int], Sequence[Tensor]]) -> Tensor:
        """Of each group of each parameter, over all ranks: [terms, groups]."""
        sums = torch.cat(
            [torch.stack([t.sum(1) for t in terms(i)]) for i in range(len(self.pulls))], 1
        )
        for group in self.process_groups:
            torch.distributed.all_reduce(sums, group=group)
        return sums

    def _norms(self) -> Tensor:
        """t of each group, 0 where it is to vanish: Newton's method on sum^(-1/2), bracketed."""

        def moments(i: int) -> Sequence[Tensor]:
            a, c = self.a[i], self.c[i]
            square = a.square()
            at_zero = torch.where(a == 0, 0.0, a / c).square()
            return square, square * c, square * c * c, at_zero

        x, y, z, at_zero = self._sums(moments)
        root, mean = x.sqrt(), torch.where(x > 0, y / x, 0.0)
        variance = (z / x - mean * mean).abs()
        if not any(isinstance(p.step, Tensor) for p in self.pulls):
            variance = torch.zeros_like(variance)  # not only up to rounding
        low, high = (root - mean).clamp_min(0), root
        t = torch.where(low > 0, low, high)
        exact = (low > 0) & (1.5 * variance * root**3 <= _EPS * low**5)
        dead = (at_zero <= 1) | (x == 0)
        done = exact | dead | ~root.isfinite()
        for _ in range(200):
            if bool(done.all()):  # the same on all ranks: it hangs on sums over them
                break
            levels = torch.split(t, self.counts)

            def terms(i: int, levels: Sequence[Tensor] = levels) -> Sequence[Tensor]:
                inverse = 1 / (levels[i][:, None] + self.c[i])
                q = (self.a[i] * inverse).square()
                return q, q * inverse

            s, cubes = self._sums(terms)
            step = (s.sqrt() - 1) * s / cubes
            low, high = torch.where(step >= 0, t, low), torch.where(step >= 0, high, t)
            after = t + step
            after = torch.where((after >= low) & (after <= high), after, (low + high) / 2)
            done_now = (1.5 * step * step <= _EPS * t * t) | (high <= low)
            t = torch.where(done, t, after)
            done = done | done_now
        return torch.where(dead, 0.0, torch.where(root.isfinite(), t, root))
