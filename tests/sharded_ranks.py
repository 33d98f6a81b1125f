"""What each of two ranks does for test_sharding.py: runs the ops on DTensors and on whole tensors.

    python sharded_ranks.py RANK FILE

FILE, which does not exist yet, is where the ranks meet.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh

from torchcalc import functional, nn


def check(function, tensors, placements, mesh):
    """Values and gradients of ``function`` on DTensors equal those on the whole tensors."""
    whole = [t.clone().requires_grad_() for t in tensors]
    sharded = [
        distribute_tensor(t, mesh, [p]).requires_grad_()
        for t, p in zip(tensors, placements, strict=True)
    ]
    expected, actual = function(*whole), function(*sharded)
    assert isinstance(actual, DTensor)
    torch.testing.assert_close(actual.full_tensor(), expected)
    expected.square().sum().backward()
    actual.square().sum().backward()
    for w, s in zip(whole, sharded, strict=True):
        torch.testing.assert_close(s.grad.full_tensor(), w.grad)
    return actual.placements


def linear_act(mesh):
    rows, cols, all_of_it = Shard(0), Shard(1), Replicate()
    for lead in ((6,), (2, 6)):
        t = [torch.randn(*lead, 4), torch.randn(8, 4), torch.randn(8), torch.randn(*lead, 8)]
        last = Shard(len(lead))
        for activation in ("identity", "relu", "gelu"):

            def layer(x, weight, bias, residual=None, activation=activation):
                return functional.linear_act(x, weight, bias, activation, residual=residual)

            # data parallel; tensor parallel by columns; with a residual
            for d in range(len(lead)):
                at = check(layer, t[:3], (Shard(d), all_of_it, all_of_it), mesh)
                assert at == (Shard(d),)
                check(layer, t, (Shard(d), all_of_it, all_of_it, Shard(d)), mesh)
            assert check(layer, t[:3], (all_of_it, rows, rows), mesh) == (last,)
            check(layer, t, (all_of_it, rows, rows, last), mesh)

            def block(x, up, down, activation=activation):
                hidden = functional.linear_act(x, up, activation=activation)
                return functional.linear_act(hidden, down, activation="identity")

            check(block, [t[0], t[1], torch.randn(4, 8)], (all_of_it, rows, cols), mesh)
        # a mask is that of the whole tensor
        check(
            lambda x, w, b: functional.linear_act(x, w, b, dropout_p=0.5, seed=3),
            t[:3],
            (Shard(0), all_of_it, all_of_it),
            mesh,
        )


def prox(mesh):
    x, lam, one = torch.randn(6, 4), torch.rand(6, 4), torch.rand(())
    for at in (Shard(0), Shard(1)):
        check(lambda x: functional.soft_threshold(x, 0.3), [x], (at,), mesh)
        check(functional.prox_l2, [x, lam], (at, at), mesh)
        check(functional.prox_elastic_net, [x, lam, one], (at, at, Replicate()), mesh)


def dropout(mesh):
    check(lambda x: functional.dropout(x, 0.5, seed=3), [torch.randn(6, 4)], (Shard(0),), mesh)
    # Each rank draws a seed of its own; the first one's counts.
    torch.manual_seed(dist.get_rank())
    y = functional.dropout(distribute_tensor(torch.ones(64), mesh, [Replicate()]), 0.5)
    both = [torch.empty(64) for _ in range(2)]
    dist.all_gather(both, y.to_local())
    assert torch.equal(*both)


def data_parallel(mesh):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    model = torch.nn.Sequential(
        nn.LinearAct(8, 16, activation="gelu"), nn.LinearAct(16, 4, activation="identity")
    )
    x = torch.randn(6, 8)
    expected = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    model(x).square().sum().backward()
    for p, e in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad.full_tensor(), e)


def main(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for part in (linear_act, prox, dropout, data_parallel):
        part(mesh)
        print(part.__name__, flush=True)
    dist.barrier()  # neither leaves before the other is done
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo that is still there would abort an orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
