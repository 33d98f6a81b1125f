"""The ops on sharded tensors (DTensor): each rank calls the op on its own shards.

A mask is a function of the index in the whole tensor, so each call says where its shard lies in it
(``shard=``). What is summed over ranks is summed before the activation and dropout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from torchcalc._check import MAX_SEED, int_seed, is_sharded
from torchcalc.ops._sharding import replicated

Call = Callable[..., Tensor]
Role = dict[str, tuple[Any, Any]]  # tensor -> how it is placed, and its gradient


class _Plan:
    """How tensors are placed, by name: a role for each dimension of the mesh."""

    def __init__(self, mesh: Any, roles: list[Role]) -> None:
        self.mesh = mesh
        self.roles = roles

    def placements(self, name: str) -> list[Any]:
        return [role[name][0] for role in self.roles]

    def local(self, t: Any, name: str) -> Any:
        """This rank's shard."""
        if t is None:
            return None
        placed = t.redistribute(self.mesh, self.placements(name))
        return placed.to_local(grad_placements=[role[name][1] for role in self.roles])

    def mask(self, seed: Any, name: str, shape: torch.Size) -> dict[str, Any]:
        """What tells a mask of ``shape`` the part that is this rank's shard of it."""
        if seed is None:
            return {"seed": None, "shard": None}
        from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

        placements = self.placements(name)
        _, offset = compute_local_shape_and_global_offset(shape, self.mesh, placements)
        return {"seed": seed, "shard": (shape, tuple(offset))}

    def whole(self, local: Tensor, name: str, shape: torch.Size) -> Any:
        """The DTensor of ``shape`` that has this shard."""
        from torch.distributed.tensor import DTensor

        stride = torch.empty(shape, device="meta").stride()
        placements = self.placements(name)
        return DTensor.from_local(
            local, self.mesh, placements, run_check=False, shape=shape, stride=stride
        )

    def summed(self, local: Tensor, shape: torch.Size) -> Tensor:
        """The sum over ranks of a partial output, as the output is placed."""
        summed = self.whole(local, "partial", shape).redistribute(self.mesh, self.placements("y"))
        result: Tensor = summed.to_local(grad_placements=self.placements("y"))
        return result

    @property
    def sums(self) -> bool:
        return any(role["partial"][0] != role["y"][0] for role in self.roles)


def sums(x: Any, weight: Any) -> bool:
    """Whether the product is a sum over ranks."""
    last = x.ndim - 1
    placements = [(p, last) for p in x.placements] + [(p, 1) for p in weight.placements]
    return any(getattr(p, "dim", None) == dim for p, dim in placements)


def local_seed(op: str, seed: Any, x: Any, drops: bool) -> Any:
    """One seed for all ranks: the first rank's; None where nothing is dropped."""
    if not drops:
        return None
    if seed is None:
        seed = torch.randint(0, MAX_SEED, (1,), dtype=torch.int64, device=x.device)
    elif not isinstance(seed, Tensor):
        return int_seed(op, seed)  # on every rank, and no communication
    placed: Any = replicated(seed, x)
    return placed.full_tensor()


def expect_all(op: str, **tensors: Any) -> None:
    """Refuses plain tensors beside DTensors."""
    for name, t in tensors.items():
        if isinstance(t, Tensor) and not is_sharded(t):
            raise TypeError(f"{op}: {name} must be a DTensor, as x is, got a {type(t).__name__}")


_NAMES = ("x", "weight", "bias", "down", "down_bias", "residual", "hidden", "partial", "y")


def _roles(x: Any, weights: list[Any], down: Any = None, halves: bool = False) -> list[Role]:
    """Of a layer with these weights, and where it is given of one behind it with ``down``.

    On a dimension of the mesh, weights sharded by rows give columns of the output; x and weights
    sharded by their last dimension give a sum; else x may be sharded by rows. ``halves``: rows are
    gates first, then values, and a shard has some of both.
    """
    from torch.distributed.tensor import Partial, Replicate, Shard

    last = x.ndim - 1
    everywhere, summed, features = Replicate(), Partial(), Shard(last)

    def is_shard(placement: Any, dim: int) -> bool:
        return type(placement) is Shard and placement.dim == dim

    def role(**placed: Any) -> Role:
        pairs = {n: placed.get(n, everywhere) for n in _NAMES}
        return {n: p if isinstance(p, tuple) else (p, p) for n, p in pairs.items()}

    def role_on(i: int) -> Role:
        at_x, at_weights = x.placements[i], [w.placements[i] for w in weights]
        columns = Shard(0) if all(is_shard(p, 0) for p in at_weights) else None
        if halves:
            columns = at_weights[0] if is_halves(at_weights[0]) else None
        by_columns = {"x": (everywhere, summed), "weight": columns, "bias": columns}
        if down is None and columns is not None:
            outputs = dict.fromkeys(("residual", "hidden", "partial", "y"), features)
            return role(**by_columns, **outputs)
        if down is not None and columns is not None:
            return role(**by_columns, hidden=features, down=Shard(1), partial=summed)
        if (
            down is None
            and len(weights) == 1
            and not halves
            and (is_shard(at_x, last) or is_shard(at_weights[0], 1))
        ):
            return role(x=features, weight=Shard(1), partial=summed)
        if type(at_x) is Shard and at_x.dim != last:
            outputs = dict.fromkeys(("residual", "hidden", "partial", "y"), at_x)
            parameters = dict.fromkeys(
                ("weight", "bias", "down", "down_bias"), (everywhere, summed)
            )
            return role(x=at_x, **parameters, **outputs)
        return role()

    return [role_on(i) for i in range(x.device_mesh.ndim)]


def is_halves(placement: Any) -> bool:
    """Whether each shard has its part of the first half and of the second."""
    from torch.distributed.tensor.placement_types import _StridedShard

    return bool(placement == _StridedShard(0, split_factor=2))


def dropout(call: Call, x: Any, residual: Any, seed: Any) -> Tensor:
    """``call(x, residual, seed=, shard=)`` on each rank."""
    from torch.distributed.tensor import Replicate

    placed = [Replicate() if p.is_partial() else p for p in x.placements]
    plan = _Plan(x.device_mesh, [dict.fromkeys(("x", "residual", "y"), (p, p)) for p in placed])
    tensors = plan.local(x, "x"), plan.local(residual, "residual")
    y = call(*tensors, **plan.mask(seed, "y", x.shape))
    return plan.whole(y, "y", x.shape)  # type: ignore[no-any-return]


def linear_act(
    call: Call, act: Call, x: Any, weight: Any, bias: Any, residual: Any, seed: Any
) -> Tensor:
    """``call(x, weight, bias, residual, seed=, shard=)`` on each rank; where the product is a sum
    over ranks, ``act(z, residual, seed=, shard=)`` after it."""
    plan = _Plan(x.device_mesh, _roles(x, [weight]))
    shape = torch.Size([*x.shape[:-1], weight.shape[0]])
    mask = plan.mask(seed, "y", shape)
    tensors = plan.local(x, "x"), plan.local(weight, "weight")
    local_bias, added = plan.local(bias, "bias"), plan.local(residual, "residual")
    if plan.sums:
        z = plan.summed(torch.nn.functional.linear(*tensors), shape)
        y = act(_plus_bias(z, local_bias), added, **mask)
    else:
        y = call(*tensors, local_bias, added, **mask)
    return plan.whole(y, "y", shape)  # type: ignore[no-any-return]


def _plus_bias(z: Tensor, bias: Tensor | None) -> Tensor:
    return z if bias is None else z + bias.to(z.dtype)  # another one under autocast


def gated_linear(call: Call, x: Any, weights: list[Any], biases: list[Any], seed: Any) -> Tensor:
    """``call(x, weights, biases, seed=, shard=)`` on each rank."""
    plan = _Plan(x.device_mesh, _roles(x, weights, halves=len(weights) == 1))
    shape = torch.Size([*x.shape[:-1], weights[0].shape[0] // (3 - len(weights))])
    y = call(
        plan.local(x, "x"),
        [plan.local(w, "weight") for w in weights],
        [plan.local(b, "bias") for b in biases],
        **plan.mask(seed, "y", shape),
    )
    return plan.whole(y, "y", shape)  # type: ignore[no-any-return]


def mlp(
    call: Call, act: Call, tensors: tuple[Any, ...], residual: Any, seed: Any, gated: bool
) -> Tensor:
    """``call(x, weight1, bias1, weight2, bias2, residual, seed=, shard=, hidden_shard=)`` on each
    rank; where weights are sharded without bias2 and what follows it, and after the sum over ranks
    ``act(z, residual, seed=, shard=)``."""
    x, weight1, _, weight2, _ = tensors
    plan = _Plan(x.device_mesh, _roles(x, [weight1], down=weight2, halves=gated))
    shape = torch.Size([*x.shape[:-1], weight2.shape[0]])
    hidden_shape = torch.Size([*x.shape[:-1], weight2.shape[1]])
    if isinstance(seed, int):  # of which seed + 1 may be none
        seed = torch.full((1,), seed, dtype=torch.int64, device=x.device)
    names = ("x", "weight", "bias", "down", "down_bias")
    *local, bias2 = (plan.local(t, name) for t, name in zip(tensors, names, strict=True))
    added = plan.local(residual, "residual")
    mask = plan.mask(seed, "y", shape)
    hidden_shard = plan.mask(seed, "hidden", hidden_shape)["shard"]
    if plan.sums:
        hidden = {"seed": seed, "shard": None, "hidden_shard": hidden_shard}
        z = plan.summed(call(*local, None, None, **hidden), shape)
        if seed is not None:
            mask["seed"] = seed + 1
        y = act(_plus_bias(z, bias2), added, **mask)
    else:
        y = call(*local, bias2, added, **mask, hidden_shard=hidden_shard)
    return plan.whole(y, "y", shape)  # type: ignore[no-any-return]
