"""The ops on sharded tensors: DTensor, tensor parallel and FSDP2, on two ranks of gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("sharded_ranks.py")


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch has no torch.distributed")
def test_two_ranks(tmp_path):
    def rank(number):
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", SCRIPT, str(number), tmp_path / "meeting"],
            env={**os.environ, "PYTHONPATH": str(SCRIPT.parents[1]), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    ranks = [rank(0), rank(1)]
    try:
        for process in ranks:
            out, errors = process.communicate(timeout=200)
            assert process.returncode == 0, errors
            assert out.split() == ["linear_act", "prox", "dropout", "data_parallel"]
    finally:
        for process in ranks:
            process.kill()
