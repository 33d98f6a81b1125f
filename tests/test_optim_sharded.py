"""Optimizers of sharded parameters: DTensor and FSDP2, on a few ranks of gloo."""

import pytest
import torch
from test_sharding import run

pytestmark = [
    pytest.mark.no_kernels,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="torch has no torch.distributed"
    ),
]


@pytest.mark.parametrize(
    ("ranks", "parts"),
    [
        (2, ["steps", "reductions", "fsdp", "compiled", "rounding"]),
        (4, ["reductions", "two_dims"]),  # more than some tensors have rows
    ],
)
def test_sharded_parameters(ranks, parts, tmp_path):
    for printed in run(ranks, "optim_ranks.py", str(ranks), str(tmp_path / "meeting")):
        assert printed == parts
