"""What each of the ranks does for test_sharding.py: masks, and layers sharded over ranks.

    python masked_ranks.py RANK RANKS FILE

FILE, which does not exist yet, is where the ranks meet.
"""

from __future__ import annotations

import copy
import os
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import Replicate, Shard, distribute_tensor, init_device_mesh
from torch.distributed.tensor.parallel import parallelize_module
from torch.distributed.tensor.placement_types import _StridedShard

from torchcalc import functional, nn
from torchcalc.distributed import ColwiseParallel, RowwiseParallel

SEED = 11


def whole_and_sharded(function, tensors, placements, mesh):
    """Output and gradients of the whole tensors, and of the sharded ones, whole again."""
    whole = [t.clone().requires_grad_() for t in tensors]
    sharded = [
        distribute_tensor(t, mesh, [p]).requires_grad_()
        for t, p in zip(tensors, placements, strict=True)
    ]
    expected, actual = function(*whole), function(*sharded)
    cotangent = torch.randn_like(expected)
    expected.backward(cotangent)
    actual.backward(distribute_tensor(cotangent, mesh, actual.placements))
    return (
        [expected, *(t.grad for t in whole)],
        [actual.full_tensor(), *(t.grad.full_tensor() for t in sharded)],
        actual.placements,
    )


def same_bits(function, tensors, placements, mesh):
    expected, actual, _ = whole_and_sharded(function, tensors, placements, mesh)
    for e, a in zip(expected, actual, strict=True):
        assert torch.equal(e, a)


def close(function, tensors, placements, mesh):
    expected, actual, placed = whole_and_sharded(function, tensors, placements, mesh)
    torch.testing.assert_close(actual, expected)
    # The same elements are dropped.
    assert torch.equal(actual[0] == 0, expected[0] == 0)
    return placed


def dropouts(mesh):
    x, r = torch.randn(7, 5, 8), torch.randn(7, 5, 8)
    for at in (Shard(0), Shard(1), Shard(2), Replicate()):
        same_bits(lambda x: functional.dropout(x, 0.4, seed=SEED), [x], (at,), mesh)
        same_bits(lambda x, r: functional.dropout_add(x, r, 0.4, seed=SEED), [x, r], (at, at), mesh)
        same_bits(lambda x: functional.dropout1d(x, 0.4, seed=SEED), [x], (at,), mesh)
        same_bits(lambda x: functional.drop_path(x, 0.4, seed=SEED), [x], (at,), mesh)
        same_bits(lambda x: functional.alpha_dropout(x, 0.4, True, seed=SEED), [x], (at,), mesh)


def layers(mesh):
    everywhere = Replicate()
    for lead in ((7,), (3, 5)):
        last = len(lead)
        t = [torch.randn(*lead, 4), torch.randn(8, 4), torch.randn(8), torch.randn(*lead, 8)]
        for activation in ("gelu", "relu", "identity"):

            def layer(x, w, b, r=None, f=activation):
                return functional.linear_act(x, w, b, f, dropout_p=0.4, seed=SEED, residual=r)

            for d in range(last):
                rows = Shard(d)
                assert close(layer, t[:3], (rows, everywhere, everywhere), mesh) == (rows,)
                close(layer, t, (rows, everywhere, everywhere, rows), mesh)
            columns = everywhere, Shard(0), Shard(0)

            def plain(x, w, b, r, f=activation):
                return functional.linear_act(x, w, b, f, residual=r)

            close(plain, t, (*columns, Shard(last)), mesh)
            assert close(layer, t[:3], columns, mesh) == (Shard(last),)
            close(layer, t, (*columns, Shard(last)), mesh)
            # The sum over ranks comes before f.
            summed = Shard(last), Shard(1), everywhere
            assert close(layer, t[:3], summed, mesh) == (everywhere,)
            close(layer, t, (*summed, everywhere), mesh)


def gated(mesh):
    everywhere, columns = Replicate(), Shard(0)
    halves = _StridedShard(0, split_factor=2)  # of gates and of values, each rank some
    for lead in ((7,), (3, 5)):
        last = len(lead)
        one = [torch.randn(*lead, 4), torch.randn(12, 4), torch.randn(12)]
        pair = [one[0], *(torch.randn(6, 4) for _ in "gv"), *(torch.randn(6) for _ in "gv")]
        for p in (0.0, 0.4):

            def layer(x, w, b, p=p):
                return functional.gated_linear(x, w, b, dropout_p=p, seed=SEED)

            def layer_of_pairs(x, wg, wv, bg, bv, p=p):
                return functional.gated_linear(x, (wg, wv), (bg, bv), dropout_p=p, seed=SEED)

            for d in range(last):
                rows = Shard(d)
                assert close(layer, one, (rows, everywhere, everywhere), mesh) == (rows,)
                assert close(layer_of_pairs, pair, (rows, *[everywhere] * 4), mesh) == (rows,)
            assert close(layer_of_pairs, pair, (everywhere, *[columns] * 4), mesh) == (Shard(last),)
            assert close(layer, one, (everywhere, halves, halves), mesh) == (Shard(last),)


def mlps(mesh):
    everywhere, rows = Replicate(), Shard(0)
    t = [torch.randn(s) for s in ((7, 4), (9, 4), (9,), (5, 9), (5,), (7, 5))]
    for activation in ("gelu", "relu"):

        def block(x, w1, b1, w2, b2, r=None, f=activation):
            p = {"hidden_dropout_p": 0.3, "dropout_p": 0.4}
            return functional.mlp(x, w1, b1, w2, b2, f, **p, seed=SEED, residual=r)

        tensor_parallel = everywhere, Shard(0), Shard(0), Shard(1), everywhere, everywhere
        assert close(block, t, tensor_parallel, mesh) == (everywhere,)
        close(block, t[:5], tensor_parallel[:5], mesh)
        assert close(block, t, (rows, *[everywhere] * 4, rows), mesh) == (rows,)


def refusals(mesh):
    """Each rank refuses by the whole tensors' shapes, so that none waits for another."""
    x, row = (distribute_tensor(torch.ones(6, 8), mesh, [p]) for p in (Replicate(), Shard(1)))

    def of(*shape, at=None):
        return distribute_tensor(torch.ones(shape), mesh, [at or Replicate()])

    f, rows = functional, Shard(1)
    big = {"dropout_p": 0.1, "seed": 2**63}
    for call, error, name in (
        (lambda: f.linear_act(x, of(8, 7, at=rows)), ValueError, "x must"),
        (lambda: f.linear_act(row, of(8, 8, at=rows), of(1)), ValueError, "bias"),
        (lambda: f.linear_act(row, of(8, 8, at=rows), of(8).double()), TypeError, "bias"),
        (lambda: f.linear_act(x, torch.ones(8, 8)), TypeError, "weight must be a DTensor"),
        (lambda: f.mlp(x, of(8, 8, at=Shard(0)), None, of(8, 8), of(1)), ValueError, "bias2"),
        (lambda: f.dropout(x, 0.5, seed=1.5), TypeError, "seed"),
        (lambda: f.mlp(x, of(8, 8), None, of(8, 8), None, **big), ValueError, "seed"),
        (lambda: f.gated_linear(x, (of(8, 8), torch.ones(8, 8))), TypeError, "weight must"),
    ):
        with pytest.raises(error, match=name):
            call()
    before = torch.get_rng_state()
    f.mlp(x, of(8, 8), None, of(8, 8), None, dropout_p=0.1, training=False)
    assert torch.equal(torch.get_rng_state(), before)  # no seed is drawn where nothing is dropped


def modules(mesh):
    def check(module, plan, x, *residual):
        parallel = parallelize_module(copy.deepcopy(module), mesh, plan)
        torch.manual_seed(SEED)
        expected = module(x, *residual)
        torch.manual_seed(SEED)
        actual = parallel(x, *residual)
        torch.testing.assert_close(actual, expected)
        expected.square().sum().backward()
        actual.square().sum().backward()
        for (name, p), q in zip(module.named_parameters(), parallel.parameters(), strict=True):
            torch.testing.assert_close(q.grad.full_tensor(), p.grad, msg=name)
        state = {k: v.full_tensor() for k, v in parallel.state_dict().items()}
        torch.testing.assert_close(state, dict(module.state_dict()))

    ranks = mesh.size()
    x = torch.randn(6, 4)
    column = nn.LinearAct(4, 6 * ranks + 1, activation="gelu", dropout_p=0.4)
    row = nn.LinearAct(6 * ranks + 1, 4, activation="tanh", dropout_p=0.4)
    pair = torch.nn.Sequential(column, row)
    check(pair, {"0": ColwiseParallel(), "1": RowwiseParallel()}, x)
    check(nn.MLP(4, 6 * ranks + 1, 5, dropout_p=0.3, hidden_dropout_p=0.4), ColwiseParallel(), x)
    style = ColwiseParallel()  # of several modules, each with its own layout of the output
    together = torch.nn.ModuleList([nn.LinearAct(4, 6), nn.MLP(4, 6)])
    parallelize_module(together, mesh, {"0": style, "1": style})
    assert together[0](x).shape[-1] == 6 // ranks
    layer = nn.GatedLinear(4, 6 * ranks, activation=torch.nn.SiLU(), dropout_p=0.4)
    check(layer, ColwiseParallel(output_layouts=Replicate()), x)
    gated = nn.MLP(4, 6 * ranks, gated=True, dropout_p=0.3, hidden_dropout_p=0.4)
    check(gated, ColwiseParallel(), x)
    uneven = nn.GatedLinear(4, 6 * ranks + 1)
    with pytest.raises(ValueError, match="multiple of the"):
        parallelize_module(uneven, mesh, ColwiseParallel())
    block = nn.MLP(4, 6 * ranks, activation="relu", dropout_p=0.3)
    check(block, ColwiseParallel(), x, torch.randn(6, 4))
    check(torch.nn.Linear(4, 6), ColwiseParallel(output_layouts=Replicate()), x)


def compiled(mesh):
    """Without a mask layers compile as a whole; one's shard is not known to the compiler."""
    n = 2 * mesh.size()
    x = torch.randn(3, n)
    for module, style in (
        (nn.LinearAct(n, n), ColwiseParallel()),
        (nn.LinearAct(n, n), RowwiseParallel(input_layouts=Replicate())),
        (nn.GatedLinear(n, n), ColwiseParallel()),
        (nn.MLP(n, n), ColwiseParallel()),
        (nn.MLP(n, n, gated=True), ColwiseParallel()),
    ):
        parallel = parallelize_module(module, mesh, style)
        torch.compiler.reset()
        y = torch.compile(parallel, backend="aot_eager", fullgraph=True)(x)
        torch.testing.assert_close(y, parallel(x))
        y.sum().backward()
        assert all(p.grad is not None for p in parallel.parameters())


def autocast(mesh):
    """What is added after a sum over ranks has its dtype."""
    x = torch.randn(3, 8)
    for module, style in (
        (nn.LinearAct(8, 6), RowwiseParallel(input_layouts=Replicate())),
        (nn.MLP(8, 6), ColwiseParallel()),
        (nn.MLP(8, 6, dropout_p=0.5), ColwiseParallel()),
    ):
        parallel = parallelize_module(module, mesh, style)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert parallel(x).dtype == torch.bfloat16


def main(rank: int, ranks: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=ranks)
    mesh = init_device_mesh("cpu", (ranks,))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for part in (dropouts, layers, gated, mlps, refusals, modules, compiled, autocast):
        part(mesh)
        print(part.__name__, flush=True)
    dist.barrier()  # neither leaves before the others are done
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo that is still there would abort an orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
