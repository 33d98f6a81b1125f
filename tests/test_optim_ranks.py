"""Data parallel training on two ranks of gloo: DDP, ZeroRedundancyOptimizer."""

from __future__ import annotations

import pytest
import torch
from test_sharding import run
from training import KINDS

pytestmark = [
    pytest.mark.no_kernels,  # what a rank's own step does is tested in one process
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="torch has no torch.distributed"
    ),
]


def test_two_ranks_are_as_one(tmp_path):
    for printed in run(2, "data_parallel_ranks.py", str(tmp_path / "meeting")):
        parts = ("data_parallel", "zero_redundancy")
        assert printed == [f"{part}:{kind}" for kind in KINDS for part in parts]
