"""What each rank does for test_optim_sharded.py: steps of sharded parameters and of whole ones.

    python optim_ranks.py RANK RANKS FILE

FILE, which does not exist yet, is where the ranks meet.
"""

from __future__ import annotations

import copy
import io
import os
import sys
from functools import partial
from unittest import mock

import torch
import torch.distributed as dist
import torch.distributed.checkpoint.state_dict as dcp
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

from torchcalc import optim, prox

OPTIMIZERS = {
    "SGD": partial(optim.SGD, lr=0.1, momentum=0.9),
    "Adam": partial(optim.Adam, lr=0.05, amsgrad=True),
    "AdamW": partial(optim.AdamW, lr=0.05),
    "AdamW, no clip": partial(optim.AdamW, lr=0.05, prox_clip=None),
    "AdamW, one step": partial(optim.AdamW, lr=0.05, prox_metric="lr"),
    "Adagrad": partial(optim.Adagrad, lr=0.1),
    "RMSprop": partial(optim.RMSprop, lr=0.05, momentum=0.5, centered=True),
}
PENALTIES = [
    None,
    prox.L1(0.3),
    prox.GroupL2(0.5),
    prox.GroupL2(0.5, dim=1),
    prox.SparseGroupL2(0.2, 0.3, dim=1),
    prox.LInf(0.4),
    prox.TopK(density=0.4),
    prox.NMSparse(1, 3, dim=0),
    prox.L1Ball(2.0),
    prox.Nuclear(0.3),
]
SHAPE = (6, 5)


def grads(step, shape=SHAPE):
    generator = torch.Generator().manual_seed(step)
    g = torch.randn(shape, generator=generator, dtype=torch.float64)
    return torch.where(torch.rand(shape, generator=generator) < 0.2, 0, g)


def start(shape=SHAPE):
    return torch.randn(shape, generator=torch.Generator().manual_seed(99), dtype=torch.float64)


def on(mesh, placements, t):
    return distribute_tensor(t, mesh, placements)


def check(make, penalty, mesh, placements):
    """Steps of shards are those of the whole; returns the all-reduces of the last one."""
    kwargs = {} if penalty is None else {"penalty": penalty}
    whole = torch.nn.Parameter(start())
    sharded = torch.nn.Parameter(on(mesh, placements, start()))
    ours, theirs = make([sharded], **kwargs), make([whole], **kwargs)
    reduce = dist.all_reduce
    for step in range(8):
        whole.grad = grads(step)
        sharded.grad = on(mesh, placements, grads(step))
        with mock.patch.object(dist, "all_reduce", side_effect=reduce) as reduced:
            ours.step()
        theirs.step()
        torch.testing.assert_close(sharded.full_tensor(), whole, rtol=1e-6, atol=1e-9)
    for name, value in theirs.state[whole].items():
        state = ours.state[sharded][name]
        if value.dim():
            assert isinstance(state, DTensor)
            assert state.placements == sharded.placements
            state = state.full_tensor()
        torch.testing.assert_close(state, value, rtol=1e-6, atol=1e-9)
    return reduced.call_count


def steps(mesh):
    for placement in (Shard(0), Shard(1), Replicate()):
        for penalty in PENALTIES:
            one_step = penalty is not None and not penalty.takes_metric
            for make in [OPTIMIZERS["AdamW, one step"]] if one_step else OPTIMIZERS.values():
                check(make, penalty, mesh, [placement])


def reductions(mesh):
    """One for all norms, one a Newton iteration where steps differ, none where ranks have whole
    groups."""
    columns = prox.GroupL2(0.5, dim=1)
    for name in OPTIMIZERS:
        assert check(OPTIMIZERS[name], columns, mesh, [Shard(1)]) == 0
        assert check(OPTIMIZERS[name], prox.L1(0.1), mesh, [Shard(0)]) == 0
    assert check(OPTIMIZERS["SGD"], columns, mesh, [Shard(0)]) == 1
    assert check(OPTIMIZERS["AdamW, one step"], columns, mesh, [Shard(0)]) == 2  # and the bound's
    assert 2 <= check(OPTIMIZERS["AdamW, no clip"], columns, mesh, [Shard(0)]) <= 8
    # All parameters together.
    shapes = [(6, 5), (4, 3), (7,), (2, 3, 4)]
    params = [torch.nn.Parameter(on(mesh, [Shard(0)], start(shape))) for shape in shapes]
    for p, shape in zip(params, shapes, strict=True):
        p.grad = on(mesh, [Shard(0)], grads(0, shape))
    groups = [{"params": params[:2], "penalty": columns}, {"params": params[2:]}]
    optimizer = optim.SGD(groups, lr=0.1, penalty=prox.GroupL2(0.5, dim=()))
    with mock.patch.object(dist, "all_reduce", side_effect=dist.all_reduce) as reduced:
        optimizer.step()
    assert reduced.call_count == 1


def two_dims(mesh):
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicas", "shards"))
    for placements in ([Replicate(), Shard(0)], [Shard(1), Shard(0)], [Shard(0), Shard(0)]):
        for penalty in PENALTIES[:-1]:
            check(OPTIMIZERS["AdamW"], penalty, mesh, placements)


def model():
    torch.manual_seed(0)
    # Sizes that no number of ranks divides.
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.ReLU(), torch.nn.Linear(7, 1))


def train(net, optimizer, begin, end, step=None):
    for k in range(begin, end):
        x = torch.randn(16, 5, generator=torch.Generator().manual_seed(k))
        net(x).square().mean().backward()
        (step or optimizer.step)()
        optimizer.zero_grad()


def sharded(net, mesh):
    for layer in net:
        if isinstance(layer, torch.nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def whole(net):
    return [p.full_tensor() if isinstance(p, DTensor) else p for p in net.parameters()]


def fsdp(mesh):
    for make in (*OPTIMIZERS.values(), partial(optim.FTRL, lr=0.1, l1=1e-3)):
        kwargs = {} if make.func is optim.FTRL else {"penalty": prox.L1(1e-2)}
        plain = model()
        shards = sharded(copy.deepcopy(plain), mesh)
        ours, theirs = make(shards.parameters(), **kwargs), make(plain.parameters(), **kwargs)
        train(plain, theirs, 0, 6)
        train(shards, ours, 0, 3)
        # Through the checkpoint's form, into another optimizer that has made no step.
        saved = dcp.get_optimizer_state_dict(shards, ours)
        torch.save(ours.state_dict(), io.BytesIO())  # also by itself
        values = [p.detach().clone() for p in shards.parameters()]
        again = make(shards.parameters(), **kwargs)
        dcp.set_optimizer_state_dict(shards, again, saved)
        train(shards, again, 3, 6)
        assert_close(whole(shards), whole(plain))
        expected = whole(shards)
        # And as a whole, from rank 0's file.
        for p, value in zip(shards.parameters(), values, strict=True):
            p.data.copy_(value)
        third = make(shards.parameters(), **kwargs)
        options = dcp.StateDictOptions(full_state_dict=True)
        full = dcp.get_optimizer_state_dict(shards, ours, options=options)
        for state in full["state"].values():
            assert not any(isinstance(t, DTensor) for t in state.values())
        dcp.set_optimizer_state_dict(shards, third, full, options=options)
        train(shards, third, 3, 6)
        for a, b in zip(whole(shards), expected, strict=True):
            assert torch.equal(a, b)


def assert_close(a, b):
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)


def compiled(mesh):
    plain = model()
    shards = sharded(copy.deepcopy(plain), mesh)
    theirs = optim.AdamW(plain.parameters(), penalty=prox.L1(1e-2))
    ours = optim.AdamW(shards.parameters(), penalty=prox.L1(1e-2))
    train(plain, theirs, 0, 3)
    train(shards, ours, 0, 3, torch.compile(ours.step, backend="eager"))
    assert_close(whole(shards), whole(plain))


def rounding(mesh):
    """Replicas stay the same; shards of half types keep exact zeros."""
    make = partial(optim.AdamW, lr=0.05, stochastic_rounding=True, state_dtype=torch.float32)
    for penalty in (prox.L1(0.3), prox.GroupL2(0.5, dim=1)):
        for placement in (Replicate(), Shard(0)):
            torch.manual_seed(dist.get_rank())
            p = torch.nn.Parameter(on(mesh, [placement], start().bfloat16()))
            optimizer = make([p], penalty=penalty)
            for step in range(5):
                p.grad = on(mesh, [placement], grads(step).bfloat16())
                optimizer.step()
            exact = torch.nn.Parameter(start())
            other = optim.AdamW([exact], lr=0.05, penalty=penalty)
            for step in range(5):
                exact.grad = grads(step).bfloat16().double()
                other.step()
            torch.testing.assert_close(
                p.full_tensor().double(), exact.detach(), rtol=0.05, atol=0.02
            )
            mine = p.to_local().contiguous()
            if placement == Replicate():
                everyone = [torch.empty_like(mine) for _ in range(dist.get_world_size())]
                dist.all_gather(everyone, mine)
                assert all(torch.equal(mine, t) for t in everyone)


def main(rank: int, ranks: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    torch.set_num_threads(1)
    parts = (steps, reductions, fsdp, compiled, rounding) if ranks == 2 else (reductions, two_dims)
    for part in parts:
        part(mesh)
        print(part.__name__, flush=True)
    dist.barrier()  # neither leaves before the other is done
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo that is still there would abort an orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
