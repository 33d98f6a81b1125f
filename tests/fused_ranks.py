"""What each of two ranks does for test_fuse_tools.py: trains a fused model under DDP and FSDP2.

    python fused_ranks.py RANK FILE

FILE, which does not exist yet, is where the ranks meet.
"""

from __future__ import annotations

import copy
import os
import sys

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import torchcalc
from torchcalc.testing.models import MODELS, TINY, loss_of


def step(model, inputs):
    """The loss of a step of SGD without dropout, and the parameters after it."""
    model.eval()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss = loss_of(model(**inputs))
    loss.backward()
    optimizer.step()
    whole = (p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters())
    return loss.detach(), [p.detach() for p in whole]


def sharded(model, blocks):
    for block in blocks(model):
        fully_shard(block)
    return fully_shard(model)


def check(got, expected):
    torch.testing.assert_close(got[0], expected[0])
    for a, b in zip(got[1], expected[1], strict=True):
        torch.testing.assert_close(a, b)


def main() -> None:
    torch.manual_seed(0)
    plain = MODELS["encoder-norm-first"].build(TINY)
    inputs = MODELS["encoder-norm-first"].inputs(TINY)
    expected = step(copy.deepcopy(plain), inputs)
    fused = copy.deepcopy(plain)
    torchcalc.fuse(fused)
    check(step(DistributedDataParallel(copy.deepcopy(fused)), inputs), expected)
    for blocks in (lambda m: m.layers, lambda m: [layer.linear1 for layer in m.layers]):
        check(step(sharded(copy.deepcopy(fused), blocks), inputs), expected)
        late = sharded(copy.deepcopy(plain), blocks)
        torchcalc.fuse(late)
        check(step(late, inputs), expected)


if __name__ == "__main__":
    rank, file = int(sys.argv[1]), sys.argv[2]
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    main()
    print("ok")
    dist.destroy_process_group()
