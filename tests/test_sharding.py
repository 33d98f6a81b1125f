"""The ops on sharded tensors: DTensor, tensor parallel and FSDP2, on a few ranks of gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.no_kernels,  # what is a shard's own is tested in one process
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="torch has no torch.distributed"
    ),
]


def run(count, script, *arguments):
    """What each of so many ranks prints."""

    def rank(number):
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", HERE / script, str(number), *arguments],
            env={**os.environ, "PYTHONPATH": str(HERE.parent), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    ranks = [rank(number) for number in range(count)]
    try:
        for process in ranks:
            out, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
            yield out.split()
    finally:
        for process in ranks:
            process.kill()


def test_ops_on_two_ranks(tmp_path):
    for printed in run(2, "sharded_ranks.py", str(tmp_path / "meeting")):
        assert printed == ["linear_act", "prox", "dropout", "data_parallel"]


@pytest.mark.parametrize("ranks", [2, 3])
def test_masks_and_layers(ranks, tmp_path):
    for printed in run(ranks, "masked_ranks.py", str(ranks), str(tmp_path / "meeting")):
        parts = ["dropouts", "layers", "gated", "mlps", "refusals", "modules"]
        assert printed == [*parts, "compiled", "autocast"]
