"""What each of two ranks does for test_optim_ranks.py: trains a model on half of each batch.

    python data_parallel_ranks.py RANK FILE

FILE, which does not exist yet, is where the ranks meet.
"""

from __future__ import annotations

import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.nn.parallel import DistributedDataParallel
from training import KINDS, OPTIONS

from torchcalc import optim, prox

STEPS = 6


def make_model():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3)
    ).double()


def options_of(kind):
    penalty = {} if kind == "FTRL" else {"penalty": prox.GroupL2(0.05, dim=0), "prox_start": 2}
    return {**OPTIONS[kind], **penalty}


def groups(model):
    """Biases have no groups of rows to speak of, and no penalty."""
    weights = [p for p in model.parameters() if p.dim() > 1]
    return [{"params": weights}, {"params": [p for p in model.parameters() if p.dim() < 2]}]


def train(model, optimizer, rows, steps=STEPS, first=0):
    for step in range(first, first + steps):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        optimizer.zero_grad()
        model(x[rows]).square().mean().backward()
        optimizer.step()


def assert_equal_everywhere(model, expected):
    for p, e in zip(model.parameters(), expected.parameters(), strict=True):
        both = [torch.empty_like(p) for _ in range(2)]
        dist.all_gather(both, p.detach())
        assert torch.equal(*both)
        torch.testing.assert_close(p, e, rtol=1e-8, atol=1e-9)


def one_process(kind):
    model = make_model()
    train(model, getattr(optim, kind)(groups(model), **options_of(kind)), slice(None))
    return model


def data_parallel(kind, rows):
    model = make_model()
    optimizer = getattr(optim, kind)(groups(model), **options_of(kind))
    train(DistributedDataParallel(model), optimizer, rows)
    return model


def zero_redundancy(kind, rows):
    """Each rank has the states of half of the parameters; saved in the middle, and gone on from."""
    model = make_model()

    def make():
        # It has no groups at its construction.
        weights, biases = groups(model)
        own = ZeroRedundancyOptimizer(weights["params"], getattr(optim, kind), **options_of(kind))
        own.add_param_group(biases)
        return own

    first = make()
    parallel = DistributedDataParallel(model)
    train(parallel, first, rows, steps=STEPS // 2)
    first.consolidate_state_dict(to=0)
    saved = [first.state_dict() if dist.get_rank() == 0 else None]
    dist.broadcast_object_list(saved, src=0)
    second = make()
    second.load_state_dict(saved[0])
    train(parallel, second, rows, steps=STEPS - STEPS // 2, first=STEPS // 2)
    return model


def main(rank: int, file: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    torch.set_num_threads(1)
    rows = slice(rank, None, 2)
    for kind in KINDS:
        expected = one_process(kind)
        for part in (data_parallel, zero_redundancy):
            assert_equal_everywhere(part(kind, rows), expected)
            print(f"{part.__name__}:{kind}", flush=True)
    dist.barrier()  # neither leaves before the other is done
    dist.destroy_process_group()
    os._exit(0)  # a thread of gloo that is still there would abort an orderly end


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
